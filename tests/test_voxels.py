"""What stands in a town and where one can walk there, against searches and the street's own distances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from train.places import Settings
from train.voxels import count_voxels, distance_field, mark_walks
from world_model.config import ModelConfig, PlacesConfig
from world_model.places import FARTHEST, UNIT, Places
from yume_gym.street.motion import WALL_MARGIN
from yume_gym.street.simulator import StreetSimulator

COUNTED = Settings(views=40, walks=2, blocks=20)


@pytest.mark.parametrize("share", [0.002, 0.02, 0.3])
def test_distances_around_the_torus_equal_a_search(share):
    """Every voxel against every solid one."""
    tiny = PlacesConfig(period=8.0, cell=0.5, height=3.0, tables=((2.0, 8, 4),), width=16, look=4)
    solid = np.random.default_rng(4).random((16, 6, 16)) < share
    assert solid.any()
    found = distance_field(solid, tiny)
    assert found.dtype == torch.uint8 and found.shape == solid.shape
    here, there = np.argwhere(np.ones_like(solid))[:, None], np.argwhere(solid)[None]
    apart = np.abs(here - there)
    apart[..., [0, 2]] = np.minimum(apart[..., [0, 2]], 16 - apart[..., [0, 2]])
    metres = np.sqrt((apart**2).sum(axis=-1)).min(axis=1).reshape(solid.shape) * tiny.cell
    np.testing.assert_array_equal(found.numpy(), np.clip(np.floor(metres / UNIT + 1e-9), 0, 255))


def places_of(config: ModelConfig) -> Places:
    torch.manual_seed(0)
    return Places(config.dit.places, config.camera, config.latent_size, config.dit.latent_channels, config.text.dim)


@pytest.fixture(scope="module")
def counted(town_config) -> Places:
    """The town's own voxels, from a few views of it."""
    c, places = town_config, places_of(town_config)
    solid = count_voxels(c, replace(COUNTED, views=100))
    places.distance.copy_(distance_field(solid, c.dit.places))
    places.walkable.copy_(mark_walks(c, replace(COUNTED, walks=4, blocks=60)))
    return places


def street_of(config: ModelConfig) -> StreetSimulator:
    return StreetSimulator(height=config.height, width=config.width, fps=config.fps, camera=config.camera)


def test_counted_voxels_have_the_true_distances_of_other_views(counted, town_config):
    street, rng, errors, metres, right = street_of(town_config), np.random.default_rng(99), [], [], []
    rows, columns, eye = town_config.height, town_config.width, town_config.camera.eye_height
    focal = town_config.camera.focal(columns)
    y, x = np.meshgrid(np.arange(rows) + 0.5 - rows / 2, np.arange(columns) + 0.5 - columns / 2, indexing="ij")
    rays = np.stack([x / focal, y / focal, np.ones_like(x)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    for _ in range(6):
        street.reset(rng)
        true, place = street.depth(), np.array(street.position) % 80
        direction = (rays @ street.pose[:3, :3].T) * (1, -1, 1)
        origin = torch.tensor([place[0], eye, place[1]], dtype=torch.float32).expand(rows, columns, 3)
        away, met = (t.numpy() for t in counted.trace(origin, torch.from_numpy(direction).float()))
        with np.errstate(divide="ignore"):
            ground = np.where(direction[..., 1] < 0, -eye / direction[..., 1], np.inf)
        thing = (true < 60) & (true < ground - 0.3)  # the ground would be right without any counting
        errors.append((np.abs(away - true) / true)[thing])
        metres.append(np.abs(away - true)[thing])
        right.append(met == (true < FARTHEST))
    assert np.median(np.concatenate(errors)) < 0.06
    assert np.median(np.concatenate(metres)) < 0.6  # voxels are a metre
    assert np.mean(right) > 0.93


def test_walks_are_marked_where_one_can_walk(counted, town_config):
    """A walker keeps off walls, so a marked cell's middle is free with the rest of that margin; streets are found."""
    town, cell = street_of(town_config).town, town_config.dit.places.cell
    marked = counted.walkable.nonzero().tolist()
    assert len(marked) > 60
    margin = WALL_MARGIN - cell / 2 - 1e-6
    assert all(town.free((x + 0.5) * cell, (z + 0.5) * cell, margin) for x, z in marked)
    solid = [(x, z) for x, z in np.ndindex(80, 80) if town.solid(x + 0.5, z + 0.5)]
    assert not any(counted.walkable[x, z] for x, z in solid) and len(solid) > 1000
