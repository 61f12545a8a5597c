"""Pictures moved as a whole: where a camera that turned saw each place before (global motion compensation).

Which way the camera looked is recorded with the street's episodes; its lens is learnt.

Shapes: B worlds, K latent frames of a block, N sources, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

VIEW_RATE = 8.0  # how much faster homographies learn than other weights
OUTSIDE = 4.0  # how much a fresh network lowers a source's logit for each latent place beyond its border
FARTHEST = 2.0  # widths of a picture: longest displacement by a homography


@dataclass(frozen=True)
class Views:
    """Which way the camera looks, (yaw, pitch) in radians: at the `sources` [B, N, 2], and in the block, `target` [B, K, 2]."""

    sources: Tensor
    target: Tensor


class Homography(nn.Module):
    """Where a camera that turned saw each place before: displacements by a homography, and how far beyond a border that is.

    The nine numbers of a homography between two views of one place are linear in the products of sines and cosines of the angle
    between them and of both pitches (Hartley and Zisserman, Multiple View Geometry, 8.4.2). The factors hold the lens, and are
    learnt. A fresh one moves nothing."""

    def __init__(self, size: tuple[int, int], cells: tuple[int, int]) -> None:
        super().__init__()
        self.half_width = size[1] / 2
        height = size[0] / size[1]
        y, x = (torch.arange(n) * 2 + 1 for n in cells)
        x, y = x / cells[1] - 1, (y / cells[0] - 1) * height
        places = torch.stack([x.expand(cells[0], -1), y[:, None].expand(-1, cells[1]), torch.ones(cells)], dim=-1)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("border", torch.tensor([1.0, height]), persistent=False)
        self.factors = nn.Parameter(torch.zeros(9, 27))
        self.outside = nn.Parameter(torch.tensor(OUTSIDE))

    places: Tensor
    border: Tensor

    def forward(self, views: Views) -> tuple[Tensor, Tensor]:
        """Displacements in pixels [B, K, N, 2, rows, columns] of the places, and how many pixels they lead beyond the border."""
        before, after = views.sources[:, None].double(), views.target[:, :, None].double()
        turned = (after - before)[..., 0]
        parts = [turned, before[..., 1].expand_as(turned), after[..., 1].expand_as(turned)]
        a, b, c = (torch.stack([torch.ones_like(v), v.sin(), 1 - v.cos()], dim=-1) for v in parts)
        products = torch.einsum("...i,...j,...k->...ijk", a, b, c).flatten(-3).float()
        matrix = (products @ (VIEW_RATE * self.factors).T).unflatten(-1, (3, 3)) + torch.eye(3, device=products.device)
        seen = torch.einsum("...ij,yxj->...iyx", matrix, self.places)
        place = seen[..., :2, :, :] / seen[..., 2:, :, :].clamp(min=0.05)
        own = self.places[..., :2].movedim(-1, 0)
        moved = (place - own).clamp(-2 * FARTHEST, 2 * FARTHEST)
        beyond = ((own + moved).abs() - self.border[:, None, None]).clamp(min=0).amax(dim=-3)
        return moved * self.half_width, beyond * self.half_width
