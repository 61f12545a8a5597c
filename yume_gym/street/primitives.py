"""Small solid and soft shapes that stand in the town: one flat float64 row each, so that kernels can read them.

A row is `[KIND, X, H, Z, A, B, C, RED, GREEN, BLUE, EMIT, ALPHA, MATERIAL, PARAM]`: centre (metres; H is the height
above ground), half extents along x, up and z (metres), colour 0..1, own light 0..1, opacity 0..1, a MATERIAL and its
parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

KIND, X, H, Z, A, B, C, RED, GREEN, BLUE, EMIT, ALPHA, MATERIAL, PARAM = range(14)
COLUMNS = 14

# kinds: the first four are solid, the others are soft (blended, cast no depth)
ELLIPSOID, CYLINDER, BOX, ROOF, MIST, GLOW, PILLAR = range(7)

# materials
PLAIN, FOLIAGE, STRIPES, TILES, GORES, CABIN, LAMP, HALO, CAR = range(9)

Colour = Sequence[float]


def shape(
    kind: int,
    centre: Sequence[float],
    half: Sequence[float],
    colour: Colour,
    *,
    emit: float = 0.0,
    alpha: float = 1.0,
    material: int = PLAIN,
    param: float = 0.0,
) -> list[float]:
    """One row: `centre` and `half` are (x, height, z) in metres."""
    return [kind, *centre, *half, *colour, emit, alpha, material, param]


def rows(shapes: Sequence[Sequence[float]]) -> np.ndarray:
    """[N, COLUMNS] float64 of a list of rows, also when it is empty."""
    return np.asarray(shapes, dtype=np.float64).reshape(-1, COLUMNS)


def tree(x: float, z: float, crown: Colour, scale: float = 1.0) -> list[list[float]]:
    """A trunk and a round crown."""
    return [
        shape(CYLINDER, (x, 1.2 * scale, z), (0.16 * scale, 1.2 * scale, 0.16 * scale), (0.36, 0.25, 0.17)),
        shape(ELLIPSOID, (x, 3.45 * scale, z), (1.3 * scale, 1.5 * scale, 1.3 * scale), crown, material=FOLIAGE),
    ]


def lamp(x: float, z: float) -> list[list[float]]:
    """A lamp post; its head and halo glow when it is dark."""
    return [
        shape(CYLINDER, (x, 2.2, z), (0.08, 2.2, 0.08), (0.16, 0.19, 0.21)),
        shape(ELLIPSOID, (x, 4.6, z), (0.27, 0.3, 0.27), (0.93, 0.90, 0.78), material=LAMP),
        shape(GLOW, (x, 4.6, z), (1.5, 1.5, 1.5), (1.0, 0.78, 0.42), alpha=0.6, material=HALO),
    ]


def car(
    x: float, z: float, along_z: bool, paint: Colour, *, forward: float = 0.0, alpha: float = 1.0
) -> list[list[float]]:
    """A car that stands or drives along z (or x). `forward` +-1 lights the lamps of a car that drives that way."""

    def block(
        offset: float, height: float, long: float, tall: float, wide: float, colour: Colour, **more: Any
    ) -> list[float]:
        centre = (x, height, z + offset) if along_z else (x + offset, height, z)
        half = (wide, tall, long) if along_z else (long, tall, wide)
        return shape(BOX, centre, half, colour, alpha=alpha, **more)

    shapes = [
        block(1.25, 0.32, 0.34, 0.32, 0.86, (0.07, 0.07, 0.08)),
        block(-1.25, 0.32, 0.34, 0.32, 0.86, (0.07, 0.07, 0.08)),
        block(0.0, 0.66, 2.0, 0.32, 0.83, paint, material=CAR),
        block(-0.15, 1.22, 1.1, 0.27, 0.74, paint, material=CABIN),
    ]
    if forward:
        shapes.append(block(2.0 * forward, 0.7, 0.04, 0.12, 0.7, (1.0, 0.95, 0.7), emit=1.0))
        shapes.append(block(-2.0 * forward, 0.7, 0.04, 0.12, 0.7, (0.9, 0.1, 0.1), emit=0.8))
    return shapes


def person(
    x: float, z: float, coat: Colour, trousers: Colour, skin: Colour, *, alpha: float = 1.0
) -> list[list[float]]:
    """A standing or walking person, 1.75 m tall."""
    return [
        shape(CYLINDER, (x, 0.42, z), (0.17, 0.42, 0.17), trousers, alpha=alpha),
        shape(ELLIPSOID, (x, 1.13, z), (0.27, 0.42, 0.27), coat, alpha=alpha),
        shape(ELLIPSOID, (x, 1.62, z), (0.15, 0.17, 0.15), skin, alpha=alpha),
    ]
