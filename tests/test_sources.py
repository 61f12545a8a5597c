"""Earlier pictures that are moved: which is taken where, and that each learns how it is displaced."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from configs import RECORDING, WALK

from train.generator.shapes import recorded_config
from world_model.appearance_flow import CELLS, AppearanceFlow, Moves
from world_model.homography import Views
from world_model.memory import Told
from world_model.moving import each_moved, likeliest, move
from world_model.sources import SOURCES, Sources, choose
from world_model.tscm import History


def walker() -> AppearanceFlow:
    """Of a world with a camera, fresh; as many channels as pixels: the eye is exact."""
    config = recorded_config("walk", WALK, False, "tiny")
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    torch.manual_seed(0)
    return AppearanceFlow(dataclasses.replace(config, **parts))


def test_a_source_is_taken_where_it_saw_the_place():
    """A camera that looked away and back: beyond the newest picture's border the older one is taken, without any training of the
    network, by a lens of 67 degrees."""
    config = recorded_config("walk", WALK, False, "tiny")
    flow = AppearanceFlow(config).requires_grad_(False)
    assert flow.homography is not None
    tokens, newest = torch.zeros(1, 8, config.dit.dim), torch.zeros(1, config.dit.latent_channels, 2, 4)
    views = Views(torch.tensor([[0.9, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])[None], torch.zeros(1, 2, 2))
    alike = torch.zeros(1, SOURCES, dtype=torch.int64)
    sources = Sources(newest[:, None].expand(-1, SOURCES, -1, -1, -1), newest, views, alike, torch.zeros(1, SOURCES, 3))
    flows, *_ = flow.displacements(tokens, sources, tokens[:, 0])
    share = flows[0, 0, :, 2].softmax(dim=0)
    rows, columns = 2 * CELLS, 4 * CELLS
    assert share.shape == (SOURCES, rows, columns)
    assert share[0, :, -1].min() > 0.8 and share[0, :, 0].max() < 0.2


def test_of_two_sources_that_see_a_place_the_earlier_one_is_taken():
    """A world that stands still: the newest picture has been looked up twelve times, the start picture is as it was. Where that
    looked elsewhere it is not taken, whatever its age."""
    config = recorded_config("walk", WALK, False, "tiny")
    torch.manual_seed(0)
    flow = AppearanceFlow(config).requires_grad_(False)
    channels = config.dit.latent_channels
    latents = torch.randn(1, SOURCES, channels, 2, 4)
    tokens, text = torch.zeros(1, 8, config.dit.dim), torch.zeros(1, config.dit.text_dim)

    def share(generations: list[int], turned: float = 0.0) -> torch.Tensor:
        """Of each source, place by place."""
        views = Views(torch.tensor([[0.0, 0.0]] * (SOURCES - 1) + [[turned, 0.0]])[None], torch.zeros(1, 2, 2))
        moves = flow(
            tokens,
            Sources(latents, latents[:, -1], views, torch.tensor([generations]), torch.zeros(1, SOURCES, 3)),
            text,
            tokens[:, 0],
        )[1]
        return moves.used[0, 0, :, 2].softmax(dim=0)

    flow.displacement.bias.view(-1, SOURCES)[:, 0] = 0.0  # a fresh network prefers the newest
    assert share([0, 0, 0, 0]).amax() < 0.26
    assert share([12, 11, 10, 0])[3].min() > 0.8
    assert share([12, 11, 10, 0], turned=1.2)[3].min() < 0.01


def test_a_block_has_a_number_and_the_start_picture_is_none():
    """Frames -4 to 8 of a world of two frames a block: the start picture is of block 0, frames 0 and 1 of block 1."""
    config = recorded_config("walk", WALK, False, "tiny")
    number = torch.arange(-4, 9)
    zero = torch.zeros(1, len(number), dtype=torch.float64)
    latents = torch.zeros(1, config.dit.latent_channels, len(number), 2, 4)
    history = History(latents, number[None], zero, zero, torch.ones(1, len(number), dtype=torch.bool))
    ahead = torch.zeros(1, config.block_latents, dtype=torch.float64)
    assert config.block_latents == 2
    assert choose(history, config.block_latents, ahead, ahead).generations.tolist() == [
        [5, 4, 3, 2]
    ]  # of frames 8, 6, 4 and 2
    nothing, rain = torch.zeros(1, 3), torch.ones(1, 3)
    for since, wanted in ((9, [5, 4, 3, 2]), (2, [5, 4, 5, 5]), (0, [5, 5, 5, 5])):  # blocks since the text changed
        told = Told.always(nothing)
        for _ in range(since + 1):
            told = told.then(rain)
        sources = choose(history, config.block_latents, ahead, ahead, told)
        assert sources.generations.tolist() == [wanted]
        assert sources.same.tolist() == [[n < since for n in range(4)]]
    # rain for two blocks, and then nothing, as before it: what was seen before it is preferred
    told = Told.always(nothing).then(rain).then(rain).then(nothing)
    sources = choose(history, config.block_latents, ahead, ahead, told)
    assert sources.same.tolist() == [[False, False, True, True]] and sources.generations.tolist() == [[5, 5, 3, 2]]
    young = dataclasses.replace(history, frame=history.frame - 7)  # up to frame 1
    assert choose(young, config.block_latents, ahead, ahead).generations.tolist() == [[1, 0, 0, 0]]


def test_an_old_frame_that_was_told_the_same_is_chosen_before_one_that_looked_the_same_way():
    """Nine blocks: until the fifth the world was told nothing and looked aside, then it was told of rain and looked ahead."""
    config = recorded_config("walk", WALK, False, "tiny")
    number = torch.arange(-1, 18)
    yaw = torch.where(number < 10, 0.5, 0.0).double()[None]
    latents = torch.zeros(1, config.dit.latent_channels, len(number), 2, 4)
    history = History(latents, number[None], yaw, 0 * yaw, torch.ones(1, len(number), dtype=torch.bool))
    ahead = torch.zeros(1, config.block_latents, dtype=torch.float64)
    told = Told.always(torch.zeros(1, 3))
    for _ in range(4):
        told = told.then(torch.ones(1, 3))
    looked = {}
    for name, text in (("rain", torch.ones(1, 3)), ("nothing", torch.zeros(1, 3))):
        looked[name] = (
            choose(history, config.block_latents, ahead, ahead, told.then(text)).views.sources[0, -1, 0].item()
        )
    assert looked == {"rain": 0.0, "nothing": 0.5}


def test_of_two_sources_the_one_that_was_told_the_same_is_taken():
    flow = torch.zeros(1, 1, 2, 3, 1, 1)
    flow[:, :, 0, 2] = 2.0  # the recordings prefer the newest
    share = [
        likeliest(flow, torch.tensor([[9, 9]]), same)[0, 0, :, 2].softmax(dim=0).flatten().tolist()
        for same in (None, *(torch.tensor(told).view(1, 1, 2, 1, 1) for told in ([True, True], [False, True])))
    ]
    assert share[0] == pytest.approx(share[1]) and share[0][0] > 0.99 < share[2][1]


def test_pictures_are_moved_each_by_its_own_displacements():
    pictures = torch.rand(2, 3, 3, 16, 32)
    flow = torch.randn(2, 2, 3, 3, 4, 8)
    made = each_moved(pictures, flow, 1)
    assert made.shape == (2, 2, 3, 3, 16, 32)
    for n in range(3):
        alone = move(pictures[:, n : n + 1], flow[:, :, n : n + 1], 1)
        torch.testing.assert_close(made[:, :, n], alone)


def test_an_old_source_learns_its_displacement_though_the_newest_is_taken():
    """The newest picture is the true block already, an old one is it 4 pixels to the right. Nearly all is taken of the newest."""
    flow = walker()
    true = torch.rand(1, 1, 3, 4, 11).repeat_interleave(4, -2).repeat_interleave(4, -1)
    now, before = true[..., 4:36], true[..., :32]
    sources = torch.cat([flow.latents(now), flow.latents(before)], dim=2).transpose(1, 2)
    data = flow.latents(now)
    shift = torch.zeros(1, 1, 2, 2, 1, 1, requires_grad=True)
    logit = torch.tensor([12.0, 0.0])[None, None, :, None, None, None]
    whole = torch.zeros(1, 1, 2, 3, 8, 16)
    optimizer = torch.optim.Adam([shift], lr=0.2)
    for _ in range(120):
        moves = torch.cat([shift, logit], dim=3).expand(-1, -1, -1, -1, 8, 16)
        loss = flow.loss(Moves(moves, moves, torch.zeros(1, 1, 6, 2, 4), data, sources, whole), data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shift[0, 0, 1, 0].item() == pytest.approx(4.0, abs=0.4)
    assert shift[0, 0, 0].abs().max() < 0.4


def test_displacements_depend_on_what_old_sources_show():
    """Not of a fresh network, whose convolution over them is zero, and not in worlds without a camera."""
    flow = walker().requires_grad_(False)
    torch.nn.init.normal_(flow.displacement.weight)
    latents = torch.randn(2, SOURCES, 192, 2, 4)
    latents[1, :-1] = latents[0, :-1]  # the last source alone differs
    views = Views(torch.zeros(2, SOURCES, 2), torch.zeros(2, 2, 2))
    sources = Sources(
        latents, latents[:, 0], views, torch.zeros(2, SOURCES, dtype=torch.int64), torch.zeros(2, SOURCES, 3)
    )
    tokens = torch.zeros(2, 8, flow.features.in_features)

    def apart() -> float:
        flows, *_ = flow.displacements(tokens, sources, tokens[:, 0])
        return float((flows[0] - flows[1]).abs().max())

    assert apart() < 1e-5
    torch.nn.init.normal_(flow.others.weight)
    assert apart() > 0.1
    assert AppearanceFlow(recorded_config("toy", RECORDING, False, "tiny")).others is None
