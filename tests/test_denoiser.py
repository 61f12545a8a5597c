"""A denoiser of single latent places after the layers that move frames: what it reads, and what of its blocks is used."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from configs import WALK, conditions_of, with_dit
from expert_world import FINE, SMALL, picture, toy

from train.generator.foundation import flow_loss
from train.generator.shapes import recorded_config
from world_model import flow
from world_model.appearance_flow import AppearanceFlow
from world_model.batch import repeat
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.moving import blurred
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.text import build_conditioning, mean_token
from world_model.vae import PatchVAE
from world_model.worlds import start_worlds


def built(config: ModelConfig) -> WorldModel:
    """A model of random weights whose denoiser and expert add something."""
    torch.manual_seed(0)
    vae, dit = PatchVAE(config.vae), DiT(config)
    assert dit.flow is not None and dit.denoiser is not None
    dit.flow.read_autoencoder(vae)
    for part in (dit.denoiser, dit.expert):
        if part is not None:
            torch.nn.init.normal_(part.head.head.weight, std=0.1)
    return WorldModel(config, dit, vae, build_conditioning(config))


@pytest.fixture(name="model", scope="module")
def model_fixture() -> WorldModel:
    return built(toy(None, FINE))


@pytest.fixture(name="read")
def read_fixture(model, monkeypatch):
    """Conditions of all blocks that are generated from here on."""
    kept, original = [], model.dit.encode_conditions

    def encode(*given, **named):
        kept.append(original(*given, **named))
        return kept[-1]

    monkeypatch.setattr(model.dit, "encode_conditions", encode)
    return kept


def test_what_is_in_view_are_moved_frames_and_what_is_not_is_drawn(model, read, monkeypatch):
    dit, vae, config = model.dit, model.vae, model.config
    left = (torch.arange(4) < 2).float().expand(1, 1, 2, 4, -1)
    monkeypatch.setattr(AppearanceFlow, "visible", lambda self, used: left[:, :, : used.shape[1]])
    monkeypatch.setattr(AppearanceFlow, "bounded", lambda self, latents: latents)
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    worlds = start_worlds(dit, vae, pixels, torch.ones(1, dtype=torch.bool))
    context, pooled = model.conditioning.context([0], [None])
    sampling = Sampling(block_noise(config, [0], [0]), flow.schedule_of(config.sampler))
    with torch.no_grad():
        for _ in range(2):
            worlds, made, _ = dream_block(dit, vae, worlds, [0], context, pooled, sampling, [generator("old", 0)])
    pictures = dit.flow.pictures(made - read[-1].mean) - dit.flow.pictures(torch.zeros_like(made))
    # between places in view and others shares change over eight pixels
    assert pictures[..., :8].abs().max() < 1e-3 < 0.05 < pictures[..., 24:].abs().mean()


def test_details_are_those_of_the_moved_frames():
    """Where nothing was in view, too: what a denoiser adds is coarse."""
    config, shares = toy(None, FINE), []
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    for size in (0, 5):
        # as many channels as pixels: the eye is exact
        exact = with_dit(dataclasses.replace(config, **parts), denoiser=dataclasses.replace(FINE, coarse_size=size))
        dit = built(exact).dit.requires_grad_(False)
        dit.flow.bounded = lambda latents: latents
        conditions, _ = conditions_of(dit, exact)
        unseen = dataclasses.replace(conditions, visible=torch.zeros_like(conditions.visible))
        made = dit(torch.randn_like(conditions.mean), torch.ones(2), unseen) - conditions.mean
        pixels = dit.flow.pictures(made) - dit.flow.pictures(torch.zeros_like(made))
        shares.append(float((pixels - blurred(pixels, 5)).square().mean() / pixels.square().mean()))
    assert pixels.square().mean() > 1e-4 and shares[1] < 0.5 * shares[0]


def test_it_reads_moved_frames_the_text_and_what_the_layers_found_out(model, read):
    """Against conditions put together by hand; a fresh model's layers say nothing to it."""
    dit, config = model.dit, model.config
    state = model.start([picture()], ["a town"], [0])
    state, _ = model.step(state, [0], ["rain"])
    history = state.worlds.history
    model.step(state, [1], ["rain"])
    context, _ = model.conditioning.context([1], ["rain"])
    text = context[:, : config.text.event_tokens]
    start = dit.flow.pictures(history.latents[:, :, :1])[:, 0]
    by_hand = dit.denoiser.conditions(
        read[-1].mean, read[-1].visible, start, text, mean_token(text), torch.tensor([FINE.blocks])
    )
    got = read[-1].denoiser
    for name in ("bias", "pooled", "mean", "variance", "visible"):
        torch.testing.assert_close(getattr(got, name), getattr(by_hand, name))
    assert got.untold is None
    noise, level = torch.randn_like(got.mean), torch.full((1,), 0.7)
    twice = dit(*(t.repeat_interleave(2, 0) for t in (noise, level)), repeat(read[-1], 2))
    torch.testing.assert_close(twice, dit(noise, level, read[-1]).expand_as(twice), rtol=1e-4, atol=1e-4)


