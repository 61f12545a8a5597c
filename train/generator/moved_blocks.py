"""Blocks of a recording, and the frames that a trained generator moves for them, computed once: what an expert is taught from.

Shapes: n blocks, S steps of all episodes, E episodes, C latent channels, K latent frames of a block, h x w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from train.engine.precision import has_fast_bfloat16
from train.generator.foundation import add_up_travel, read_window
from train.generator.windows import Spans, Window, Windows
from world_model.dit import DiT
from world_model.memory import TEXTS, UNCHANGED, Told
from world_model.text import mean_token


def told_before(text: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
    """The last `TEXTS` texts that each step was told, newest first, and for how many steps before it, [S, TEXTS] each: of the rows
    `text` [S] of steps, in episodes that begin at `begin` [E + 1]. What an episode begins with has always been told."""
    rows, ago, texts = [], [], text.tolist()
    for first, stop in zip(begin[:-1].tolist(), begin[1:].tolist()):
        told, since = [texts[first]] + [0] * (TEXTS - 1), [UNCHANGED] * TEXTS
        for step in range(first, stop):
            since = [min(n + 1, UNCHANGED) for n in since]
            if step > first and texts[step] != texts[step - 1]:
                told, since = [texts[step], *told[:-1]], [0, *since[:-1]]
            rows.append(told)
            ago.append(since)
    return text.new_tensor(rows), text.new_tensor(ago)


@dataclass(frozen=True)
class MovedBlocks:
    """Some blocks of a recording: frames that were moved for them, and what was recorded."""

    mean: Tensor  # [n, C, K, h, w] float16
    visible: Tensor  # [n, 1, K, h, w] float16
    data: Tensor  # [n, C, K, h, w] float16
    start: Tensor  # [n] int64: rows of the latents, of each world's first picture
    step: Tensor  # [n] int64


@torch.no_grad()
def moved_blocks(dit: DiT, windows: Windows, steps: Tensor, seed: int, unheard: Tensor | None = None) -> MovedBlocks:
    """The blocks of some `steps` [n] of a recording, and the frames that `dit` moves for each, of worlds of any age. The last
    `unheard` [n] blocks before each are not the recording's but a rollout's (`rolled_out`): none of them in worlds without."""
    stream = torch.Generator(steps.device).manual_seed(seed)
    data, texts = windows.data, windows.data.event_texts
    rows, ago = told_before(texts.step, data.begin)
    lower = torch.autocast(steps.device.type, torch.bfloat16, enabled=has_fast_bfloat16(steps.device))
    with lower:
        add_up_travel(dit, windows, range(len(data.first)))
    episode = torch.searchsorted(data.begin, steps, right=True) - 1
    block = steps - data.begin[episode]
    age = (torch.rand(len(steps), generator=stream, device=steps.device) * (block + 1)).long().minimum(block)
    missed = torch.zeros_like(age) if unheard is None else unheard
    age = age.maximum(missed)
    parts = []
    for part in tqdm(torch.arange(len(steps)).split(32), desc="moved frames", mininterval=10):
        spans = Spans(episode[part], steps[part] - age[part], age[part])
        with lower:
            window = rolled_out(dit, windows, spans, missed[part], stream)
            told = Told(mean_token(texts.tokens[rows[steps[part]]].float()), ago[steps[part]])
            read = read_window(dit, replace(window, target=replace(window.target, told=told)))
        assert read.mean is not None and read.visible is not None
        parts.append([t.half() for t in (read.mean, read.visible, window.data)])
    mean, visible, block_data = (torch.cat(p) for p in zip(*parts))
    return MovedBlocks(mean, visible, block_data, data.still[steps - age], steps)


def rolled_out(dit: DiT, windows: Windows, spans: Spans, blocks: Tensor, stream: torch.Generator) -> Window:
    """Windows whose last `blocks` [B] of history, at most their age, are frames that `dit` moved, one block after the other: as in
    a rollout that did not draw what an event has brought since."""
    if not int(blocks.max()):
        return windows.truth(spans, stream)
    frames = windows.config.block_latents
    still = windows.data.latents[windows.data.still[spans.start]].float()
    latents = torch.cat([still[:, None], windows.recorded(spans, int(spans.age.max())).transpose(1, 2)], dim=1)
    worlds = torch.arange(len(spans), device=latents.device)
    for left in range(int(blocks.max()), 0, -1):
        own = worlds[blocks >= left]
        then = Spans(spans.episode[own], spans.start[own], spans.age[own] - left)
        made = read_window(dit, windows.own(latents, own, then, stream)).mean
        assert made is not None
        number = 1 + frames * then.age[:, None] + torch.arange(frames, device=latents.device)
        latents[own[:, None], number] = made.transpose(1, 2).float()
    return windows.own(latents, worlds, spans, stream)
