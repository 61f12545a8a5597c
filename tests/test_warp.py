"""The warped-frame prior: pictures reprojected as commanded, against projections done by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from world_model.camera import CameraConfig, rotation
from world_model.conditions import Motion
from world_model.priors.album import Recalled
from world_model.priors.depth import DepthNet
from world_model.priors.warp import OUTDATED, REMEMBERED, UNLIKE, WEAR, Guide, PosedPicture, guide_block, warp

CAMERA = CameraConfig()
HEIGHT, WIDTH = 64, 96
INTRINSICS = CAMERA.intrinsics(HEIGHT, WIDTH)
FAR = 14.0  # metres
# bicubic sampling bends a straight ramp by up to a twentieth of a pixel
PIXEL = 0.07


def warped_prior(
    depth: DepthNet, vae, picture: Tensor, yaw, pitch, *moved: Tensor, variance: Tensor | None = None, **more
) -> Guide:
    return guide_block(depth, vae, PosedPicture(picture, yaw, pitch, variance), Motion(*moved), **more)


def ramps() -> Tensor:
    """A picture that tells where each of its pixels is: channels x, y and their sum, as colours."""
    y, x = torch.meshgrid((torch.arange(HEIGHT) + 0.5) / HEIGHT, (torch.arange(WIDTH) + 0.5) / WIDTH, indexing="ij")
    return torch.stack([x, y, (x + y) / 2])[None] * 2 - 1


def rays() -> np.ndarray:
    """[H, W, 3] directions of the pixels with z = 1, camera axes."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(INTRINSICS).T


def room(yaw: float, pitch: float) -> Tensor:
    """Inverse distances [1, H, W] of a sphere of FAR metres that stands on level ground, seen from its middle."""
    unit = rays() / np.linalg.norm(rays(), axis=-1, keepdims=True)
    down = (unit @ rotation(yaw, pitch).T)[..., 1]
    return torch.from_numpy(np.maximum(1 / FAR, down / CAMERA.eye_height)).float()[None]


def wall(distance: float) -> Tensor:
    """Inverse distances [1, H, W] of a plane across the view, `distance` metres ahead."""
    return torch.from_numpy(1 / (distance * np.linalg.norm(rays(), axis=-1))).float()[None]


def moved(yaw=0.0, pitch=0.0, new_yaw=0.0, new_pitch=0.0, displacement=(0.0, 0.0), picture=None, inverse=None):
    """The warped picture [3, H, W] and its validity [H, W], one world and one new view."""
    one = (torch.tensor([value], dtype=torch.float64) for value in (yaw, pitch))
    two = (torch.tensor([[value]], dtype=torch.float64) for value in (new_yaw, new_pitch))
    displacement = torch.tensor([[displacement]], dtype=torch.float64)
    inverse = room(yaw, pitch) if inverse is None else inverse
    video, valid = warp(ramps() if picture is None else picture, inverse, *one, *two, displacement, CAMERA)
    return video[0, :, 0], valid[0, 0, 0]


def sources(video: Tensor) -> np.ndarray:
    """[H, W, 2] (x, y) pixels of the old picture that a warped `ramps` shows."""
    x, y = (video[i].double().numpy() + 1 for i in (0, 1))
    return np.stack([x / 2 * WIDTH, y / 2 * HEIGHT], axis=-1)


