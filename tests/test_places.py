"""A town known by heart: where rays end, what they find there, how it is learnt, and worlds that stand in it."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train import foundation
from train import places as stage
from train.corpus import Corpus
from train.land import STARTS, land, starting_pictures
from train.loop import Run
from train.places import Settings, count_voxels, distance_field, load_places, mark_walks, see, train
from train.shards import HELD_OUT
from world_model.actions import Action
from world_model.camera import CameraConfig, rotation
from world_model.config import ModelConfig, PlacesConfig
from world_model.dit import DiT
from world_model.finder import Finder
from world_model.model import WorldModel, WorldState
from world_model.places import BANDS, FARTHEST, PRIMES, UNIT, Places
from world_model.rollout import (
    Worlds,
    commanded,
    empty_worlds,
    generator,
    motion_of,
    prepare_block,
    split_worlds,
)
from world_model.text import Conditioning
from world_model.weights import save_weights
from yume_gym.street.motion import WALL_MARGIN
from yume_gym.street.simulator import StreetSimulator

CAMERA = CameraConfig()
WALK, TURN = Action.from_keys("W"), Action.from_keys("", "→")
QUICK = Settings(batch=6, lr=1e-2, table_lr=1e-1, views=40, walks=2, blocks=20, ema=0.9)

# a torus of 16 m in voxels of half a metre; in it one box: voxels from, and up to but without
SMALL = PlacesConfig(period=16.0, cell=0.5, height=8.0, tables=((2.0, 8, 4), (1.0, 10, 2)), width=16, look=4)
CELLS, LEVELS = 32, 16
LOW, HIGH = (6, 0, 5), (10, 6, 9)


def near(low: int, high: int, size: int, around: bool) -> np.ndarray:
    """[size]: cells from each cell to the nearest of low..high - 1."""
    cell, turns = np.arange(size), (-size, 0, size) if around else (0,)
    return np.min([np.maximum(0, np.maximum(low - cell - turn, cell + turn - high + 1)) for turn in turns], axis=0)


@pytest.fixture(scope="module")
def boxed() -> Places:
    """Nothing but the box, whose distances need no search; features at random."""
    x, h, z = (near(*part) for part in zip(LOW, HIGH, (CELLS, LEVELS, CELLS), (True, False, True)))
    away = np.sqrt(x[:, None, None] ** 2 + h[None, :, None] ** 2 + z[None, None, :] ** 2) * SMALL.cell
    torch.manual_seed(0)
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    places.distance.copy_(torch.from_numpy(np.clip(away / UNIT, 0, 255).astype(np.uint8)))
    for table in places.tables:
        nn.init.normal_(table)
    return places


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
    assert met[box].all() and np.abs(away - true)[box].max() < SMALL.cell

    clear = ~np.isfinite(larger)
    floor = clear & (ground < FARTHEST - 1)
    assert floor.sum() > 500 and met[floor].all()
    np.testing.assert_allclose(away[floor], ground[floor], rtol=1e-5)

    sky = clear & (ground > FARTHEST)
    assert sky.sum() > 500 and not met[sky].any() and away.max() <= FARTHEST


def test_the_torus_has_no_seam(boxed):
    """The same box elsewhere, also astride the border, seen from as much elsewhere."""
    rng = np.random.default_rng(1)
    yaw = torch.from_numpy(rng.uniform(-math.pi, math.pi, 300)).float()
    direction = torch.stack([yaw.sin(), torch.full_like(yaw, -0.02), yaw.cos()], dim=-1)
    origin = torch.tensor([12.0, CAMERA.eye_height, 12.0]).expand(300, 3)
    moved = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    for cells in (23, -7):  # the box now reaches across x = 0; across z = 0
        moved.distance.copy_(boxed.distance.roll((cells, cells), (0, 2)))
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


# ---- what is found there ----------------------------------------------------------------------------------------------


def looked_up(table: Tensor, size: float, period: float, point: list[float]) -> Tensor:
    """Trilinear interpolation of hashed corners, one after the other, in Python's whole numbers."""
    cells, total = round(period / size), torch.zeros(table.shape[1], dtype=torch.float64)
    low = [math.floor(coordinate / size) for coordinate in point]
    part = [coordinate / size - corner for coordinate, corner in zip(point, low)]
    for up in np.ndindex(2, 2, 2):
        x, h, z = (corner + bit for corner, bit in zip(low, up))
        key = ((x % cells) * PRIMES[0]) ^ (h * PRIMES[1]) ^ ((z % cells) * PRIMES[2])
        weight = math.prod(p if bit else 1 - p for p, bit in zip(part, up))
        total += weight * table[key % len(table)].double()
    return total


