"""Appearance flow: against a slow form, against known motion, and inside the network."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from train.generator.shapes import recorded_config
from train.recordings import Recording
from world_model import appearance_flow
from world_model.action_spaces import ActionSpec
from world_model.appearance_flow import AppearanceFlow, move
from world_model.conditions import Target
from world_model.dit import DiT
from world_model.tscm import static_history
from world_model.vae import PatchVAE

RECORDING = Recording(
    env="toy", height=16, width=32, fps=8, action=ActionSpec("discrete", (3,)), frames_per_step=2, frame_skip=1, resize="none",
    original_size=(16, 32), policy="random", seed=0, source={},
)  # fmt: skip


@pytest.fixture(scope="module")
def toy():
    config = recorded_config("toy", RECORDING, False, "tiny")
    torch.manual_seed(0)
    vae = PatchVAE(config.vae).requires_grad_(False)
    video = torch.rand(64, 3, 2, 16, 32) * 2 - 1
    vae.fit_linear(video)
    vae.normalise(vae.encode_raw(video))
    return config, vae


def test_pictures_and_latents_are_those_of_the_linear_autoencoder(toy):
    config, vae = toy
    flow = AppearanceFlow(config)
    flow.read_autoencoder(vae)
    video = torch.rand(2, 3, 2, 16, 32) * 2 - 1
    latents = vae.encode(video)
    torch.testing.assert_close(flow.latents(video.transpose(1, 2)), latents, rtol=0, atol=1e-4)
    shape = (1, -1, 1, 1, 1)
    linear = vae.to_pixels((latents * vae.scale.view(shape) + vae.mean.view(shape)).movedim(1, -1))
    expected = linear.unflatten(-1, (3, 8, 8)).permute(0, 1, 4, 2, 5, 3, 6).reshape(2, 2, 3, 16, 32)
    torch.testing.assert_close(flow.pictures(latents), expected, rtol=0, atol=1e-4)


def test_moving_is_bilinear_look_up():
    """Against one pixel after another, with displacements that leave the picture."""
    torch.manual_seed(0)
    picture, flow = torch.rand(2, 3, 8, 12), 4 * torch.randn(2, 2, 2, 8, 12)
    moved = move(picture, flow, 1)
    for world, frame, y, x in ((0, 0, 0, 0), (0, 1, 3, 7), (1, 0, 7, 11), (1, 1, 4, 0), (1, 1, 2, 9)):
        right, down = flow[world, frame, :, y, x].tolist()
        row, column = min(max(y + down, 0), 7), min(max(x + right, 0), 11)
        top, left = min(math.floor(row), 6), min(math.floor(column), 10)
        a, b = row - top, column - left
        p = picture[world, :, top : top + 2, left : left + 2]
        expected = (1 - a) * ((1 - b) * p[:, 0, 0] + b * p[:, 0, 1]) + a * ((1 - b) * p[:, 1, 0] + b * p[:, 1, 1])
        torch.testing.assert_close(moved[world, frame, :, y, x], expected, rtol=0, atol=1e-4)


def test_large_displacements_are_found_from_coarse_pictures(toy):
    """A spot that moves by 11 of 32 pixels: descent on the loss of all scales finds it, that of the finest alone does not."""
    config, _ = toy
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    flow = AppearanceFlow(dataclasses.replace(config, **parts))  # as many channels as pixels: the eye is exact
    y, x = torch.meshgrid(torch.arange(16), torch.arange(32), indexing="ij")

    def spot(column: int) -> torch.Tensor:
        picture = (((x - column).abs() <= 1) & ((y - 8).abs() <= 1)).float()
        return flow.latents(picture.expand(1, 1, 3, -1, -1))

    newest, data = spot(20)[:, :, 0], spot(9)

    def found() -> float:
        shift = torch.zeros(1, 1, 2, 1, 1, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=0.3)
        for _ in range(120):
            optimizer.zero_grad()
            flow.loss(shift.expand(1, 1, 2, 4, 8), newest, data).backward()
            optimizer.step()
        return float(shift[0, 0, 0].detach())

    assert found() == pytest.approx(11, abs=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appearance_flow, "SCALES", (1,))
        assert abs(found() - 11) > 5


def conditions_of(dit: DiT, config, worlds: int = 2):
    latents = torch.randn(worlds, config.dit.latent_channels, 1, *config.latent_size)
    zero = torch.zeros(worlds, dtype=torch.float64)
    history = static_history(latents, dit.packing.held(1), zero, zero, torch.ones(worlds, dtype=torch.bool))
    frame = torch.arange(config.block_latents).expand(worlds, -1)
    target = Target(*(torch.zeros(worlds, config.block_latents, dtype=torch.float64) for _ in range(2)), frame)
    context = torch.zeros(worlds, 0, config.dit.text_dim)
    pooled = torch.randn(worlds, config.action_width)
    return dit.encode_conditions(history, dit.encode_memory(history), context, target, pooled), latents


def test_a_fresh_network_moves_nothing_and_a_moved_one_starts_elsewhere(toy):
    config, vae = toy
    torch.manual_seed(0)
    dit = DiT(config).requires_grad_(False)
    dit.flow.read_autoencoder(vae)
    conditions, latents = conditions_of(dit, config)
    torch.testing.assert_close(conditions.mean, latents.expand_as(conditions.mean), rtol=0, atol=1e-4)
    dit.flow.displacement.bias.fill_(4.0)
    moved, latents = conditions_of(dit, config)
    expected = dit.flow.latents(move(dit.flow.pictures(latents)[:, 0], torch.full((2, 2, 2, 4, 8), 4.0), 1))
    assert (expected > latents.amax((-2, -1), keepdim=True)).any()  # the moved frame stays within the newest one
    expected = expected.clamp(latents.amin((-2, -1), keepdim=True), latents.amax((-2, -1), keepdim=True))
    torch.testing.assert_close(moved.mean, expected, rtol=0, atol=1e-4)


def test_the_first_layers_run_once_a_block_and_not_with_the_noise(toy):
    config, _ = toy
    dit = DiT(config).requires_grad_(False)
    calls = []
    for number, layer in enumerate(dit.layers):
        layer.register_forward_hook(lambda *_, n=number: calls.append(n))
    conditions, _ = conditions_of(dit, config)
    before = list(calls)
    noise = torch.randn(2, config.dit.latent_channels, config.block_latents, *config.latent_size)
    for sigma in (1.0, 0.5):
        dit(noise, torch.full((2,), sigma), conditions)
    assert config.dit.flow_layer == 1 and before.count(0) == 2 and before.count(1) == 0  # the history, and the block
    assert calls[len(before) :] == [1, 1]


@pytest.mark.parametrize(("size", "fold"), [((64, 64), 1), ((64, 96), 2), ((48, 48), 1), ((72, 104), 1)])
def test_large_pictures_are_read_in_larger_tokens(size, fold):
    config = recorded_config("toy", dataclasses.replace(RECORDING, height=size[0], width=size[1]), False, "tiny")
    assert config.dit.patch == (2, fold, fold) and config.token_grid[0] == 1


def test_a_world_of_few_moving_things_does_without():
    config = recorded_config("toy", RECORDING, False, "tiny", flow=False)
    dit = DiT(config).requires_grad_(False)
    conditions, latents = conditions_of(dit, config)
    assert dit.flow is None and conditions.flow is None
    torch.testing.assert_close(conditions.mean, latents.expand_as(conditions.mean))


def test_appearance_flow_says_what_it_needs(toy):
    config, _ = toy
    with pytest.raises(ValueError, match="it needs residual"):
        dataclasses.replace(config, dit=dataclasses.replace(config.dit, flow_layer=2))
    strided = dataclasses.replace(config, vae=dataclasses.replace(config.vae, temporal_stride=2))
    with pytest.raises(ValueError, match="linear in the pixels"):
        AppearanceFlow(strided)
