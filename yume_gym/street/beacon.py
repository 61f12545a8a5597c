"""The beacon task: where a pillar of light stands, and how far it is on the torus."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from yume_gym.street.simulator import StreetSimulator

ARRIVAL_RADIUS = 3.0  # metres
ARRIVAL_BONUS = 10.0
_NEAREST, _FARTHEST = 10.0, 60.0  # metres
_IN_VIEW = 0.75  # share of beacons in plain sight
_TRIES = 500


def place_beacon(street: StreetSimulator, rng: np.random.Generator) -> tuple[float, float]:
    """A free place (x, z; metres) 10 to 60 m from the viewer, drawn with `rng`.

    Three times out of four it lies within the field of view with nothing solid in between, otherwise up to 90 degrees
    beside it. Where the town offers no such place in many draws, any free one at that distance will do.
    """
    half_view = 0.9 * math.radians(street.camera.horizontal_fov) / 2
    in_view = rng.random() < _IN_VIEW
    fallback = None
    x0, z0 = street.position
    for _ in range(_TRIES):
        side = (
            rng.uniform(-half_view, half_view) if in_view else rng.choice([-1, 1]) * rng.uniform(half_view, math.pi / 2)
        )
        distance, angle = rng.uniform(_NEAREST, _FARTHEST), street.yaw + side
        place = (x0 + distance * math.sin(angle), z0 + distance * math.cos(angle))
        if not street.town.free(*place, margin=1.0) or beacon_distance(street, place) < _NEAREST:
            continue
        if not in_view or _open_way(street, place):
            return place
        fallback = fallback or place
    if fallback is None:
        raise ValueError("found no free place for a beacon around the start: start somewhere else")
    return fallback


def beacon_distance(street: StreetSimulator, place: tuple[float, float] | None) -> float:
    """Metres from the viewer to `place` by the shortest way on the torus, walls not counted; inf without a place."""
    if place is None:
        return math.inf
    size = street.town.size
    offsets = (math.remainder(there - here, size) for there, here in zip(place, street.position))
    return math.hypot(*offsets)


def _open_way(street: StreetSimulator, place: tuple[float, float]) -> bool:
    way = np.linspace(street.position, place, num=64)
    return not any(street.town.solid(x, z) for x, z in way)
