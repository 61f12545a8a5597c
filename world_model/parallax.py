"""Where a camera that also moved saw each place before: a distance for each place, and how far the camera has come.

A point at distance 1 / disparity along a ray is seen from elsewhere along the ray plus disparity times the way there (Hartley and
Zisserman, Multiple View Geometry, 9.1). Both are learnt from how pictures of recordings change, as in structure from motion by view
synthesis (Zhou et al. 2017, arXiv 1704.07813). Nothing says how long a metre is: a way counts in whatever unit distances do.
The action says the way since the newest picture, and a world adds these up: all earlier pictures agree on where the camera is.

Shapes: B worlds, K latent frames of a block, N sources, F groups of p = K / F frames, rows x columns displacements,
r x c places of the convolutions. Ways are (right, down, forward).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.homography import Views, tilt, turn

USUAL_DISPARITY = 0.12  # of a picture's places, on average: it fixes the unit
VANISHING = 25.0  # how much more it counts if a picture has less than half of that


@dataclass(frozen=True)
class Camera:
    """Where the camera of each frame of a block is relative to the newest picture, `travelled` [B, K, 3] in the world's axes; and
    the `disparity` [B, K, rows, columns] of the places that it sees."""

    travelled: Tensor
    disparity: Tensor


class Parallax(nn.Module):
    """How far away things are: a disparity for each place, from features. A fresh one sees one distance."""

    def __init__(self, width: int, frames: int, side: int) -> None:
        """width of features; frames: p; side: displacements along each side of a place of the convolutions."""
        super().__init__()
        self.side = side
        # how far below the horizon a ray leads: of what stands on the ground, the lower is the nearer
        self.below = nn.Conv2d(frames, width, 3, padding=1, bias=False)
        self.slope = nn.Parameter(torch.zeros(2))
        self.disparity = nn.Conv2d(width, frames * side**2, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for parameter in (self.slope, self.below.weight, *self.disparity.parameters()):
            nn.init.zeros_(parameter)

    def entering(self, below: Tensor, groups: int) -> Tensor:
        """What features are told of the view: below [B, K, rows, columns] (`Homography.below`) -> [B * F, width, r, c]."""
        return self.below(F.avg_pool2d(below, self.side).unflatten(1, (groups, -1)).flatten(0, 1))

    def forward(self, hidden: Tensor, below: Tensor) -> Tensor:
        """features [B * F, width, r, c] and below [B, K, rows, columns] -> the disparity of each place [B, K, rows, columns]."""
        raw = rearrange(
            self.disparity(hidden), "(B F) (p a b) h w -> B (F p) (h a) (w b)", B=len(below), a=self.side, b=self.side
        )
        return F.softplus(raw + self.slope[0] * below + self.slope[1] * below.clamp(min=0))


class Odometer(nn.Module):
    """How far the camera comes in each frame of a block, from the action, how it turns, and how far it came in the block before.

    It sees no pictures. What pictures say of it differs from block to block, and worlds that added that up would creep while the
    camera stands still. A wall in its way is unknown to it. A fresh one stands still."""

    def __init__(self, dim: int, frames: int) -> None:
        """dim of what says the action; frames: K."""
        super().__init__()
        self.way = nn.Sequential(nn.Linear(dim + 2 * frames + 1 + 3, dim), nn.ReLU(), nn.Linear(dim, 3 * frames))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for parameter in self.way[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, action: Tensor, views: Views, places: Tensor) -> Tensor:
        """action [B, dim]; places [B, N, 3] of the sources relative to the newest, in the world's axes -> the ways from the newest
        picture to each frame, [B, K, 3] in the frame's axes, were it level."""
        newest = views.sources[:, 0].double()
        yaw, pitch = views.target.double().unbind(dim=-1)
        before = torch.einsum("bji,bj->bi", turn(newest[:, 0]), -places[:, 1].double())
        turned = torch.cat([yaw - newest[:, :1], pitch - newest[:, 1:], newest[:, 1:], before], dim=1)
        way = self.way(torch.cat([action.float(), turned.to(action.device, torch.float32)], dim=1))
        return way.unflatten(1, (-1, 3))


def ways_to(way: Tensor, places: Tensor, views: Views) -> Tensor:
    """Ways from each source to each frame, [B, K, N, 3] in the axes of the frame's camera, by odometry.

    way [B, K, 3]: from the newest picture (`Odometer`); places [B, N, 3]: where the sources were taken,
    relative to the newest picture, in the world's axes."""
    yaw, pitch = views.target.double().unbind(dim=-1)
    level = way[:, :, None] - torch.einsum("bkji,bnj->bkni", turn(yaw).to(way), places.to(way))
    return torch.einsum("bkji,bknj->bkni", tilt(pitch).to(way), level)


def unusual(disparity: Tensor) -> Tensor:
    """How far the mean disparity of pictures [B, K, rows, columns] is from the usual one: the mean square of logarithms, many times
    as much where it is less than half.

    While a camera stands still, disparities say nothing, and without this they vanish: then ways say nothing either, and a world
    that adds them up creeps. Where it moves, pictures say much more than this does."""
    away = (disparity.mean(dim=(-2, -1)) / USUAL_DISPARITY).log()
    vanishing = (away + math.log(2)).clamp(max=0)
    return away.square().mean() + VANISHING * vanishing.square().mean()


def travelled(way: Tensor, views: Views) -> Tensor:
    """Where each frame's camera is relative to the newest picture, [B, K, 3] in the world's axes, by the `way` there in its own."""
    return torch.einsum("bkij,bkj->bki", turn(views.target[..., 0].double()).to(way), way)
