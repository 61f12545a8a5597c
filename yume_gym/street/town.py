"""The town's layout as flat arrays: blocks, buildings, park, street furniture, drawn from a seed.

The town is a torus of B x B blocks of 40 m. Streets run along every multiple of 40 m in x and z: 8 m of carriageway and
2 m of pavement on both sides; the 28 m lot between them holds buildings of several districts, or a park. Everything
that stops a walker lies on a grid of 4 m cells whose first cell begins at 2 m, so that streets are whole cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yume_gym.street.furniture import Pedestrians, pedestrians, standing_furniture
from yume_gym.street.layout import (
    ACCENT,
    BAND,
    BAY,
    BRICK,
    BUILDING_COLUMNS,
    CELL,
    CELL_OFFSET,
    CELLS_PER_BLOCK,
    CHECKERED,
    CORNICE,
    DISTRICT,
    FLOOR,
    FRAME,
    GABLE,
    GLASS,
    GROUND_H,
    HEIGHT,
    LAWN,
    LIT,
    LOT_CELLS,
    NO_BUILDING,
    PANE,
    PANE_H,
    PANE_W,
    PARK,
    PASTEL,
    PATH,
    PATTERN,
    PITCH,
    PLAZA,
    SHEEN,
    SHOP,
    SHOPS,
    SHUTTER,
    STRIPED,
    TONE,
    TRIM,
    WALL,
    WATER,
    X0,
    X1,
    Z0,
    Z1,
)
from yume_gym.street.styles import ACCENTS, STYLES
from yume_gym.street.textures import cloud_map, light_map


class Town(NamedTuple):
    """Everything about a town that does not move. Kernels read it as it is."""

    size: float  # metres once around
    cells: np.ndarray  # int32 [G, G], building index by (x, z) cell, -1: none
    ground: np.ndarray  # int32 [G, G], PLAZA, LAWN, PATH or WATER
    district: np.ndarray  # int32 [G, G], index into DISTRICTS
    buildings: np.ndarray  # float64 [N, BUILDING_COLUMNS]
    shapes: np.ndarray  # float64 [M, primitives.COLUMNS] that stand still
    people: Pedestrians
    tints: np.ndarray  # float64 [2, B, 6]: carriageway and pavement of the streets along z, then along x
    light: np.ndarray  # float32 [K, K, 3]: ground in the sun by day, in low sun, lamplight; 0..1
    clouds: np.ndarray  # float32 [256, 256, 2]: clouds and stars, 0..1

    @property
    def blocks(self) -> int:
        """Blocks along a side."""
        return len(self.cells) // CELLS_PER_BLOCK

    def cell(self, x: float, z: float) -> tuple[int, int]:
        """Grid cell of a place (metres; any turn around the torus)."""
        n = len(self.cells)
        return int(np.floor((x - CELL_OFFSET) / CELL)) % n, int(np.floor((z - CELL_OFFSET) / CELL)) % n

    def solid(self, x: float, z: float) -> bool:
        """Whether a building or water stands at a place."""
        i, j = self.cell(x, z)
        return self.cells[i, j] != NO_BUILDING or self.ground[i, j] == WATER

    def free(self, x: float, z: float, margin: float) -> bool:
        """Whether a square of half side `margin` (at most a cell) around a place touches nothing solid."""
        return not any(self.solid(x + a, z + b) for a in (-margin, margin) for b in (-margin, margin))


def build_town(seed: int, blocks: int) -> Town:
    """Lay a town out. The same seed and size give the same town.

    Raises ValueError for a negative seed or fewer than 2 blocks (a torus of one block would show itself everywhere).
    """
    if seed < 0:
        raise ValueError(f"town seed must be 0 or more, got {seed}")
    if blocks < 2:
        raise ValueError(f"a town needs at least 2 x 2 blocks, got {blocks}")
    rng = np.random.default_rng([seed, blocks])
    n = blocks * CELLS_PER_BLOCK
    cells = np.full((n, n), NO_BUILDING, np.int32)
    ground = np.full((n, n), PLAZA, np.int32)
    district = np.full((n, n), -1, np.int32)
    buildings: list[np.ndarray] = []
    for (bx, bz), (south, north) in _plan(rng, blocks).items():
        cx, cz = bx * CELLS_PER_BLOCK, bz * CELLS_PER_BLOCK
        # a block's cells, its half of the streets around included: who asks in the street hears of the nearest block
        district[cx : cx + 10, cz : cz + 5], district[cx : cx + 10, cz + 5 : cz + 10] = south, north
        if south == PARK:
            _lay_park(rng, ground[cx + 1 : cx + 8, cz + 1 : cz + 8])
        else:
            _lay_buildings(rng, buildings, cells, cx + 1, cz + 1, (south, north))
    table = np.stack(buildings)
    _landmarks(rng, table)
    size = blocks * PITCH
    shapes = standing_furniture(rng, table, ground, district, blocks)
    return Town(
        size=size,
        cells=cells,
        ground=ground,
        district=district,
        buildings=table,
        shapes=shapes,
        people=pedestrians(rng, blocks),
        tints=_street_tints(rng, blocks),
        light=light_map(cells, table[:, HEIGHT], shapes, size),
        clouds=cloud_map(rng),
    )


def _plan(rng: np.random.Generator, blocks: int) -> dict[tuple[int, int], tuple[int, int]]:
    """District of each block's two halves: every four blocks hold one park and each built district at least once."""
    places = [(i, j) for i in range(blocks) for j in range(blocks)]
    order = rng.permutation(len(places))
    plan: dict[tuple[int, int], tuple[int, int]] = {}
    for start in range(0, len(places), 4):
        group = [places[k] for k in order[start : start + 4]]
        kinds = [BRICK, PASTEL, SHOPS, GLASS]
        halves = [int(k) for k in rng.permutation(kinds)] + [int(k) for k in rng.choice(kinds, 2, replace=False)]
        plan[group[0]] = (PARK, PARK)
        for k, place in enumerate(group[1:]):
            plan[place] = (halves[2 * k], halves[2 * k + 1])
    return plan


