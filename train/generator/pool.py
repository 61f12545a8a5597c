"""Self-generated histories: worlds that live on the generator's own blocks along recorded actions (Self-Forcing, arXiv 2506.08009).

All worlds of a pool are rows of one tensor. A row begins as a recorded picture; each block is written behind the last one, while
the target stays what was recorded. A row whose episode ends begins anew elsewhere, as a self-generated one or a recorded one
(`generated`). A batch has the same shape whatever the share of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train.generator.windows import Spans, Window, Windows


class RolloutPool:
    """`size` worlds of at most `episode_length` blocks. `sample` gives windows on their own history, `add` writes their next
    blocks."""

    def __init__(
        self, windows: Windows, size: int, episode_length: int, stream: torch.Generator, share: float = 1.0
    ) -> None:
        self.windows, self.size, self.episode_length = windows, size, episode_length
        data, config = windows.data, windows.config
        shape = (size, 1 + episode_length * config.block_latents, *data.latents.shape[1:])
        self.latents = torch.zeros(shape, dtype=data.latents.dtype, device=data.latents.device)
        rows = torch.arange(size, device=data.latents.device)
        self.episode, self.start, self.age, self.last = (torch.zeros_like(rows) for _ in range(4))
        self.generated = torch.zeros_like(rows, dtype=torch.bool)
        self._restart(rows, stream, torch.ones_like(rows, dtype=torch.bool), share)

    def sample(self, count: int, stream: torch.Generator) -> tuple[Tensor, Spans, Window]:
        """`count` different rows [count], their spans and windows. Raises ValueError for more than there are."""
        if count > self.size:
            raise ValueError(f"a pool of {self.size} worlds cannot give {count}: make it larger or the batch smaller")
        rows = torch.randperm(self.size, generator=stream, device=self.age.device)[:count]
        spans = Spans(self.episode[rows], self.start[rows], self.age[rows])
        return rows, spans, self.windows.own(self.latents, rows, spans, stream)

    def add(self, rows: Tensor, blocks: Tensor, stream: torch.Generator, share: float = 1.0) -> None:
        """Blocks [count, C, K, h, w] of `rows`. Worlds are a block older, or begin anew, a `share` of these as self-generated."""
        frames = self.windows.config.block_latents
        columns = 1 + self.age[rows, None] * frames + torch.arange(frames, device=rows.device)
        # a rollout that explodes must not become infinite, and then no number
        most = torch.finfo(self.latents.dtype).max
        made = blocks.detach().transpose(1, 2).float().nan_to_num().clamp(-most, most)
        self.latents[rows[:, None], columns] = made.to(self.latents.dtype)
        self.age[rows] += 1
        # every row is rewritten, those that live on with what they are: no number of worlds depends on the data
        self._restart(rows, stream, self.age[rows] > self.last[rows], share)

    def _restart(self, rows: Tensor, stream: torch.Generator, ended: Tensor, share: float) -> None:
        data = self.windows.data
        spans = data.draw(len(rows), 0, stream, fresh=0.0)
        room = data.begin[spans.episode + 1] - 1 - spans.start
        drawn, choice = (torch.rand(len(rows), generator=stream, device=rows.device) for _ in range(2))
        fresh = {
            "episode": spans.episode,
            "start": spans.start,
            "age": spans.age,
            "generated": choice < share,
            "last": (drawn * self.episode_length).long().minimum(room),
        }
        for name, new in fresh.items():
            own = getattr(self, name)
            own[rows] = torch.where(ended, new, own[rows])
        picture = data.latents[data.still[spans.start]]
        self.latents[rows, 0] = torch.where(ended[:, None, None, None], picture, self.latents[rows, 0])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("latents", "episode", "start", "age", "last", "generated")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. A state of another size, or of a longer recording, is left out: all rows begin anew."""
        steps = self.windows.data.steps
        if state["latents"].shape == self.latents.shape and int((state["start"] + state["last"]).max()) < steps:
            for name, value in state.items():
                getattr(self, name).copy_(value)
