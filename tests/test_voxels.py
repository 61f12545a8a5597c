"""What stands in a town and where one can walk there, against searches and the street's own distances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from train.places import Settings
from train.street.voxels import KERB, NEAR, _count, count_bricks, count_voxels, distance_field, mark_walks
from world_model.config import ModelConfig
from world_model.priors.config import PlacesConfig, scene_of, with_scene
from world_model.priors.distance_field import FARTHEST, UNIT
from world_model.priors.places import Places
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
    return Places(
        scene_of(config).places, config.camera, config.latent_size, config.dit.latent_channels, config.text.dim
    )


@pytest.fixture(scope="module")
def counted(town_config) -> Places:
    """The town's own voxels, from a few views of it."""
    c, places = town_config, places_of(town_config)
    solid = count_voxels(c, replace(COUNTED, views=100))
    places.stand(distance_field(solid, scene_of(c).places))
    places.walkable.copy_(mark_walks(c, replace(COUNTED, walks=4, blocks=60)))
    return places


@pytest.fixture(scope="module")
def finer(counted, town_config) -> Places:
    """The same voxels, those at surfaces in parts."""
    places = places_of(town_config)
    solid = (counted.distance == 0).numpy()
    partly, bricks = count_bricks(town_config, replace(COUNTED, views=150), solid)
    assert (partly <= solid).all() and 500 < partly.sum() == len(bricks)
    places.stand(distance_field(solid, scene_of(town_config).places, partly), bricks)
    return places


def street_of(config: ModelConfig) -> StreetSimulator:
    return StreetSimulator(height=config.height, width=config.width, fps=config.fps, camera=config.camera)


def errors_of(places: Places, config: ModelConfig) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the distances of solid things in a few other views: metres, and relative to the truth; and how often sky is told
    from town."""
    street, rng, metres, shares, right = street_of(config), np.random.default_rng(99), [], [], []
    rows, columns, eye = config.height, config.width, config.camera.eye_height
    focal = config.camera.focal(columns)
    y, x = np.meshgrid(np.arange(rows) + 0.5 - rows / 2, np.arange(columns) + 0.5 - columns / 2, indexing="ij")
    rays = np.stack([x / focal, y / focal, np.ones_like(x)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    for _ in range(6):
        street.reset(rng)
        true, place = street.depth(), np.array(street.position) % 80
        direction = (rays @ street.pose[:3, :3].T) * (1, -1, 1)
        origin = torch.tensor([place[0], eye, place[1]], dtype=torch.float32).expand(rows, columns, 3)
        away, met = (t.numpy() for t in places.trace(origin, torch.from_numpy(direction).float()))
        with np.errstate(divide="ignore"):
            ground = np.where(direction[..., 1] < 0, -eye / direction[..., 1], np.inf)
        thing = (true < 60) & (true < ground - 0.3)  # the ground would be right without any counting
        metres.append(np.abs(away - true)[thing])
        shares.append((np.abs(away - true) / true)[thing])
        right.append(met == (true < FARTHEST))
    return np.concatenate(metres), np.concatenate(shares), float(np.mean(right))


def test_counted_voxels_have_the_true_distances_of_other_views(counted, town_config):
    metres, shares, right = errors_of(counted, town_config)
    assert np.median(shares) < 0.06
    assert np.median(metres) < 0.6  # voxels are a metre
    assert right > 0.93


def test_parts_of_voxels_have_truer_distances(counted, finer, town_config):
    (whole, _, _), (metres, _, right) = (errors_of(places, town_config) for places in (counted, finer))
    assert (metres > 1).mean() < 0.5 * (whole > 1).mean()
    assert right > 0.97


def test_parts_are_counted_as_in_a_slow_loop():
    """Where rays end, and through which parts they pass, ray by ray."""
    cell, fine, rng = 1.0, 2, np.random.default_rng(6)
    slots = np.full((8, 4, 8), -1, np.int32)
    slots[rng.random(slots.shape) < 0.5] = 0
    slots[slots == 0] = np.arange((slots == 0).sum())
    counts = np.zeros((slots.max() + 1, 8, 2), np.int32)
    direction = rng.normal(size=(40, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    away = rng.uniform(0.5, 6, 40)
    away[:5] = 1000.0
    origin = np.array([3.3, 1.65, 6.1])
    _count(origin, direction, away, slots, counts, cell, fine)
    expected = np.zeros_like(counts)

    def part_at(distance: float, way: np.ndarray) -> tuple[int, int] | None:
        x, h, z = (origin + distance * way) / 0.5
        cells = [math.floor(a) for a in (x, h, z)]
        if not 0 <= cells[1] < 8:
            return None
        slot = slots[cells[0] // 2 % 8, cells[1] // 2, cells[2] // 2 % 8]
        return (int(slot), cells[0] % 2 * 4 + cells[1] % 2 * 2 + cells[2] % 2) if slot >= 0 else None

    for way, reach in zip(direction, away):
        seen = [part_at(d, way) for d in np.arange(0.2, min(reach, NEAR) - 0.5 + 1e-9, 0.25)]
        for before, here in zip([None, *seen], seen):
            if here is not None and here != before:
                expected[(*here, 1)] += 1
        end = part_at(reach + 0.2, way) if reach < NEAR else None
        if end is not None and (origin + (reach + 0.2) * way)[1] >= KERB:
            expected[(*end, 0)] += 1
    assert expected[..., 0].sum() > 5 and expected[..., 1].sum() > 100
    np.testing.assert_array_equal(counts, expected)


def test_more_parts_than_there_is_room_for_are_refused(counted, town_config):
    crowded = with_scene(town_config, places=replace(scene_of(town_config).places, bricks=10))
    with pytest.raises(ValueError, match=r"voxels are solid in part, but places\.bricks is 10: raise it"):
        count_bricks(crowded, replace(COUNTED, views=20), (counted.distance == 0).numpy())


def test_walks_are_marked_where_one_can_walk(counted, town_config):
    """A walker keeps off walls, so a marked cell's middle is free with the rest of that margin; streets are found."""
    town, cell = street_of(town_config).town, scene_of(town_config).places.cell
    marked = counted.walkable.nonzero().tolist()
    assert len(marked) > 60
    margin = WALL_MARGIN - cell / 2 - 1e-6
    assert all(town.free((x + 0.5) * cell, (z + 0.5) * cell, margin) for x, z in marked)
    solid = [(x, z) for x, z in np.ndindex(80, 80) if town.solid(x + 0.5, z + 0.5)]
    assert not any(counted.walkable[x, z] for x, z in solid) and len(solid) > 1000