def test_tables_are_read_as_in_a_slow_loop(boxed):
    rng = np.random.default_rng(2)
    points = torch.from_numpy(
        rng.uniform((-3, -0.2, -20), (19, 8, 35), (60, 3))
    ).float()  # below ground, around the torus
    for table, (size, *_) in zip(boxed.tables, SMALL.tables, strict=True):
        found = boxed._table(table, points, size)
        expected = torch.stack([looked_up(table, size, SMALL.period, point) for point in points.tolist()])
        torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)
        assert found.std() > 0.1


def test_features_are_those_of_the_place_a_ray_meets(boxed):
    """Sky has none; distance, whether anything is met and the direction follow."""
    origin = torch.tensor([4.0, CAMERA.eye_height, 10.0]).expand(3, 3)
    direction = torch.tensor([[0.0, 0.0, -1.0], [0.0, -0.6, 0.8], [0.6, 0.8, 0.0]])  # the box, the ground, the sky
    away, _ = boxed.trace(origin, direction)
    found, point = boxed.features(origin, direction), origin + away[:, None] * direction
    widths = [width for *_, width in SMALL.tables]
    for part, table, (size, *_) in zip(found.split([*widths, 5], dim=1), boxed.tables, SMALL.tables):
        for ray in (0, 1):
            expected = looked_up(table, size, SMALL.period, point[ray].tolist())
            torch.testing.assert_close(part[ray], expected.float(), atol=1e-3, rtol=1e-3)
        assert not part[2].any()
    torch.testing.assert_close(found[:, -5], (1 + away).log() / 4)
    assert found[:, -4].tolist() == [1, 1, 0]
    assert torch.equal(found[:, -3:], direction)


def test_every_token_sees_along_its_own_rays(boxed):
    """Two views of two worlds against rays of a pinhole camera, turned one by one."""
    boxed = copy.deepcopy(boxed)
    boxed.paint = nn.Identity()
    place = torch.tensor([[[12.0, 3.0], [13.0, 2.5]], [[1.0, 14.0], [30.0, -14.0]]], dtype=torch.float64)
    yaw = torch.tensor([[0.3, 0.5], [-2.0, 2.9]], dtype=torch.float64)
    pitch = torch.tensor([[0.0, 0.2], [-0.3, 0.1]], dtype=torch.float64)
    look = torch.arange(8.0).view(2, 4)
    seen = boxed(place, yaw, pitch, look)
    (rows, columns), r, focal = boxed.size, SMALL.rays, CAMERA.focal(boxed.size[1] * SMALL.rays)
    assert seen.shape[2:] == (2, rows, columns)
    for world, view, row, column in [(0, 0, 0, 0), (0, 1, 3, 5), (1, 0, 2, 1), (1, 1, 1, 4)]:
        expected = []
        for down, right in np.ndindex(r, r):
            x, y = (right + column * r + 0.5 - columns * r / 2), (down + row * r + 0.5 - rows * r / 2)
            ray = np.array([x / focal, y / focal, 1.0])
            ray = rotation(float(yaw[world, view]), float(pitch[world, view])) @ (ray / np.linalg.norm(ray))
            ray = torch.tensor([ray[0], -ray[1], ray[2]], dtype=torch.float32)
            stand = place[world, view] % SMALL.period
            origin = torch.tensor([stand[0], CAMERA.eye_height, stand[1]], dtype=torch.float32)
            expected.append(boxed.features(origin, ray))
        torch.testing.assert_close(
            seen[world, :, view, row, column], torch.cat([*expected, look[world]]), atol=1e-3, rtol=1e-3
        )


def test_one_period_further_on_all_is_the_same(boxed):
    """Bit for bit, however far a world has walked, and nowhere else."""
    place = torch.tensor([[[3.25, 12.5]]], dtype=torch.float64)
    view = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)
    look = torch.randn(1, 4, generator=generator("look"))
    here = boxed(place, *view, look)
    for turns in ((1, 0), (0, -1), (-3, 40_000)):
        assert torch.equal(boxed(place + SMALL.period * torch.tensor(turns), *view, look), here)
    assert not torch.allclose(boxed(place + SMALL.period / 2, *view, look), here, atol=1e-3)


def test_light_and_weather_come_from_pictures_that_were_seen_and_from_words(boxed):
    boxed = copy.deepcopy(boxed)
    boxed.look = nn.Identity()
    first, last = (torch.randn(2, 8, 4, 6, generator=generator(name)) for name in ("first", "last"))
    text = torch.zeros(2, 7, 5)
    text[:, :3] = torch.randn(2, 3, 5, generator=generator("text"))
    text[1] = 0
    found = boxed.looks(first, last, torch.tensor([True, True]), text)
    rows = 4 // BANDS
    assert found.shape == (2, 2 * 8 * BANDS + 1 + 5)
    for picture, start in ((last, 0), (first, 8 * BANDS + 1 + 5)):
        bands = torch.stack([picture[:, :, rows * b : rows * (b + 1)].mean(dim=(2, 3)) for b in range(BANDS)], dim=2)
        torch.testing.assert_close(found[:, start : start + 8 * BANDS], bands.flatten(1))
    words = found[:, 8 * BANDS + 1 : 8 * BANDS + 6]
    torch.testing.assert_close(words[0], text[0, :3].mean(dim=0))  # padding is no word
    assert not words[1].any()


