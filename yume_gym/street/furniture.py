"""What stands and walks in the streets: trees, lamps, parked cars, awnings, roofs, kiosks, and pedestrians."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yume_gym.street import primitives as P
from yume_gym.street.layout import ACCENT, GABLE, HEIGHT, LAWN, PARK, PITCH, SHOP, TONE, WATER, X0, X1, Z0, Z1

_PAVEMENT = 4.75  # metres from a street's middle to the row of trees and lamps
_PEOPLE_PER_BLOCK = 4

Colour = tuple[float, float, float]
CROWNS: tuple[Colour, ...] = ((0.20, 0.50, 0.16), (0.32, 0.60, 0.18), (0.85, 0.47, 0.12), (0.93, 0.56, 0.70))
PAINTS: tuple[Colour, ...] = (
    (0.80, 0.12, 0.12),
    (0.12, 0.30, 0.70),
    (0.92, 0.92, 0.92),
    (0.93, 0.72, 0.10),
    (0.15, 0.17, 0.19),
    (0.10, 0.50, 0.36),
)
COATS: tuple[Colour, ...] = (
    (0.85, 0.20, 0.22),
    (0.15, 0.40, 0.78),
    (0.95, 0.76, 0.15),
    (0.20, 0.55, 0.32),
    (0.75, 0.32, 0.65),
    (0.92, 0.92, 0.90),
)
SKINS: tuple[Colour, ...] = ((0.90, 0.70, 0.56), (0.66, 0.46, 0.33), (0.42, 0.28, 0.20))
TROUSERS: tuple[Colour, ...] = ((0.14, 0.17, 0.28), (0.22, 0.20, 0.18), (0.35, 0.34, 0.36))


class Pedestrians(NamedTuple):
    """People who walk round and round their block; each field has one entry per person."""

    block: np.ndarray  # float64 [N, 2] middle of the block, metres
    phase: np.ndarray  # metres along the walk at time 0
    speed: np.ndarray  # metres/s, negative: the other way round
    radius: np.ndarray  # half side of the square walk, metres
    bodies: np.ndarray  # float64 [N, 3, COLUMNS] primitives of each person

    def places(self, time: float) -> np.ndarray:
        """[N, 2] positions (x, z; metres) at a time (s)."""
        side = 2 * self.radius
        way = np.mod(self.phase + self.speed * time, 4 * side)
        edge, along = np.divmod(way, side)
        along = along - self.radius
        first, fixed = np.where(edge < 2, 1.0, -1.0), self.radius
        on_x = np.mod(edge, 2) == 0
        dx = np.where(on_x, first * along, first * fixed)
        dz = np.where(on_x, -first * fixed, first * along)
        return self.block + np.stack([dx, dz], axis=-1)

    def shapes(self, time: float) -> np.ndarray:
        """Rows of primitives of everybody at a time (s)."""
        rows = self.bodies.copy()
        rows[:, :, [P.X, P.Z]] = self.places(time)[:, None]
        return rows.reshape(-1, P.COLUMNS)


def pedestrians(rng: np.random.Generator, blocks: int) -> Pedestrians:
    """Four people around each block of the town."""
    corners = [(PITCH * i + 20.0, PITCH * j + 20.0) for i in range(blocks) for j in range(blocks)]
    n = len(corners) * _PEOPLE_PER_BLOCK
    tables = (COATS, TROUSERS, SKINS)
    return Pedestrians(
        block=np.repeat(np.array(corners), _PEOPLE_PER_BLOCK, axis=0),
        phase=rng.uniform(0, 116, n),
        speed=rng.uniform(0.6, 1.2, n) * rng.choice([-1.0, 1.0], n),
        radius=rng.uniform(14.4, 14.8, n),
        bodies=np.stack(
            [P.rows(P.person(0, 0, *(table[int(rng.integers(len(table)))] for table in tables))) for _ in range(n)]
        ),
    )


def standing_furniture(
    rng: np.random.Generator, buildings: np.ndarray, ground: np.ndarray, district: np.ndarray, blocks: int
) -> np.ndarray:
    """Rows of primitives of everything that stands still."""
    shapes: list[list[float]] = []
    crowns = rng.permutation(len(CROWNS))
    for i in range(blocks):
        for j in range(blocks):
            corner = (PITCH * i, PITCH * j)
            for side in range(4):
                shapes += _pavement(rng, corner, side, CROWNS[crowns[(i + 2 * j + side) % 4]])
            shapes += _kiosk(corner, (i + 2 * j) % len(PAINTS))
            if district[10 * i + 4, 10 * j + 4] == PARK:
                shapes += _park(rng, corner, ground[10 * i + 1 : 10 * i + 8, 10 * j + 1 : 10 * j + 8])
    for row in buildings:
        shapes += _on_building(row)
    return P.rows(shapes)


def _side(corner: tuple[float, float], side: int, along: float, out: float) -> tuple[float, float]:
    """A place by one of the four streets around a block: `along` metres along it, `out` metres from its middle."""
    x, z = corner
    return ((x + along, z + out), (x + along, z + PITCH - out), (x + out, z + along), (x + PITCH - out, z + along))[
        side
    ]


def _pavement(rng: np.random.Generator, corner: tuple[float, float], side: int, crown: Colour) -> list[list[float]]:
    shapes: list[list[float]] = []
    for along in (10.0, 30.0):
        shapes += P.lamp(*_side(corner, side, along, _PAVEMENT - 0.2))
    trees = ((15.0, 20.0, 25.0), (20.0,), (), (14.0, 26.0))[int(rng.integers(4))]
    for along in trees:
        shapes += P.tree(*_side(corner, side, along, _PAVEMENT), crown, float(rng.uniform(0.9, 1.08)))
    for along in rng.permutation([13.0, 18.5, 24.0])[: int(rng.integers(0, 3))]:
        x, z = _side(corner, side, float(along), 3.0)
        shapes += P.car(x, z, side >= 2, PAINTS[int(rng.integers(len(PAINTS)))])
    return shapes


def _kiosk(corner: tuple[float, float], k: int) -> list[list[float]]:
    """An advertising column at the block's first corner, another colour for each block."""
    x, z = corner[0] + 4.6, corner[1] + 4.6
    return [
        P.shape(P.CYLINDER, (x, 1.3, z), (0.42, 1.3, 0.42), PAINTS[k], material=P.STRIPES, param=1.3),
        P.shape(P.ELLIPSOID, (x, 2.65, z), (0.54, 0.4, 0.54), (0.15, 0.28, 0.25)),
    ]