def _lay_park(rng: np.random.Generator, lot: np.ndarray) -> None:
    """A lawn with a cross of paths and a pond off its middle; writes into `lot` [7, 7]."""
    lot[:] = LAWN
    lot[3, :] = PATH
    lot[:, 3] = PATH
    x, z = (int(v) for v in rng.choice([0, 4], 2))
    lot[x + 1 : x + 3 if x else x + 2, z + 1 : z + 3 if z else z + 2] = WATER
    lot[(1, 1, 2, 2) if x == 0 else (4, 4, 5, 5), (1, 2, 1, 2) if z == 0 else (4, 5, 4, 5)] = WATER


def _lay_buildings(
    rng: np.random.Generator, buildings: list[np.ndarray], cells: np.ndarray, cx: int, cz: int, halves: tuple[int, int]
) -> None:
    depth = int(rng.integers(3, 5))
    last_wall = -1
    for kind, z0, z1 in ((halves[0], 0, depth), (halves[1], depth, LOT_CELLS)):
        splits = [(3, 4), (4, 3)] if kind == GLASS else [(2, 3, 2), (3, 2, 2), (2, 2, 3), (3, 4), (4, 3)]
        x0 = 0
        for width in splits[int(rng.integers(len(splits)))]:
            style = STYLES[kind]
            walls = style.palette.walls
            wall = int(rng.integers(len(walls)))
            wall = (wall + 1) % len(walls) if wall == last_wall else wall
            last_wall = wall
            row = _building(rng, kind, wall)
            row[X0], row[X1] = CELL_OFFSET + CELL * (cx + x0), CELL_OFFSET + CELL * (cx + x0 + width)
            row[Z0], row[Z1] = CELL_OFFSET + CELL * (cz + z0), CELL_OFFSET + CELL * (cz + z1)
            cells[cx + x0 : cx + x0 + width, cz + z0 : cz + z1] = len(buildings)
            buildings.append(row)
            x0 += width


