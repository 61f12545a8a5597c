"""Walking among solid things: stopped by walls and water, sliding along them."""

from __future__ import annotations

import math

from yume_gym.street.layout import CELL, CELL_OFFSET
from yume_gym.street.town import Town

WALL_MARGIN = 0.6  # metres kept from walls and water


def slide(town: Town, x: float, z: float, dx: float, dz: float) -> tuple[float, float]:
    """Where a way shorter than a cell (metres) leads from (x, z): solid things stop it along one axis at a time."""
    margin = WALL_MARGIN - 1e-9
    x = x + dx if town.free(x + dx, z, margin) else _contact(x, dx)
    z = z + dz if town.free(x, z + dz, margin) else _contact(z, dz)
    return x, z


def _contact(position: float, move: float) -> float:
    """Where a move along one axis meets the next cell's border, less the margin; never past the move."""
    reach = math.copysign(WALL_MARGIN, move)
    cell = (position - CELL_OFFSET + reach) / CELL
    # a border that is touched already is the next one
    border = (math.ceil(cell - 1e-6) if move > 0 else math.floor(cell + 1e-6)) * CELL + CELL_OFFSET
    return min(max(border - reach, min(position, position + move)), max(position, position + move))
