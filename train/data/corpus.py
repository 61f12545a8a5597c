"""Encoded walks in memory: what the DiT's training reads. Shards come from `train.data render` and `encode`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from train.data.latents import block_guides, encode_walk, walk_video
from train.data.shards import HELD_OUT, Header, Shard, Trajectory, TrajectoryInfo, find_shards, latents_path
from train.evaluation.sheet import to_video
from world_model.actions import Action
from world_model.conditions import Motion
from world_model.config import ModelConfig
from world_model.priors.config import places_of
from world_model.priors.distance_field import APART
from world_model.priors.scene import ScenePrior
from world_model.priors.warp import guide_block
from world_model.text import build_text_encoder
from world_model.vae import VideoVAE


def town_of(config: ModelConfig, header: Header) -> int:
    """Which of the towns that models of this config know shards show; the first where they know none, or shards name none.
    ValueError for another town."""
    places, seed = places_of(config), header.source.get("town_seed")
    if places is None or seed is None:
        return 0
    if seed not in places.towns:
        raise ValueError(f"these walks are of town {seed}; {config.name} knows the towns {places.towns} (places.towns)")
    return places.towns.index(int(seed))


def town_start(config: ModelConfig, town: int) -> np.ndarray:
    """(x, z) float64 in metres at which a known town begins (`Places`); zeros for models that know none."""
    places = places_of(config)
    return np.array([town * APART * places.period if places is not None else 0.0, 0.0])


class Corpus:
    """All walks of a folder: latents float16 in memory, pictures on disk.

    Walks are numbered through all shards; the first `HELD_OUT` are for evaluation. Each is in the coordinates of its town
    (`Places`); `towns` are the numbers of all there are.
    """

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.config = config
        paths = [path for path in find_shards(folder) if latents_path(path).exists()]
        if not paths:
            raise FileNotFoundError(
                f"no encoded shards in {str(folder)!r}: run `python -m train.data {config.name} encode` first"
            )
        self._shards = [Shard(path) for path in paths]
        self._places = [(shard, i) for shard in self._shards for i in range(len(shard))]
        self.latents = np.concatenate([load_file(latents_path(path))["latent"] for path in paths])
        self.actions, self.yaw, self.pitch = (
            np.concatenate([getattr(s, name) for s in self._shards]) for name in ("action", "yaw", "pitch")
        )
        starts = [town_start(config, town_of(config, s.header)) for s in self._shards]
        self._positions = np.concatenate([s.position + start for s, start in zip(self._shards, starts)])
        self.towns = sorted({town_of(config, s.header) for s in self._shards})
        self.blocks = self._shards[0].header.blocks_per_walk
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def prior_deviation(self, scene: ScenePrior, vae: VideoVAE, walks: int = 16) -> Tensor:
        """[2, C]: deviation of the latents from how the prior knows the place (from zero if it knows none), and from its guide
        where that saw something."""
        places = self._places[HELD_OUT : HELD_OUT + walks] or self._places
        spread, error, count = (torch.zeros(self.config.dit.latent_channels) for _ in range(3))
        for shard, i in places:
            trajectory = shard.trajectory(i)
            data = torch.from_numpy(encode_walk(vae, trajectory)).float()
            guide = block_guides(
                self.config, partial(guide_block, scene.depth, vae), walk_video(trajectory), trajectory
            )
            later = data.unflatten(1, (self.blocks, -1))[:, 1:].transpose(0, 1)  # the guide's blocks
            seen = (guide.valid > 0.99).expand_as(later)
            start = town_start(self.config, town_of(self.config, shard.header))
            known = self._known(scene, trajectory, start, data) if scene.places is not None else 0
            spread += (later - known).square().transpose(0, 1).flatten(1).mean(dim=1)
            error += ((later - guide.latents).square() * seen).transpose(0, 1).flatten(1).sum(dim=1)
            count += seen.transpose(0, 1).flatten(1).sum(dim=1)
        return torch.stack([spread / len(places), error / count]).sqrt()

    def _known(self, scene: ScenePrior, trajectory: Trajectory, start: np.ndarray, data: Tensor) -> Tensor:
        """The prior's mean [B, C, K, h, w] along a trajectory in the town that begins at `start`, from its second block on;
        light as in the picture before."""
        assert scene.places is not None
        size, stride = self.config.frames_per_block, self.config.vae.temporal_stride
        place, yaw, pitch = (
            torch.from_numpy(a).double().unflatten(0, (self.blocks, size))[1:, stride - 1 :: stride]
            for a in (trajectory.position + start, trajectory.yaw, trajectory.pitch)
        )
        before = data.unflatten(1, (self.blocks, -1))[:, :-1, -1].transpose(0, 1)
        words = torch.stack([self.text(trajectory.info.event_at(block)) for block in range(1, self.blocks)])
        first = data[None, :, 0].expand_as(before)
        look = scene.places.looks(first, before, torch.ones(len(before), dtype=torch.bool), words)
        return scene.places(place, yaw, pitch, look)

    def __len__(self) -> int:
        return len(self._places)

    def blocks_of(self, trajectory: int) -> int:
        """Blocks of a trajectory: here all have as many."""
        return self.blocks

    def info(self, trajectory: int) -> TrajectoryInfo:
        shard, index = self._places[trajectory]
        return shard.walks[index]

    def picture(self, trajectory: int, block: int) -> Tensor:
        """[3, H, W] in -1..1: the last picture before `block` (for block 0 its first)."""
        shard, index = self._places[trajectory]
        frame = max(block * self.config.frames_per_block - 1, 0)
        return to_video(shard.frames(index, frame, frame + 1))[:, 0]

    def direction(self, trajectory: int, block: int) -> tuple[float, float]:
        """(yaw, pitch) of `picture(trajectory, block)`, radians."""
        frame = max(block * self.config.frames_per_block - 1, 0)
        return float(self.yaw[trajectory, frame]), float(self.pitch[trajectory, frame])

    def position(self, trajectory: int, block: int) -> tuple[float, float]:
        """(x, z) of `picture(trajectory, block)`, metres."""
        x, z = self._positions[trajectory, max(block * self.config.frames_per_block - 1, 0)]
        return float(x), float(z)

    def motion(self, walks: Sequence[int], blocks: Sequence[int]) -> Motion:
        """How the camera truly moved in given blocks of given walks."""
        size = self.config.frames_per_block
        rows = [(trajectory, slice(block * size, (block + 1) * size)) for trajectory, block in zip(walks, blocks)]
        yaw, pitch, place = (
            torch.stack([torch.from_numpy(values[row]) for row in rows]).double()
            for values in (self.yaw, self.pitch, self._positions)
        )
        start = torch.tensor(
            [self.position(trajectory, block) for trajectory, block in zip(walks, blocks)], dtype=torch.float64
        )
        return Motion(yaw, pitch, place - start[:, None])

    def frames(self, trajectory: int, block: int, blocks: int) -> np.ndarray:
        """uint8 [blocks * T, H, W, 3] of the true trajectory."""
        shard, index = self._places[trajectory]
        size = self.config.frames_per_block
        return shard.frames(index, block * size, (block + blocks) * size)

    def block(self, trajectory: int, block: int) -> Tensor:
        """[C, K, h, w] float32 latents of one block."""
        size = self.config.block_latents
        return torch.from_numpy(self.latents[trajectory, :, block * size : (block + 1) * size].astype(np.float32))

    def action(self, trajectory: int, block: int) -> Action:
        return Action.from_index(int(self.actions[trajectory, block]))

    def text(self, text: str | None) -> Tensor:
        """[event_tokens, dim] float32 of a text, encoded once, as the priors' training reads it; None and "" are zeros."""
        if not text:
            return torch.zeros(self.config.text.event_tokens, self.config.text.dim)
        if text not in self._texts:
            self._texts[text] = build_text_encoder(self.config.text).encode(text, self.config.text.event_tokens)
        return self._texts[text]
