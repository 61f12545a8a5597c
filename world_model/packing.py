"""How a world's history is held and cut into groups of patch sizes: the spatio-temporal half of TSCM (Yume1.5, section 3.2).

`build_packing` makes the `HistoryPacking` that a config names; nothing else asks which one it is.
Shapes: B worlds, F frames held, K frames of a new block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from world_model.config import ModelConfig, Retrieval, Tiers
from world_model.retrieval import View, retrieve, seen, view_points
from world_model.tscm import History


@dataclass(frozen=True)
class Group:
    """History frames [start, stop) patchified at `ratio` times the patch size; `two_stage`: shrunk first (released H > 342)."""

    ratio: int
    start: int
    stop: int
    two_stage: bool = False


class HistoryPacking(Protocol):
    """What is held of a history, and at which patch sizes it is read.

    name: for tables. ratios: coarse patch sizes that its groups may have. constant: whether every history holds the same number
    of frames for ever; where there is no past, these are then marked as absent, else none is held.
    two_stage: whether a group may be shrunk before it is patchified. placed: whether frames are held with camera positions.
    """

    name: str
    ratios: tuple[int, ...]
    constant: bool
    two_stage: bool
    placed: bool

    def groups(self, frames: int) -> list[Group]:
        """The groups of `frames` held frames, oldest first."""
        ...

    def held(self, frames: int) -> int:
        """Frames held by a world that has seen so many, start pictures included."""
        ...

    def append(self, history: History, block: History, streams: Sequence[torch.Generator]) -> History:
        """The history after a block; one random stream a world, so that batching changes nothing."""
        ...

    def read(self, history: History, view: Callable[[], View]) -> History:
        """What of the history is read for a block that ends in `view` (F = 1), which only a packing that is `placed` asks for."""
        ...


class TierPacking:
    """Ours (`Tiers`): a constant number of tokens. First frame, a uniform draw of old ones, recent ones by age."""

    name, constant, two_stage, placed = "tiers", True, False, False

    def __init__(self, tiers: Tiers) -> None:
        self.tiers = tiers
        self._groups = tier_packing(tiers)
        self.ratios = tuple(sorted({group.ratio for group in self._groups} - {1}))

    def groups(self, frames: int) -> list[Group]:
        return self._groups

    def held(self, frames: int) -> int:
        return 1 + self.tiers.old[0] + self.tiers.recent_frames

    def append(self, history: History, block: History, streams: Sequence[torch.Generator]) -> History:
        return append_tiers(history, block, self.tiers, streams)

    def read(self, history: History, view: Callable[[], View]) -> History:
        return history


class FullPacking:
    """Every held frame at the finest size, up to `limit` frames: the baseline without compression."""

    name, constant, two_stage, placed = "full", False, False, False
    ratios: tuple[int, ...] = ()

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def groups(self, frames: int) -> list[Group]:
        return full_packing(frames)

    def held(self, frames: int) -> int:
        return frames

    def append(self, history: History, block: History, streams: Sequence[torch.Generator]) -> History:
        return append_all(history, block, self.limit)

    def read(self, history: History, view: Callable[[], View]) -> History:
        return history


class ReleasedPacking(FullPacking):
    """The public code's: every frame is held, old ones are read in ever larger patches (FramePack, Yume 1.0)."""

    name, two_stage = "released", True
    ratios = (2, 4, 8, 16)

    def groups(self, frames: int) -> list[Group]:
        return released_packing(frames)


class RetrievalPacking(FullPacking):
    """Every frame is held; read are the first, the newest, and old ones retrieved by estimated pose (retrieval.py)."""

    name, placed = "retrieval", True

    def __init__(self, config: ModelConfig, retrieval: Retrieval, limit: int) -> None:
        super().__init__(limit)
        self.retrieval, self.camera, self.aspect = retrieval, config.camera, config.height / config.width

    def read(self, history: History, view: Callable[[], View]) -> History:
        r, frames = self.retrieval, history.frames
        if frames <= 1 + r.retrieved + r.recent:
            return history
        if history.position is None:
            raise ValueError("retrieval by pose needs a history with camera positions: begin a world with this model")
        old = slice(1, frames - r.recent)
        points = view_points(view(), self.camera, self.aspect)
        poses = View(history.yaw[:, old], history.pitch[:, old], history.position[:, old])
        shown = seen(points, poses, self.camera, self.aspect) & history.present[:, old, None]
        chosen = retrieve(shown, r.retrieved) + 1
        newest = torch.arange(frames - r.recent, frames, device=chosen.device).expand(len(chosen), -1)
        return history.select(torch.cat([torch.zeros_like(chosen[:, :1]), chosen, newest], dim=1))


def build_packing(config: ModelConfig) -> HistoryPacking:
    """The packing of a config; those that grow hold as many frames as there are rotary positions for beside a block."""
    packing = config.dit.history.packing
    if isinstance(packing, Tiers):
        return TierPacking(packing)
    limit = config.dit.history.max_age - config.block_latents
    if isinstance(packing, Retrieval):
        return RetrievalPacking(config, packing, limit)
    return {"released": ReleasedPacking, "full": FullPacking}[packing](limit)


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
    """Groups over the fixed buffer that `append_tiers` keeps: initial frame, old samples, recent tiers from oldest to newest."""
    groups = [Group(tiers.initial, 0, 1), Group(tiers.old[1], 1, 1 + tiers.old[0])]
    for count, ratio in reversed(tiers.recent):
        groups.append(Group(ratio, groups[-1].stop, groups[-1].stop + count))
    return [group for group in groups if group.stop > group.start]


def append_all(history: History, block: History, limit: int) -> History:
    """Worlds whose packing is no `Tiers` hold every frame, up to `limit`: then the first one and the newest.

    The public code ends where history and block need more than 1024 rotary positions; a world does not, it forgets.
    """
    joined = history.join(block)
    if joined.frames <= limit:
        return joined
    rest = range(joined.frames - limit + 1, joined.frames)
    return joined.select(torch.tensor([[0, *rest]], device=joined.latents.device).expand(len(joined.latents), -1))


def append_tiers(history: History, block: History, tiers: Tiers, streams: Sequence[torch.Generator]) -> History:
    """Adds a block and keeps the buffer's size: [initial, old samples, recent].

    Frames that leave the recent tiers enter a reservoir (algorithm R), which stays a uniform draw from all that left: the
    paper's random sub-sampling of history, at constant memory. One random stream a world, so that batching changes nothing.
    """
    count = tiers.old[0]
    joined = history.join(block)
    keep = torch.arange(joined.frames).repeat(joined.latents.shape[0], 1)
    new, numbers = block.frames, joined.frame.tolist()
    for world, stream in enumerate(streams):
        for leaving in range(1 + count, 1 + count + new):
            # frames of index >= 0 that have left so far, this one included
            seen = numbers[world][leaving] + 1
            if seen <= 0 or not count:
                continue
            slot = int(torch.randint(seen, (), generator=stream)) if seen > count else seen - 1
            if slot < count:
                keep[world, 1 + slot] = leaving
    keep = torch.cat([keep[:, : 1 + count], keep[:, 1 + count + new :]], dim=1)
    return joined.select(keep)
