"""The album: a few pictures a world has shown and where the camera was commanded to be, at constant memory.

Looking back must find what was there. The guide (warp.py) moves the last picture; where that shows nothing, it may use the album's
picture that looks most nearly the right way from most nearly the right place. Shapes: B worlds, M pictures kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# a new picture replaces one that looks the same way (radians) from the same place (metres); else the oldest
SAME_VIEW, SAME_PLACE = math.radians(12), 0.7
# beyond these nothing of use is expected: half a field of view and more to the side, or walked away
WIDEST_ANGLE, FARTHEST = math.radians(80), 3.0


@dataclass(frozen=True)
class Recalled:
    """One remembered picture a world: picture [B, 3, H, W] in -1..1 seen at yaw, pitch [B] (radians); walked [B, 2] metres since
    (world x, z); present [B] bool: False where the album had nothing of use."""

    picture: Tensor
    yaw: Tensor
    pitch: Tensor
    walked: Tensor
    present: Tensor


@dataclass(frozen=True)
class Album:
    """Oldest first: pictures uint8 [B, M, 3, H, W], yaw, pitch [B, M] and place [B, M, 2] float64, filled [B, M] bool."""

    pictures: Tensor
    yaw: Tensor
    pitch: Tensor
    place: Tensor
    filled: Tensor

    @classmethod
    def empty(cls, worlds: int, size: int, height: int, width: int, device: torch.device) -> Album:
        """An album of `size` pictures with nothing in it."""
        angles = torch.zeros(worlds, size, dtype=torch.float64, device=device)
        return cls(
            torch.zeros(worlds, size, 3, height, width, dtype=torch.uint8, device=device),
            angles,
            angles.clone(),
            torch.zeros(worlds, size, 2, dtype=torch.float64, device=device),
            angles > 0,
        )

    def add(self, picture: Tensor, yaw: Tensor, pitch: Tensor, place: Tensor, present: Tensor) -> Album:
        """With picture [B, 3, H, W] in -1..1 seen at yaw, pitch [B] from place [B, 2]; worlds where `present` [B] is False are
        left as they are."""
        size = self.yaw.shape[1]
        if not size:
            return self
        same = (self._angle(yaw, pitch) < SAME_VIEW) & (self._distance(place) < SAME_PLACE) & self.filled
        slot = torch.where(same.any(dim=1), same.int().argmax(dim=1), torch.zeros_like(same[:, 0], dtype=torch.int64))
        order = torch.arange(size, device=yaw.device).expand(len(slot), -1)
        order = torch.where(order >= slot[:, None], order + 1, order)  # skips the slot; entry `size` is the new one
        order = torch.where(present[:, None], order, torch.arange(size, device=yaw.device))
        pixels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        new = Album(pixels[:, None], yaw[:, None], pitch[:, None], place[:, None], present[:, None])
        world = torch.arange(len(slot), device=yaw.device)[:, None]
        both = (torch.cat([getattr(self, f.name), getattr(new, f.name)], dim=1)[world, order] for f in fields(self))
        return Album(*both)

    def without(self, outdated: Tensor) -> Album:
        """Emptied in the worlds where `outdated` [B] bool."""
        return replace(self, filled=self.filled & ~outdated[:, None])

    def recall(self, yaw: Tensor, pitch: Tensor, place: Tensor, here: Tensor) -> Recalled | None:
        """The picture of most use for a view at yaw, pitch [B] from place [B, 2]; `walked` is counted up to `here` [B, 2]."""
        if not self.yaw.shape[1]:
            return None
        angle, distance = self._angle(yaw, pitch), self._distance(place)
        useful = self.filled & (angle < WIDEST_ANGLE) & (distance < FARTHEST)
        worth = torch.where(useful, angle / WIDEST_ANGLE + distance / FARTHEST, torch.full_like(angle, torch.inf))
        best = worth.argmin(dim=1)
        world = torch.arange(len(best), device=yaw.device)
        picture = self.pictures[world, best].float() / 127.5 - 1
        return Recalled(
            picture, self.yaw[world, best], self.pitch[world, best], here - self.place[world, best], useful.any(dim=1)
        )

    def _angle(self, yaw: Tensor, pitch: Tensor) -> Tensor:
        turn = torch.remainder(yaw[:, None] - self.yaw + math.pi, 2 * math.pi) - math.pi
        return torch.hypot(turn, pitch[:, None] - self.pitch)

    def _distance(self, place: Tensor) -> Tensor:
        return (place[:, None] - self.place).norm(dim=-1)
