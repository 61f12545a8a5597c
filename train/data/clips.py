"""Sekai-style clips as training data, streamed: a clip is decoded and encoded when a world begins on it.

Shards (train.data, corpus.py) are read from memory and are what small pictures want; latents of large pictures of many clips fit
no memory. Both give the pool of worlds the same. A clip may be of any length from one block on: it is decoded and encoded block by
block, and what is kept of the clips used last is bounded in bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.data import sekai
from train.data.corpus import Corpus
from train.data.labels import ClipError
from train.data.mixture import order
from train.data.shards import HELD_OUT, Header, Trajectory, TrajectoryInfo
from train.data.video import VideoError, VideoFrames
from train.engine.sharding import own_device
from train.evaluation.sheet import to_video
from world_model.actions import Action
from world_model.conditions import Motion
from world_model.config import ModelConfig
from world_model.vae import VideoVAE

KEPT = 8 * 2**30  # bytes of clips in memory, a process


@dataclass(frozen=True)
class _Read:
    """What is kept of a clip: its latents float16 [C, F, h, w], the picture before each block uint8 [blocks, H, W, 3], and its
    trajectory without pictures."""

    latents: Tensor
    pictures: np.ndarray
    trajectory: Trajectory

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + self.pictures.nbytes


class Clips:
    """The clips below `folder`, each a trajectory of as many whole blocks as it has; the same face as `Corpus`.

    Clips that cannot be used (shorter than a block, contradictory: the reason is told once) are stood for by the next one. The
    clips used last are in memory, up to `kept` bytes and one at least. Raises FileNotFoundError where there are none, ValueError
    for a model with priors, whose deviations are measured on shards.
    """

    def __init__(self, config: ModelConfig, folder: Path, vae: VideoVAE, kept: int = KEPT) -> None:
        if config.priors:
            raise ValueError(
                f"{config.name} has priors and trains on shards: python -m train.data {config.name} sekai-read"
            )
        self.config, self._vae, self._kept = config, vae, kept
        self.towns = [0]
        self._videos = sekai.find_clips(folder)
        self._order = order(folder, self._videos, HELD_OUT)
        self._header = Header(config.name, config.height, config.width, config.fps, config.frames_per_block, 1, 0, {})
        self._read: OrderedDict[int, _Read] = OrderedDict()
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self._order)

    def blocks_of(self, trajectory: int) -> int:
        """Whole blocks of a clip."""
        return len(self._clip(trajectory).pictures)

    def info(self, trajectory: int) -> TrajectoryInfo:
        return self._clip(trajectory).trajectory.info

    def picture(self, trajectory: int, block: int) -> Tensor:
        """[3, H, W] in -1..1: the last picture before `block` (for block 0 its first)."""
        return to_video(self._clip(trajectory).pictures[block : block + 1])[:, 0]

    def direction(self, trajectory: int, block: int) -> tuple[float, float]:
        """(yaw, pitch) of `picture(trajectory, block)`, radians."""
        found, frame = self._clip(trajectory).trajectory, self._before(block)
        return float(found.yaw[frame]), float(found.pitch[frame])

    def position(self, trajectory: int, block: int) -> tuple[float, float]:
        """(x, z) of `picture(trajectory, block)`, metres."""
        x, z = self._clip(trajectory).trajectory.position[self._before(block)].tolist()
        return x, z

    def motion(self, walks: Sequence[int], blocks: Sequence[int]) -> Motion:
        """How the camera truly moved in given blocks of given walks."""
        size = self.config.frames_per_block
        rows = [
            (self._clip(trajectory).trajectory, slice(b * size, (b + 1) * size)) for trajectory, b in zip(walks, blocks)
        ]
        yaw, pitch, positions = (
            torch.stack([torch.from_numpy(getattr(trajectory, name)[row]) for trajectory, row in rows]).double()
            for name in ("yaw", "pitch", "position")
        )
        start = torch.tensor([self.position(w, b) for w, b in zip(walks, blocks)], dtype=torch.float64)
        return Motion(yaw, pitch, positions - start[:, None])

    def frames(self, trajectory: int, block: int, blocks: int) -> np.ndarray:
        """uint8 [blocks * T, H, W, 3] of the true trajectory, read anew."""
        size = self.config.frames_per_block
        self._clip(trajectory)
        pictures = (picture for picture, _ in self._stream(self._usable(trajectory)))
        return np.stack(list(islice(pictures, block * size, (block + blocks) * size)))

    def block(self, trajectory: int, block: int) -> Tensor:
        """[C, K, h, w] float32 latents of one block."""
        size = self.config.block_latents
        return self._clip(trajectory).latents[:, block * size : (block + 1) * size].float()

    def action(self, trajectory: int, block: int) -> Action:
        return Action.from_index(int(self._clip(trajectory).trajectory.action[block]))

    def _before(self, block: int) -> int:
        """The frame before a block; of the first block the first one."""
        return max(block * self.config.frames_per_block - 1, 0)

    def _stream(self, number: int) -> VideoFrames:
        return VideoFrames(self._videos[number], self.config.height, self.config.width, self.config.fps)

    def _clip(self, trajectory: int) -> _Read:
        for _ in self._videos:
            number = self._usable(trajectory)
            try:
                if number not in self._read:
                    self._read[number] = self._encoded(number)
            except (ClipError, VideoError) as problem:
                self._bad.add(number)
                tqdm.write(f"not used: {problem}")
                continue
            self._read.move_to_end(number)
            while len(self._read) > 1 and sum(read.nbytes for read in self._read.values()) > self._kept:
                self._read.popitem(last=False)
            return self._read[number]
        raise FileNotFoundError(
            f"none of the {len(self._videos)} clips can be used, the last one was {self._videos[self._order[trajectory]]}"
        )

    def _usable(self, trajectory: int) -> int:
        """The clip that stands for `trajectory`: itself, or the next one not known to be bad."""
        first = self._order[trajectory]
        if first not in self._bad:
            return first
        candidates = (self._order[(trajectory + i) % len(self)] for i in range(len(self)))
        return next((number for number in candidates if number not in self._bad), first)

    @torch.inference_mode()
    def _encoded(self, number: int) -> _Read:
        clip, stream, size = sekai.read_clip(self._videos[number]), self._stream(number), self.config.frames_per_block
        before: list[np.ndarray] = []
        indices: list[int] = []

        def blocks() -> Iterator[Tensor]:
            pairs, last = iter(stream), None
            while len(block := list(islice(pairs, size))) == size:
                pictures = np.stack([picture for picture, _ in block])
                before.append(pictures[0] if last is None else last)
                indices.extend(index for _, index in block)
                last = pictures[-1].copy()
                yield to_video(pictures)[None].to(own_device())

        latents = [latent[0].half().cpu() for latent in self._vae.encode_stream(blocks())]
        sekai.check_poses(clip, stream.count)
        if not latents:
            raise ClipError(
                f"{clip.video}: {stream.count} frames are fewer than a block needs, {size} at {self.config.fps} fps"
            )
        trajectory = sekai.walk_of(clip, np.zeros((0,), np.uint8), np.array(indices), self._header, self.config.camera)
        return _Read(torch.cat(latents, dim=1), np.stack(before), trajectory)


def open_corpus(config: ModelConfig, folder: Path, vae: VideoVAE) -> Corpus:
    """The encoded shards of `folder` where it has shards; else its clips, which `vae` will encode."""
    if holds_clips(folder):
        return Clips(config, folder, vae)  # type: ignore[return-value]
    return Corpus(config, folder)


def holds_clips(folder: Path) -> bool:
    """Whether a folder is read as clips: it has videos below it and no shards."""
    return next(folder.rglob("shard_*"), None) is None and next(folder.rglob("*.mp4"), None) is not None
