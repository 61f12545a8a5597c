"""Blocks of a recording, and the frames that a trained generator moves for them, computed once: what an expert is taught from.

Shapes: n blocks, S steps of all episodes, E episodes, C latent channels, K latent frames of a block, h x w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from train.engine.precision import has_fast_bfloat16
from train.generator.foundation import add_up_travel, read_window
from train.generator.windows import Spans, Windows
from world_model.dit import DiT
from world_model.memory import UNCHANGED


def since_change(text: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows [S] of what each step is told, in episodes that begin at `begin` [E + 1]: steps since it changed [S], and the row
    that was told before [S]. What an episode begins with has never changed: it counts from far away."""
    since, before = torch.full_like(text, UNCHANGED), torch.zeros_like(text)
    for first, stop in zip(begin[:-1].tolist(), begin[1:].tolist()):
        for step in range(first + 1, stop):
            changed = text[step] != text[step - 1]
            since[step] = 0 if changed else min(int(since[step - 1]) + 1, UNCHANGED)
            before[step] = text[step - 1] if changed else before[step - 1]
    return since, before


@dataclass(frozen=True)
class MovedBlocks:
    """Some blocks of a recording: frames that were moved for them, and what was recorded."""

    mean: Tensor  # [n, C, K, h, w] float16
    visible: Tensor  # [n, 1, K, h, w] float16
    data: Tensor  # [n, C, K, h, w] float16
    start: Tensor  # [n] int64: rows of the latents, of each world's first picture
    step: Tensor  # [n] int64


@torch.no_grad()
def moved_blocks(dit: DiT, windows: Windows, steps: Tensor, seed: int) -> MovedBlocks:
    """The blocks of some `steps` [n] of a recording, and the frames that `dit` moves for each, of worlds of any age."""
    stream = torch.Generator(steps.device).manual_seed(seed)
    data = windows.data
    lower = torch.autocast(steps.device.type, torch.bfloat16, enabled=has_fast_bfloat16(steps.device))
    with lower:
        add_up_travel(dit, windows, range(len(data.first)))
    episode = torch.searchsorted(data.begin, steps, right=True) - 1
    block = steps - data.begin[episode]
    age = (torch.rand(len(steps), generator=stream, device=steps.device) * (block + 1)).long().minimum(block)
    parts = []
    for part in tqdm(torch.arange(len(steps)).split(32), desc="moved frames", mininterval=10):
        spans = Spans(episode[part], steps[part] - age[part], age[part])
        window = windows.truth(spans, stream)
        with lower:
            read = read_window(dit, window)
        assert read.mean is not None and read.visible is not None
        parts.append([t.half() for t in (read.mean, read.visible, window.data)])
    mean, visible, block_data = (torch.cat(p) for p in zip(*parts))
    return MovedBlocks(mean, visible, block_data, data.still[steps - age], steps)
