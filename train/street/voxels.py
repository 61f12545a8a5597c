"""What stands in a town and where one can walk there, counted from true distances and walkers, for `train.places`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from scipy.ndimage import binary_dilation, distance_transform_edt, generate_binary_structure
from torch import Tensor
from tqdm import tqdm

from train.street.walks import known_street
from world_model.config import ModelConfig
from world_model.priors.config import PlacesConfig, places_of
from world_model.priors.distance_field import FARTHEST, PARTLY, UNIT
from world_model.priors.geometry import camera_rays
from yume_gym.street.walker import Walker

KERB = 0.2  # metres: what is lower is ground
NEAR = 50.0  # metres: parts of voxels that are farther are not told apart
THIN = 3  # one ray in so many, each way, is followed through the air


@dataclass(frozen=True)
class Survey:
    """How much of a town is looked at."""

    views: int = 3000  # whose distances are counted
    walks: int = 300  # that mark where one can walk, of `blocks` blocks
    blocks: int = 300
    seed: int = 0


def _looks(
    config: ModelConfig, settings: Survey, town: int, count: int, seed: int, what: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """`count` views of the town, every way: from where [3] (x, height, z), directions of pixels' rays [H, W, 3], metres [H, W]."""
    street = known_street(config, town)
    rays = camera_rays(config.height, config.width, config.camera, torch.device("cpu")).numpy()
    rng = np.random.default_rng([settings.seed, seed])
    for _ in tqdm(range(count), desc=what, mininterval=5):
        street.reset(rng, yaw=float(rng.uniform(-math.pi, math.pi)), pitch=float(rng.uniform(-0.6, 0.6)))
        away, (x, z) = street.depth(), street.position
        yield np.array([x, config.camera.eye_height, z]), (rays @ street.pose[:3, :3].T) * (1, -1, 1), away


def count_voxels(config: ModelConfig, settings: Survey, town: int = 0) -> np.ndarray:
    """bool [X, H, Z]: what is solid in a known town. A voxel is where more rays end than pass, or where none comes by."""
    places = places_of(config)
    assert places is not None
    cells, levels = round(places.period / places.cell), round(places.height / places.cell)
    hits, passes = (np.zeros(cells * levels * cells, np.int64) for _ in range(2))

    def index(points: np.ndarray) -> np.ndarray:
        x, h, z = np.floor(points / places.cell).astype(np.int64).reshape(-1, 3).T
        inside = (h >= 0) & (h < levels)
        return ((x % cells * levels + h) * cells + z % cells)[inside]

    for origin, direction, away in _looks(config, settings, town, settings.views, 1, "distances"):
        points = origin + (away[..., None] + 0.05) * direction
        met = (away < FARTHEST) & (points[..., 1] > KERB)
        hits += np.bincount(index(points[met]), minlength=len(hits))
        thin, reach = direction[::THIN, ::THIN].reshape(-1, 3), away[::THIN, ::THIN].reshape(-1)
        steps = np.arange(0.2, FARTHEST, places.cell / 2)
        for part in np.array_split(np.arange(len(thin)), 4):
            ray, step = np.nonzero(steps[None] < reach[part, None] - places.cell)
            passes += np.bincount(index(origin + steps[step][:, None] * thin[part][ray]), minlength=len(passes))
    shape = (cells, levels, cells)
    hit, passed = hits.reshape(shape), passes.reshape(shape)
    near = binary_dilation(np.pad(passed > 0, 1, mode="wrap"), np.ones((3, 3, 3)))[1:-1, 1:-1, 1:-1]
    return (hit * 2 > passed * 1) & (hit > 1) | ((passed == 0) & (hit == 0) & ~near)


