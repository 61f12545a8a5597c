"""How far a camera has come, added up block by block (visual odometry): in rollouts, in training windows, in what is moved."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from configs import WALK
from expert_world import SMALL
from toy_generator import (  # noqa: F401  (fixtures, too)
    at,
    data_fixture,
    files_fixture,
    stream,
    toy_config_fixture,
    vae_fixture,
)

from train.generator.foundation import keep_travel
from train.generator.shapes import recorded_config
from train.generator.windows import Spans, Windows
from world_model.actions import Action
from world_model.camera import rotation
from world_model.config import OutputConfig
from world_model.homography import Views
from world_model.parallax import Camera
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.sources import SOURCES, Sources, choose
from world_model.text import build_conditioning
from world_model.tscm import History
from world_model.vae import PatchVAE
from world_model.worlds import empty_worlds, start_worlds


@pytest.fixture(name="walk")
def walk_fixture(make_dit):
    """A world with a camera that moves at random, its network and autoencoder."""
    config = recorded_config("walk", WALK, False, "tiny")
    dit = make_dit(config, 3).requires_grad_(False)
    torch.nn.init.normal_(dit.flow.odometer.way[2].weight, std=0.3)
    torch.manual_seed(0)
    vae = PatchVAE(config.vae).eval().requires_grad_(False)
    dit.flow.read_autoencoder(vae)
    return config, dit, vae


def step(config, dit, vae, worlds, number: int):
    action = [Action.from_keys("W", "→")] * len(worlds.yaw)
    context, pooled = build_conditioning(config).context(action, [None] * len(action))
    sampling = Sampling(block_noise(config, [0] * len(action), [number] * len(action)), torch.tensor([1.0, 0.0]))
    return dream_block(dit, vae, worlds, action, context, pooled, sampling, [generator("old", number)] * len(action))[0]


def test_a_world_adds_up_how_far_its_camera_comes(walk):
    """Each block begins where the last one ended; what is taken of the past says where it was taken, relative to the newest."""
    config, dit, vae = walk
    pictures = torch.rand(1, 3, config.height, config.width) * 2 - 1
    worlds = start_worlds(dit, vae, pictures, torch.ones(1, dtype=torch.bool))
    assert worlds.history.position.shape == (1, worlds.history.frames, 3) and not worlds.history.position.any()
    size, ends = config.block_latents, [torch.zeros(3, dtype=torch.float64)]
    for number in range(3):
        worlds = step(config, dit, vae, worlds, number)
        new = worlds.history.position[0, -size:]
        assert (new.diff(dim=0).norm(dim=1) > 1e-3).all()
        ends.append(new[-1])
    assert ends[-1].norm() > 1e-2
    before = worlds.history.position[0, -1 - size]
    torch.testing.assert_close(before, ends[-2])
    ahead = worlds.yaw[:, None].expand(-1, size)
    places = choose(worlds.history, size, ahead, 0 * ahead).places
    assert places.shape == (1, SOURCES, 3) and not places[0, 0].any()
    torch.testing.assert_close(places[0, 1].double(), ends[-2] - ends[-1], rtol=0, atol=1e-6)


def test_pictures_do_not_say_how_far_the_camera_comes(walk):
    """Nor does what was there before: it would say a little else in every block, and a world adds that up."""
    config, dit, vae = walk
    torch.manual_seed(1)
    ends = []
    for _ in range(2):
        pictures = torch.rand(1, 3, config.height, config.width) * 2 - 1
        worlds = start_worlds(dit, vae, pictures, torch.ones(1, dtype=torch.bool))
        for number in range(2):
            worlds = step(config, dit, vae, worlds, number)
        ends.append(worlds.history.position)
    assert ends[0].any() and torch.equal(ends[0], ends[1])


@pytest.mark.parametrize(("turned", "teaches"), [(0.0, True), (math.pi / 2, False)])
def test_what_sources_do_not_show_teaches_no_ways(walk, turned, teaches):
    """A camera that turned away from all it saw: how that is looked up says nothing of how far the camera has come."""
    config, dit, _ = walk
    flow = dit.flow.requires_grad_(True)
    latents = torch.randn(1, SOURCES, config.dit.latent_channels, 2, 4)
    views = Views(torch.zeros(1, SOURCES, 2), torch.tensor([turned, 0.0]).expand(1, config.block_latents, -1))
    sources = Sources(
        latents, latents[:, 0], views, torch.zeros(1, SOURCES, dtype=torch.int64), torch.zeros(1, SOURCES, 3)
    )
    moved, whole, _, _ = flow.displacements(torch.randn(1, 8, config.dit.dim), sources, torch.randn(1, config.dit.dim))
    assert bool((whole[:, :, :, 2] == 0).any()) == teaches
    learnt = {part: getattr(flow, part).parameters() for part in ("odometer", "parallax")}
    found = {
        part: torch.autograd.grad(moved[:, :, :, :2].square().sum(), list(parameters), retain_graph=True)
        for part, parameters in learnt.items()
    }
    assert any(gradient.any() for gradient in found["odometer"]) == teaches
    assert any(gradient.any() for gradient in found["parallax"])


def test_an_expert_of_a_world_with_a_camera_moves_no_frames_itself(make_dit):
    config = recorded_config("walk", WALK, True, "tiny")
    dit = make_dit(dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=SMALL)), 0)
    assert dit.flow.odometer is not None and dit.config.dit.camera and not dit.expert.config.dit.camera
    assert dit.expert.config.dit.output == OutputConfig(prediction="data", residual=True)


def test_a_world_that_begins_from_a_text_has_not_come_from_anywhere(walk):
    config, dit, vae = walk
    worlds = empty_worlds(dit, vae, 1, torch.device("cpu"))
    worlds = step(config, dit, vae, worlds, 0)
    assert not worlds.history.position.any()
    assert step(config, dit, vae, worlds, 1).history.position.any()


@pytest.mark.parametrize("files", [2], indirect=True)
@pytest.mark.parametrize(("episode", "start", "age"), [(0, 4, 3), (2, 0, 11)])
def test_windows_add_up_what_was_said_of_each_step(toy_config, data, episode, start, age):
    """Against a loop over the blocks of one world, in axes that begin with the world."""
    size = toy_config.block_latents
    angles = torch.rand(len(data.latents), 2, generator=stream())
    said = torch.rand(data.steps, size, 3, generator=stream(1))
    windows = Windows(toy_config, dataclasses.replace(data, angles=angles, travelled=said))
    history = windows.truth(at(episode, start, age, data), stream()).history
    first = int(data.begin[episode]) + start
    axes = torch.from_numpy(rotation(float(angles[int(data.first[episode]) + start * size, 0]), 0.0))
    place, places = torch.zeros(3, dtype=torch.float64), {}
    for block in range(age):
        for k in range(size):
            places[block * size + k] = axes.T @ (place + said[first + block, k].double())
        place = place + said[first + block, -1].double()
    for column, number in enumerate(history.frame[0].tolist()):
        wanted = places.get(number, torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(history.position[0, column], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("files", [2], indirect=True)
def test_what_is_kept_is_in_the_axes_of_the_episode(toy_config, data):
    """A world that began looking to the right says "forward"; the episode holds "right". Worlds without a past keep nothing."""
    size = toy_config.block_latents
    angles = torch.tensor([math.pi / 2, 0.0]).expand(len(data.latents), -1)
    windows = Windows(toy_config, dataclasses.replace(data, angles=angles, travelled=torch.zeros(data.steps, size, 3)))
    spans = Spans(torch.tensor([0, 1]), data.begin[:2] + 1, torch.tensor([1, 2]))
    camera = Camera(torch.tensor([0.0, 0.0, 2.0]).expand(2, size, -1), torch.zeros(2, size, 1, 1))
    read = dataclasses.make_dataclass("Read", ["moves"])(dataclasses.make_dataclass("Moved", ["camera"])(camera))
    keep_travel(windows, spans, read, torch.tensor([True, False]))
    kept = windows.data.travelled
    torch.testing.assert_close(kept[spans.step[0]], torch.tensor([2.0, 0.0, 0.0]).expand(size, -1))
    assert int(kept.any(dim=(1, 2)).sum()) == 1


def test_of_pictures_that_look_alike_the_last_source_is_one_taken_near_the_camera():
    """A camera that went round a block: its start picture is nearer than what it saw on the way."""
    config = recorded_config("walk", WALK, False, "tiny")
    frames, size = 1 + (SOURCES - 1) * config.block_latents + 3, config.block_latents
    number, ahead = torch.arange(frames)[None], torch.zeros(1, frames, dtype=torch.float64)
    latents = torch.zeros(1, config.dit.latent_channels, frames, 2, 4)
    place = torch.zeros(1, frames, 3, dtype=torch.float64)
    place[0, 1:4, 2] = torch.tensor([20.0, 40.0, 60.0])
    history = History(latents, number, ahead, ahead, torch.ones_like(number, dtype=torch.bool), place)

    def last(history: History) -> float:
        target = ahead[:, :size]
        return choose(history, size, target, target).places[0, -1, 2].item()

    assert last(history) == 0.0
    place[0, -1, 2] = 42.0
    assert last(history) == -2.0
    assert last(dataclasses.replace(history, present=number != 2)) == 18.0