def test_a_picture_that_is_not_there_tells_nothing(boxed):
    pictures = [torch.randn(2, 8, 4, 6, generator=generator("picture", n)) for n in range(4)]
    text, present = torch.randn(2, 7, 5, generator=generator("text")), torch.tensor([True, False])
    one, other = (boxed.looks(*pair, present, text) for pair in (pictures[:2], pictures[2:]))
    assert torch.equal(one[1], other[1])
    assert not torch.allclose(one[0], other[0], atol=1e-3)
    silent = boxed.looks(*pictures[:2], present, torch.zeros_like(text))
    assert not torch.allclose(silent[1], one[1], atol=1e-3)  # but words are heard
    grey = boxed.looks(*(torch.zeros_like(p) for p in pictures[:2]), torch.tensor([True, True]), text)
    assert not torch.allclose(grey[1], one[1], atol=1e-4)  # nothing seen is not a grey picture


# ---- walking ----------------------------------------------------------------------------------------------------------


def corridor() -> Places:
    """One can walk where 4 <= x < 8, all along z; there are walls beside it, and one across it at z = 0."""
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    solid = np.ones((CELLS, LEVELS, CELLS), bool)
    solid[6:18, :, 1:] = False  # x from 3 to 9
    places.distance.copy_(distance_field(solid, SMALL))
    places.walkable.zero_()
    places.walkable[8:16] = True
    return places


def way(*steps: tuple[float, float]) -> Tensor:
    """Displacement [1, T, 2] of steps (x, z; metres)."""
    return torch.tensor([steps], dtype=torch.float64).cumsum(dim=1)


def test_one_stops_before_walls_and_slides_along_them():
    places, here = corridor(), torch.tensor([[7.0, 3.0]], dtype=torch.float64)
    free = way((-0.5, 0.25), (-0.5, 0.25), (0.25, 1.0))
    assert torch.equal(places.walk(here, free), free)
    aside = places.walk(here, way((0.6, 0.5), (0.6, 0.5), (0.6, 0.5), (-0.6, 0.5)))
    assert aside[0, :, 0].tolist() == pytest.approx([0.6, 0.6, 0.6, 0.0])
    assert aside[0, :, 1].tolist() == pytest.approx([0.5, 1.0, 1.5, 2.0])
    around = torch.tensor([[7.0 - 5 * 16, -1.0]], dtype=torch.float64)  # the same wall, five times around and back
    assert places.walk(around, way((0.6, 0.5), (0.6, 0.5)))[0, :, 0].tolist() == pytest.approx([0.6, 0.6])


def test_a_lost_world_may_go():
    """Each world of a batch by itself: one inside a wall gets out of it, even through it."""
    places = corridor()
    here = torch.tensor([[12.0, 3.0], [7.0, 3.0]], dtype=torch.float64)
    steps = way((0.6, 0.0), (0.6, 0.0), (0.6, 0.1)).expand(2, -1, -1)
    walked = places.walk(here, steps)
    torch.testing.assert_close(walked[0], steps[0])
    assert walked[1, :, 0].tolist() == pytest.approx([0.6, 0.6, 0.6])


def test_walking_equals_a_slow_loop():
    rng = np.random.default_rng(3)
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    free = rng.random((CELLS, CELLS)) < 0.6
    places.walkable.copy_(torch.from_numpy(free))
    here, steps = rng.uniform(-20, 40, (40, 2)), rng.normal(0, 0.3, (40, 12, 2))
    walked = places.walk(torch.from_numpy(here), torch.from_numpy(steps.cumsum(axis=1)))

    def is_free(x: float, z: float) -> bool:
        return bool(free[math.floor(x / 0.5) % CELLS, math.floor(z / 0.5) % CELLS])

    stopped = 0
    for world in range(40):
        start, at = here[world], np.zeros(2)
        lost = not is_free(*start)
        for number, step in enumerate(steps[world]):
            for axis in (0, 1):
                there = at.copy()
                there[axis] += step[axis]
                if lost or is_free(*(start + there)):
                    at = there
                else:
                    stopped += 1
            np.testing.assert_allclose(walked[world, number], at, atol=1e-9)
    assert stopped > 40


def test_somewhere_is_a_walkable_place_and_looks_the_freest_way():
    """Along the corridor, and from near the wall across it, away from that; not always to the same side."""
    places = corridor()
    poses = torch.stack([places.somewhere(generator("somewhere", seed)) for seed in range(40)])
    assert poses.dtype == torch.float64
    x, z, yaw = poses.T
    assert ((x > 4) & (x < 8)).all() and ((z >= 0) & (z < 16)).all()
    assert len({(float(a), float(b)) for a, b in zip(x, z)}) > 20
    freest = torch.where(z < 8, 1.0, -1.0)  # towards larger z while the wall behind is nearer
    middle = (z - 8).abs() < 1.5
    assert (yaw.cos() * freest > math.cos(math.pi / 6))[~middle].all()
    assert torch.equal(places.somewhere(generator("somewhere", 3)), poses[3])


