"""Training windows drawn by index, against worlds that are built one by one with the functions of the environment's own rollout."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from toy_generator import (  # noqa: F401  (fixtures, too)
    LENGTHS,
    at,
    data_fixture,
    dit_fixture,
    files_fixture,
    lived,
    stream,
    toy_config_fixture,
    vae_fixture,
    windows_fixture,
)

from train.generator import foundation
from train.generator.encode import encode_recording
from train.generator.foundation import drifted, noised, read_window
from train.generator.pool import RolloutPool
from train.generator.windows import LatentSet, Spans, Windows, held_frames, history_frames
from world_model import flow
from world_model.appearance_flow import AppearanceFlow
from world_model.config import Tiers
from world_model.packing import append_tiers
from world_model.rollout import denoise_block, generator
from world_model.text import build_conditioning
from world_model.tscm import History, static_history


@pytest.mark.parametrize(("episode", "start", "age"), [(0, 0, 0), (0, 3, 1), (1, 2, 2), (2, 0, 2)])
def test_a_window_is_what_the_environment_holds(toy_config, data, windows, episode, start, age):
    """While nothing is drawn at random yet, every frame, number and flag is the same."""
    window = windows.truth(at(episode, start, age, data), stream())
    history = lived(toy_config, data, episode, start, age)
    assert torch.equal(window.history.frame, history.frame)
    assert torch.equal(window.history.latents, history.latents)
    assert torch.equal(window.history.present, history.present)
    size = toy_config.block_latents
    row = int(data.first[episode]) + 1 + (start + age) * size
    assert torch.equal(window.data[0].transpose(0, 1), data.latents[row : row + size].float())
    assert torch.equal(window.target.frame, torch.arange(age * size, (age + 1) * size)[None])
    assert torch.equal(window.action[0], data.action[data.begin[episode] + start + age])


def test_yaw_begins_with_a_world_and_pitch_at_the_horizon(toy_config, data):
    """Pitch since a start would not say how a picture turns: homographies depend on the angle to the horizon."""
    angles = torch.rand(len(data.latents), 2, generator=stream())
    windows, size = Windows(toy_config, dataclasses.replace(data, angles=angles)), toy_config.block_latents
    episode, start, age = 1, 2, 2
    window = windows.truth(at(episode, start, age, data), stream())
    begun = int(data.first[episode]) + start * size
    block = angles[begun + 1 + age * size : begun + 1 + (age + 1) * size].double()
    torch.testing.assert_close(window.target.yaw[0], block[:, 0] - angles[begun, 0])
    torch.testing.assert_close(window.target.pitch[0], block[:, 1])
    torch.testing.assert_close(window.history.pitch[0, -1], angles[begun + age * size, 1].double())
    torch.testing.assert_close(window.history.yaw[0, -1], (angles[begun + age * size] - angles[begun])[0].double())


def test_what_was_recorded_after_a_start_is_the_blocks_one_by_one(data, windows):
    """Also over several blocks, and for worlds of different episodes."""
    spans = Spans(*(torch.cat(rows) for rows in zip(at(0, 1, 0, data).rows, at(2, 4, 0, data).rows)))
    blocks = [windows.truth(Spans(spans.episode, spans.start, spans.age + n), stream()).data for n in range(3)]
    assert torch.equal(windows.recorded(spans, 3), torch.cat(blocks, dim=2))


def test_old_frames_are_a_uniform_draw_without_repetition():
    tiers = Tiers(recent=((1, 1), (2, 2)), initial=2, old=(3, 2))
    number = torch.full((4000,), 13)  # ten frames have left the recent tiers
    held = held_frames(tiers, number, stream())
    assert torch.equal(held[:, 4:], torch.tensor([10, 11, 12]).expand(4000, -1))
    assert torch.equal(held[:, 0], torch.full((4000,), -history_frames(tiers)))
    old = held[:, 1:4]
    assert (old.sort(dim=1).values.diff(dim=1) > 0).all()
    share = torch.bincount(old.flatten(), minlength=10).float() / 4000
    assert len(share) == 10
    assert (share - 0.3).abs().max() < 0.035  # deviation .0072 each


def test_the_reservoir_of_the_environment_has_the_same_frames(toy_config, data, windows):
    """With drawn frames: the same tiers, and old frames out of the same set."""
    age, size = 9, toy_config.block_latents
    tiers = toy_config.dit.history.packing
    history = lived(toy_config, data, 0, 0, age)
    window = windows.truth(at(0, 0, age, data), stream())
    recent = slice(-tiers.recent_frames, None)
    assert torch.equal(window.history.latents[:, :, recent], history.latents[:, :, recent])
    left = age * size - tiers.recent_frames
    for held in (window.history, history):
        old = held.frame[0, 1 : 1 + tiers.old[0]]
        assert len(set(old.tolist())) == tiers.old[0]
        assert (old >= 0).all()
        assert (old < left).all()
        rows = data.first[0] + 1 + old
        assert torch.equal(held.latents[0, :, 1 : 1 + tiers.old[0]].transpose(0, 1), data.latents[rows].float())


@torch.no_grad()
def test_a_batch_is_its_worlds_one_by_one(data, windows, dit):
    """Batched packing equals the single one: conditions and predictions of worlds of different ages."""
    single = [at(0, 1, 2, data), at(1, 0, 0, data), at(2, 3, 2, data)]
    batch = Spans(*(torch.cat(rows) for rows in zip(*(spans.rows for spans in single))))
    together = windows.truth(batch, stream())
    noise = torch.randn(together.data.shape, generator=stream(1))
    sigma = torch.tensor([1.0, 0.5, 0.1])
    all_at_once = dit(noise, sigma, read_window(dit, together))
    for i, spans in enumerate(single):
        alone = windows.truth(spans, stream())
        output = dit(noise[i : i + 1], sigma[i : i + 1], read_window(dit, alone))
        torch.testing.assert_close(all_at_once[i : i + 1], output, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_channel_sums_of_a_window_are_those_carried_forward(toy_config, data, windows, dit):
    """Summed up at once from the window's past, and block after block as a world does it."""
    age, size = 3, toy_config.block_latents
    window = windows.truth(at(0, 2, age, data), stream())
    past, start = window.past, toy_config.start_latents
    pieces = [slice(past.frames - age * size - start, past.frames - age * size)]
    pieces += [slice(past.frames - (age - i) * size, past.frames - (age - i - 1) * size) for i in range(age)]
    decay = toy_config.dit.history.channel.decay
    carried = None
    for piece in pieces:
        part = past.select(torch.arange(piece.start, piece.stop)[None])
        new = dit.encode_memory(part)
        kernels = part.frames // toy_config.dit.history.channel.patch[0]
        carried = new if carried is None else carried.add(new, decay**kernels)
    at_once = dit.encode_memory(past)
    torch.testing.assert_close(at_once.total, carried.total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_once.norm, carried.norm, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_pool_lives_on_what_the_generator_made(toy_config, data, windows, dit):
    """Its rows are the rollout that `append_tiers` and `denoise_block` give, world by world, for the same noise."""
    pool = RolloutPool(windows, 3, 4, stream(5))
    pool.last.fill_(3)
    pool.start.copy_(data.begin[:3])
    pool.episode.copy_(torch.arange(3))
    pool.latents[:, 0] = data.latents[data.first]
    sigmas = flow.sigma_schedule(2, 1.0)
    tiers, size = toy_config.dit.history.packing, toy_config.block_latents
    zero = torch.zeros(1, dtype=torch.float64)
    picture = pool.latents[0, 0].float()[None, :, None]
    history = static_history(picture, history_frames(tiers), zero, zero, torch.ones(1, dtype=torch.bool))
    memory = dit.encode_memory(history.select(torch.arange(-toy_config.start_latents, 0)[None] + history.frames))
    for block in range(2):  # two blocks of one or two frames: nothing is drawn at random yet
        rows, _, window = pool.sample(3, stream(block))
        noise = torch.randn(window.data.shape, generator=stream(10 + block))
        blocks = denoise_block(dit, read_window(dit, window), noise, sigmas)
        mine = int((rows == 0).nonzero())
        conditions = dit.encode_conditions(
            history,
            memory,
            torch.zeros(1, 0, 0),
            dataclasses.replace(
                window.target,
                **{name: getattr(window.target, name)[mine : mine + 1] for name in ("yaw", "pitch", "frame")},
            ),
            window.action[mine : mine + 1],
        )
        alone = denoise_block(dit, conditions, noise[mine : mine + 1], sigmas)
        torch.testing.assert_close(blocks[mine : mine + 1], alone, rtol=1e-3, atol=1e-4)
        pool.add(rows, blocks, stream(block))
        stored = pool.latents[0, 1 + block * size : 1 + (block + 1) * size].float()
        assert torch.equal(stored, blocks[mine].transpose(0, 1).half().float())
        number = torch.arange(block * size, (block + 1) * size)[None]
        angle = torch.zeros(1, size, dtype=torch.float64)
        added = History(stored.transpose(0, 1)[None], number, angle, angle, torch.ones(1, size, dtype=torch.bool))
        history = append_tiers(history, added, tiers, [generator("old", block)])
        new, kernels = dit.encode_memory(added), size // toy_config.dit.history.channel.patch[0]
        memory = memory.add(new, toy_config.dit.history.channel.decay**kernels)
    assert pool.age.tolist() == [2, 2, 2]


def test_a_pool_never_leaves_an_episode(data, windows):
    pool = RolloutPool(windows, 16, 6, stream())
    for number in range(40):
        rows, spans, window = pool.sample(8, stream(number))
        assert (spans.step < data.begin[spans.episode + 1]).all()
        pool.add(rows, torch.zeros_like(window.data), stream(number))
    assert pool.age.max() <= 6


def test_draws_are_uniform_over_steps_and_inside_their_episode(data):
    spans = data.draw(3000, 8, stream())
    assert (spans.start >= data.begin[spans.episode]).all()
    assert (spans.step < data.begin[spans.episode + 1]).all()
    share = torch.bincount(spans.episode, minlength=3) / 3000
    assert (share - torch.tensor(LENGTHS) / sum(LENGTHS)).abs().max() < 0.04
    assert spans.age.max() == 8


def test_draws_can_favour_steps_at_which_the_text_changes(data):
    """Against a loop over steps."""
    told = torch.zeros(data.steps, dtype=torch.int64)
    told[4:7], told[data.begin[1] + 2 :] = 1, 2
    data = dataclasses.replace(data, event_texts=dataclasses.replace(data.event_texts, step=told))
    texts, wanted = told.tolist(), []
    for begin, end in zip(data.begin.tolist(), data.begin.tolist()[1:]):
        told = [0, *texts[begin:end]]
        changed = [now != before for before, now in itertools.pairwise(told)]
        wanted += [begin + i for i in range(end - begin) if changed[i] or (i and changed[i - 1])]
    assert wanted and len(wanted) < data.steps and data.changes.tolist() == wanted
    spans = data.draw(2000, 8, stream(), changed=1.0)
    assert set(spans.step.tolist()) == set(wanted)
    half = data.draw(2000, 8, stream(), changed=0.5)
    share = torch.isin(half.step, torch.tensor(wanted)).float().mean()
    assert abs(share - (0.5 + 0.5 * len(wanted) / data.steps)) < 0.05


def test_noise_levels_reach_both_ends():
    sigma = foundation.draw_sigma(4000, 0.25, 3.0, stream())
    assert sigma.max() == 1
    assert 0 < sigma.min() < 0.01
    assert abs(float((sigma == 1).float().mean()) - 0.25) < 0.03


def test_noise_on_a_history_leaves_the_target_alone(windows, data):
    window = windows.truth(data.draw(6, 4, stream()), stream())
    changed = noised(window, foundation.Noise(noised=1.0), stream())
    assert torch.equal(changed.data, window.data)
    past_start = (window.history.frame >= 0)[:, None, :, None, None].expand_as(window.history.latents)
    same = changed.history.latents == window.history.latents
    assert past_start.any() and not same[past_start].any(), "the start picture is as it was, later ones are not"
    assert same[~past_start].all()


def test_colours_drift_since_the_start_picture(toy_config, windows, data, vae):
    """Against pictures that are changed one by one: a contrast and an offset for each world, none for its start picture, all of it
    for its newest one."""
    appearance = AppearanceFlow(toy_config).requires_grad_(False)
    appearance.read_autoencoder(vae)
    window = windows.truth(at(2, 0, 6, data), stream())
    changed = drifted(window, appearance, 0.2, stream(3))
    assert torch.equal(changed.data, window.data) and torch.equal(changed.target.frame, window.target.frame)
    draws = stream(3)
    strength, offset, contrast = (
        0.2 * torch.rand(1, generator=draws),
        *(torch.randn(n, generator=draws) for n in (3, 1)),
    )
    lived = 6 * toy_config.block_latents
    for before, after in ((window.history, changed.history), (window.past, changed.past)):
        for number, frame in enumerate(before.frame[0].tolist()):
            share = strength * max(0.0, (frame + 1) / lived)
            picture = appearance.pictures(before.latents[:, :, number : number + 1])
            picture = picture * (1 + share * contrast) + share * offset[:, None, None]
            torch.testing.assert_close(
                after.latents[:, :, number : number + 1], appearance.latents(picture), rtol=0, atol=1e-3
            )
    fresh = drifted(windows.truth(at(2, 0, 0, data), stream()), appearance, 0.2, stream(3))
    assert torch.equal(fresh.history.latents, windows.truth(at(2, 0, 0, data), stream()).history.latents)


def test_windows_refuse_what_they_cannot_pack(toy_config, data):
    released = toy_config.with_history(packing="released")
    with pytest.raises(ValueError, match="packing must be tiers"):
        Windows(released, data)
    channel = dataclasses.replace(toy_config.dit.history.channel, patch=(3, 4, 4))
    with pytest.raises(ValueError, match="whole kernels"):
        Windows(toy_config.with_history(channel=channel), data)


def test_a_recording_that_grows_keeps_its_numbers(files, toy_config, vae, data):
    """Two parts, one behind the other, are the whole."""
    conditioning = build_conditioning(toy_config)
    parts = [encode_recording(toy_config, vae, files, episodes, conditioning) for episodes in ([0], [1, 2])]
    assert parts[0].extended(parts[1]).travelled is None  # no camera
    data = dataclasses.replace(data, travelled=torch.rand(data.steps, toy_config.block_latents, 3))
    cut = data.travelled.split([part.steps for part in parts])
    parts = [dataclasses.replace(part, travelled=own) for part, own in zip(parts, cut)]
    joined = parts[0].extended(parts[1])
    for field in dataclasses.fields(LatentSet):
        mine, whole = getattr(joined, field.name), getattr(data, field.name)
        if field.name.endswith("_texts"):  # each part brings a row for "no text"
            assert torch.equal(mine.tokens[mine.step], whole.tokens[whole.step])
            continue
        assert torch.equal(mine, whole), field.name
    mine, whole = joined.event_texts, data.event_texts
    assert torch.equal(mine.tokens[mine.episode], whole.tokens[whole.episode])


def test_recorded_rows_of_a_pool_stay_recorded(windows, data):
    """Rows that are not self-generated are told apart, and the share of the others follows what is asked for."""
    pool = RolloutPool(windows, 200, 6, stream(), share=0.25)
    assert 0.15 < pool.generated.float().mean() < 0.35
    pool.last.fill_(0)
    rows, _, window = pool.sample(200, stream(1))
    pool.add(rows, window.data, stream(2), share=1.0)
    assert pool.generated.all()


def test_a_rollout_that_explodes_stays_finite(windows):
    pool = RolloutPool(windows, 2, 4, stream())
    rows, _, window = pool.sample(2, stream(1))
    block = torch.full_like(window.data, 1e6)
    block[0] = torch.nan
    pool.add(rows, block, stream(2))
    assert pool.latents.isfinite().all() and pool.latents.max() > 60000
