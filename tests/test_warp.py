"""The guide: pictures moved as commanded, against projections done by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from world_model.camera import CameraConfig, rotation
from world_model.warp import guide_block, warp

FAR = 14.0  # metres

CAMERA = CameraConfig()
HEIGHT, WIDTH = 64, 96
INTRINSICS = CAMERA.intrinsics(HEIGHT, WIDTH)
MIDDLE = np.array([WIDTH / 2, HEIGHT / 2])
# bicubic sampling bends a straight ramp by up to a twentieth of a pixel
PIXEL = 0.07


def ramps() -> Tensor:
    """A picture that tells where each of its pixels is: channels x, y and their sum, as colours."""
    y, x = torch.meshgrid((torch.arange(HEIGHT) + 0.5) / HEIGHT, (torch.arange(WIDTH) + 0.5) / WIDTH, indexing="ij")
    return torch.stack([x, y, (x + y) / 2])[None] * 2 - 1


def moved(yaw=0.0, pitch=0.0, new_yaw=0.0, new_pitch=0.0, walk=(0.0, 0.0), picture: Tensor | None = None):
    """The warped picture and its validity, one world and one new view."""
    one = (torch.tensor([value], dtype=torch.float64) for value in (yaw, pitch))
    two = (torch.tensor([[value]], dtype=torch.float64) for value in (new_yaw, new_pitch))
    walked = torch.tensor([[walk]], dtype=torch.float64)
    video, valid = warp(ramps() if picture is None else picture, *one, *two, walked, CAMERA, FAR)
    return video[0, :, 0], valid[0, 0, 0]


def sources(video: Tensor) -> np.ndarray:
    """[H, W, 2] (x, y) pixels of the old picture that a warped `ramps` shows."""
    x, y = (video[i].double().numpy() + 1 for i in (0, 1))
    return np.stack([x / 2 * WIDTH, y / 2 * HEIGHT], axis=-1)


def between(values: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear reading of [H, W, n] at a place given in pixels from the corner."""
    column, row = int(x - 0.5), int(y - 0.5)
    right, down = x - 0.5 - column, y - 0.5 - row
    top = values[row, column] * (1 - right) + values[row, column + 1] * right
    bottom = values[row + 1, column] * (1 - right) + values[row + 1, column + 1] * right
    return top * (1 - down) + bottom * down