def _building(rng: np.random.Generator, kind: int, wall: int) -> np.ndarray:
    style = STYLES[kind]
    palette, storeys, windows = style.palette, style.storeys, style.windows
    row = np.zeros(BUILDING_COLUMNS)
    count = int(rng.integers(storeys.count[0], storeys.count[1] + 1))
    row[WALL : WALL + 3] = palette.walls[wall]
    row[TRIM : TRIM + 3] = palette.trims[int(rng.integers(len(palette.trims)))]
    row[PANE : PANE + 3] = palette.panes[int(rng.integers(len(palette.panes)))]
    row[ACCENT : ACCENT + 3] = ACCENTS[int(rng.integers(len(ACCENTS)))]
    row[FLOOR], row[GROUND_H] = storeys.height, storeys.ground_height
    row[BAY] = windows.bay * rng.uniform(0.9, 1.2)
    row[PANE_W] = windows.width * rng.uniform(0.9, 1.1)
    row[PANE_H] = windows.height * rng.uniform(0.92, 1.1)
    row[SHOP] = rng.random() < style.shop
    row[SHUTTER] = rng.random() < windows.shutter
    row[FRAME], row[BAND], row[CORNICE], row[SHEEN] = windows.frame, storeys.band, storeys.cornice, windows.sheen
    row[LIT] = windows.lit * rng.uniform(0.8, 1.2)
    row[GABLE] = rng.random() < style.gable
    row[TONE] = float(rng.integers(1 << 20))
    row[DISTRICT] = kind
    row[HEIGHT] = storeys.ground_height + count * storeys.height + storeys.cornice
    return row


def _landmarks(rng: np.random.Generator, table: np.ndarray) -> None:
    """One building in seven becomes a landmark: a striped or a checkered tower."""
    towers = rng.permutation(np.flatnonzero(table[:, DISTRICT] != PASTEL))[: max(2, len(table) // 7)]
    patterns = (
        (STRIPED, (0.93, 0.93, 0.90), (0.86, 0.15, 0.13)),
        (CHECKERED, (0.96, 0.80, 0.18), (0.16, 0.17, 0.22)),
        (STRIPED, (0.95, 0.88, 0.70), (0.05, 0.45, 0.55)),
        (CHECKERED, (0.92, 0.92, 0.94), (0.20, 0.32, 0.75)),
    )
    for k, building in enumerate(towers):
        pattern, wall, accent = patterns[k % len(patterns)]
        row = table[building]
        row[PATTERN], row[WALL : WALL + 3], row[ACCENT : ACCENT + 3] = pattern, wall, accent
        row[HEIGHT] += 10.0 + 4.0 * (k % 2)
        row[FLOOR], row[BAND], row[CORNICE], row[BAY] = 4.0, 0.0, 0.6, 4.0
        row[PANE_W], row[PANE_H] = 0.4, 0.45
        row[HEIGHT] = row[GROUND_H] + row[FLOOR] * round((row[HEIGHT] - row[GROUND_H]) / row[FLOOR])


def _street_tints(rng: np.random.Generator, blocks: int) -> np.ndarray:
    roads = np.array([(0.30, 0.30, 0.33), (0.37, 0.34, 0.32), (0.26, 0.29, 0.34), (0.34, 0.33, 0.37)])
    pavements = np.array([(0.74, 0.70, 0.63), (0.66, 0.67, 0.70), (0.76, 0.64, 0.57), (0.70, 0.72, 0.62)])
    tints = np.empty((2, blocks, 6))
    for axis in range(2):
        for street in range(blocks):
            k = (2 * axis + street) % 4
            tints[axis, street] = *roads[k], *pavements[k]
    return np.clip(tints + rng.uniform(-0.02, 0.02, tints.shape), 0, 1)
