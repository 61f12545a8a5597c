"""Sekai-style clips as training data, streamed: a clip is decoded and encoded when a world begins to walk through it.

Shards (train.data, corpus.py) are read from memory and are what small pictures want; latents of large pictures of many clips fit
no memory. Both give the pool of worlds the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.data import sekai
from train.data.corpus import Corpus
from train.data.latents import encode_walk
from train.data.shards import Header, Walk, WalkInfo
from train.data.video import VideoError
from train.engine.sharding import own_device
from train.evaluation.sheet import to_video
from world_model.actions import Action
from world_model.conditions import Motion
from world_model.config import ModelConfig
from world_model.priors.scene import ScenePrior
from world_model.text import build_text_encoder
from world_model.vae import VideoVAE


@dataclass(frozen=True)
class _Read:
    """What is kept of a clip: its latents float16 [C, F, h, w], the picture before each block, its words, and its camera frame by
    frame (a batch of one; displacement from the world's origin)."""

    latents: Tensor
    pictures: np.ndarray
    directions: list[tuple[float, float]]
    actions: list[int]
    motion: Motion
    info: WalkInfo


class Clips:
    """The clips below `folder`, each a walk of `blocks` blocks from its first frame; the same face as `Corpus`.

    Clips that cannot be used (too short, contradictory: the reason is told once) are stood for by the next one. The `kept` clips
    used last are in memory. Raises FileNotFoundError where there are none, ValueError for a model with priors, whose
    deviations are measured on shards.
    """

    def __init__(self, config: ModelConfig, folder: Path, vae: VideoVAE, blocks: int = 3, kept: int = 64) -> None:
        if config.priors:
            raise ValueError(
                f"{config.name} has priors and trains on shards: python -m train.data {config.name} sekai-read"
            )
        self.config, self.blocks, self._vae, self._kept = config, blocks, vae, kept
        self.towns = [0]
        self._videos = sekai.find_clips(folder)
        self._header = Header(
            config.name, config.height, config.width, config.fps, config.frames_per_block, blocks, 0, {}
        )
        self._read: OrderedDict[int, _Read] = OrderedDict()
        self._bad: set[int] = set()
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._videos)

    def info(self, walk: int) -> WalkInfo:
        return self._clip(walk).info

    def picture(self, walk: int, block: int) -> Tensor:
        """[3, H, W] in -1..1: the last picture before `block` (for block 0 its first)."""
        return to_video(self._clip(walk).pictures[block : block + 1])[:, 0]

    def direction(self, walk: int, block: int) -> tuple[float, float]:
        """(yaw, pitch) of `picture(walk, block)`, radians."""
        return self._clip(walk).directions[block]

    def position(self, walk: int, block: int) -> tuple[float, float]:
        """(x, z) of `picture(walk, block)`, metres."""
        x, z = self._clip(walk).motion.displacement[0, max(block * self.config.frames_per_block - 1, 0)].tolist()
        return x, z

    def motion(self, walks: Sequence[int], blocks: Sequence[int]) -> Motion:
        """How the camera truly moved in given blocks of given walks."""
        size = self.config.frames_per_block
        parts = [(self._clip(w).motion, slice(b * size, (b + 1) * size)) for w, b in zip(walks, blocks)]
        yaw, pitch, place = (
            torch.stack([getattr(m, name)[0, s] for m, s in parts]) for name in ("yaw", "pitch", "displacement")
        )
        start = torch.tensor([self.position(w, b) for w, b in zip(walks, blocks)], dtype=torch.float64)
        return Motion(yaw, pitch, place - start[:, None])

    def frames(self, walk: int, block: int, blocks: int) -> np.ndarray:
        """uint8 [blocks * T, H, W, 3] of the true walk, read anew."""
        size = self.config.frames_per_block
        self._clip(walk)
        return self._walk(self._usable(walk)).frames[block * size : (block + blocks) * size]

    def block(self, walk: int, block: int) -> Tensor:
        """[C, K, h, w] float32 latents of one block."""
        size = self.config.block_latents
        return self._clip(walk).latents[:, block * size : (block + 1) * size].float()

    def action(self, walk: int, block: int) -> Action:
        return Action.from_index(self._clip(walk).actions[block])

    def text(self, text: str | None) -> Tensor:
        """[event_tokens, dim] float32; None and "" are zeros."""
        if not text:
            return torch.zeros(self.config.text.event_tokens, self.config.text.dim)
        encoder = build_text_encoder(self.config.text)
        return _cached(
            self._texts, text, 4 * self._kept, lambda: encoder.encode(text, self.config.text.event_tokens).half()
        ).float()

    def prior_deviation(self, scene: ScenePrior, vae: VideoVAE) -> Tensor:
        """Never asked for: models with priors are refused."""
        raise NotImplementedError

    def _clip(self, walk: int) -> _Read:
        for _ in self._videos:
            place = self._usable(walk)
            try:
                return _cached(self._read, place, self._kept, partial(self._encoded, place))
            except (sekai.ClipError, VideoError) as problem:
                self._bad.add(place)
                tqdm.write(f"not used: {problem}")
        raise FileNotFoundError(f"none of the {len(self)} clips can be used, the last one was {self._videos[walk]}")

    def _usable(self, walk: int) -> int:
        """The clip that stands for `walk`: itself, or the next one not known to be bad."""
        places = [(walk + i) % len(self) for i in range(len(self))] if walk in self._bad else [walk]
        return next((place for place in places if place not in self._bad), walk)

    def _walk(self, place: int) -> Walk:
        return sekai.walks_of(sekai.read_clip(self._videos[place]), self._header, self.config.camera)[0]

    def _encoded(self, place: int) -> _Read:
        walk, size = self._walk(place), self.config.frames_per_block
        before = [max(block * size - 1, 0) for block in range(self.blocks)]
        directions = [(float(walk.yaw[i]), float(walk.pitch[i])) for i in before]
        latents = torch.from_numpy(encode_walk(self._vae, walk, str(own_device())))
        motion = Motion(*(torch.from_numpy(a).double()[None] for a in (walk.yaw, walk.pitch, walk.position)))
        return _Read(latents, walk.frames[before], directions, walk.action.tolist(), motion, walk.info)


def _cached(store: OrderedDict[Any, Any], key: Any, size: int, make: Callable[[], Any]) -> Any:
    """store[key], made if need be; the `size` used last are kept."""
    if key not in store:
        store[key] = make()
    store.move_to_end(key)
    while len(store) > size:
        store.popitem(last=False)
    return store[key]


def open_corpus(config: ModelConfig, folder: Path, vae: VideoVAE) -> Corpus:
    """The clips of `folder` where it has folders of clips, which `vae` will encode; else its encoded shards."""
    if any(folder.glob("Keys_*")):
        return Clips(config, folder, vae)  # type: ignore[return-value]
    return Corpus(config, folder)
