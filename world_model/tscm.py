"""TSCM (Yume1.5, section 3.2): a world's history, compressed twice.

Spatio-temporal half: history latents are cut into groups, each patchified with its own spatial ratio (packing.py).
Channel half: everything that ever happened, summed up for ReLU linear attention (`ChannelMemory`, eq. 4-6); the sums are
carried forward, so that all history costs constant time and memory.

Shapes: B worlds, C latent channels, F frames held, K frames of a new block, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class History:
    """Latent frames a world still holds, oldest first, and when and where the camera was commanded to be.

    latents [B, C, F, h, w]; frame [B, F] int64 index in the world's time; yaw, pitch [B, F] float64 radians;
    present [B, F] bool: False where there is no past (a text start); position [B, F, 2] float64 metres, commanded like the
    angles, of packings that retrieve by it; or [B, F, 3] as a model adds up how far the camera has come (parallax.py).
    """

    latents: Tensor
    frame: Tensor
    yaw: Tensor
    pitch: Tensor
    present: Tensor
    position: Tensor | None = None

    @property
    def frames(self) -> int:
        return self.latents.shape[2]

    @property
    def has_past(self) -> Tensor:
        """[B] bool: whether there is a past at all, that is whether the newest frame was seen."""
        return self.present[:, -1] if self.frames else self.present.any(dim=1)

    def select(self, index: Tensor) -> History:
        """Frames `index` [B, n] of every world."""
        index = index.to(self.latents.device)
        latents = torch.stack([world[:, i] for world, i in zip(self.latents, index)])
        rest = (torch.gather(values, 1, index) for values in self._rows)
        position = self.position
        if position is not None:
            position = torch.gather(position, 1, index[..., None].expand(-1, -1, position.shape[-1]))
        return self._of(latents, rest, position)

    def join(self, other: History) -> History:
        rest = (torch.cat(pair, dim=1) for pair in zip(self._rows, other._rows))
        position = None
        if self.position is not None and other.position is not None:
            position = torch.cat([self.position, other.position], dim=1)
        return self._of(torch.cat([self.latents, other.latents], dim=2), rest, position)

    def repeat(self, times: int) -> History:
        """Every world `times` times in a row, for several noise draws of one history."""
        rows = (v.repeat_interleave(times, dim=0) for v in self._rows)
        position = None if self.position is None else self.position.repeat_interleave(times, dim=0)
        return self._of(self.latents.repeat_interleave(times, dim=0), rows, position)

    @staticmethod
    def _of(latents: Tensor, rows: Iterable[Tensor], position: Tensor | None) -> History:
        frame, yaw, pitch, present = rows
        return History(latents, frame, yaw, pitch, present, position)

    @property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.frame, self.yaw, self.pitch, self.present


def static_history(latents: Tensor, length: int, yaw: Tensor, pitch: Tensor, present: Tensor) -> History:
    """A past in which nothing moved: latents [B, C, n, h, w], the first of them repeated in front up to `length` frames.

    yaw, pitch [B]; present [B] bool. The last frame has index -1: the next block starts at 0.
    """
    missing = max(0, length - latents.shape[2])
    latents = torch.cat([latents[:, :, :1].expand(-1, -1, missing, -1, -1), latents], dim=2)
    batch, frames = latents.shape[0], latents.shape[2]
    frame = torch.arange(-frames, 0, device=latents.device).expand(batch, -1)
    return History(latents, frame, *(v[:, None].expand(-1, frames) for v in (yaw.double(), pitch.double(), present)))


@dataclass(frozen=True)
class ChannelMemory:
    """Carried sums of every layer: `total` [n, B, H, d, d] and `norm` [n, B, H, d], float32 (n layers)."""

    worlds_axis: ClassVar[int] = 1  # batch.py

    total: Tensor
    norm: Tensor

    def add(self, other: ChannelMemory, decay: float) -> ChannelMemory:
        """The past, `decay` times weaker, plus one more kernel of history."""
        return ChannelMemory(self.total * decay + other.total, self.norm * decay + other.norm)

    def repeat(self, times: int) -> ChannelMemory:
        return ChannelMemory(self.total.repeat_interleave(times, 1), self.norm.repeat_interleave(times, 1))
