"""Where a walker starts, and where an event takes place."""

from __future__ import annotations

import math

import numpy as np

from yume_gym.street.layout import PITCH
from yume_gym.street.render import line_of_sight
from yume_gym.street.town import Town

_TURNS = tuple(math.radians(turn) for turn in (-36, -27, -18, -9, 0, 9, 18, 27, 36))  # directions tried in a view
_FACING = (-math.pi / 2, math.pi / 2, math.pi, 0.0)  # the direction that each side of a building faces


def place_on_street(town: Town, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """A free place (x, z; metres) in a lane or on a pavement, and a direction (radians) mostly along the street."""
    along = float(rng.uniform(0, town.size))
    off = float(rng.uniform(-1.6, 1.6) if rng.random() < 0.75 else rng.uniform(5.1, 5.4) * rng.choice([-1, 1]))
    street = PITCH * int(rng.integers(town.blocks)) + off
    axis = int(rng.integers(2))  # 0: a street along z
    yaw = (0.0 if axis == 0 else math.pi / 2) + math.pi * int(rng.integers(2))
    yaw += float(rng.normal(0, 0.25)) if rng.random() < 0.8 else float(rng.uniform(-math.pi, math.pi))
    return ((street, along) if axis == 0 else (along, street)), yaw


def place_in_view(
    town: Town, x: float, z: float, yaw: float, distance: float
) -> tuple[tuple[float, float], tuple[int, float, float, float] | None]:
    """A place (x, z; metres) about `distance` metres away in the view towards `yaw` (radians), with a free line of sight to it.

    Also a facade in view, (building, x, z, direction that it faces in radians), or None.
    """
    open_to, walls = [], []
    for turn in _TURNS:
        towards = yaw + turn
        away, building, side = line_of_sight(town, x, z, towards)
        reach = min(distance, away - 2.5)
        open_to.append((reach - 6.0 * abs(turn), towards, reach))
        if building >= 0 and away > 5.0:
            place = (x + away * math.sin(towards), z + away * math.cos(towards))
            walls.append((abs(away - 13.0) + 6.0 * abs(turn), building, *place, _FACING[side]))
    _, towards, reach = max(open_to)
    reach = max(3.0, reach)
    place = (x + reach * math.sin(towards), z + reach * math.cos(towards))
    return place, min(walls)[1:] if walls else None
