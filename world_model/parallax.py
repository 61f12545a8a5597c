"""Where a camera that also moved saw each place before: a distance for each place, and a way for each source.

A point at distance 1 / disparity along a ray is seen from elsewhere along the ray plus disparity times the way (Hartley and
Zisserman, Multiple View Geometry, 9.1). Both are learnt from how pictures of recordings change, as in structure from motion by view
synthesis (Zhou et al. 2017, arXiv 1704.07813). Nothing says how long a metre is: a way counts in whatever unit distances do.

Shapes: B worlds, K latent frames of a block, N sources, F groups of p = K / F frames, rows x columns displacements,
r x c places of the convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Parallax(nn.Module):
    """Disparities of places and ways of sources from features. A fresh camera stands still."""

    def __init__(self, width: int, dim: int, frames: int, sources: int, side: int) -> None:
        """width of features, dim of tokens; frames: p; side: displacements along each side of a place of the convolutions."""
        super().__init__()
        self.sources, self.side = sources, side
        # how far below the horizon a ray leads: of what stands on the ground, the lower is the nearer
        self.below = nn.Conv2d(frames, width, 3, padding=1, bias=False)
        self.slope = nn.Parameter(torch.zeros(2))
        self.disparity = nn.Conv2d(width, frames * side**2, 1)
        self.way = nn.Sequential(nn.Linear(width + dim, dim), nn.ReLU(), nn.Linear(dim, frames * sources * 3))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No way, and one distance for all places."""
        for parameter in (self.slope, self.below.weight, *self.disparity.parameters(), *self.way[2].parameters()):
            nn.init.zeros_(parameter)

    def entering(self, below: Tensor, groups: int) -> Tensor:
        """What features are told of the view: below [B, K, rows, columns] (`Homography.below`) -> [B * F, width, r, c]."""
        return self.below(F.avg_pool2d(below, self.side).unflatten(1, (groups, -1)).flatten(0, 1))

    def forward(self, hidden: Tensor, tokens: Tensor, below: Tensor) -> Tensor:
        """features [B * F, width, r, c], tokens [B, L, dim] and below [B, K, rows, columns] -> how each place's ray, one unit of
        depth long, changes as each source sees it: [B, K, N, 3 (right, down, forward), rows, columns]."""
        count = len(below)
        raw = rearrange(
            self.disparity(hidden), "(B F) (p a b) h w -> B (F p) (h a) (w b)", B=count, a=self.side, b=self.side
        )
        disparity = F.softplus(raw + self.slope[0] * below + self.slope[1] * below.clamp(min=0))
        said = tokens.unflatten(1, (len(hidden) // count, -1)).mean(dim=2).flatten(0, 1)  # of each group of frames
        way = self.way(torch.cat([hidden.mean(dim=(-2, -1)), said], dim=1))
        way = rearrange(way, "(B F) (p n d) -> B (F p) n d", B=count, n=self.sources, d=3)
        return way[..., None, None] * disparity[:, :, None, None]