# ---- learning where things stand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.002, 0.02, 0.3])
def test_distances_around_the_torus_equal_a_search(share):
    """Every voxel against every solid one."""
    tiny = replace(SMALL, period=8.0, height=3.0)
    solid = np.random.default_rng(4).random((16, 6, 16)) < share
    assert solid.any()
    found = distance_field(solid, tiny)
    assert found.dtype == torch.uint8 and found.shape == solid.shape
    here, there = np.argwhere(np.ones_like(solid))[:, None], np.argwhere(solid)[None]
    apart = np.abs(here - there)
    apart[..., [0, 2]] = np.minimum(apart[..., [0, 2]], 16 - apart[..., [0, 2]])
    metres = np.sqrt((apart**2).sum(axis=-1)).min(axis=1).reshape(solid.shape) * tiny.cell
    np.testing.assert_array_equal(found.numpy(), np.clip(np.floor(metres / UNIT + 1e-9), 0, 255))


@pytest.fixture(scope="module")
def counted(town_config) -> Places:
    """The town's own voxels, from a few views of it."""
    c = town_config
    places = Places(c.dit.places, c.camera, c.latent_size, c.dit.latent_channels, c.text.dim)
    solid = count_voxels(c, replace(QUICK, views=100))
    places.distance.copy_(distance_field(solid, c.dit.places))
    places.walkable.copy_(mark_walks(c, replace(QUICK, walks=4, blocks=60)))
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


# ---- learning what they look like -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def town_corpus(town_config, data_folder) -> Corpus:
    return Corpus(town_config, data_folder)


class Asked:
    """Stands for places: remembers what it was asked."""

    def looks(self, *asked: Tensor) -> Tensor:
        self.light = asked
        return torch.zeros(len(asked[0]), 4)

    def __call__(self, *asked: Tensor) -> Tensor:
        self.view = asked
        return torch.zeros(())


def test_what_is_learnt_is_the_truth_seen_from_the_true_pose(town_corpus, town_config):
    blocks, places = [(4, 3), (6, 9), (5, 1)], Asked()
    unseen = torch.tensor([True, False, False])
    _, truth = see(places, town_corpus, blocks, unseen, generator("see"))  # type: ignore[arg-type]
    place, yaw, pitch, _ = places.view
    _, before, present, words = places.light
    for row, (walk, block) in enumerate(blocks):
        assert torch.equal(truth[row], town_corpus.block(walk, block))
        assert torch.equal(before[row], town_corpus.block(walk, block - 1)[:, -1])
        for latent, frame in enumerate((4 * block + 1, 4 * block + 3)):  # the last picture of each latent frame
            assert place[row, latent].tolist() == pytest.approx(town_corpus._positions[walk, frame].tolist(), abs=1e-5)
            assert float(yaw[row, latent]) == pytest.approx(float(town_corpus.yaw[walk, frame]))
            assert float(pitch[row, latent]) == pytest.approx(float(town_corpus.pitch[walk, frame]))
    assert present.tolist() == [False, True, True]
    assert torch.equal(words[0], town_corpus.text(town_corpus.info(4).caption))  # the blind are told
    assert torch.equal(words[1], town_corpus.text(town_corpus.info(6).event_at(9))) and words[1].any()


def quick(config: ModelConfig, folders: tuple[Path, Path], out: Path, steps: int, **given) -> dict[str, Tensor]:
    train(config, *folders, out, replace(QUICK, **given.pop("settings", {})), steps, None, **given)
    return load_file(out / stage.WEIGHTS)


class Stopped(Run):
    """A run that is stopped after three steps of however many."""

    def steps(self, last: int, minutes: float | None = None) -> Iterator[int]:
        for step in super().steps(last, minutes):
            yield step
            if step == 2:
                return


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def places_folder(town_config, data_folder, vae_folder, tmp_path_factory) -> Path:
    """What `train.places` leaves after a few steps."""
    folder = tmp_path_factory.mktemp("places")
    quick(town_config, (data_folder, vae_folder), folder, 40)
    return folder


def places_of(config: ModelConfig) -> Places:
    torch.manual_seed(0)
    return Places(config.dit.places, config.camera, config.latent_size, config.dit.latent_channels, config.text.dim)


