"""What stands in a town and where one can walk there, counted from true distances and walkers, for `train.places`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt
from torch import Tensor
from tqdm import tqdm

from world_model.config import ModelConfig, PlacesConfig
from world_model.geometry import camera_rays
from world_model.places import FARTHEST, UNIT
from yume_gym.street.simulator import StreetSimulator
from yume_gym.street.walker import Walker

if TYPE_CHECKING:
    from train.places import Settings

KERB = 0.2  # metres: what is lower is ground
THIN = 3  # one ray in so many, each way, is followed through the air


def count_voxels(config: ModelConfig, settings: Settings) -> np.ndarray:
    """bool [X, H, Z]: what is solid. A voxel is where more rays end than pass, or where none comes by."""
    places = config.dit.places
    assert places is not None
    street = StreetSimulator.like(config, settings.town_seed, settings.town_blocks)
    cells, levels = round(places.period / places.cell), round(places.height / places.cell)
    hits, passes = (np.zeros(cells * levels * cells, np.int64) for _ in range(2))
    rays = camera_rays(config.height, config.width, config.camera, torch.device("cpu")).numpy()
    rng = np.random.default_rng([settings.seed, 1])

    def index(points: np.ndarray) -> np.ndarray:
        x, h, z = np.floor(points / places.cell).astype(np.int64).reshape(-1, 3).T
        inside = (h >= 0) & (h < levels)
        return ((x % cells * levels + h) * cells + z % cells)[inside]

    for _ in tqdm(range(settings.views), desc="distances", mininterval=5):
        street.reset(rng, yaw=float(rng.uniform(-math.pi, math.pi)), pitch=float(rng.uniform(-0.6, 0.6)))
        away, (x, z) = street.depth(), street.position
        direction = (rays @ street.pose[:3, :3].T) * (1, -1, 1)
        origin = np.array([x, config.camera.eye_height, z])
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


def distance_field(solid: np.ndarray, places: PlacesConfig) -> Tensor:
    """uint8 [X, H, Z]: metres from each voxel to the nearest solid one, in steps of `UNIT`, around the torus."""
    cells = solid.shape[0]
    half = cells // 2
    wrapped = np.pad(solid, ((half, half), (0, 0), (half, half)), mode="wrap")
    away = distance_transform_edt(~wrapped) * places.cell
    inner = slice(half, half + cells)
    return torch.from_numpy(np.clip(away[inner, :, inner] / UNIT, 0, 255).astype(np.uint8))


def mark_walks(config: ModelConfig, settings: Settings) -> Tensor:
    """bool [X, Z]: where walkers came by."""
    places = config.dit.places
    assert places is not None
    street, rng = (
        StreetSimulator.like(config, settings.town_seed, settings.town_blocks),
        np.random.default_rng([settings.seed, 2]),
    )
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