def test_what_a_token_found_out_reaches_its_own_places():
    """Tokens of 2 x 2 places: the four numbers of the first one are those of the four places at the corner."""
    config = recorded_config("walk", dataclasses.replace(WALK, height=64, width=96), True, "tiny")
    model = built(with_dit(config, layers=1, denoiser=FINE))
    dit = model.dit
    with torch.no_grad():
        dit.found.bias.copy_(torch.arange(4.0).repeat_interleave(FINE.dim))
    found, original = [], dit.denoiser.conditions

    def conditions(*given):
        found.append(original(*given))
        return found[-1]

    dit.denoiser.conditions = conditions
    kept, encode = [], dit.encode_conditions
    dit.encode_conditions = lambda *given: kept.append(encode(*given)) or kept[-1]
    state = model.start(torch.zeros(1, 64, 96, 3, dtype=torch.uint8).numpy(), [None], [0])
    model.step(state, [0])
    added = (kept[-1].denoiser.bias - found[-1].bias).view(8, 12, FINE.dim)
    torch.testing.assert_close(added, torch.tensor([[0.0, 1], [2, 3]]).repeat(4, 6)[..., None].expand_as(added))


def test_the_experts_blocks_are_as_they_were():
    """A world begun from a text, and one whose text has changed, are the expert's in the same way with a denoiser."""
    model = built(toy(SMALL, FINE))
    first = model.preview(model.start(None, ["a town by night"], [0]))
    assert first.std() > 5
    state = model.start([picture()], ["a town"], [0])
    calls = []
    model.dit.expert.register_forward_hook(lambda *_: calls.append(1))
    for text in (None, "rain", "rain", "rain"):
        state, _ = model.step(state, [0], [text])
    assert len(calls) == SMALL.blocks * SMALL.steps


def test_the_foundation_teaches_it():
    """It says nothing of its own error: the plain squared error teaches it, and what the layers hand over to it."""
    config = toy(None, FINE)
    dit = built(config).dit.requires_grad_(True)
    conditions, _ = conditions_of(dit, config)
    conditions = dataclasses.replace(conditions, visible=torch.zeros_like(conditions.visible))
    data, noise = torch.randn(2, *conditions.mean.shape)
    loss, unexplained = flow_loss(dit, conditions, data, torch.tensor([0.5, 1.0]), noise)
    loss.backward()
    assert loss.isfinite() and unexplained.isfinite()
    for part in (dit.denoiser.patch_embedding, dit.found):
        assert part.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("own", ["denoiser", "expert"])
def test_noise_is_correlated_where_the_config_says_so(own, monkeypatch):
    """In rollouts and in training: what a network sees at noise level 1 is the noise with its spectrum."""
    fine, small = (dataclasses.replace(part, correlated=True) for part in (FINE, SMALL))
    config = toy(small if own == "expert" else None, fine)
    model = built(config)
    network, seen = getattr(model.dit, own), []
    network.amplitude[:, 0] = 3.0
    network.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    white = block_noise(config, [4], [0])
    wanted = flow.correlated(white, network.amplitude[1:])
    assert (wanted - white).abs().max() > 0.01
    state = model.start([picture()], [None], [4])
    model.step(state, [0], ["rain" if own == "expert" else None])
    torch.testing.assert_close(seen[0], wanted)
    if own == "denoiser":
        conditions, _ = conditions_of(model.dit, config, worlds=1)
        flow_loss(model.dit, conditions, torch.zeros_like(white), torch.ones(1), white)
        torch.testing.assert_close(seen[-1], flow.correlated(white, conditions.denoiser.amplitude))


def test_a_model_survives_json_and_has_no_layers_that_it_does_not_use(model):
    config = model.config
    assert ModelConfig.from_json(config.to_json()) == config
    assert len(model.dit.blocks) == config.dit.output.flow_layer
    assert set(model.dit.seeing_noise()) == {"denoiser", "found"}
    absent = ("head", "detail", "variances", "flow_embedding")
    assert all(getattr(model.dit, name) is None for name in absent)


def test_a_denoiser_follows_the_layers_that_move_frames():
    with pytest.raises(ValueError, match="no layers follow those that move frames; it needs flow_layer=2"):
        with_dit(toy(None), denoiser=FINE)


def test_a_block_without_any_history_is_refused(model):
    dit, config = model.dit, model.config
    conditions = dit.encode_conditions(
        None, None, torch.zeros(1, 0, config.dit.text_dim), _first(config), torch.zeros(1, config.action_width)
    )
    with pytest.raises(ValueError, match="give a history"):
        dit(torch.zeros(1, config.dit.latent_channels, 2, 4, 4), torch.ones(1), conditions)


def _first(config: ModelConfig):
    from world_model.conditions import Target

    zero = torch.zeros(1, config.block_latents, dtype=torch.float64)
    return Target(zero, zero, torch.arange(config.block_latents)[None])
