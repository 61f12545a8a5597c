"""Encoded walks in memory: what the DiT's training reads. Shards come from `train.data render` and `encode`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor
from tqdm import tqdm

from train.latents import block_guides, encode_walk, walk_video
from train.shards import HELD_OUT, Shard, WalkInfo, find_shards, latents_path
from train.sheet import to_video
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.text import build_text_encoder
from world_model.vae import VideoVAE


class Corpus:
    """All walks of a folder: latents float16 in memory, pictures on disk, texts encoded once.

    Walks are numbered through all shards; the first `HELD_OUT` are for evaluation.
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
        self.blocks = self._shards[0].header.blocks_per_walk
        texts = {info.caption for shard in self._shards for info in shard.walks}
        texts |= {text for shard in self._shards for info in shard.walks for _, text, _ in info.event if text}
        encoder = build_text_encoder(config.text)
        self._texts = {
            t: encoder.encode(t, config.text.event_tokens).half()
            for t in tqdm(sorted(texts), desc="texts", mininterval=5)
        }

    def prior_deviation(self, vae: VideoVAE, walks: int = 16) -> Tensor:
        """[2, C]: deviation of the latents, and of their distance to the guide where that saw something."""
        places = self._places[HELD_OUT : HELD_OUT + walks] or self._places
        taken = [shard.walk(i) for shard, i in places]
        data = torch.from_numpy(np.stack([encode_walk(vae, walk) for walk in taken])).float()
        with torch.inference_mode():
            pairs = [block_guides(self.config, vae, walk_video(walk), walk) for walk in taken]
        guide, valid = (torch.stack(parts) for parts in zip(*pairs))
        data = data.unflatten(2, (self.blocks, -1)).transpose(1, 2)
        middle = len(self.config.dit.guide) // 2  # the depth that an untrained network takes
        guide, valid = guide.unflatten(2, (-1, data.shape[2]))[:, :, middle], valid[:, :, middle : middle + 1]
        seen = (valid > 0.99).expand_as(data).transpose(0, 2).flatten(1)
        error = (data - guide).transpose(0, 2).flatten(1).square()
        everywhere = data.transpose(0, 2).flatten(1).square().mean(dim=1)
        return torch.stack([everywhere, (error * seen).sum(dim=1) / seen.sum(dim=1)]).sqrt()

    def __len__(self) -> int:
        return len(self._places)

    def info(self, walk: int) -> WalkInfo:
        shard, index = self._places[walk]
        return shard.walks[index]

    def picture(self, walk: int, block: int) -> Tensor:
        """[3, H, W] in -1..1: the last picture before `block` (for block 0 its first)."""
        shard, index = self._places[walk]
        frame = max(block * self.config.frames_per_block - 1, 0)
        return to_video(shard.frames(index, frame, frame + 1))[:, 0]

    def direction(self, walk: int, block: int) -> tuple[float, float]:
        """(yaw, pitch) of `picture(walk, block)`, radians."""
        frame = max(block * self.config.frames_per_block - 1, 0)
        return float(self.yaw[walk, frame]), float(self.pitch[walk, frame])

    def frames(self, walk: int, block: int, blocks: int) -> np.ndarray:
        """uint8 [blocks * T, H, W, 3] of the true walk."""
        shard, index = self._places[walk]
        size = self.config.frames_per_block
        return shard.frames(index, block * size, (block + blocks) * size)

    def block(self, walk: int, block: int) -> Tensor:
        """[C, K, h, w] float32 latents of one block."""
        size = self.config.block_latents
        return torch.from_numpy(self.latents[walk, :, block * size : (block + 1) * size].astype(np.float32))

    def action(self, walk: int, block: int) -> Action:
        return Action.from_index(int(self.actions[walk, block]))

    def text(self, text: str | None) -> Tensor:
        """[event_tokens, dim] float32 of a text of this corpus; None and "" are zeros."""
        if not text:
            return torch.zeros(self.config.text.event_tokens, self.config.text.dim)
        return self._texts[text].float()