def count_bricks(config: ModelConfig, settings: Survey, solid: np.ndarray, town: int = 0) -> tuple[np.ndarray, Tensor]:
    """Of voxels that are `solid` [X, H, Z] and lie open: which are so only in part, bool [X, H, Z], and their parts as bits, int64
    [n], as `Places.stand` takes them. A part is air where more than twice as many rays pass as end. ValueError without room."""
    places = places_of(config)
    assert places is not None
    free = np.pad(~solid, ((1, 1), (0, 0), (1, 1)), mode="wrap")
    free = np.pad(free, ((0, 0), (1, 1), (0, 0)), constant_values=((0, 0), (False, True), (0, 0)))
    cross = generate_binary_structure(3, 1)
    surface = solid & binary_dilation(free, cross)[1:-1, 1:-1, 1:-1]
    slots = np.where(surface, np.cumsum(surface).reshape(surface.shape) - 1, -1).astype(np.int32)
    counts = np.zeros((int(surface.sum()), places.fine**3, 2), np.int32)
    for origin, direction, away in _looks(config, settings, town, 2 * settings.views, 4, "surfaces"):
        _count(origin, direction.reshape(-1, 3), away.reshape(-1), slots, counts, places.cell, places.fine)
    parts = counts[..., 1] <= 2 * counts[..., 0]  # also where none comes by
    partly = ~parts.all(axis=1)
    if partly.sum() > places.bricks:
        raise ValueError(
            f"{int(partly.sum())} voxels are solid in part, but places.bricks is {places.bricks}: raise it"
        )
    surface[surface] = partly
    bits = (parts[partly].astype(np.uint64) << np.arange(places.fine**3, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    return surface, torch.from_numpy(bits.view(np.int64))


@njit
def _count(origin, direction, away, slots, counts, cell, fine):
    """Adds to `counts` [n, fine^3, 2] how many rays end and pass in parts of the voxels that have `slots` [X, H, Z]."""
    cells, levels, _ = slots.shape
    side, (from_x, eye, from_z) = cell / fine, origin
    for r in range(len(direction)):
        (to_x, up, to_z), reach = direction[r], away[r]
        passes = int((min(reach, NEAR) - 0.2 - side) / (0.5 * side)) + 1
        last_slot, last_part = -1, -1
        for step in range(passes + (reach < NEAR)):
            ends = step >= passes
            distance = reach + 0.4 * side if ends else 0.2 + 0.5 * side * step
            h = eye + distance * up
            if h < (KERB if ends else 0.0) or h >= levels * cell:
                continue
            i, k = math.floor((from_x + distance * to_x) / side), math.floor((from_z + distance * to_z) / side)
            j = int(h / side)
            slot = slots[i // fine % cells, j // fine, k // fine % cells]
            part = (i % fine * fine + j % fine) * fine + k % fine
            if slot >= 0 and (ends or slot != last_slot or part != last_part):
                counts[slot, part, 0 if ends else 1] += 1
            last_slot, last_part = slot, part


def distance_field(solid: np.ndarray, places: PlacesConfig, partly: np.ndarray | None = None) -> Tensor:
    """uint8 [X, H, Z]: metres from each voxel to the nearest solid one around the torus in steps of `UNIT`, PARTLY if `partly`."""
    cells = solid.shape[0]
    half = cells // 2
    wrapped = np.pad(solid, ((half, half), (0, 0), (half, half)), mode="wrap")
    away = distance_transform_edt(~wrapped) * places.cell
    inner = slice(half, half + cells)
    steps = np.clip(away[inner, :, inner] / UNIT, 0, 255).astype(np.uint8)
    return torch.from_numpy(steps if partly is None else np.where(partly, np.uint8(PARTLY), steps))


def mark_walks(config: ModelConfig, settings: Survey, town: int = 0) -> Tensor:
    """bool [X, Z]: where walkers came by in a known town."""
    places = places_of(config)
    assert places is not None
    street, rng = known_street(config, town), np.random.default_rng([settings.seed, 2])
    cells = round(places.period / places.cell)
    marked = np.zeros((cells, cells), bool)
    for _ in tqdm(range(settings.walks), desc="walkable", mininterval=5):
        street.reset(rng)
        walker = Walker(rng, street)
        for _ in range(settings.blocks):
            states, _ = street.ahead(walker.act())
            street.set_state(states[-1])
            for state in states:
                marked[int(state.x // places.cell) % cells, int(state.z // places.cell) % cells] = True
    return torch.from_numpy(marked)
