"""What is in view is kept: the layers that see the noise add only fine detail there, and pictures stay within their range."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from configs import RECORDING, WALK, conditions_of, with_dit

from train.generator.shapes import recorded_config
from world_model.appearance_flow import AppearanceFlow
from world_model.config import DenoiserConfig, ExpertConfig
from world_model.dit import DiT


def test_what_is_added_where_frames_are_in_view_is_fine():
    """Half of the picture is in view: there, a wave of 16 pixels is taken away and one of 4 stays; the rest may become anything."""
    config = recorded_config("toy", RECORDING, False, "tiny")
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    flow = AppearanceFlow(dataclasses.replace(config, **parts))  # as many channels as pixels: the eye is exact
    rows = torch.arange(16) * 2 * math.pi
    visible = (torch.arange(8) < 4).float().expand(1, 1, 1, 2, -1)
    for period, least, most in ((16, 0.0, 0.3), (4, 0.7, 1.3)):
        wave = (rows / period).sin()[:, None].expand(1, 1, 3, -1, 64)
        left = flow.pictures(flow.finer(flow.latents(wave), visible, 5))
        share = left[..., 4:-4, :].norm(dim=-2) / wave[..., 4:-4, :].norm(dim=-2)
        assert least <= share[..., :24].min() and share[..., :24].max() < most
        torch.testing.assert_close(share[..., 40:], torch.ones_like(share[..., 40:]))
        coarse = flow.pictures(flow.coarser(flow.latents(wave), visible, 5))
        torch.testing.assert_close((coarse + left)[..., :24], wave[..., :24], rtol=0, atol=1e-4)
        torch.testing.assert_close(coarse[..., 40:], wave[..., 40:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("recording", [WALK, RECORDING], ids=["walk", "toy"])
def test_a_block_stays_within_the_range_of_pictures(recording):
    """A network that adds far too much, to moved frames and to what they become; what is in range is left as it is."""
    config = recorded_config("toy", recording, False, "tiny")
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    torch.manual_seed(0)
    dit = DiT(dataclasses.replace(config, **parts)).requires_grad_(False)
    torch.nn.init.normal_(dit.head.head.weight, std=100.0)
    dit.flow.tone.leave.bias.fill_(3.0)
    conditions, latents = conditions_of(dit, dit.config)
    made = dit(torch.randn_like(conditions.mean), torch.ones(2), conditions)
    starts = [conditions.mean] if dit.config.dit.output.kept_size else []
    for found in (*starts, made):
        assert dit.flow.pictures(found).abs().max() <= 1 + 1e-5
    small = latents.clamp(-1, 1)
    torch.testing.assert_close(dit.flow.bounded(small), small, rtol=0, atol=1e-5)


def test_a_network_keeps_what_is_coarse_where_frames_are_in_view():
    """At pure noise a network that would paint all over may only refine; what a clear block shows is believed."""
    config = recorded_config("walk", WALK, False, "tiny")
    assert config.dit.output.kept_size == 1
    assert recorded_config("toy", RECORDING, False, "tiny").dit.output.kept_size == 0
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    config = dataclasses.replace(config, **parts)  # as many channels as pixels: the eye is exact
    made: dict[tuple[int, float], torch.Tensor] = {}
    for kept in (0, 5):
        torch.manual_seed(0)
        dit = DiT(with_dit(config, kept_size=kept)).requires_grad_(False)
        dit.flow.bounded = lambda latents: latents  # random pictures are out of range
        torch.nn.init.normal_(dit.head.head.weight)
        conditions, _ = conditions_of(dit, config)
        assert conditions.visible.min() > 0.999
        noise = torch.randn(2, config.dit.latent_channels, config.block_latents, *config.latent_size)
        for sigma in (1.0, 0.01):
            added = dit(noise, torch.full((2,), sigma), conditions) - conditions.mean
            pixels = dit.flow.pictures(added) - dit.flow.pictures(torch.zeros_like(added))
            made[kept, sigma] = torch.nn.functional.avg_pool2d(pixels.flatten(0, 1), 8).square().mean()
    assert made[5, 1.0] < 0.25 * made[0, 1.0]
    assert made[5, 0.01] > 0.9 * made[0, 0.01]


def test_a_kept_size_says_what_it_needs():
    config = recorded_config("toy", RECORDING, False, "tiny")
    for needed in ({"kept_size": 4}, {"kept_size": 5, "flow_layer": 0}):
        with pytest.raises(ValueError, match="it needs flow_layer and an odd kept_size"):
            with_dit(config, **needed)
    walk = recorded_config("walk", WALK, True, "tiny")
    for part in ({"expert": ExpertConfig(coarse_size=4)}, {"denoiser": DenoiserConfig(coarse_size=4), "layers": 1}):
        with pytest.raises(ValueError, match="coarse_size must be 0 or odd"):
            dataclasses.replace(walk, dit=dataclasses.replace(walk.dit, **part))


def test_of_size_one_nothing_is_added_where_frames_are_in_view():
    config = recorded_config("walk", WALK, False, "tiny")
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    flow = AppearanceFlow(dataclasses.replace(config, **parts))
    added = torch.randn(1, 192, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 1.0):
        left = flow.finer(added, torch.full((1, 1, 2, 2, 4), share), 1)
        torch.testing.assert_close(left, (1 - share) * added, rtol=0, atol=1e-4)
