"""Which earlier pictures a block is made of: the newest, the last ones of the blocks before, and an older one that looked where the
block ends, from about where the camera is. What was seen before a look aside is still in these.

Shapes: B worlds, N sources, C latent channels, K latent frames of a block, h x w latent size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from world_model.homography import Views
from world_model.memory import Told
from world_model.tscm import History

SOURCES = 4  # pictures that are moved, newest first
SAME_VIEW = 0.1  # radians: views that differ by less count as one
OTHER_VIEW = 1.0  # radians aside that a frame counts which was told something else
AS_FAR = 10.0  # of the unit of learnt ways: a camera that stood so far away counts like one that looked a radian aside


@dataclass(frozen=True)
class Sources:
    """What is moved: latent frames [B, N, C, h, w], newest first, and the number of the block that each is of, `generations`
    [B, N], where that counts (`choose`); the world's first frame `start` [B, C, h, w], and which way the camera
    looked; where they were taken, `places` [B, N, 3] relative to the newest one, as far as that is known. Worlds without a past
    have zeros. same [B, N] bool: whether each was told what is told now; None: all were."""

    latents: Tensor
    start: Tensor
    views: Views
    generations: Tensor
    places: Tensor
    same: Tensor | None = None


def choose(history: History, block_latents: int, yaw: Tensor, pitch: Tensor, told: Told | None = None) -> Sources:
    """What is moved for a block with angles [B, K], of worlds that are told this.

    The newest frame of the history and the ends of the blocks before. The last source is chosen among the frames that are at
    least as old as it would be: the newest of those which look most nearly where the block ends, from most nearly where the
    camera is now, if that is known. Frames that were told what is told now are preferred to others: what an event has covered is
    seen again when it ends. Others count as the newest one, however old they are."""
    step, frames = block_latents, history.frames
    newest = torch.arange(frames - 1, frames - 1 - (SOURCES - 1) * step, -step, device=history.yaw.device)
    old = slice(0, frames - (SOURCES - 1) * step)
    turned = history.yaw[:, old] - yaw[:, -1:]
    away = torch.hypot(torch.atan2(turned.sin(), turned.cos()), history.pitch[:, old] - pitch[:, -1:])
    if history.position is not None:
        away = away + (history.position[:, old] - history.position[:, -1:]).norm(dim=-1) / AS_FAR
    number = (history.frame + step).div(step, rounding_mode="floor").clamp(min=0)
    same = torch.ones_like(history.present) if told is None else told.same(number[:, -1:] - number)
    away = away + OTHER_VIEW * ~same[:, old]
    away = away.masked_fill(~history.present[:, old], math.inf)
    near = away <= away.amin(dim=1, keepdim=True) + SAME_VIEW
    last = (near * torch.arange(1, near.shape[1] + 1, device=near.device)).argmax(dim=1)
    index = torch.cat([newest.expand(len(last), -1), last[:, None]], dim=1)
    worlds = torch.arange(len(last), device=index.device)[:, None]
    seen = history.has_past[:, None, None, None]
    same = same[worlds, index]
    block = torch.where(same, number[worlds, index], number[:, -1:])
    held = torch.stack([history.yaw, history.pitch], dim=-1)[worlds, index]
    places = held.new_zeros(*index.shape, 3)
    if history.position is not None:
        places = history.position[worlds, index] - history.position[:, -1:]
    return Sources(
        history.latents.transpose(1, 2)[worlds, index] * seen[:, None],
        history.latents[:, :, 0] * seen,
        Views(held, torch.stack([yaw, pitch], dim=-1)),
        block,
        places.float(),
        same,
    )