@torch.no_grad()
def test_training_lowers_the_loss_and_its_weights_load(places_folder, town_config, town_corpus):
    learnt = places_of(town_config)
    load_places(learnt, places_folder)
    assert (learnt.distance == 0).any() and (learnt.distance > 40).any() and not learnt.walkable.all()
    blocks = [(walk, block) for walk in (4, 5, 6) for block in range(1, 16, 3)]

    def loss(places: Places) -> float:
        found, truth = see(places, town_corpus, blocks, torch.zeros(len(blocks), dtype=torch.bool), generator("loss"))
        return float((found - truth).square().mean())

    untrained = places_of(town_config)
    assert loss(learnt) < 0.8 * loss(untrained)
    facts = json.loads((places_folder / "places.json").read_text())
    assert ModelConfig.from_json(json.dumps({k: v for k, v in facts.items() if k != "places_training"})) == town_config
    assert facts["places_training"]["steps"] == 40
    assert math.isfinite(facts["places_training"]["psnr"]) and facts["places_training"]["explained"] < 1
    sheet = np.asarray(Image.open(places_folder / "sheets" / "places.png"))
    assert sheet.shape == (2 * HELD_OUT * town_config.height, 8 * town_config.width, 3)


def test_training_resumes_exactly(town_config, data_folder, vae_folder, tmp_path, monkeypatch):
    """6 steps at once equal 3 and, from the checkpoint alone, 3 more; where things stand is not counted again."""
    folders = (data_folder, vae_folder)
    whole = quick(town_config, folders, tmp_path / "whole", 6)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "Run", Stopped)
        assert not same(quick(town_config, folders, tmp_path / "parts", 6), whole)
    monkeypatch.setattr(stage, "count_voxels", None)
    monkeypatch.setattr(stage, "mark_walks", None)
    assert same(quick(town_config, folders, tmp_path / "parts", 6), whole)
    # a run may also begin from another's weights
    other = quick(town_config, folders, tmp_path / "other", 0, before=tmp_path / "whole", settings={"seed": 5})
    assert same(other, whole)


def test_only_models_with_places_learn_them(config, data_folder, vae_folder, tmp_path):
    with pytest.raises(ValueError, match=r"debug learns no places: its config has no dit\.places"):
        train(config, data_folder, vae_folder, tmp_path, QUICK, 1, None)


def test_places_that_are_missing_or_do_not_fit_are_refused(places_folder, town_config, tmp_path):
    places = places_of(town_config)
    for folder in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no places\.safetensors in .*--places, a run of train\.places"):
            load_places(places, folder)
    (tmp_path / stage.WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"places\.safetensors does not hold the places of this model"):
        load_places(places, tmp_path)
    finer = replace(town_config, dit=replace(town_config.dit, places=replace(town_config.dit.places, cell=0.8)))
    with pytest.raises(ValueError, match="does not hold the places of this model"):
        load_places(places_of(finer), places_folder)


# ---- worlds that stand in a town --------------------------------------------------------------------------------------


def streets(config: ModelConfig) -> tuple[np.ndarray, Tensor]:
    """Solid voxels and walkable cells of a made-up town: streets 12 m wide every 40 m, houses of 15 m between them."""
    cells, levels = (round(side / config.dit.places.cell) for side in (80, config.dit.places.height))
    middle = (np.arange(cells) + 0.5) * config.dit.places.cell
    lot = np.abs(middle % 40 - 20) < 14
    solid = np.zeros((cells, levels, cells), bool)
    solid[:, : round(15 / config.dit.places.cell)] = (lot[:, None] & lot[None])[:, None]
    road = np.abs((middle + 20) % 40 - 20) < 5
    return solid, torch.from_numpy(road[:, None] | road[None])


@pytest.fixture(scope="module")
def town_dit(town_config, make_dit) -> DiT:
    """Random weights in which every layer does something, and a town of streets."""
    dit = make_dit(town_config).requires_grad_(False)
    solid, walkable = streets(town_config)
    dit.places.distance.copy_(distance_field(solid, town_config.dit.places))
    dit.places.walkable.copy_(walkable)
    return dit


POSES = [(0.5, 20.0, 0.0), (41.0, 3.0, 1.5), (20.0, 39.0, -1.6)]


@pytest.fixture(scope="module")
def town_folder(town_config, town_dit, make_vae, pictures, tmp_path_factory) -> Path:
    """A whole weights folder of a model that knows a town: three starting pictures and where they were taken."""
    folder = tmp_path_factory.mktemp("town")
    Image.fromarray(np.concatenate(pictures[:3])).save(folder / "starts.png")
    (folder / "starts.json").write_text(json.dumps(POSES))
    torch.manual_seed(0)
    finder = Finder(town_config.dit.places.period, (town_config.height, town_config.width))
    tensors = {
        "dit.safetensors": town_dit.state_dict(), "vae.safetensors": make_vae(town_config).state_dict(),
        "text.safetensors": {"actions": Conditioning(town_config.text).actions}, "finder.safetensors": finder.state_dict(),
    }  # fmt: skip
    save_weights(folder, town_config, tensors, {"made": "random weights for tests"})
    return folder


