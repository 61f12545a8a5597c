"""TSCM (Yume1.5, section 3.2): a world's history, compressed twice.

Spatio-temporal half: history latents are cut into groups, each patchified with its own spatial ratio (`Group`, data from
`released_packing` or `tier_packing`). Channel half: everything that ever happened, summed up for ReLU linear attention
(`ChannelMemory`, eq. 4-6); the sums are carried forward, so that all history costs constant time and memory.

Shapes: B worlds, C latent channels, F frames held, K frames of a new block, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from world_model.config import Tiers


@dataclass(frozen=True)
class Group:
    """History frames [start, stop) patchified at `ratio` times the patch size; `two_stage`: shrunk first (released H > 342)."""

    ratio: int
    start: int
    stop: int
    two_stage: bool = False


def released_packing(frames: int) -> list[Group]:
    """The public code's table for `frames` held frames, oldest first, oddities included (yume_packed fixtures).

    Raises ValueError past 1366 frames, where the public code has no branch.
    """
    if frames > 1366:
        raise ValueError(f"released packing ends at 1366 history latents, got {frames}: use Tiers for longer worlds")
    if frames == 0:
        return []
    if frames <= 2:  # one frame plays several parts
        return [Group(1, 0, 1), Group(2, frames - 1, frames), Group(1, frames - 1, frames)]
    if frames <= 6:
        return [Group(1, 0, 1), Group(2, 1, frames - 1), Group(1, frames - 1, frames)]
    groups = [Group(2 if frames > 86 else 1, 0, 1)]
    edges = [(342, 16, True), (86, 16, False), (22, 8, False), (6, 4, False)]
    start = 1
    for i, (limit, ratio, two_stage) in enumerate(edges):
        if frames <= limit:
            continue
        # each coarser tier begins where the next finer one ends; that finer tier's reach is 341, 85, 21 or 5 frames
        stop = frames - (341, 85, 21, 5)[i]
        groups.append(Group(ratio, start, stop, two_stage))
        start = stop
    return [*groups, Group(2, frames - 5, frames - 3), Group(1, frames - 3, frames)]


def full_packing(frames: int) -> list[Group]:
    """Every held frame at the finest size."""
    return [Group(1, 0, frames)] if frames else []


def tier_packing(tiers: Tiers) -> list[Group]:
    """Groups over the fixed buffer that `append_tiers` keeps: initial frame, old draws, recent tiers from oldest to newest."""
    groups = [Group(tiers.initial, 0, 1), Group(tiers.old[1], 1, 1 + tiers.old[0])]
    for count, ratio in reversed(tiers.recent):
        groups.append(Group(ratio, groups[-1].stop, groups[-1].stop + count))
    return [group for group in groups if group.stop > group.start]


@dataclass(frozen=True)
class History:
    """Latent frames a world still holds, oldest first, and when and where the camera was commanded to be.

    latents [B, C, F, h, w]; frame [B, F] int64 index in the world's time; yaw, pitch [B, F] float64 radians;
    present [B, F] bool: False where there is no past (a text start).
    """

    latents: Tensor
    frame: Tensor
    yaw: Tensor
    pitch: Tensor
    present: Tensor

    @property
    def frames(self) -> int:
        return self.latents.shape[2]

    @property
    def known(self) -> Tensor:
        """[B] bool: whether there is a past at all, that is whether the newest frame was seen."""
        return self.present[:, -1] if self.frames else self.present.any(dim=1)

    def select(self, index: Tensor) -> History:
        """Frames `index` [B, n] of every world."""
        index = index.to(self.latents.device)
        latents = torch.stack([world[:, i] for world, i in zip(self.latents, index)])
        rest = (torch.gather(values, 1, index) for values in (self.frame, self.yaw, self.pitch, self.present))
        return History(latents, *rest)

    def join(self, other: History) -> History:
        rest = (torch.cat(pair, dim=1) for pair in zip(self._rows, other._rows))
        return History(torch.cat([self.latents, other.latents], dim=2), *rest)

    def repeat(self, times: int) -> History:
        """Every world `times` times in a row, for several noise draws of one history."""
        return History(*(v.repeat_interleave(times, dim=0) for v in (self.latents, *self._rows)))

    @property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.frame, self.yaw, self.pitch, self.present


def still_history(latents: Tensor, length: int, yaw: Tensor, pitch: Tensor, present: Tensor) -> History:
    """A past in which nothing moved: latents [B, C, n, h, w], the first of them repeated in front up to `length` frames.

    yaw, pitch [B]; present [B] bool. The last frame has index -1: the next block starts at 0.
    """
    missing = max(0, length - latents.shape[2])
    latents = torch.cat([latents[:, :, :1].expand(-1, -1, missing, -1, -1), latents], dim=2)
    batch, frames = latents.shape[0], latents.shape[2]
    frame = torch.arange(-frames, 0, device=latents.device).expand(batch, -1)
    return History(latents, frame, *(v[:, None].expand(-1, frames) for v in (yaw.double(), pitch.double(), present)))


def append_all(history: History, block: History, limit: int) -> History:
    """Worlds whose packing is no `Tiers` hold every frame, up to `limit`: then the first one and the newest.

    The public code ends where history and block need more than 1024 rotary positions; a world does not, it forgets.
    """
    joined = history.join(block)
    if joined.frames <= limit:
        return joined
    rest = range(joined.frames - limit + 1, joined.frames)
    return joined.select(torch.tensor([[0, *rest]], device=joined.latents.device).expand(len(joined.latents), -1))


def append_tiers(history: History, block: History, tiers: Tiers, generators: Sequence[torch.Generator]) -> History:
    """Adds a block and keeps the buffer's size: [initial, old draws, recent].

    Frames that leave the recent tiers enter a reservoir (algorithm R), which stays a uniform draw from all that left: the
    paper's random sub-sampling of history, at constant memory. One generator a world, so that batching changes nothing.
    """
    count = tiers.old[0]
    joined = history.join(block)
    keep = torch.arange(joined.frames).repeat(joined.latents.shape[0], 1)
    new, numbers = block.frames, joined.frame.tolist()
    for world, generator in enumerate(generators):
        for leaving in range(1 + count, 1 + count + new):
            # frames of index >= 0 that have left so far, this one included
            seen = numbers[world][leaving] + 1
            if seen <= 0 or not count:
                continue
            slot = int(torch.randint(seen, (), generator=generator)) if seen > count else seen - 1
            if slot < count:
                keep[world, 1 + slot] = leaving
    keep = torch.cat([keep[:, : 1 + count], keep[:, 1 + count + new :]], dim=1)
    return joined.select(keep)


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
