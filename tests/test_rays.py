"""Where rays through a town end: boxes, parts of voxels, the ground and the sky, on a torus."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from train.street.voxels import distance_field
from world_model.camera import CameraConfig
from world_model.priors.config import PlacesConfig
from world_model.priors.distance_field import FARTHEST, HALVINGS, OVERHEAD, PARTLY, UNIT
from world_model.priors.places import SHELL, Places

CAMERA = CameraConfig()

# a torus of 16 m in voxels of half a metre; in it one box: voxels from, and up to but without
SMALL = PlacesConfig(period=16.0, cell=0.5, height=8.0, tables=((2.0, 8, 4), (1.0, 10, 2)), width=16, look=4)
CELLS, LEVELS = 32, 16
LOW, HIGH = (6, 0, 5), (10, 6, 9)


def near(low: int, high: int, size: int, around: bool) -> np.ndarray:
    """[size]: cells from each cell to the nearest of low..high - 1."""
    cell, turns = np.arange(size), (-size, 0, size) if around else (0,)
    return np.min([np.maximum(0, np.maximum(low - cell - turn, cell + turn - high + 1)) for turn in turns], axis=0)


def town_of_a_box() -> Places:
    """Nothing but the box, whose distances need no search; features at random."""
    x, h, z = (near(*part) for part in zip(LOW, HIGH, (CELLS, LEVELS, CELLS), (True, False, True)))
    away = np.sqrt(x[:, None, None] ** 2 + h[None, :, None] ** 2 + z[None, None, :] ** 2) * SMALL.cell
    torch.manual_seed(0)
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    places.stand(torch.from_numpy(np.clip(away / UNIT, 0, 255).astype(np.uint8)))
    for table in places.tables:
        nn.init.normal_(table)
    return places


@pytest.fixture(scope="module")
def boxed() -> Places:
    return town_of_a_box()


def box_hits(origin: np.ndarray, direction: np.ndarray, grow: float = 0.0) -> np.ndarray:
    """Metres along rays [N, 3] to the box or one of its images around the torus, `grow` metres larger each way; inf: none."""
    best = np.full(len(origin), np.inf)
    for turn in np.ndindex(15, 15):
        shift = (np.array(turn) - 7) * SMALL.period
        low, high = (np.array(corner) * SMALL.cell + [shift[0], 0, shift[1]] for corner in (LOW, HIGH))
        first, second = (low - grow - origin) / direction, (high + grow - origin) / direction
        enter, leave = np.minimum(first, second).max(axis=1), np.maximum(first, second).min(axis=1)
        best = np.where((enter <= leave) & (enter > 0), np.minimum(best, enter), best)
    return best


# ---- where rays end ---------------------------------------------------------------------------------------------------


def test_rays_end_at_a_box_on_the_ground_or_in_the_sky(boxed):
    """Against slabs: boxes to a voxel, also around the torus, the ground exactly, the sky never."""
    rng = np.random.default_rng(0)
    origin = np.stack([rng.uniform(0, 16, 3000), np.full(3000, CAMERA.eye_height), rng.uniform(0, 16, 3000)], axis=1)
    low, high = (np.array(corner) * SMALL.cell for corner in (LOW, HIGH))
    origin = origin[~((origin > low - 1) & (origin < high + 1))[:, [0, 2]].all(axis=1)]
    direction = rng.normal(size=origin.shape) * (1, 0.3, 1)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    away, met = (t.numpy() for t in boxed.trace(*(torch.from_numpy(a).float() for a in (origin, direction))))
    true, larger, smaller = (box_hits(origin, direction, grow) for grow in (0.0, SMALL.cell, -SMALL.cell / 2))
    ground = np.where(direction[:, 1] < 0, -CAMERA.eye_height / direction[:, 1], np.inf)

    with np.errstate(invalid="ignore"):
        clearly = (true - larger < 1.5) & (smaller - true < 1.5)  # no ray that only grazes it
    box = clearly & (true < ground - 1) & (true < 80)
    assert box.sum() > 150 and (true[box] > 20).any()  # some meet an image of it
    error = np.abs(away - true)[box]
    assert met[box].all() and error.max() < 2 * SMALL.cell / 2**HALVINGS

    clear = ~np.isfinite(larger)
    floor = clear & (ground < FARTHEST - 1)
    assert floor.sum() > 500 and met[floor].all()
    np.testing.assert_allclose(away[floor], ground[floor], rtol=1e-5)

    sky = clear & (ground > FARTHEST)
    assert sky.sum() > 500 and not met[sky].any() and away.max() <= FARTHEST


def test_only_what_is_taller_than_trees_ends_a_ray():
    """A row of houses ten metres tall behind a hedge of five, and the way to both in closed form."""
    config = replace(SMALL, period=40.0, height=12.0)
    places = Places(config, CAMERA, (4, 6), channels=8, text=5)
    solid = np.zeros((80, 24, 80), bool)
    solid[40:42, :10], solid[60:62, :20] = True, True
    places.stand(distance_field(solid, config))
    yaw = torch.tensor([[math.pi / 2, math.pi / 2 - 0.5, 0.0]], dtype=torch.float64)
    away, met = places.free_sight(torch.tensor([[5.0 + 40.0, 3.0]], dtype=torch.float64), yaw)
    assert met.tolist() == [[True, True, False]] and OVERHEAD > 5
    assert away[0, :2].tolist() == pytest.approx([25.0, 25.0 / math.cos(0.5)], abs=0.05)


def test_the_lowest_of_a_crown_hides_nothing():
    """A crown from 1.5 to 4 m up, 5 to 8 m away, before a house 20 m away: beside the slow form, along each ray in centimetres."""
    config = replace(SMALL, period=40.0, height=12.0)
    places = Places(config, CAMERA, (4, 6), channels=8, text=5)
    solid = np.zeros((80, 24, 80), bool)
    solid[30:36, 3:8], solid[60:62] = True, True
    places.stand(distance_field(solid, config))
    place = torch.tensor([[[10.0, 3.0]]], dtype=torch.float64)
    yaw, pitch = torch.full((1, 1), math.pi / 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    found = places.clear_sight(place, yaw, pitch)[0, 0].numpy()
    direction = places.directions(yaw, pitch, 2)[0, 0].numpy()
    along = np.arange(0.1, FARTHEST, 0.01)
    expected = np.full(found.shape, FARTHEST)
    for row, column in np.ndindex(*found.shape):
        x, h, z = (direction[row, column] * along[:, None] + np.array([10.0, CAMERA.eye_height, 3.0])).T
        cell_x, cell_z = (np.floor(axis / 0.5).astype(int) % 80 for axis in (x, z))
        heights = np.stack([h - SHELL, h, h + SHELL])
        level = np.clip(heights / 0.5, 0, 23).astype(int)
        inside = solid[cell_x, level, cell_z] & (heights < 12)
        ends = (h <= 0) | inside.all(axis=0)
        if ends.any():
            expected[row, column] = along[ends.argmax()]
    assert (abs(found - expected) < 0.3).mean() > 0.95
    middle = found[:, 5:7]
    assert (abs(middle - 5) < 0.5).any() and (abs(middle - 20) < 0.5).any()  # the crown and, under it, the house
    ahead = places.trace(torch.tensor([[10.0, CAMERA.eye_height, 3.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert float(ahead[0]) == pytest.approx(5, abs=0.1)


def test_rays_end_at_parts_of_voxels():
    """A trunk of an eighth of a metre, a crown whose lowest quarter of a voxel is air and a thicket at random before a house: where
    rays end beside the slow form, along each ray in millimetres."""
    config = replace(SMALL, period=40.0, height=12.0, fine=4, bricks=600)
    places = Places(config, CAMERA, (16, 24), channels=8, text=5)
    solid, parts = np.zeros((80, 24, 80), bool), np.zeros((80 * 4, 24 * 4, 80 * 4), bool)
    solid[60:62] = True
    parts[60 * 4 : 62 * 4] = True
    parts[17 * 4 + 1, : 4 * 4, 5 * 4 + 2] = True
    parts[26 * 4 : 30 * 4, 3 * 4 + 1 : 7 * 4, 7 * 4 : 11 * 4] = True
    parts[40 * 4 : 44 * 4, : 6 * 4, : 4 * 4] = np.random.default_rng(3).random((16, 24, 16)) < 0.2
    split = parts.reshape(80, 4, 24, 4, 80, 4).transpose(0, 2, 4, 1, 3, 5).reshape(80, 24, 80, 64)
    full, some = split.all(axis=-1), split.any(axis=-1)
    partly = some & ~full
    bits = (split[partly].astype(np.uint64) << np.arange(64, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    places.stand(distance_field(some, config, partly), torch.from_numpy(bits.view(np.int64)))
    yaw, pitch = torch.full((1, 1), math.pi / 2, dtype=torch.float64), torch.full((1, 1), 0.1, dtype=torch.float64)
    upward = places.directions(yaw, pitch, 2)
    origin = torch.tensor([4.0, CAMERA.eye_height, 2.5]).expand_as(upward)
    found, direction = places.trace(origin, upward)[0][0, 0].numpy(), upward[0, 0].numpy()
    along = np.arange(0.1, FARTHEST, 0.004)
    expected = np.full(found.shape, FARTHEST)
    for row, column in np.ndindex(*found.shape):
        x, h, z = (direction[row, column] * along[:, None] + np.array([4.0, CAMERA.eye_height, 2.5])).T
        x, z = (np.floor(axis / 0.125).astype(int) % 320 for axis in (x, z))
        ends = (h <= 0) | parts[x, np.clip(h / 0.125, 0, 95).astype(int), z] & (h < 12)
        if ends.any():
            expected[row, column] = along[ends.argmax()]
    right = abs(found - expected) < 0.02 * expected.clip(1)
    assert right.mean() > 0.97, right.mean()
    for low, high in ((4, 5), (8.5, 11), (15.5, 20), (25.5, 32)):  # trunk, crown, thicket, house
        assert (right & (expected > low) & (expected < high)).sum() > 5


def test_the_geometry_is_kept_with_the_weights():
    config = replace(SMALL, fine=2, bricks=3)
    places, again = (Places(config, CAMERA, (4, 6), channels=8, text=5) for _ in range(2))
    distance = torch.full((CELLS, LEVELS, CELLS), 40, dtype=torch.uint8)
    distance[3, 2, 1], distance[3, 2, 5], distance[9, 0, 0] = PARTLY, PARTLY, 0
    places.stand(distance, torch.tensor([0b1, 0b10000000]))
    again.load_state_dict(places.state_dict())
    assert "field" not in places.state_dict() and torch.equal(again.field, places.field)
    corner = torch.tensor([[3, 2, 1], [3, 2, 5], [9, 0, 0], [20, 3, 4]]) * 0.5
    free, low = again._meet(corner + 0.1)
    assert free.tolist() == [0, 0, 0, 5] and low.tolist() == [True, False, True, False]
    assert again._meet(corner + 0.4)[1].tolist() == [False, True, True, False]


def test_the_torus_has_no_seam(boxed):
    """The same box elsewhere, also astride the border, seen from as much elsewhere."""
    rng = np.random.default_rng(1)
    yaw = torch.from_numpy(rng.uniform(-math.pi, math.pi, 300)).float()
    direction = torch.stack([yaw.sin(), torch.full_like(yaw, -0.02), yaw.cos()], dim=-1)
    origin = torch.tensor([12.0, CAMERA.eye_height, 12.0]).expand(300, 3)
    moved = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    for cells in (23, -7):  # the box now reaches across x = 0; across z = 0
        moved.stand(boxed.distance.roll((cells, cells), (0, 2)))
        there = origin + torch.tensor([cells * 0.5, 0.0, cells * 0.5])
        for ours, right in zip(moved.trace(there, direction), boxed.trace(origin, direction)):
            torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)
    assert boxed.trace(origin, direction)[1].float().mean() > 0.1


def test_before_training_all_is_ground_and_sky():
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    direction = torch.tensor([[0.6, 0.0, 0.8], [0.6, 0.8, 0.0], [0.0, -0.6, 0.8]])
    away, met = places.trace(torch.tensor([3.0, CAMERA.eye_height, 1.0]).expand(3, 3), direction)
    assert met.tolist() == [False, False, True]
    assert float(away[2]) == pytest.approx(CAMERA.eye_height / 0.6)
    assert places.walkable.all()