@pytest.fixture
def town_model(town_folder) -> WorldModel:
    return WorldModel.load(town_folder, device="cpu", dtype="float32")


def tensors_of(worlds: Worlds) -> list[Tensor]:
    parts = [worlds.history.latents, worlds.yaw, worlds.pitch, worlds.place, worlds.picture, worlds.album.pictures]
    return [*parts, worlds.memory.total, worlds.memory.norm, *worlds.cache]


def test_the_known_place_is_the_prior_where_the_guide_saw_nothing(town_dit, town_config):
    shape = (2, town_config.dit.latent_channels, town_config.block_latents, *town_config.latent_size)
    guide, known = (torch.randn(shape, generator=generator(name)) for name in ("guide", "known"))
    valid = torch.zeros(2, 1, *shape[2:])
    valid[0, ..., 3:] = 1.0
    valid[1, ..., 0, :] = 0.25
    mean, variance = town_dit._prior(guide, valid, known)
    unseen, seen = (town_dit.prior_deviation[row].square()[:, None, None, None] for row in (0, 1))
    assert torch.equal(mean[0, ..., :3], known[0, ..., :3]) and torch.equal(mean[0, ..., 3:], guide[0, ..., 3:])
    assert torch.equal(variance[0, ..., :3], unseen.expand_as(variance[0, ..., :3]))
    assert torch.equal(variance[0, ..., 3:], seen.expand_as(variance[0, ..., 3:]))
    torch.testing.assert_close(mean[1, ..., 0, :], 0.75 * known[1, ..., 0, :] + 0.25 * guide[1, ..., 0, :])
    assert torch.equal(mean[1, ..., 1:, :], known[1, ..., 1:, :])


@torch.no_grad()
def test_a_block_ahead_is_known_from_where_it_will_be_seen(town_dit, town_config, make_vae):
    """Worlds that saw nothing: what a block's denoising starts from is the place at the poses of its latents' last pictures,
    in the light that the text tells."""
    vae, zero = make_vae(town_config), torch.zeros(2, dtype=torch.float64)
    worlds = replace(
        empty_worlds(town_dit, vae, 2, torch.device("cpu")),
        place=torch.tensor([[1.0, 20.0], [41.0, -7.0]], dtype=torch.float64), yaw=zero + 0.2,
    )  # fmt: skip
    motion = commanded(town_dit, worlds, [WALK, TURN])
    context = torch.randn(2, 24, town_config.dit.text_dim, generator=generator("context"))
    ready, ahead = prepare_block(town_dit, vae, worlds, motion, context, context[:, 8:].mean(dim=1))
    assert ahead.guide is not None and not ahead.guide.valid.any()
    nothing = torch.zeros(1, town_config.dit.latent_channels, *town_config.latent_size)
    for world in range(2):
        told = context[world : world + 1, :8]
        look = town_dit.places.looks(nothing, nothing, torch.zeros(1, dtype=torch.bool), told)
        for latent, frame in enumerate((1, 3)):
            place = worlds.place[world] + motion.displacement[world, frame]
            expected = town_dit.places(
                place[None, None], motion.yaw[world : world + 1, frame : frame + 1],
                motion.pitch[world : world + 1, frame : frame + 1], look,
            )  # fmt: skip
            torch.testing.assert_close(ready.guide[world, :, latent], expected[0, :, 0], atol=1e-4, rtol=1e-4)
    assert ready.guide.std() > 0.05


