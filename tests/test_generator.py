"""Training windows drawn by index, against worlds that are built one by one with the functions of the environment's own rollout."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from configs import with_dit

from train.generator import distill, foundation
from train.generator.autoencoder import Clips, fit_pca, moving_weight
from train.generator.autoencoder import Settings as AutoencoderSettings
from train.generator.encode import encode_recording
from train.generator.foundation import Foundation, measure_residuals, noised, read_window
from train.generator.pool import RolloutPool
from train.generator.shapes import recorded_config
from train.generator.windows import LatentSet, Spans, Windows, held_frames, history_frames
from train.recordings import Episode, EpisodeFiles, EpisodeWriter, Recording, open_episodes
from world_model import flow
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig, Tiers
from world_model.dit import DiT
from world_model.packing import append_tiers
from world_model.rollout import denoise_block, generator
from world_model.text import build_conditioning
from world_model.tscm import History, static_history
from world_model.vae import PatchVAE

LENGTHS = (30, 11, 25)  # steps of the episodes of the toy recording


def toy_episode(steps: int, seed: int, frames_per_step: int = 1) -> Episode:
    """A bright square that the three actions move left, not at all or right."""
    rng = np.random.default_rng(seed)
    x, frames, actions = 12, [], []

    def picture() -> np.ndarray:
        canvas = np.full((32, 32, 3), 40, np.uint8)
        canvas[8:16, x : x + 6] = (200, 120, 60)
        return canvas

    frames.append(picture())
    for _ in range(steps):
        action = int(rng.integers(3))
        for _ in range(frames_per_step):
            x = int(np.clip(x + action - 1, 0, 25))
            frames.append(picture())
        actions.append(action)
    ended = np.zeros(steps, np.uint8)
    return Episode(np.stack(frames), np.array(actions), np.zeros(steps, np.float32), ended, ended)


@pytest.fixture(scope="module", params=[1, 2], ids=["a picture a step", "two pictures a step"])
def files(request, tmp_path_factory) -> EpisodeFiles:
    folder = tmp_path_factory.mktemp("toy")
    spec = ActionSpec("discrete", (3,), meanings=("left", "stay", "right"))
    recording = Recording("toy", 32, 32, 8.0, spec, frames_per_step=request.param)
    with EpisodeWriter(folder, recording) as writer:
        for seed, steps in enumerate(LENGTHS):
            writer.add(toy_episode(steps, seed, request.param))
    return open_episodes(folder)


@pytest.fixture(scope="module")
def toy_config(files) -> ModelConfig:
    config = recorded_config("toy", files.recording, files.has_text, "tiny")
    tiers = Tiers(recent=((1, 1), (2, 2)), initial=2, old=(2, 2))
    config = config.with_history(packing=tiers)
    dit = dataclasses.replace(config.dit, latent_channels=12)
    return dataclasses.replace(config, dit=dit, vae=dataclasses.replace(config.vae, latent_channels=12, width=0))


@pytest.fixture(scope="module")
def vae(files, toy_config) -> PatchVAE:
    vae = PatchVAE(toy_config.vae)
    fit_pca(vae, toy_config, Clips(files, range(3), 2), AutoencoderSettings(clips=40))
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data(files, toy_config, vae) -> LatentSet:
    return encode_recording(toy_config, vae, files, range(3), build_conditioning(toy_config))


@pytest.fixture(scope="module")
def windows(toy_config, data) -> Windows:
    return Windows(toy_config, data, past_blocks=6)


@pytest.fixture(scope="module")
def dit(toy_config, windows, make_dit) -> DiT:
    dit = make_dit(toy_config, 3)
    measure_residuals(dit, windows)
    return dit.requires_grad_(False)


def at(episode: int, start: int, age: int, data: LatentSet) -> Spans:
    """One world that began at step `start` of an episode and is `age` blocks old."""
    return Spans(torch.tensor([episode]), data.begin[episode] + torch.tensor([start]), torch.tensor([age]))


def lived(config: ModelConfig, data: LatentSet, episode: int, start: int, age: int) -> History:
    """The same world's history, built block by block as the environment does."""
    tiers, size = config.dit.history.packing, config.block_latents
    assert isinstance(tiers, Tiers)
    row = int(data.first[episode]) + start * size
    zero = torch.zeros(1, dtype=torch.float64)
    picture = data.latents[row].float()[None, :, None]
    history = static_history(picture, history_frames(tiers), zero, zero, torch.ones(1, dtype=torch.bool))
    for block in range(age):
        rows = row + 1 + block * size + torch.arange(size)
        number = torch.arange(block * size, (block + 1) * size)[None]
        angle = torch.zeros(1, size, dtype=torch.float64)
        latents = data.latents[rows].float().transpose(0, 1)[None]
        added = History(latents, number, angle, angle, torch.ones(1, size, dtype=torch.bool))
        history = append_tiers(history, added, tiers, [generator("old", block)])
    return history


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
        torch.testing.assert_close(all_at_once[i : i + 1], output, rtol=1e-4, atol=1e-5)


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
            history, memory, torch.zeros(1, 0, 0), dataclasses.replace(window.target, **{
                name: getattr(window.target, name)[mine : mine + 1] for name in ("yaw", "pitch", "frame")
            }), window.action[mine : mine + 1],
        )  # fmt: skip
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