def project(point: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """Pixel of a point given from the eye in world axes (x right, y down, z forward)."""
    x, y, z = INTRINSICS @ rotation(yaw, pitch).T @ point
    return np.array([x / z, y / z])


def test_nothing_commanded_changes_nothing():
    picture = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for angles in ((0.0, 0.0), (0.8, -0.3)):
        video, valid = moved(*angles, *angles, picture=picture)
        torch.testing.assert_close(video[:, 1:-1, 1:-1], picture[0, :, 1:-1, 1:-1], atol=1e-3, rtol=0)
        assert valid[1:-1, 1:-1].all()


@pytest.mark.parametrize(
    ("before", "after"), [((0, 0), (0.2, 0)), ((1, 0.1), (0.8, 0.1)), ((-2, 0), (-2, 0.3)), ((3.1, -0.2), (3.3, -0.4))]
)
def test_rotation_shows_the_same_directions(before, after):
    video, valid = moved(*before, *after)
    seen, inverse = sources(video), np.linalg.inv(INTRINSICS)
    inside = 0
    for row, column in product(range(0, HEIGHT, 3), range(0, WIDTH, 5)):
        x, y = project(rotation(*after) @ inverse @ [column + 0.5, row + 0.5, 1], *before)
        assert bool(valid[row, column]) == (0 <= x <= WIDTH and 0 <= y <= HEIGHT)
        if 2 < x < WIDTH - 2 and 2 < y < HEIGHT - 2:
            np.testing.assert_allclose(seen[row, column], [x, y], atol=PIXEL)
            inside += 1
    assert inside > 150


@pytest.mark.parametrize("walk", [(0, 0.8), (0, -0.8), (0.6, 0), (-0.5, 0.5)])
@pytest.mark.parametrize(("yaw", "pitch", "turn"), [(0, 0, 0), (0.6, 0, 0), (-1.2, -0.1, 0.15)])
def test_walking_moves_points_of_the_ground_as_a_projection_by_hand(walk, yaw, pitch, turn):
    cos, sin = math.cos(yaw), math.sin(yaw)
    video, valid = moved(yaw, pitch, yaw + turn, pitch, walk)
    seen, checked = sources(video), 0
    for right, ahead in [(0, 4), (1, 5), (-1.5, 6), (2, 7), (0.5, 10)]:
        point = np.array([cos * right + sin * ahead, CAMERA.eye_height, cos * ahead - sin * right])
        x, y = project(point - [walk[0], 0, walk[1]], yaw + turn, pitch)
        expected = project(point, yaw, pitch)
        if 2 < x < WIDTH - 2 and 2 < y < HEIGHT - 2 and 2 < expected[0] < WIDTH - 2 and 2 < expected[1] < HEIGHT - 2:
            np.testing.assert_allclose(between(seen, x, y), expected, atol=0.25)
            assert valid[int(y), int(x)] == 1
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("action", ["forward", "backward"])
def test_walking_straight_scales_the_picture_around_its_middle(action):
    step = 0.6 if action == "forward" else -0.6
    seen = sources(moved(walk=(0, step))[0])
    y, x = np.mgrid[4:60:4, 6:90:6]
    place = np.stack([x + 0.5, y + 0.5], axis=-1) - MIDDLE
    source = seen[y, x] - MIDDLE
    closer = np.linalg.norm(source, axis=-1) < np.linalg.norm(place, axis=-1)
    assert closer.all() if action == "forward" else not closer.any()
    assert (np.sum(source * place, axis=-1) > 0).all()


def test_above_the_horizon_everything_stands_on_a_sphere():
    seen = sources(moved(walk=(0, 1.0))[0])
    row, column = 10, 70
    ray = np.linalg.inv(INTRINSICS) @ [column + 0.5, row + 0.5, 1]
    point = FAR * ray / np.linalg.norm(ray) + [0, 0, 1.0]
    np.testing.assert_allclose(seen[row, column], project(point, 0, 0), atol=PIXEL)


def test_what_was_out_of_view_is_marked():
    _, valid = moved(new_yaw=math.radians(30))
    edge = project(rotation(math.radians(45), 0) @ [0, 0, 1], math.radians(30), 0)[0]  # the old right border, seen anew
    middle = valid[HEIGHT // 2]
    assert middle[: int(edge)].all()
    assert not middle[int(edge) + 1 :].any()
    odd = torch.zeros(1, 3, 33, 49)  # its middle pixel lies on the axis itself
    for behind in (moved(new_yaw=math.pi), moved(new_yaw=math.pi, picture=odd)):
        assert not behind[1].any()


def test_worlds_and_views_are_warped_each_by_its_own_command():
    pictures = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    yaw, pitch = torch.tensor([0.3, -0.4]), torch.tensor([0.0, 0.1])
    yaws, pitches = torch.tensor([[0.4, 0.5], [-0.4, -0.3]]), torch.tensor([[0.0, 0.1], [0.2, 0.1]])
    walked = torch.tensor([[[0.1, 0.2], [0.2, 0.3]], [[0.0, -0.2], [0.0, -0.4]]])
    video, valid = warp(pictures, yaw, pitch, yaws, pitches, walked, CAMERA, FAR)
    for world, view in np.ndindex(2, 2):
        one, seen = moved(
            float(yaw[world]), float(pitch[world]), float(yaws[world, view]), float(pitches[world, view]),
            walked[world, view].tolist(), pictures[world : world + 1],
        )  # fmt: skip
        torch.testing.assert_close(video[world, :, view], one, atol=1e-4, rtol=1e-4)
        assert torch.equal(valid[world, 0, view], seen)


@torch.no_grad()
def test_the_guides_of_a_block_are_the_encoded_warps_depth_by_depth(config, make_vae, make_videos):
    vae = make_vae(config)
    picture, frames = make_videos(config, 1, 1)[:, :, 0], config.frames_per_block
    still, part = torch.zeros(1), torch.arange(1, frames + 1)[None] / frames
    walked = torch.stack([0 * part, part], dim=-1)
    given = (picture, still, still, 0.3 * part, torch.zeros(1, frames), walked, config.camera)
    latents, valid = guide_block(vae, *given, (4.0, 30.0))
    assert latents.shape == (1, 2 * 8, config.block_latents, *config.latent_size)
    assert valid.shape == (1, 2, config.block_latents, *config.latent_size)
    for i, far in enumerate((4.0, 30.0)):
        video, seen = warp(*given, far)
        torch.testing.assert_close(latents[:, 8 * i : 8 * i + 8], vae.encode(video))
        by_hand = seen.reshape(1, config.block_latents, 2, 4, 8, 6, 8).mean(dim=(2, 4, 6))
        torch.testing.assert_close(valid[:, i], by_hand)
    assert ((valid > 0) & (valid < 1)).any()
    assert not torch.allclose(latents[:, :8], latents[:, 8:], atol=1e-2)
