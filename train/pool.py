"""A pool of worlds that walk through the corpus, so that training sees what dreaming sees.

Each world follows a true walk block by block. A "clean" world's history is the truth, a "dreaming" world's history is the
model's own output, while its target stays the truth: the model learns to undo its own errors (self-forcing of the history).
The same functions as at inference keep history, memory, guide and decoder going; nothing is packed a second way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from train.corpus import HELD_OUT, Corpus
from world_model.actions import Action
from world_model.dit import DiT
from world_model.rollout import Worlds, generator, join_worlds, split_worlds, start_worlds
from world_model.text import Conditioning, pooled_actions
from world_model.tscm import History
from world_model.vae import VideoVAE


@dataclass(frozen=True)
class Entry:
    """One world of the pool, before block `block` of walk `walk`. `past` holds raw latents for the channel path's gradient."""

    walk: int
    block: int
    last: int  # block after which the world is drawn anew
    dreaming: bool
    worlds: Worlds
    past: History


@dataclass(frozen=True)
class Batch:
    """Entries joined: what the next block's conditions need, and the truth [B, C, K, h, w]."""

    index: list[int]
    worlds: Worlds
    past: History
    actions: list[Action]
    context: Tensor
    pooled: Tensor
    truth: Tensor


class Pool:
    """`size` worlds; `draw` takes some of them, `put` returns them one block later."""

    def __init__(
        self, corpus: Corpus, conditioning: Conditioning, size: int, seed: int, blocks: int = 12, memory_blocks: int = 16,
        text_start: float = 0.06, caption: float = 0.4,
    ) -> None:  # fmt: skip
        self.corpus, self.conditioning = corpus, conditioning
        self.size, self.seed, self.blocks, self.memory_blocks = size, seed, blocks, memory_blocks
        self.text_start, self.caption = text_start, caption
        self.entries: list[Entry | None] = [None] * size

    def draw(self, dit: DiT, vae: VideoVAE, count: int, dreaming: float, step: int) -> Batch:
        """`count` different worlds; those at their end start anew, `dreaming` of them on their own history."""
        stream = generator(self.seed, "pool", step)
        index = torch.randperm(self.size, generator=stream)[:count].tolist()
        fresh = [i for i in index if self.entries[i] is None]
        if fresh:
            self._start(dit, vae, fresh, dreaming, stream)
        entries = [entry for i in index if (entry := self.entries[i]) is not None]
        worlds, past = join_worlds([e.worlds for e in entries]), _join([e.past for e in entries])
        actions = [self.corpus.action(e.walk, e.block) for e in entries]
        tables = self.conditioning.actions[[a.index for a in actions]]
        texts = torch.stack([self._text(e, float(torch.rand((), generator=stream))) for e in entries])
        truth = torch.stack([self.corpus.block(e.walk, e.block) for e in entries])
        return Batch(index, worlds, past, actions, torch.cat([texts, tables], dim=1), pooled_actions(tables), truth)

    def put(self, batch: Batch, after: Worlds, block: History) -> None:
        """The worlds one block later; `block` is what was added to their histories (truth or dream)."""
        rows = zip(batch.index, split_worlds(after), range(len(batch.index)))
        limit = self.memory_blocks * self.corpus.config.block_latents
        for i, world, row in rows:
            entry = self.entries[i]
            assert entry is not None
            if entry.block + 1 > entry.last:
                self.entries[i] = None
                continue
            past = entry.past.join(_row(block, row))
            keep = torch.arange(past.frames - limit, past.frames)[None]
            self.entries[i] = replace(entry, block=entry.block + 1, worlds=world, past=past.select(keep))

    def dreaming(self, batch: Batch) -> Tensor:
        """[B] bool."""
        return torch.tensor([entry.dreaming for i in batch.index if (entry := self.entries[i]) is not None])

    def _start(self, dit: DiT, vae: VideoVAE, index: list[int], dreaming: float, stream: torch.Generator) -> None:
        corpus, size = self.corpus, self.corpus.config.block_latents

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=stream))

        plans = []
        for _ in index:
            text_start = float(torch.rand((), generator=stream)) < self.text_start
            walk = draw(min(HELD_OUT, len(corpus) - 1), len(corpus))
            block = draw(0, 3) if text_start else draw(0, corpus.blocks - 1)
            last = block if text_start else min(block + draw(0, self.blocks), corpus.blocks - 1)
            plans.append((walk, block, last, text_start, float(torch.rand((), generator=stream)) < dreaming))
        pictures = torch.stack([corpus.picture(walk, block) for walk, block, *_ in plans])
        present = torch.tensor([not text_start for *_, text_start, _ in plans])
        pictures = torch.where(present[:, None, None, None], pictures, torch.zeros_like(pictures))
        angles = torch.tensor([corpus.direction(walk, block) for walk, block, *_ in plans], dtype=torch.float64)
        with torch.no_grad():
            worlds = split_worlds(start_worlds(dit, vae, pictures, present, angles[:, 0], angles[:, 1]))
        for i, world, (walk, block, last, _, dreams) in zip(index, worlds, plans):
            still = world.history.select(torch.arange(world.history.frames - size, world.history.frames)[None])
            count = self.memory_blocks * size
            front = still.select(torch.zeros(1, count - size, dtype=torch.int64))
            past = replace(front, present=torch.zeros_like(front.present)).join(still)
            self.entries[i] = Entry(walk, block, last, dreams, world, past)

    def _text(self, entry: Entry, chance: float) -> Tensor:
        """The event's text while one is in force; else the caption for a text start, and now and then; else nothing."""
        info = self.corpus.info(entry.walk)
        event = info.event_at(entry.block)
        needed = not bool(entry.worlds.history.present[0, -1])
        if event is None and (needed or chance < self.caption):
            return self.corpus.text(info.caption)
        return self.corpus.text(event)


def _join(histories: list[History]) -> History:
    rows = ("latents", "frame", "yaw", "pitch", "present")
    return History(*(torch.cat([getattr(h, name) for h in histories]) for name in rows))


def _row(history: History, i: int) -> History:
    h, part = history, slice(i, i + 1)
    return History(h.latents[part], h.frame[part], h.yaw[part], h.pitch[part], h.present[part])
