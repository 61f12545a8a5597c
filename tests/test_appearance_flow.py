"""Appearance flow: against a slow form, against known motion, and inside the network."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from configs import RECORDING, conditions_of, with_dit

from train.generator.shapes import recorded_config
from world_model import appearance_flow
from world_model.appearance_flow import AppearanceFlow, Moves
from world_model.config import Tiers
from world_model.detail import DetailHead
from world_model.dit import DiT
from world_model.homography import Views
from world_model.moving import move
from world_model.sources import SOURCES, Sources, choose
from world_model.tscm import History
from world_model.vae import PatchVAE

STILL = Views(torch.zeros(1, SOURCES, 2), torch.zeros(1, 2, 2))
NO_TEXT = torch.zeros(1, 0)


@pytest.fixture(scope="module")
def toy():
    config = recorded_config("toy", RECORDING, False, "tiny")
    torch.manual_seed(0)
    vae = PatchVAE(config.vae).requires_grad_(False)
    video = torch.rand(64, 3, 2, 16, 32) * 2 - 1
    vae.fit_linear(video)
    vae.normalise(vae.encode_raw(video))
    return config, vae


def test_frames_that_are_decoded_and_encoded_again_do_not_change(toy):
    """Whatever the decoder has learnt: a rollout does so in every block. Of all pictures with such latents it is the one
    nearest to the mean patch."""
    config, vae = toy
    vae = copy.deepcopy(vae).requires_grad_(False)
    vae.to_pixels.weight += 0.1 * torch.randn(vae.to_pixels.weight.shape, generator=torch.Generator().manual_seed(0))
    flow = AppearanceFlow(config)
    flow.read_autoencoder(vae)
    video = torch.rand(2, 3, 2, 16, 32) * 2 - 1
    latents = vae.encode(video)
    torch.testing.assert_close(flow.latents(video.transpose(1, 2)), latents, rtol=0, atol=1e-4)
    pictures = flow.pictures(latents)
    torch.testing.assert_close(flow.latents(pictures), latents, rtol=0, atol=1e-4)
    patches = pictures.unflatten(-1, (4, 8)).unflatten(-3, (2, 8)).permute(0, 1, 3, 5, 2, 4, 6).flatten(-3)
    away = (patches - vae.to_pixels.bias - vae.to_pixels.weight @ vae.mean).flatten(0, -2).double()
    rows = torch.linalg.qr(flow.encode.double().T).Q
    torch.testing.assert_close(away @ rows @ rows.T, away, rtol=0, atol=1e-4)


def still(latents: torch.Tensor) -> Sources:
    """Sources of a camera that stands still."""
    return Sources(
        latents,
        latents[:, -1],
        STILL,
        torch.zeros(latents.shape[:2], dtype=torch.int64),
        torch.zeros(*latents.shape[:2], 3),
    )


def numbered(config, yaw: list[float]) -> History:
    """A history whose frames, numbered from 0 on, looked along `yaw`."""
    frames = len(yaw)
    latents = torch.arange(frames).float()[None, None, :, None, None].expand(1, config.dit.latent_channels, -1, 2, 4)
    angles = torch.tensor([yaw], dtype=torch.float64)
    return History(latents, torch.arange(frames)[None], angles, 0 * angles, torch.ones(1, frames, dtype=torch.bool))


def test_sources_are_the_newest_frame_and_the_ends_of_the_blocks_before(toy):
    config, _ = toy
    ahead = torch.zeros(1, config.block_latents, dtype=torch.float64)
    sources = choose(numbered(config, [0.0] * 9), config.block_latents, ahead, ahead)
    assert sources.latents[0, :, 0, 0, 0].tolist() == [8 - n * config.block_latents for n in range(SOURCES)]
    assert sources.start.shape == sources.latents[:, 0].shape and not sources.start.any()  # frame 0
    assert sources.views.sources.shape == (1, SOURCES, 2) and sources.views.target.shape == (1, config.block_latents, 2)


def test_the_last_source_is_an_old_frame_that_looked_that_way(toy):
    """Frames 0 to 2 are as old as a last source may be. A full turn is no turn; the newest of equals is taken; what is absent
    never is."""
    config, _ = toy

    def last(yaw: list[float], target: float, absent: int = 0) -> tuple[float, float]:
        history = numbered(config, yaw)
        history.present[:, :absent] = False
        angles = torch.full((1, config.block_latents), target, dtype=torch.float64)
        sources = choose(history, config.block_latents, angles, 0 * angles)
        return sources.latents[0, -1, 0, 0, 0].item(), sources.views.sources[0, -1, 0].item()

    yaw = [1.0, 0.02, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert last(yaw, 0.95) == (0, 1.0) and last(yaw, 0.0) == (1, 0.02)
    assert last(yaw, 2.0 * math.pi) == (1, 0.02)
    assert last(yaw, 2.5) == (2, 2.0)
    assert last([0.0, 0.02, 0.05, *yaw[3:]], 0.0) == (2, 0.05)
    assert last(yaw, 1.0, absent=1) == (2, 2.0)
    assert last(yaw, 1.0, absent=9)[0] == 0  # no past: zeros


def test_a_history_that_lacks_the_sources_is_refused(toy):
    config, _ = toy
    short = config.with_history(packing=Tiers(recent=((1, 1), (2, 2))))
    with pytest.raises(ValueError, match="with the newest 7 frames, got Tiers"):
        AppearanceFlow(short)


def test_large_displacements_are_found_from_coarse_pictures(toy):
    """A spot that moves by 11 of 32 pixels: descent on the loss of all scales finds it, that of the finest alone does not."""
    config, _ = toy
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    flow = AppearanceFlow(dataclasses.replace(config, **parts))  # as many channels as pixels: the eye is exact
    y, x = torch.meshgrid(torch.arange(16), torch.arange(32), indexing="ij")

    def spot(column: int) -> torch.Tensor:
        picture = (((x - column).abs() <= 1) & ((y - 8).abs() <= 1)).float()
        return flow.latents(picture.expand(1, 1, 3, -1, -1))

    sources, data = spot(12).expand(-1, -1, 3, -1, -1).transpose(1, 2), spot(1)

    def found() -> float:
        shift = torch.zeros(1, 1, 2, 1, 1, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=0.3)
        for _ in range(120):
            optimizer.zero_grad()
            moves = (
                torch.cat([shift, torch.zeros(1, 1, 1, 1, 1)], 2)
                .expand(1, 1, 3, 4, 8)[:, :, None]
                .expand(-1, -1, 3, -1, -1, -1)
            )
            moved = flow.latents(move(flow.pictures(sources.transpose(1, 2)), moves, 1))
            flow.loss(Moves(moves, moves, torch.zeros(1, 1, 6, 2, 4), moved, sources), data).backward()
            optimizer.step()
        return float(shift[0, 0, 0].detach())

    assert found() == pytest.approx(11, abs=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appearance_flow, "SCALES", (1,))
        assert abs(found() - 11) > 5


def test_a_fresh_network_moves_nothing_and_a_moved_one_starts_elsewhere(toy):
    config, vae = toy
    torch.manual_seed(0)
    dit = DiT(config).requires_grad_(False)
    dit.flow.read_autoencoder(vae)
    conditions, latents = conditions_of(dit, config)
    torch.testing.assert_close(conditions.mean, latents.expand_as(conditions.mean), rtol=0, atol=1e-4)
    dit.flow.displacement.bias.fill_(4.0)
    moved, latents = conditions_of(dit, config)
    pictures = dit.flow.pictures(
        latents.expand(-1, -1, SOURCES, -1, -1)
    )  # a world at its start saw its picture all the time
    expected = dit.flow.latents(move(pictures, torch.full((2, 2, SOURCES, 3, 8, 16), 4.0), 1, "bicubic"))
    assert (expected > latents.amax((-2, -1), keepdim=True)).any()  # the moved frame stays within the newest one
    expected = expected.clamp(latents.amin((-2, -1), keepdim=True), latents.amax((-2, -1), keepdim=True))
    torch.testing.assert_close(moved.mean, expected, rtol=0, atol=1e-4)


def test_a_picture_unlike_all_others_moves_no_further(toy):
    """Its tokens are large; what the convolutions make of them is not."""
    config, vae = toy
    torch.manual_seed(0)
    flow = AppearanceFlow(config).requires_grad_(False)
    flow.read_autoencoder(vae)
    torch.nn.init.normal_(flow.displacement.weight)
    sources = still(torch.randn(1, SOURCES, config.dit.latent_channels, 2, 4))
    tokens = torch.randn(1, 8, config.dit.dim)
    once, many = (flow.displacements(scale * tokens, sources)[0] for scale in (1, 1000))
    assert once.std() > 0.01
    torch.testing.assert_close(many, once, rtol=0, atol=1e-3)


def test_colours_may_leave_those_of_the_newest_frame(toy):
    """Night falls: no picture of the past is dark."""
    config, vae = toy
    torch.manual_seed(0)
    dit = DiT(config).requires_grad_(False)
    dit.flow.read_autoencoder(vae)
    dit.flow.tone.leave.bias.view(-1, 6)[:, 3:] = -1.5
    conditions, latents = conditions_of(dit, config)
    pictures = dit.flow.pictures(latents.expand_as(conditions.mean))
    torch.testing.assert_close(conditions.mean, dit.flow.latents(pictures - 1.5), rtol=0, atol=1e-3)


def test_a_picture_has_one_gain_and_its_places_have_offsets(toy):
    config, vae = toy
    torch.manual_seed(0)
    flow = AppearanceFlow(config)
    flow.read_autoencoder(vae)
    torch.nn.init.normal_(flow.tone.leave.weight)
    sources = still(torch.randn(1, SOURCES, config.dit.latent_channels, 2, 4))
    mean, moves = flow(torch.randn(1, 8, config.dit.dim), sources, NO_TEXT)
    gain, offset = moves.tone.chunk(2, dim=2)
    assert gain.std(dim=(-2, -1)).max() < 1e-6 < 0.01 < offset.std(dim=(-2, -1)).min()
    assert not mean.requires_grad  # nothing is learnt from the blended frames
    flow.loss(moves, mean).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.tone.parameters())


def test_gains_learn_how_much_a_picture_varies_and_not_where(toy):
    """A target that has nothing to do with what was moved, and half its contrast. Squared or absolute differences of pixels would
    teach a gain near 0; offsets learn from these."""
    config, vae = toy
    torch.manual_seed(0)
    flow = AppearanceFlow(config).requires_grad_(False)
    flow.read_autoencoder(vae)
    moved, other = (
        flow.latents(torch.randn(64, 2, 3, 2, 4).repeat_interleave(8, -2).repeat_interleave(8, -1)) for _ in range(2)
    )
    nothing = flow.latents(torch.zeros(64, 2, 3, 16, 32))
    sources = moved[:, None, :, 0].expand(-1, SOURCES, -1, -1, -1)
    free = torch.zeros(1, 1, 6, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(100):
        still = torch.zeros(64, 2, SOURCES, 3, 8, 16)
        moves = Moves(still, still, free.expand(64, 2, -1, 2, 4), moved, sources)
        loss = flow.loss(moves, nothing + (other - nothing) / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gain, offset = (1 + free[0, 0, :3, 0, 0], free[0, 0, 3:, 0, 0])
    torch.testing.assert_close(gain, torch.full((3,), 0.5), rtol=0, atol=0.1)
    assert offset.abs().max() < 0.1


def test_what_was_in_view_is_where_displacements_lead_to(toy):
    """Pixels that come from 12 to the right: the last 12 of 32 were out of view. A share of them is taken from a source in view."""
    config, _ = toy
    flow = AppearanceFlow(config)
    moves = torch.zeros(1, 1, SOURCES, 3, 8, 16)
    moves[:, :, :, 0], moves[:, :, 0, 2] = 12.0, 20.0
    assert flow.visible(moves)[0, 0, 0].tolist() == [[1, 1, 0.5, 0]] * 2
    moves[:, :, 1, 0], moves[:, :, 1, 2] = 0.0, 20.0  # half of each place is what stands still
    assert flow.visible(moves)[0, 0, 0].tolist() == [[1, 1, 0.75, 0.5]] * 2


def test_displacements_depend_on_what_the_newest_picture_shows_nearby(toy):
    config, _ = toy
    torch.manual_seed(0)
    flow = AppearanceFlow(config).requires_grad_(False)
    torch.nn.init.normal_(flow.displacement.weight)
    tokens = torch.randn(1, 8, config.dit.dim)
    newest = torch.randn(1, config.dit.latent_channels, 2, 4)
    changed = newest.clone()
    changed[:, :, 0, 0] += 1
    flows = (flow.displacements(tokens, still(picture[:, None]))[0] for picture in (changed, newest))
    moved = (next(flows) - next(flows)).abs()
    assert moved.shape == (1, config.block_latents, SOURCES, 3, 8, 16)
    by_place = moved.amax(dim=(0, 1, 2, 3))
    assert (
        by_place[:6, :6].min() > 0 == by_place[6:].max()
    )  # a latent place, of 4 x 4 displacements, and half of the next


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
    assert config.dit.output.flow_layer == 1 and before == [
        0
    ]  # the block; the history gives this layer keys and values alone
    assert calls[len(before) :] == [1, 1]


def test_only_the_layers_without_noise_read_the_history():
    """What the other layers know of the past, they know from the first ones."""
    config = recorded_config("toy", RECORDING, False, "small")
    dit = DiT(config).requires_grad_(False)
    conditions, _ = conditions_of(dit, config)
    assert (config.dit.layers, config.dit.output.flow_layer, len(conditions.history.pairs)) == (4, 2, 2)


def test_the_convolutional_head_starts_with_nothing_and_reaches_across_tokens(toy):
    config, _ = toy
    torch.manual_seed(0)
    head = DetailHead(config).requires_grad_(False)
    channels, frames, (rows, columns) = config.dit.latent_channels, config.block_latents, config.latent_size
    features = torch.randn(1, head.channels, frames, rows, columns)
    x, mean = (torch.randn(1, channels, frames, rows, columns) for _ in range(2))
    seen = torch.ones(1, 1, frames, rows, columns)
    assert not head(features, x, mean, seen).any()
    torch.nn.init.normal_(head.leave.weight)
    changed = features.clone()
    changed[:, :, 1, 0, 0] += 1
    moved = (head(changed, x, mean, seen) - head(features, x, mean, seen)).abs().sum(1)[0]
    assert not moved[0].any()  # frames are apart, places are not
    assert moved[1, 0, 1] > 0 and moved[1, 1, 0] > 0


@pytest.mark.parametrize(("size", "fold"), [((64, 64), 1), ((64, 96), 2), ((48, 48), 1), ((72, 104), 1)])
def test_large_pictures_are_read_in_larger_tokens(size, fold):
    config = recorded_config("toy", dataclasses.replace(RECORDING, height=size[0], width=size[1]), False, "tiny")
    assert config.dit.patch == (2, fold, fold) and config.token_grid[0] == 1


def test_a_world_of_few_moving_things_does_without():
    config = recorded_config("toy", RECORDING, False, "tiny", flow=False)
    dit = DiT(config).requires_grad_(False)
    conditions, latents = conditions_of(dit, config)
    assert dit.flow is None and conditions.moves is None
    torch.testing.assert_close(conditions.mean, latents.expand_as(conditions.mean))


def test_appearance_flow_says_what_it_needs(toy):
    config, _ = toy
    with pytest.raises(ValueError, match="it needs residual"):
        with_dit(config, flow_layer=2)
    strided = dataclasses.replace(config, vae=dataclasses.replace(config.vae, temporal_stride=2))
    with pytest.raises(ValueError, match="linear in the pixels"):
        AppearanceFlow(strided)