def test_noise_levels_reach_both_ends():
    sigma = foundation.draw_sigma(4000, 0.25, 3.0, stream())
    assert sigma.max() == 1
    assert 0 < sigma.min() < 0.01
    assert abs(float((sigma == 1).float().mean()) - 0.25) < 0.03


def test_noise_on_a_history_leaves_the_target_alone(windows, data):
    window = windows.truth(data.draw(6, 4, stream()), stream())
    changed = noised(window, foundation.Settings(noised=1.0), stream())
    assert torch.equal(changed.data, window.data)
    assert (changed.history.latents != window.history.latents).flatten(1).any(dim=1).all()


def test_a_network_without_output_explains_nothing(toy_config, windows):
    """A network whose output layer is zero leaves everything unexplained."""
    dit = DiT(toy_config)
    measure_residuals(dit, windows)
    trainer = Foundation(toy_config, windows, foundation.Settings(batch=4, noise_samples=2))
    loss, unexplained = trainer.loss(dit, 0, 0.0)
    assert float(unexplained) == pytest.approx(1) and loss.isfinite()


def test_the_expected_error_becomes_the_mean_error_and_weights_do_not_move_the_prediction():
    """Places that err .01 and 4 on average: their logarithms settle at these, and a constant prediction at the mean of its data,
    although one place weighs twenty times as much as the other."""
    data = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [2.0]]) + 3
    prediction, logarithm = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    optimizer = torch.optim.Adam([prediction, logarithm], lr=0.05)
    for _ in range(1200):
        optimizer.zero_grad()
        foundation.likelihood((prediction - data).square(), logarithm.expand_as(data)).backward()
        optimizer.step()
    torch.testing.assert_close(prediction.detach(), data.mean(dim=1, keepdim=True), rtol=0, atol=0.02)
    errors = data.var(dim=1, keepdim=True, correction=0)
    torch.testing.assert_close(logarithm.detach().exp(), errors, rtol=0.05, atol=0)
    error = errors.clone().requires_grad_()
    (weight,) = torch.autograd.grad(foundation.likelihood(error, logarithm.detach()), error)
    torch.testing.assert_close(weight[0] / weight[1], (errors[1] / errors[0]).sqrt(), rtol=0.05, atol=0)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_where_nothing_is_expected_to_change_the_moved_frames_stay(toy_config, windows, dit, sigma):
    """At every noise level, whatever else the network says; and the expected error has a value for each place."""
    window = windows.truth(windows.data.draw(3, 4, stream(), fresh=0.0), stream())
    noise = torch.randn(window.data.shape, generator=stream())
    x = flow.add_noise(window.data, noise, torch.tensor(sigma))
    still = copy.deepcopy(dit)
    with torch.no_grad():
        still.variances.weight.zero_()
        still.variances.bias.copy_(torch.tensor([-40.0, -1.0]).repeat(toy_config.dit.patch[0]))
        conditions = read_window(still, window)
        made = still.detailed(x, torch.full((3,), sigma), conditions)
    output, logarithm = made.output, made.error
    anything = dit(x, torch.full((3,), sigma), read_window(dit, window))
    moved = conditions.mean
    assert (output - moved).square().mean() < 0.2 * (anything - moved).square().mean()
    assert logarithm.shape == (3, 1, *output.shape[2:]) and (logarithm == -1).all()
    torch.testing.assert_close(still(x, torch.full((3,), sigma), conditions), output)


