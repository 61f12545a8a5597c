"""The depth network: what it knows before any training, what it is taught, and that it learns."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from train.depth import Settings, Views, degrade, depth_loss, errors, load_depth, train
from world_model.camera import CameraConfig, rotation
from world_model.priors.config import scene_of
from world_model.priors.depth import FARTHEST, NEAREST, DepthNet
from world_model.priors.geometry import camera_rays, camera_to_world
from world_model.rollout import generator

CAMERA = CameraConfig()


@pytest.fixture(scope="module")
def views(config) -> Views:
    return Views(config, Settings())


def flat(width: int = 4) -> DepthNet:
    """A network that sees nothing but the ground."""
    net = DepthNet(width, CAMERA)
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.constant_(net.head.bias, -20.0)
    return net


def test_rotations_are_the_cameras():
    angles = torch.tensor([[0.3, -0.2], [-2.0, 0.5]], dtype=torch.float64)
    for yaw, pitch in angles:
        ours = camera_to_world(yaw, pitch)
        np.testing.assert_allclose(ours.numpy(), rotation(float(yaw), float(pitch)), atol=1e-12)


@pytest.mark.parametrize("pitch", [-0.4, 0.0, 0.3])
def test_the_ground_is_where_a_ray_meets_it(pitch):
    """Against a ray followed down by hand; above the horizon the answer is as far as it goes."""
    with torch.no_grad():
        inverse = flat()(torch.zeros(1, 3, 16, 24), torch.tensor([pitch], dtype=torch.float64))[0]
    rays = camera_rays(16, 24, CAMERA, torch.device("cpu")).double().numpy() @ rotation(0.0, pitch).T
    for row, column in ((0, 3), (7, 12), (9, 0), (15, 23)):
        down = rays[row, column, 1]
        expected = max(down / CAMERA.eye_height, 1 / FARTHEST)
        assert float(inverse[row, column]) == pytest.approx(expected, abs=1e-5)


def test_nothing_is_farther_than_the_ground_nor_nearer_than_allowed():
    torch.manual_seed(0)
    net = DepthNet(4, CAMERA)
    torch.nn.init.normal_(net.head.weight)
    pitch = torch.tensor([0.1, -0.5])
    inverse = net(torch.randn(2, 3, 20, 28), pitch)  # sizes that no stride divides
    assert inverse.shape == (2, 20, 28)
    ground = net.downwards(pitch, 20, 28).clamp(min=0) / CAMERA.eye_height
    assert (inverse >= ground.clamp(max=1 / NEAREST) - 1e-6).all()
    assert inverse.min() >= 1 / FARTHEST and inverse.max() <= 1 / NEAREST + 1e-6


def test_views_are_the_towns_own_distances(views, config):
    pictures, pitch, inverse = views.draw(5, "some", 1)
    assert pictures.shape == (5, 3, config.height, config.width) and pictures.abs().max() <= 1
    assert inverse.shape == (5, config.height, config.width) and inverse.min() >= 1 / FARTHEST - 1e-9
    ground = flat().downwards(pitch, config.height, config.width).clamp(min=0) / CAMERA.eye_height
    on_ground = (inverse - ground).abs() < 1e-3
    assert on_ground[ground > 0.1].float().mean() > 0.3  # much of what is low in the picture is ground
    assert (inverse > ground - 0.02).float().mean() > 0.99
    again = views.draw(5, "some", 1)
    assert all(torch.equal(a, b) for a, b in zip((pictures, pitch, inverse), again))
    assert not torch.equal(pictures, views.draw(5, "some", 2)[0])


def test_some_pictures_are_blurred_and_none_leaves_the_range():
    pictures = torch.rand(64, 3, 16, 24, generator=generator("p")) * 2 - 1
    out = degrade(pictures, 0.3, generator("d"))
    changed = (out != pictures).flatten(1).any(dim=1).float().mean()
    assert 0.1 < changed < 0.5 and out.abs().max() <= 1
    assert torch.equal(degrade(pictures, 0.0, generator("d")), pictures)


def test_loss_is_zero_at_the_truth_and_counts_near_errors_most():
    truth = torch.full((1, 4, 4), 0.1)
    assert float(depth_loss(truth, truth)) == 0
    near, far = torch.full((1, 4, 4), 0.4), torch.full((1, 4, 4), 0.02)
    assert depth_loss(near * 1.1, near) > depth_loss(far * 1.1, far) > 0


def test_it_learns_and_resumes_and_its_weights_load(config, tmp_path):
    settings = Settings(batch=4, lr=3e-3, ema=0.9)
    held_out = Views(config, settings).draw(8, "other")
    before = errors(DepthNet(scene_of(config).depth, config.camera), held_out)
    train(config, tmp_path, settings, 60, None)
    net = DepthNet(scene_of(config).depth, config.camera)
    load_depth(net, tmp_path)
    after = errors(net, held_out)
    assert after["log_within_40m"] < 0.9 * before["log_within_40m"]
    facts = json.loads((tmp_path / "depth.json").read_text())["depth_training"]
    assert facts["steps"] == 60 and math.isfinite(facts["inverse"])
    kept = load_file(tmp_path / "depth.safetensors")
    train(config, tmp_path, settings, 60, None)  # nothing is left to do
    assert all(torch.equal(value, kept[name]) for name, value in load_file(tmp_path / "depth.safetensors").items())