@torch.no_grad()
def test_worlds_of_a_batch_are_known_each_by_itself(town_dit, town_config):
    stream = generator("views")
    place = torch.rand(3, 2, 2, generator=stream, dtype=torch.float64) * 10 - 5
    yaw, pitch = (torch.randn(3, 2, generator=stream, dtype=torch.float64) * spread for spread in (2.0, 0.2))
    look = torch.randn(3, town_config.dit.places.look, generator=stream)
    together = town_dit.places(place, yaw, pitch, look)
    for world in range(3):
        one = slice(world, world + 1)
        alone = town_dit.places(place[one], yaw[one], pitch[one], look[one])
        torch.testing.assert_close(together[one], alone, atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().mean() > 0.02


def test_a_world_in_company_equals_it_alone(town_model, pictures):
    """From pictures and a text, three steps, bit for bit."""
    starts = [(pictures[0], "", 3), (None, "a park", 4), (pictures[2], "", 5)]
    together = town_model.start(*(list(column) for column in zip(*starts)))
    for _ in range(2):
        together, shown = town_model.step(together, [WALK, TURN, WALK])
    for number, (picture, text, seed) in enumerate(starts):
        state = town_model.start([picture], [text], [seed])
        for _ in range(2):
            state, frames = town_model.step(state, [TURN if number == 1 else WALK])
        np.testing.assert_array_equal(frames[0], shown[number])
        alone, company = (tensors_of(worlds) for worlds in (state.worlds, split_worlds(together.worlds)[number]))
        assert all(torch.equal(a, b) for a, b in zip(alone, company, strict=True))


def test_shipped_pictures_are_not_searched_for(town_model, pictures, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(Finder, "find", never)
    state = town_model.start([pictures[2], pictures[1].copy()], ["", ""], [1, 2])
    for world, pose in enumerate((POSES[2], POSES[1])):
        assert state.worlds.place[world].tolist() == list(pose[:2])
        assert float(state.worlds.yaw[world]) == pose[2]
        assert (state.worlds.history.yaw[world] == pose[2]).all()
    with pytest.raises(AssertionError, match="searched"):
        town_model.start([pictures[3]], [""], [1])


def test_other_pictures_are_searched_for(town_model, pictures):
    """The world stands where `locate` says; the error is that of what the town looks like there."""
    (x, z, yaw), error = town_model.locate(pictures[3])
    state = town_model.start([pictures[3]], [""], [1])
    assert (*state.worlds.place[0].tolist(), float(state.worlds.yaw)) == (x, z, yaw)
    with torch.no_grad():
        picture = torch.from_numpy(pictures[3]).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = town_model.vae.encode(picture[:, :, None].expand(-1, -1, 2, -1, -1))[:, :, 0]
        places, view = town_model.dit.places, torch.tensor([[[x, z]]], dtype=torch.float64)
        look = places.looks(latents, latents, torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, 16))
        there = places(view, torch.tensor([[yaw]]), torch.zeros(1, 1), look)[:, :, 0]
    assert error == pytest.approx(float((there - latents).square().mean() / latents.var()), rel=1e-3)


def test_models_that_know_no_town_find_nothing(world_model, pictures):
    with pytest.raises(ValueError, match="'debug' knows no town"):
        world_model.locate(pictures[0])


def test_a_text_start_stands_on_a_walkable_place(town_model):
    state = town_model.start(None, ["a park"] * 6, [1, 2, 3, 4, 5, 6])
    places, worlds = town_model.dit.places, state.worlds
    assert places._free(worlds.place).all()
    assert len({tuple(place) for place in worlds.place.tolist()}) > 3
    for world in range(6):
        pose = places.somewhere(generator("place", world + 1))
        assert torch.equal(pose, torch.cat([worlds.place[world], worlds.yaw[world : world + 1]]))
    assert torch.equal(town_model.start(None, ["a park"], [4]).worlds.place[0], worlds.place[3])


def test_worlds_stop_at_walls(town_model, pictures):
    """Straight at a house: commanded on and on, it stays on the street; turning goes on as commanded."""
    state = town_model.start([pictures[1]], [""], [1])  # at x = 41, z = 3, looking along x
    state = replace(state, worlds=replace(state.worlds, place=torch.tensor([[40.0, 20.0]], dtype=torch.float64)))
    keys = Action.from_keys("W", "→")
    free = motion_of(town_model.config, [keys], state.worlds.yaw, state.worlds.pitch)
    for _ in range(8):
        state, _ = town_model.step(state, [WALK])
    assert 43.5 < float(state.worlds.place[0, 0]) < 45.0  # the pavement ends at 45
    turned = commanded(town_model.dit, state.worlds, [keys])
    assert torch.equal(turned.yaw, free.yaw) and torch.equal(turned.pitch, free.pitch)
    assert turned.displacement[0, -1, 0] < 0.3 < free.displacement[0, -1, 0]


def test_a_stored_state_goes_on(town_model, pictures):
    state, _ = town_model.step(town_model.start([pictures[0]], [""], [1]), [WALK])
    again: WorldState = pickle.loads(pickle.dumps(state))
    assert torch.equal(again.worlds.place, state.worlds.place) and state.worlds.place.abs().sum() > 1
    for ours, right in zip(*(town_model.step(s, [TURN]) for s in (again, state))):
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, right)
        else:
            assert all(
                torch.equal(a, b) for a, b in zip(tensors_of(ours.worlds), tensors_of(right.worlds), strict=True)
            )


def test_half_precision_dreams_too(town_folder, pictures):
    model = WorldModel.load(town_folder, device="cpu", dtype="bfloat16")
    assert model.dit.places.distance.dtype == torch.uint8
    _, frames = model.step(model.start([pictures[0], None], ["", "a park"], [1, 2]), [WALK, TURN])
    assert frames.std() > 5


# ---- weights ----------------------------------------------------------------------------------------------------------


