"""Contact sheets of a generator: recorded episodes above what it makes of their first pictures under the same actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.evaluation.sheet import save_sheet, to_pictures
from train.generator.foundation import keep_travel, read_window
from train.generator.windows import LatentSet, Spans, Windows
from world_model import flow
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.rollout import denoise_block
from world_model.vae import VideoVAE


@torch.no_grad()
def roll_out(
    config: ModelConfig, dit: DiT, data: LatentSet, spans: Spans, blocks: int, seed: int = 0, steps: int | None = None
) -> Tensor:
    """Latents [B, C, blocks * K, h, w] made from the first pictures of `spans` (of age 0) under the recorded actions."""
    windows, device = Windows(config, data), data.latents.device
    stream = torch.Generator(device).manual_seed(seed)
    sigmas = flow.schedule_of(config.sampler, steps)
    size = config.block_latents
    held = torch.zeros(len(spans), 1 + blocks * size, *data.latents.shape[1:], device=device)
    held[:, 0] = data.latents[data.still[spans.start]].float()
    rows = torch.arange(len(spans), device=device)
    for block in range(blocks):
        span = Spans(spans.episode, spans.start, torch.full_like(rows, block))
        window = windows.own(held, rows, span, stream)
        noise = torch.randn(window.data.shape, generator=stream, device=device) * config.sampler.temperature
        conditions = read_window(dit, window)
        keep_travel(windows, span, conditions, torch.ones_like(rows, dtype=torch.bool))
        made = denoise_block(dit, conditions, noise, sigmas)
        held[:, 1 + block * size : 1 + (block + 1) * size] = made.transpose(1, 2)
    return held[:, 1:].transpose(1, 2)


def save_rollouts(
    path: Path, config: ModelConfig, dit: DiT, vae: VideoVAE, data: LatentSet, spans: Spans, blocks: Sequence[int]
) -> None:
    """A row of recorded pictures above a row of generated ones for each of `spans`, at the ends of the given `blocks`."""
    last = max(blocks)
    pairs = Windows(config, data).recorded(spans, last), roll_out(config, dit, data, spans, last)
    shown = [n * config.frames_per_block - 1 for n in blocks]
    rows: list[list[np.ndarray]] = []
    for i in range(len(spans)):
        for latents in pairs:
            video = vae.decode(latents[i : i + 1])[0][0].cpu()
            pictures = to_pictures(video)
            rows.append([pictures[n] for n in shown])
    save_sheet(path, rows)