def test_foundation_learns_the_toy(toy_config, windows):
    """A short run must beat what copying the last frame gives, with histories of its own mixed in at the end."""
    torch.manual_seed(0)
    dit = DiT(toy_config)
    measure_residuals(dit, windows)
    settings = foundation.Settings(batch=8, noise_samples=2, self_generated_from=0.5, episode_length=6)
    trainer = Foundation(toy_config, windows, settings)
    optimizer = torch.optim.AdamW(dit.parameters(), lr=3e-3, betas=(0.9, 0.95))
    shares = []
    for step in range(70):
        loss, unexplained = trainer.loss(dit, step, step / 70)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        shares.append(float(unexplained))
    assert np.mean(shares[-20:]) < 0.8


def test_distillation_moves_the_generator_alone_when_it_is_its_turn(toy_config, windows, dit):
    settings = distill.Settings(batch=2, pool=4, episode_length=4, critic_steps=2, critic_warmup=2)
    trainer = distill.Distillation(toy_config, windows, dit, settings)
    assert [number for number in range(7) if trainer.learns(number)] == [2, 4, 6]
    student = DiT(toy_config)
    student.load_state_dict(dit.state_dict())
    assert not trainer.rollout(student, 1).latents.requires_grad
    made = trainer.rollout(student, 2)
    assert made.latents.requires_grad
    critic = DiT(toy_config)  # of another opinion than the teacher
    trainer.generator_loss(critic, made, 2).backward()
    grads = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("patch_embedding_2x" in name for name in grads)  # the compressor of the history is in the gradient path


def test_a_critic_that_is_the_teacher_pushes_nowhere(toy_config, windows, dit):
    trainer = distill.Distillation(toy_config, windows, dit, distill.Settings(batch=2, pool=4, episode_length=4))
    made = trainer.rollout(dit, 1)
    assert torch.equal(trainer.direction(dit, made.window, made.latents, 1), torch.zeros_like(made.latents))


def test_moving_patches_weigh_more(toy_config):
    clips = torch.zeros(1, 3, 2, 32, 32)
    clips[:, :, 1, :8, 8:16] = 0.5
    pictures, weights = moving_weight(clips, toy_config, 10.0)
    assert pictures.shape == (1, 3, 1, 32, 32)
    assert weights[0, 0, 0].tolist() == [1, 11, 1, 1]
    assert weights.sum() == 16 + 10


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
    joined = parts[0].extended(parts[1])
    for field in dataclasses.fields(LatentSet):
        mine, whole = getattr(joined, field.name), getattr(data, field.name)
        if field.name.endswith("_texts"):  # each part brings a row for "no text"
            assert torch.equal(mine.tokens[mine.step], whole.tokens[whole.step])
            continue
        assert torch.equal(mine, whole), field.name
    mine, whole = joined.event_texts, data.event_texts
    assert torch.equal(mine.tokens[mine.episode], whole.tokens[whole.episode])


def test_a_compiled_layer_gives_what_an_eager_one_gives(toy_config, make_dit):
    """The graph that `--compile` captures of a layer, run without code generation: same numbers, same gradients."""
    torch.compiler.reset()
    config = with_dit(toy_config, flow_layer=0, layers=1)
    layer = make_dit(config, 3).layers[0]
    dim, heads, (frames, rows, columns) = config.dit.dim, config.dit.heads, config.token_grid
    tokens = frames * rows * columns
    x = torch.randn(2, tokens, dim, generator=stream())
    time = torch.randn(2, 1, 6, dim, generator=stream(1))
    angle = torch.randn(2, 1, tokens, dim // heads // 2, generator=stream(2))
    table = torch.polar(torch.ones_like(angle), angle)
    results = []
    for call in (layer, torch.compile(layer, backend="aot_eager", dynamic=False)):
        layer.zero_grad()
        out, _ = call(x, time, None, table, [config.token_grid])
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 5
    for eager, captured in zip(*results):
        torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-6)


def test_recorded_rows_of_a_pool_stay_recorded(windows, data):
    """Rows that are not self-generated are told apart, and the share of the others follows what is asked for."""
    pool = RolloutPool(windows, 200, 6, stream(), share=0.25)
    assert 0.15 < pool.generated.float().mean() < 0.35
    pool.last.fill_(0)
    rows, _, window = pool.sample(200, stream(1))
    pool.add(rows, window.data, stream(2), share=1.0)
    assert pool.generated.all()