def test_weights_keep_where_things_stand_as_whole_numbers(town_folder, town_dit, town_model):
    with safe_open(town_folder / "dit.safetensors", framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds["places.distance"] == torch.uint8 and kinds["places.walkable"] == torch.bool
    assert all(
        kind == torch.float16 for name, kind in kinds.items() if name.split(".")[-1] not in ("distance", "walkable")
    )
    for name in ("distance", "walkable"):
        ours, right = (getattr(dit.places, name) for dit in (town_model.dit, town_dit))
        assert ours.dtype == right.dtype and torch.equal(ours, right)
    assert torch.equal(town_model.dit.places.tables[0], town_dit.places.tables[0].half().float())
    listed = json.loads((town_folder / "manifest.json").read_text())["files"]
    assert {"finder.safetensors", "starts.json", "starts.png"} <= listed.keys()


@pytest.mark.parametrize("name", ["finder.safetensors", "starts.json"])
def test_a_missing_part_is_named(name, town_folder, tmp_path):
    for path in town_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        WorldModel.load(tmp_path)


def test_a_town_needs_a_finder_and_a_finder_a_town(town_model, world_model):
    for model, finder in ((town_model, None), (world_model, town_model._finder)):
        with pytest.raises(ValueError, match="a model that knows a town, and no other, needs a finder"):
            WorldModel(model.config, model.dit, model.vae, model.conditioning, model.starts, finder)


# ---- training and landing of such a model -----------------------------------------------------------------------------


@torch.no_grad()
def test_prior_is_the_deviation_from_the_known_place(town_corpus, town_dit, frozen_vae):
    """Block by block; the second row is the guide's, as of the same model without places."""
    everywhere, seen = town_corpus.prior_deviation(town_dit, frozen_vae)
    squares = []
    for walk in range(HELD_OUT, len(town_corpus)):
        first = town_corpus.block(walk, 0)[None, :, 0]
        for block in range(1, town_corpus.blocks):
            before = town_corpus.block(walk, block - 1)[None, :, -1]
            words = town_corpus.text(town_corpus.info(walk).event_at(block))[None]
            look = town_dit.places.looks(first, before, torch.ones(1, dtype=torch.bool), words)
            motion = town_corpus.motion([walk], [block])
            stand = torch.tensor(town_corpus.position(walk, block), dtype=torch.float64) + motion.displacement[:, 1::2]
            known = town_dit.places(stand, motion.yaw[:, 1::2], motion.pitch[:, 1::2], look)
            squares.append((town_corpus.block(walk, block) - known[0]).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(everywhere, torch.stack(squares).mean(dim=0).sqrt(), atol=1e-3, rtol=1e-3)
    without = SimpleNamespace(depth=town_dit.depth, places=None)
    blank, same_guide = town_corpus.prior_deviation(without, frozen_vae)  # type: ignore[arg-type]
    assert torch.equal(seen, same_guide) and not torch.allclose(blank, everywhere, rtol=0.05)


def test_a_model_is_trained_and_landed_with_its_town(
    town_config, data_folder, vae_folder, depth_folder, places_folder, tmp_path, monkeypatch
):
    """Places come from their run and do not learn on; the folder that is landed starts worlds where its pictures were taken."""
    settings = foundation.Settings(batch=2, draws=1, pool=2, warmup=1)
    folders = (town_config, data_folder, vae_folder)
    with pytest.raises(FileNotFoundError, match="--places, a run of train"):
        foundation.train(*folders, tmp_path / "run", settings, 0, None, None, depth_folder, None)
    foundation.train(*folders, tmp_path / "run", settings, 1, None, None, depth_folder, places_folder)
    taken = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    learnt = load_file(places_folder / stage.WEIGHTS)
    assert all(torch.equal(taken[f"places.{name}"], value) for name, value in learnt.items())

    finder = tmp_path / "finder"
    finder.mkdir()
    network = Finder(town_config.dit.places.period, (town_config.height, town_config.width))
    save_file(network.state_dict(), finder / "finder.safetensors")
    (finder / "finder.json").write_text('{"finder_training": {"steps": 3}}')
    ways = (tmp_path / "run", vae_folder, data_folder, tmp_path / "landed", [])
    with pytest.raises(ValueError, match="--finder is needed by models that know a town"):
        land(town_config, *ways)
    monkeypatch.setattr("train.land.held_out_psnr", lambda *_: ({"psnr": 1.0},))
    land(town_config, *ways, places=places_folder, finder=finder)
    manifest = json.loads((tmp_path / "landed" / "manifest.json").read_text())
    assert manifest["finder"] == {"steps": 3} and manifest["places"]["steps"] == 40
    monkeypatch.setattr(Finder, "find", None)  # what was landed is not searched for
    model, (drawn, poses) = WorldModel.load(tmp_path / "landed", device="cpu"), starting_pictures(town_config)
    number = len(STARTS) - 1
    picture = drawn[number * town_config.height : (number + 1) * town_config.height]
    state = model.start([picture], [""], [0])
    assert (*state.worlds.place[0].tolist(), float(state.worlds.yaw)) == poses[number]


def test_models_without_a_town_land_without_a_finder(config, tmp_path):
    with pytest.raises(ValueError, match="--finder is needed by models that know a town"):
        land(config, tmp_path, tmp_path, tmp_path, tmp_path, [], finder=tmp_path)
