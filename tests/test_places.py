"""A town known by heart: where rays end, what they find there, and where one can walk."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.voxels import distance_field
from world_model.camera import CameraConfig, rotation
from world_model.config import PlacesConfig
from world_model.places import (
    BANDS,
    FARTHEST,
    HALVINGS,
    LIGHTS,
    OVERHEAD,
    PARTLY,
    PRIMES,
    SHELL,
    UNIT,
    WEATHERS,
    Places,
)
from world_model.rollout import generator
from world_model.text import scaled

CAMERA = CameraConfig()

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
    places.stand(torch.from_numpy(np.clip(away / UNIT, 0, 255).astype(np.uint8)))
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
    error = np.abs(away - true)[box]
    assert met[box].all() and error.max() < 2 * SMALL.cell / 2**HALVINGS

    clear = ~np.isfinite(larger)
    floor = clear & (ground < FARTHEST - 1)
    assert floor.sum() > 500 and met[floor].all()
    np.testing.assert_allclose(away[floor], ground[floor], rtol=1e-5)

    sky = clear & (ground > FARTHEST)
    assert sky.sum() > 500 and not met[sky].any() and away.max() <= FARTHEST


def test_only_what_is_taller_than_trees_ends_the_sight():
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


def test_where_things_stand_is_kept_with_the_weights():
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
    found, far = boxed.features(origin, direction)
    point = origin + away[:, None] * direction
    assert torch.equal(far, away)
    widths = [width for *_, width in SMALL.tables]
    for part, table, (size, *_) in zip(found.split([*widths, 5], dim=1), boxed.tables, SMALL.tables):
        for ray in (0, 1):
            expected = looked_up(table, size, SMALL.period, point[ray].tolist())
            torch.testing.assert_close(part[ray], expected.float(), atol=1e-3, rtol=1e-3)
        assert not part[2].any()
    torch.testing.assert_close(found[:, -5], (1 + away).log() / 4)
    assert found[:, -4].tolist() == [1, 1, 0]
    assert torch.equal(found[:, -3:], direction)


class Apart(nn.Module):
    """What is positive and what is negative, so that `relu` loses nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1)


class Together(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        positive, negative = x.chunk(2, dim=-1)
        return positive - negative


def test_every_token_sees_along_its_own_rays(boxed):
    """Two views of two worlds against rays of a pinhole camera, turned one by one."""
    boxed = copy.deepcopy(boxed)
    boxed.paint, boxed.blend, boxed.head = nn.Identity(), Apart(), Together()
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
            expected.append(boxed.features(origin, ray)[0])
        torch.testing.assert_close(
            seen[world, :, view, row, column], torch.cat([*expected, look[world]]), atol=1e-3, rtol=1e-3
        )


def test_neighbouring_tokens_of_a_view_are_blended(boxed):
    """What was painted, three by three tokens, one after the other; beyond the border there is nothing."""
    painted: list[Tensor] = []
    handle = boxed.paint.register_forward_hook(lambda *given: painted.append(given[-1]))
    view = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    place = torch.tensor([[[12.0, 3.0], [1.0, 14.0]]], dtype=torch.float64)
    seen = boxed(place, view, 0.1 * view, torch.randn(1, 4, generator=generator("look")))
    handle.remove()
    (tokens,), (rows, columns) = painted, boxed.size
    assert tokens.shape == (2, rows, columns, SMALL.width) and seen.shape == (1, 8, 2, rows, columns)
    expected = boxed.blend.bias.expand(2, rows, columns, -1).clone()
    for view_, row, column, down, right in np.ndindex(2, rows, columns, 3, 3):
        y, x = row + down - 1, column + right - 1
        if 0 <= y < rows and 0 <= x < columns:
            expected[view_, row, column] += boxed.blend.weight[:, :, down, right] @ tokens[view_, y, x]
    expected = expected.clamp(min=0) @ boxed.head.weight.T + boxed.head.bias
    torch.testing.assert_close(seen[0].permute(1, 2, 3, 0), expected, atol=1e-5, rtol=1e-4)
    assert tokens.std() > 0.01


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
    boxed.look, boxed.glance, boxed.skies = nn.Identity(), nn.Linear(2 * 48, 1), torch.zeros(LIGHTS, WEATHERS, 1)
    nn.init.zeros_(boxed.glance.weight), nn.init.zeros_(boxed.glance.bias)
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


def test_a_glance_at_pictures_that_were_seen_adds_to_their_light(boxed):
    """Nothing before training; then the last picture's and the first one's, in worlds that have them."""
    first, last = (torch.randn(2, 8, 4, 6, generator=generator(name)) for name in ("first", "last"))
    text, present = torch.randn(2, 3, 5, generator=generator("text")), torch.tensor([True, False])
    untrained = boxed.looks(first, last, present, text)
    assert not boxed.glance.weight.any() and not boxed.glance.bias.any()
    boxed = copy.deepcopy(boxed)
    torch.manual_seed(3)
    nn.init.normal_(boxed.glance.weight), nn.init.normal_(boxed.glance.bias)
    added = boxed.looks(first, last, present, text) - untrained
    seen = torch.cat([boxed.sight(last[:1]), boxed.sight(first[:1])], dim=1)[0]
    expected = torch.stack([boxed.glance.weight @ seen + boxed.glance.bias, torch.zeros(4)])
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-4)
    assert boxed.sight(first).shape == (2, 48) and boxed.sight(first).std() > 0.01


