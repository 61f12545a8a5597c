"""The scene field of a memorised town: where rays end and what they find there, in which light, and where a text starts."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from test_rays import CAMERA, SMALL, town_of_a_box
from torch import Tensor, nn

from world_model.camera import rotation
from world_model.priors.places import BANDS, LIGHTS, PRIMES, WEATHERS, Places
from world_model.rollout import generator
from world_model.text import scaled


@pytest.fixture(scope="module")
def boxed() -> Places:
    return town_of_a_box()


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


def test_features_are_those_of_the_point_a_ray_meets(boxed):
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


def test_light_and_weather_come_from_pictures_that_were_seen_and_from_texts(boxed):
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


def test_the_appearance_encoder_adds_a_correction_from_earlier_pictures(boxed):
    """Zero before training; then from the last picture and the first one, in worlds that have them."""
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


def test_an_absent_picture_adds_nothing_to_the_appearance_code(boxed):
    """Only the text does, for that world."""
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
    monkeypatch.setattr("world_model.priors.places.VIEWS", 5)
    torch.manual_seed(1)
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    places.views.copy_(torch.arange(15.0).view(5, 3) / 7)
    places.where.weight.copy_(torch.randn(5, 5))
    places.where.bias.copy_(torch.tensor([0.5, -9.0, 0.0, -9.0, 0.3]))
    return places


def sampled(places: Places, text: Tensor, count: int = 3000) -> Tensor:
    """How often each view was sampled, as a fraction."""
    poses = torch.stack([places.somewhere(generator("somewhere", seed), text) for seed in range(count)])
    assert poses.dtype == torch.float64 and poses.shape == (count, 3)
    return (poses[:, None] == places.views.double()).all(dim=-1).double().mean(dim=0)


def test_initial_poses_are_as_likely_as_a_text_makes_them(viewed):
    text = torch.zeros(1, 7, 5)
    text[0, :3] = torch.randn(3, 5, generator=generator("text"))
    score = viewed.where.weight.double().numpy() @ text[0, :3].double().mean(dim=0).numpy()  # padding is no word
    share = np.exp(score + viewed.where.bias.double().numpy()) ** 1.5
    found = sampled(viewed, text)
    np.testing.assert_allclose(found, share / share.sum(), atol=0.03)
    assert (found > 0.1).sum() > 1


def test_without_a_text_any_view_is_as_likely(viewed):
    np.testing.assert_allclose(sampled(viewed, torch.zeros(1, 7, 5)), 0.2, atol=0.03)


def test_where_a_text_starts_depends_on_text_and_seed_alone(viewed):
    text = torch.randn(1, 3, 5, generator=generator("text"))
    poses = [viewed.somewhere(generator("somewhere", seed), text) for seed in range(20)]
    torch.manual_seed(9)
    padded = torch.cat([text, torch.zeros(1, 4, 5)], dim=1)
    for seed, pose in enumerate(poses):
        assert torch.equal(viewed.somewhere(generator("somewhere", seed), padded), pose)
    assert len({tuple(pose.tolist()) for pose in poses}) > 1
