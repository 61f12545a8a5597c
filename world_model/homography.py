"""Pictures moved as a whole: where a camera that turned saw each place before (global motion compensation).

Which way the camera looked is recorded with the street's episodes: yaw to the right, and pitch up from the horizon. Its lens is
learnt.

Shapes: B worlds, K latent frames of a block, N sources, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FRESH_FOCAL = 1.5  # of a fresh network, in half widths of a picture: a field of view of 67 degrees
FOCAL_RATE = 8.0  # how much faster the focal length learns than other weights
OUTSIDE = 4.0  # how much a fresh network lowers a source's logit for each latent place beyond its border
FARTHEST = 2.0  # widths of a picture: longest displacement by a homography


@dataclass(frozen=True)
class Views:
    """Which way the camera looks, (yaw, pitch) in radians: at the `sources` [B, N, 2], and in the block, `target` [B, K, 2]."""

    sources: Tensor
    target: Tensor


class Homography(nn.Module):
    """Where a camera that turned saw each place before: displacements by a homography, and how far beyond a border that is.

    K R K^-1 of a pinhole camera whose optical axis meets the picture's centre (Hartley and Zisserman, Multiple View Geometry,
    8.4.2). The rotation R is known from the views, and the focal length in K is learnt."""

    def __init__(self, size: tuple[int, int], cells: tuple[int, int]) -> None:
        super().__init__()
        self.half_width = size[1] / 2
        height = size[0] / size[1]
        y, x = (torch.arange(n) * 2 + 1 for n in cells)
        x, y = x / cells[1] - 1, (y / cells[0] - 1) * height
        places = torch.stack([x.expand(cells[0], -1), y[:, None].expand(-1, cells[1]), torch.ones(cells)], dim=-1)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("border", torch.tensor([1.0, height]), persistent=False)
        self.log_focal = nn.Parameter(torch.tensor(math.log(FRESH_FOCAL) / FOCAL_RATE))
        self.outside = nn.Parameter(torch.tensor(OUTSIDE))

    places: Tensor
    border: Tensor

    @property
    def focal(self) -> Tensor:
        """The focal length, in half widths of a picture."""
        return (FOCAL_RATE * self.log_focal).exp()

    def scale(self) -> Tensor:
        """The diagonal [3] of K."""
        focal = self.focal
        return torch.stack([focal, focal, torch.ones_like(focal)])

    def below(self, pitch: Tensor) -> Tensor:
        """How far below the horizon each ray leads, over one unit of depth, of cameras with `pitch` [...]: [..., rows, columns]."""
        return torch.einsum("...i,yxi->...yx", tilt(pitch.double())[..., 1, :].float(), self.places / self.scale())

    def forward(self, views: Views, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Displacements in pixels [B, K, N, 2, rows, columns] of the places, and how many pixels they lead beyond the border.

        shift [B, K, N, 3, rows, columns]: how the ray of each place, one unit of depth long, changes for a source that stood
        elsewhere (parallax.py); None for cameras that only turn."""
        before, after = views.sources[:, None].double(), views.target[:, :, None].double()
        turned = turn(after[..., 0] - before[..., 0])
        rotation = tilt(before[..., 1]).transpose(-1, -2) @ turned @ tilt(after[..., 1])
        scale = self.scale()
        matrix = scale[:, None] * rotation.float() / scale
        rays = self.places.movedim(-1, 0)
        if shift is not None:
            rays = rays + scale[:, None, None] * shift
        seen = torch.einsum("...ij,...jyx->...iyx", matrix, rays)
        place = seen[..., :2, :, :] / seen[..., 2:, :, :].clamp(min=0.05)
        own = self.places[..., :2].movedim(-1, 0)
        moved = (place - own).clamp(-2 * FARTHEST, 2 * FARTHEST)
        beyond = ((own + moved).abs() - self.border[:, None, None]).clamp(min=0).amax(dim=-3)
        return moved * self.half_width, beyond * self.half_width


def turn(yaw: Tensor) -> Tensor:
    """Rotations [..., 3, 3] to the right, of angles [...]."""
    sine, cosine, zero = yaw.sin(), yaw.cos(), torch.zeros_like(yaw)
    rows = (cosine, zero, sine), (zero, zero + 1, zero), (-sine, zero, cosine)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def tilt(pitch: Tensor) -> Tensor:
    """Rotations [..., 3, 3] upwards, of angles [...]."""
    sine, cosine, zero = pitch.sin(), pitch.cos(), torch.zeros_like(pitch)
    rows = (zero + 1, zero, zero), (zero, cosine, -sine), (zero, sine, cosine)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