def test_a_picture_that_is_not_there_tells_nothing(boxed):
    """Words alone do, for that world."""
    boxed = copy.deepcopy(boxed)
    nn.init.normal_(boxed.skies)
    pictures = [torch.randn(2, 8, 4, 6, generator=generator("picture", n)) for n in range(4)]
    text, present = torch.randn(2, 7, 5, generator=generator("text")), torch.tensor([True, False])
    one, other = (boxed.looks(*pair, present, text) for pair in (pictures[:2], pictures[2:]))
    assert torch.equal(one[1], other[1])
    assert not torch.allclose(one[0], other[0], atol=1e-3)
    light, weather = boxed.sky(scaled(text[1].mean(dim=0))).split((LIGHTS, WEATHERS))
    assert torch.equal(one[1], boxed.skies[int(light.argmax()), int(weather.argmax())])


# ---- where a text starts ----------------------------------------------------------------------------------------------


@pytest.fixture
def viewed(monkeypatch) -> Places:
    """Five views that can be told apart; two of them are unlikely whatever a text says."""
    monkeypatch.setattr("world_model.places.VIEWS", 5)
    torch.manual_seed(1)
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    places.views.copy_(torch.arange(15.0).view(5, 3) / 7)
    places.where.weight.copy_(torch.randn(5, 5))
    places.where.bias.copy_(torch.tensor([0.5, -9.0, 0.0, -9.0, 0.3]))
    return places


def drawn(places: Places, text: Tensor, count: int = 3000) -> Tensor:
    """How often each view was drawn, as a share."""
    poses = torch.stack([places.somewhere(generator("somewhere", seed), text) for seed in range(count)])
    assert poses.dtype == torch.float64 and poses.shape == (count, 3)
    return (poses[:, None] == places.views.double()).all(dim=-1).double().mean(dim=0)


def test_somewhere_is_a_view_as_likely_as_a_text_makes_it(viewed):
    text = torch.zeros(1, 7, 5)
    text[0, :3] = torch.randn(3, 5, generator=generator("text"))
    score = viewed.where.weight.double().numpy() @ text[0, :3].double().mean(dim=0).numpy()  # padding is no word
    share = np.exp(score + viewed.where.bias.double().numpy()) ** 1.5
    found = drawn(viewed, text)
    np.testing.assert_allclose(found, share / share.sum(), atol=0.03)
    assert (found > 0.1).sum() > 1


def test_without_a_text_any_view_is_as_likely(viewed):
    np.testing.assert_allclose(drawn(viewed, torch.zeros(1, 7, 5)), 0.2, atol=0.03)


def test_where_a_text_starts_depends_on_text_and_seed_alone(viewed):
    text = torch.randn(1, 3, 5, generator=generator("text"))
    poses = [viewed.somewhere(generator("somewhere", seed), text) for seed in range(20)]
    torch.manual_seed(9)
    padded = torch.cat([text, torch.zeros(1, 4, 5)], dim=1)
    for seed, pose in enumerate(poses):
        assert torch.equal(viewed.somewhere(generator("somewhere", seed), padded), pose)
    assert len({tuple(pose.tolist()) for pose in poses}) > 1