def _park(rng: np.random.Generator, corner: tuple[float, float], lot: np.ndarray) -> list[list[float]]:
    shapes: list[list[float]] = []
    for i, j in np.argwhere(lot == LAWN):
        if rng.random() < 0.5:
            x, z = corner[0] + 8 + 4 * i + rng.uniform(-1, 1), corner[1] + 8 + 4 * j + rng.uniform(-1, 1)
            shapes += P.tree(x, z, CROWNS[int(rng.choice([0, 0, 1, 1, 2, 3]))], float(rng.uniform(0.95, 1.5)))
    pond = np.argwhere(lot == WATER)
    x, z = corner[0] + 8 + 4 * pond[:, 0].mean(), corner[1] + 8 + 4 * pond[:, 1].mean()
    stone = (0.80, 0.78, 0.74)
    shapes.append(P.shape(P.CYLINDER, (x, 0.7, z), (0.35, 0.7, 0.35), stone))
    shapes.append(P.shape(P.ELLIPSOID, (x, 1.5, z), (1.3, 0.25, 1.3), stone))
    shapes.append(P.shape(P.MIST, (x, 2.2, z), (0.7, 1.3, 0.7), (0.85, 0.93, 1.0), alpha=0.8))
    return shapes


def _on_building(row: np.ndarray) -> list[list[float]]:
    """Awnings over shop windows, and a hip roof where the style has one."""
    shapes: list[list[float]] = []
    x, z = (row[X0] + row[X1]) / 2, (row[Z0] + row[Z1]) / 2
    a, c = (row[X1] - row[X0]) / 2, (row[Z1] - row[Z0]) / 2
    accent = tuple(float(v) for v in row[ACCENT : ACCENT + 3])
    if row[GABLE]:
        tiles = ((0.70, 0.32, 0.20), (0.45, 0.30, 0.30), (0.35, 0.40, 0.46))[int(row[TONE]) % 3]
        shapes.append(
            P.shape(
                P.ROOF, (x, row[HEIGHT], z), (a + 0.3, 0.75 * min(a, c), c + 0.3), tiles, material=P.TILES, param=0.75
            )
        )
    if row[SHOP] and int(row[TONE]) % 3:
        for dx, dz, ha, hc in (
            (0.0, c + 0.5, a - 1, 0.5),
            (0.0, -c - 0.5, a - 1, 0.5),
            (a + 0.5, 0.0, 0.5, c - 1),
            (-a - 0.5, 0.0, 0.5, c - 1),
        ):
            on_street = (x + dx) % PITCH < 7 or (x + dx) % PITCH > 33 or (z + dz) % PITCH < 7 or (z + dz) % PITCH > 33
            edge = (x + dx if ha == 0.5 else z + dz) % PITCH
            if on_street and (edge < 6.01 or edge > 33.99):
                shapes.append(
                    P.shape(P.BOX, (x + dx, 2.95, z + dz), (ha, 0.22, hc), accent, material=P.STRIPES, param=0.6)
                )
    return shapes
