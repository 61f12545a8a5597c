"""Facts about a place in the town, for captions."""

from __future__ import annotations

import math

import numpy as np

from yume_gym.street import primitives as P
from yume_gym.street.layout import (
    BRICK,
    DISTRICT,
    DISTRICTS,
    GLASS,
    LAWN,
    NO_PATTERN,
    PARK,
    PASTEL,
    PATTERN,
    PITCH,
    SHOP,
    STRIPED,
    WATER,
)
from yume_gym.street.render import FAR, line_of_sight
from yume_gym.street.town import Town

_RAYS = 24
_BUILDING_NAMES = {BRICK: "brick houses", GLASS: "glass towers", PASTEL: "pastel houses"}
_SHAPE_RANGE = 30.0  # metres


def describe(town: Town, people: np.ndarray, x: float, z: float, yaw: float, fov: float) -> dict:
    """What stands around a viewer.

    Returns `district` (the one that fills most of the view, of layout.DISTRICTS), `place` ("crossing", "mid-street" or
    "park"), `visible` (names of things in view, those that fill the most of it first) and `at_crossing` (bool).
    """
    size = town.size
    half = math.radians(fov) / 2
    counts: dict[str, float] = {}
    ahead: dict[int, float] = {}  # district -> rays that end there

    def see(name: str, amount: float) -> None:
        counts[name] = counts.get(name, 0.0) + amount

    for k in range(_RAYS):
        a = yaw + half * (2 * (k + 0.5) / _RAYS - 1)
        dx, dz = math.sin(a), math.cos(a)
        away, building, _ = line_of_sight(town, x, z, a, 0.6 * FAR)
        if building >= 0:
            row = town.buildings[building]
            kind = int(row[DISTRICT])
            ahead[kind] = ahead.get(kind, 0.0) + 1.0
            if kind in _BUILDING_NAMES and row[PATTERN] == NO_PATTERN:
                see(_BUILDING_NAMES[kind], 1.0)
            if row[PATTERN] != NO_PATTERN:
                see("striped tower" if row[PATTERN] == STRIPED else "checkered tower", 1.0)
            if row[SHOP] and away < 35:
                see("shops", 1.0)
        for step in np.arange(2.0, min(away, 40.0), 4.0):
            ground = town.ground[town.cell(x + step * dx, z + step * dz)]
            if ground == LAWN:
                see("park", 0.4)
                ahead[PARK] = ahead.get(PARK, 0.0) + 0.15
            elif ground == WATER:
                see("pond", 0.4)

    def in_view(px: np.ndarray, pz: np.ndarray) -> int:
        return _in_view(town, (x, z, yaw), half, px, pz)

    shapes = town.shapes
    for name, material in (("trees", P.FOLIAGE), ("parked cars", P.CAR), ("street lamps", P.LAMP)):
        chosen = shapes[shapes[:, P.MATERIAL] == material]
        if seen := in_view(chosen[:, P.X], chosen[:, P.Z]):
            see(name, 1.5 * seen)
    if seen := in_view(people[:, 0], people[:, 1]):
        see("pedestrians", 1.5 * seen)
    sx, sz = abs((x + PITCH / 2) % PITCH - PITCH / 2), abs((z + PITCH / 2) % PITCH - PITCH / 2)
    crossing = sx < 8 and sz < 8
    district = int(town.district[int(x % size // 4), int(z % size // 4)])
    inside = sx > 6 and sz > 6 and district == PARK
    return {
        "district": DISTRICTS[max(ahead, key=lambda kind: ahead[kind]) if ahead else district],
        "place": "park" if inside else ("crossing" if crossing else "mid-street"),
        "at_crossing": crossing,
        "visible": [name for name, amount in sorted(counts.items(), key=lambda item: -item[1]) if amount >= 1.0],
    }


def _in_view(town: Town, stand: tuple[float, float, float], half: float, px: np.ndarray, pz: np.ndarray) -> int:
    """How many of the points (px, pz; metres) are near, at most `half` (radians) off the view (x, z, yaw), and not hidden."""
    (x, z, yaw), size = stand, town.size
    ox, oz = (px - x + size / 2) % size - size / 2, (pz - z + size / 2) % size - size / 2
    away = np.hypot(ox, oz)
    turn = (np.arctan2(ox, oz) - yaw + math.pi) % math.tau - math.pi
    near = np.flatnonzero((away < _SHAPE_RANGE) & (away > 1.0) & (abs(turn) < half))
    return sum(line_of_sight(town, x, z, yaw + float(turn[k]))[0] > away[k] - 0.5 for k in near)