def project(point: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """Pixel of a point given from the eye in world axes (x right, y down, z forward)."""
    x, y, z = INTRINSICS @ rotation(yaw, pitch).T @ point
    return np.array([x / z, y / z])


def test_nothing_commanded_changes_nothing():
    picture = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for angles in ((0.0, 0.0), (0.8, -0.3)):
        video, valid = moved(*angles, *angles, picture=picture)
        torch.testing.assert_close(video[:, 1:-1, 1:-1], picture[0, :, 1:-1, 1:-1], atol=2e-3, rtol=0)
        assert valid[1:-1, 1:-1].all()


@pytest.mark.parametrize(
    ("before", "after"), [((0, 0), (0.2, 0)), ((1, 0.1), (0.8, 0.1)), ((-2, 0), (-2, 0.3)), ((3.1, -0.2), (3.3, -0.4))]
)
def test_rotation_shows_the_same_directions_whatever_the_distances(before, after):
    rough = 0.02 + torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.004
    video, valid = moved(*before, *after, inverse=rough)
    seen, inverse = sources(video), np.linalg.inv(INTRINSICS)
    inside = 0
    for row, column in product(range(0, HEIGHT, 3), range(0, WIDTH, 5)):
        x, y = project(rotation(*after) @ inverse @ [column + 0.5, row + 0.5, 1], *before)
        if x < -1 or y < -1 or x > WIDTH + 1 or y > HEIGHT + 1:
            assert not valid[row, column]
        if 2 < x < WIDTH - 2 and 2 < y < HEIGHT - 2:
            np.testing.assert_allclose(seen[row, column], [x, y], atol=PIXEL)
            inside += 1
    assert inside > 150


@pytest.mark.parametrize("displacement", [(0, 0.8), (0, -0.8), (0.6, 0), (-0.5, 0.5)])
@pytest.mark.parametrize(("yaw", "pitch", "turn"), [(0, 0, 0), (0.6, 0, 0), (-1.2, -0.1, 0.15)])
def test_walking_moves_points_of_the_ground_as_a_projection_by_hand(displacement, yaw, pitch, turn):
    cos, sin = math.cos(yaw), math.sin(yaw)
    video, valid = moved(yaw, pitch, yaw + turn, pitch, displacement)
    seen, checked = sources(video), 0
    for right, ahead in [(0, 4), (1, 5), (-1.5, 6), (2, 7), (0.5, 10)]:
        point = np.array([cos * right + sin * ahead, CAMERA.eye_height, cos * ahead - sin * right])
        x, y = project(point - [displacement[0], 0, displacement[1]], yaw + turn, pitch)
        expected = project(point, yaw, pitch)
        if 2 < x < WIDTH - 2 and 2 < y < HEIGHT - 2 and 2 < expected[0] < WIDTH - 2 and 2 < expected[1] < HEIGHT - 2:
            found = seen[int(y), int(x)] + (
                [x, y] - np.floor([x, y]) - 0.5
            )  # what the pixel's middle shows, moved to the position
            np.testing.assert_allclose(found, expected, atol=0.8)
            assert valid[int(y), int(x)] == 1
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("step", [0.9, -0.9])
def test_a_wall_grows_and_shrinks_by_its_distance(step):
    video, valid = moved(displacement=(0, step), inverse=wall(4.0))
    seen, middle = sources(video), np.array([WIDTH / 2, HEIGHT / 2])
    y, x = np.mgrid[10:54:4, 16:80:6]
    position = np.stack([x + 0.5, y + 0.5], axis=-1) - middle
    np.testing.assert_allclose(seen[y, x] - middle, position * (4.0 - step) / 4.0, atol=0.25)
    assert valid[y, x].all()
    assert bool(valid[0].any()) == (step > 0)  # walking back, the wall's surroundings come into view


def test_occluded_points_are_invisible_and_the_nearer_ones_win():
    """A post one metre away before a wall at ten: a step to the right moves the post to the left and bares the wall behind it."""
    picture, inverse = -torch.ones(1, 3, HEIGHT, WIDTH), wall(10.0)
    post = slice(44, 52)
    picture[..., post], inverse[..., post] = 1.0, wall(1.0)[..., post]
    video, valid = moved(displacement=(0.2, 0.0), picture=picture, inverse=inverse)
    shift = 0.2 / 1.0 * CAMERA.focal(WIDTH)
    row = video[0, HEIGHT // 2]
    assert (row[round(44 - shift) + 1 : round(52 - shift) - 1] > 0.9).all()  # the post, sharp
    bared = slice(round(52 - shift) + 2, round(52 - 0.1 * shift) - 2)
    assert not valid[HEIGHT // 2, bared].any()
    assert valid[HEIGHT // 2, 60:90].all() and (row[60:90] < -0.9).all()


def test_coming_nearer_leaves_no_holes():
    _, valid = moved(displacement=(0, 1.6), inverse=wall(4.0))  # everything 1.7 times as large
    assert valid[2:-2, 2:-2].all()


def test_what_was_out_of_view_is_marked():
    _, valid = moved(new_yaw=math.radians(30))
    edge = project(rotation(math.radians(45), 0) @ [0, 0, 1], math.radians(30), 0)[0]  # the old right border, seen anew
    middle = valid[HEIGHT // 2]
    assert middle[: int(edge) - 1].all()
    assert not middle[int(edge) + 2 :].any()
    assert not moved(new_yaw=math.pi)[1].any()


def test_worlds_and_views_are_warped_each_by_its_own_command():
    pictures = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    yaw, pitch = torch.tensor([0.3, -0.4]), torch.tensor([0.0, 0.1])
    yaws, pitches = torch.tensor([[0.4, 0.5], [-0.4, -0.3]]), torch.tensor([[0.0, 0.1], [0.2, 0.1]])
    displacement = torch.tensor([[[0.1, 0.2], [0.2, 0.3]], [[0.0, -0.2], [0.0, -0.4]]])
    inverse = torch.cat([room(0.3, 0.0), wall(5.0)])
    video, valid = warp(pictures, inverse, yaw, pitch, yaws, pitches, displacement, CAMERA)
    for world, view in np.ndindex(2, 2):
        one, seen = moved(
            float(yaw[world]),
            float(pitch[world]),
            float(yaws[world, view]),
            float(pitches[world, view]),
            displacement[world, view].tolist(),
            pictures[world : world + 1],
            inverse[world : world + 1],
        )
        assert (video[world, :, view] - one).abs().mean() < 1e-3
        assert (valid[world, 0, view] != seen).float().mean() < 0.002


@torch.no_grad()
def test_the_prior_of_a_block_is_the_encoded_warp_at_the_networks_distances(config, make_vae, make_videos):
    torch.manual_seed(0)
    vae, depth = make_vae(config), DepthNet(4, config.camera)
    picture, frames = make_videos(config, 1, 1)[:, :, 0], config.frames_per_block
    still, part = torch.zeros(1), torch.arange(1, frames + 1)[None] / frames
    displacement = torch.stack([0 * part, part], dim=-1)
    views = (still, still, 0.3 * part, torch.zeros(1, frames), displacement)
    _, cache = vae.decode(vae.encode(make_videos(config, 1, 2, seed=1)))
    prior = warped_prior(depth, vae, picture, *views, cache=cache)
    assert prior.latents.shape == (1, config.dit.latent_channels, config.block_latents, *config.latent_size)
    video, seen = warp(picture, depth(picture, still), *views, config.camera)
    torch.testing.assert_close(prior.latents, vae.encode(video))
    by_hand = seen.reshape(1, config.block_latents, 2, 4, 8, 6, 8).mean(dim=(2, 4, 6))
    torch.testing.assert_close(prior.valid[:, 0], by_hand)
    assert ((prior.valid > 0) & (prior.valid < 1)).any() and 0 < REMEMBERED < 1
    lost = torch.where(seen == 1, video - vae.decode(vae.encode(video), cache)[0], torch.zeros_like(video))
    torch.testing.assert_close(prior.detail, lost)
    assert not torch.allclose(prior.detail, warped_prior(depth, vae, picture, *views).detail, atol=1e-3)


@torch.no_grad()
def test_the_residual_of_the_autoencoder_is_added_where_the_prior_was_followed(config, make_vae, make_videos):
    """Where latents are the prior's, the pictures are the warped ones themselves; the further they are off, the less so."""
    torch.manual_seed(0)
    vae, depth = make_vae(config), DepthNet(4, config.camera)
    picture, frames = make_videos(config, 2, 1)[:, :, 0], config.frames_per_block
    still, turn = torch.zeros(2), torch.linspace(0.05, 0.2, frames).expand(2, -1)
    views = (still, still, turn, torch.zeros(2, frames), torch.zeros(2, frames, 2))
    prior = warped_prior(depth, vae, picture, *views)
    decoded, _ = vae.decode(prior.latents)
    warped, seen = warp(picture, depth(picture, still), *views, config.camera)
    everywhere = (seen == 1).expand_as(warped)
    put_back = prior.restored(decoded, prior.latents)
    torch.testing.assert_close(put_back[everywhere], warped[everywhere], atol=1e-5, rtol=0)
    assert torch.equal(put_back[~everywhere], decoded[~everywhere])  # nothing was visible there: no residual
    assert (decoded - warped)[everywhere].square().mean() > 1e-3  # it was worth it
    off = torch.full_like(prior.latents, 0.4)  # mean square 0.16
    expected = (decoded + math.exp(-0.16 / UNLIKE**2) * prior.detail).clamp(-1, 1)
    torch.testing.assert_close(prior.restored(decoded, prior.latents + off), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.restored(decoded, prior.latents - 10 * off), decoded)


@torch.no_grad()
def test_the_residual_is_added_point_by_point(config):
    """Of two worlds one leaves the prior, and only in the right half of its picture."""
    torch.manual_seed(0)
    frames, size = config.frames_per_block, (config.height, config.width)
    latents = torch.randn(2, config.dit.latent_channels, config.block_latents, *config.latent_size)
    valid, variance = torch.ones(2, 1, *latents.shape[2:]), torch.zeros(2, 1, *size)
    prior = Guide(latents, valid, torch.full((2, 3, frames, *size), 0.5), variance)
    video = torch.zeros(2, 3, frames, *size)
    columns = config.latent_size[1]
    other = latents.clone()
    other[1, ..., columns // 2 :] += 5
    put_back = prior.restored(video, other)
    assert (put_back[0] == 0.5).all()
    stride = config.width // columns
    assert (put_back[1, ..., : config.width // 2 - stride] == 0.5).all()
    assert put_back[1, ..., config.width // 2 + stride :].abs().max() < 1e-6


@torch.no_grad()
def test_uncertain_pictures_weigh_less(config, make_vae, make_videos):
    """The warped frame is the same, but where the picture was uncertain it counts as the fusion of two estimates does."""
    torch.manual_seed(0)
    vae, depth = make_vae(config), DepthNet(4, config.camera)
    picture, frames = make_videos(config, 1, 1)[:, :, 0], config.frames_per_block
    still, turn = torch.zeros(1), torch.linspace(0.05, 0.3, frames)[None]
    views = (still, still, turn, torch.zeros(1, frames), torch.zeros(1, frames, 2))
    _, seen = warp(picture, depth(picture, still), *views, config.camera)
    certain = warped_prior(depth, vae, picture, *views)
    torch.testing.assert_close(certain.doubt, 1 - seen[:, :, -1] * (1 - WEAR))  # new points have the largest variance
    for variance in (0.0, 0.5):
        prior = warped_prior(depth, vae, picture, *views, variance=torch.full((1, 1, 32, 48), variance))
        torch.testing.assert_close(prior.latents, certain.latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(prior.valid, certain.valid / (1 + variance), atol=1e-5, rtol=0)
        torch.testing.assert_close(prior.detail, certain.detail / (1 + variance), atol=1e-5, rtol=0)
        expected = (1 - seen[:, :, -1] / (1 + variance) + WEAR).clamp(max=1)
        torch.testing.assert_close(prior.doubt, expected, atol=1e-5, rtol=0)
    half = torch.zeros(1, 1, 32, 48)
    half[..., 24:] = 1.0
    valid = warped_prior(depth, vae, picture, *views[:2], *(0 * angle for angle in views[2:]), variance=half).valid
    assert torch.allclose(valid[..., :2], torch.tensor(1.0)) and torch.allclose(valid[..., 4:], torch.tensor(0.5))


@torch.no_grad()
def test_confidence_lowers_the_validity_of_earlier_pictures(config, make_vae, make_videos):
    """Of the last picture and of a retrieved one, in its own world alone; the warped frame itself is the same one."""
    torch.manual_seed(0)
    vae, depth = make_vae(config), DepthNet(4, config.camera)
    picture, old, frames = *make_videos(config, 4, 1)[:, :, 0].split(2), config.frames_per_block
    still, turn = torch.zeros(2), torch.linspace(0.05, 0.3, frames).expand(2, -1)
    views = (still, still, turn, torch.zeros(2, frames), torch.zeros(2, frames, 2))
    retrieved = Recalled(old, still + 0.3, still, torch.zeros(2, 2), torch.ones(2, dtype=torch.bool))
    plain = warped_prior(depth, vae, picture, *views, recalled=retrieved)
    confidence = torch.tensor([OUTDATED, 1.0])
    prior = warped_prior(depth, vae, picture, *views, recalled=retrieved, trust=confidence)
    assert torch.equal(prior.latents, plain.latents) and 0 < OUTDATED < 1
    by_world = confidence[:, None, None, None, None]
    torch.testing.assert_close(prior.valid, plain.valid * by_world)
    torch.testing.assert_close(prior.detail, plain.detail * by_world)
    valid = 1 + WEAR - plain.doubt  # of the block's last picture
    torch.testing.assert_close(prior.doubt, (1 - valid * confidence[:, None, None, None] + WEAR).clamp(max=1))
    assert (plain.valid == REMEMBERED).any() and prior.detail[0].any()


@torch.no_grad()
def test_variance_stops_growing_where_the_view_stays(config, make_vae, make_videos):
    """Block after block the same view: the process noise equals what the second estimate takes away."""
    torch.manual_seed(0)
    vae, depth = make_vae(config), DepthNet(4, config.camera)
    picture, frames = make_videos(config, 1, 1)[:, :, 0], config.frames_per_block
    still, stay = torch.zeros(1), (torch.zeros(1, frames), torch.zeros(1, frames), torch.zeros(1, frames, 2))
    variance, before = torch.zeros(1, 1, 32, 48), 0.0
    for _ in range(40):
        variance = warped_prior(depth, vae, picture, still, still, *stay, variance=variance).doubt
        grown, before = float(variance.mean()) - before, float(variance.mean())
        assert grown > -1e-6
    assert grown < 1e-4
    end = (WEAR + math.sqrt(WEAR**2 + 4 * WEAR)) / 2  # variance = variance / (1 + variance) + WEAR
    torch.testing.assert_close(variance, torch.full_like(variance, end), atol=1e-3, rtol=0)
