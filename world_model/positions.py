"""Rotary coordinates: when and where in the picture, or which way from the viewer, each token is.

"grid" (released): running index over packed frames, own rows and columns. "centred": age, and the centre of the area that a
token covers, in cells of the finest grid. "view_sphere": age and view direction.
Shapes: B worlds, F frames, h x w tokens of a frame.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

from world_model.blocks import Grid
from world_model.config import ModelConfig
from world_model.layers import view_directions


class Positions:
    """Coordinates of one config's token grids, [B, F * h * w, 3] float64."""

    def __init__(self, config: ModelConfig) -> None:
        self._config, self._kind, self._max_age = config, config.dit.embedding.positions, config.dit.history.max_age

    def tokens(self, frame: Tensor, yaw: Tensor, pitch: Tensor, grid: Grid, ratio: int, running: int) -> Tensor:
        """[B, F*h*w, 3] float64 rotary coordinates of a token grid, frame [B, F] relative to the block's start.

        "grid": running index over packed frames, own rows and columns (released). "view_sphere": age and view direction.
        """
        _, rows, columns = grid
        if self._kind == "grid":
            axes = [torch.arange(n, dtype=torch.float64, device=frame.device) for n in grid]
            place = torch.stack(torch.meshgrid(axes[0] + running, axes[1], axes[2], indexing="ij"), dim=-1)
            return repeat(place, "F h w a -> B (F h w) a", B=frame.shape[0])
        if self._kind == "centred":
            return self._centred(frame.clamp(min=-self._max_age), rows, columns, ratio)
        return self._sphere(frame.clamp(min=-self._max_age), yaw, pitch, rows, columns, ratio)

    def _sphere(self, frame: Tensor, yaw: Tensor, pitch: Tensor, rows: int, columns: int, ratio: float) -> Tensor:
        c = self._config
        row_stride, column_stride = (c.vae.spatial_stride * p * ratio for p in c.dit.patch[1:])
        direction = view_directions(yaw, pitch, rows, columns, row_stride, column_stride, (c.height, c.width), c.camera)
        time = frame.double()[:, :, None, None, None].expand(*direction.shape[:-1], 1)
        return rearrange(torch.cat([time, direction], dim=-1), "B F h w a -> B (F h w) a")

    def kernels(self, frame: Tensor, yaw: Tensor, pitch: Tensor, grid: Grid, kernel: tuple[int, int, int]) -> Tensor:
        """True time, and the centre of the covered area in cells of the target's grid (or its direction)."""
        p = self._config.dit.patch
        ratio = kernel[1] / p[1]
        if self._kind == "view_sphere":
            return self._sphere(frame, yaw, pitch, grid[1], grid[2], ratio)
        return self._centred(frame, grid[1], grid[2], ratio)

    def _centred(self, frame: Tensor, rows: int, columns: int, ratio: float) -> Tensor:
        axes = (
            (torch.arange(n, dtype=torch.float64, device=frame.device) + 0.5) * ratio - 0.5 for n in (rows, columns)
        )
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).expand(*frame.shape, -1, -1, -1)
        time = frame.double()[:, :, None, None, None].expand(*place.shape[:-1], 1)
        return rearrange(torch.cat([time, place], dim=-1), "B F h w a -> B (F h w) a")
