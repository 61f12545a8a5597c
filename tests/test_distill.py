"""Self-Forcing with distribution matching: its direction, its gradients, and that it dreams exactly as the environment does."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train import distill as stage
from train.distill import Distiller, Settings, dmd_direction, dmd_loss, train
from train.engine.optimization import TwoTimescale
from train.engine.pool import Batch, PoolSettings
from train.evaluation.sheet import to_pictures
from train.foundation import flow_loss
from world_model import flow
from world_model.dit import DiT
from world_model.model import WorldModel, WorldState
from world_model.rollout import block_noise, generator

QUICK = Settings(
    batch=2,
    pool=PoolSettings(3),
    updates=TwoTimescale(1e-3, 1e-3, generator_every=2, critic_warmup=1),
    guidance=1.0,
    truth=0.1,
)
COMPRESSION = ("patch_embedding_2x.weight", "channel_embedding.weight")  # of the history's two halves


@pytest.fixture
def teacher(config, make_dit) -> DiT:
    return make_dit(config)


@pytest.fixture
def student(config, make_dit) -> DiT:
    return make_dit(config, 1)


@pytest.fixture
def distiller(config, corpus, frozen_vae, teacher) -> Distiller:
    return Distiller(config, corpus, frozen_vae, QUICK, teacher)


def tensors_of(distiller: Distiller) -> list[Tensor]:
    """All tensors of the pool's worlds."""
    entries = [entry for entry in distiller.pool.entries if entry is not None]
    memories = [entry.worlds.memory for entry in entries if entry.worlds.memory is not None]
    rest = [(e.worlds.history.latents, e.past.latents, e.worlds.picture, *e.worlds.cache) for e in entries]
    return [t for parts in rest for t in parts] + [t for m in memories for t in (m.total, m.norm)]


# ---- distribution matching --------------------------------------------------------------------------------------------


def test_direction_is_zero_where_fake_equals_real():
    x, real = (torch.randn(3, 2, 2, 4, 4, generator=generator(name)) for name in ("x", "real"))
    assert not dmd_direction(real, real, x).any()
    assert not dmd_direction(x, x, x).any()  # even where the scale is zero


def test_direction_is_the_difference_in_units_of_the_teachers_error():
    x, fake, real = (torch.randn(3, 2, 2, 4, 4, generator=generator(name)) for name in ("x", "fake", "real"))
    real[0] = x[0] + 0.1 * (real[0] - x[0])  # a dark picture: all differences are small
    direction = dmd_direction(fake, real, x)
    errors = [np.abs((x[i] - real[i]).numpy()).mean() for i in range(3)]
    assert errors[0] < 0.2 * np.mean(errors)
    for i in range(3):
        scale = max(errors[i], np.mean(errors))
        np.testing.assert_allclose(direction[i], (fake[i] - real[i]).numpy() / scale, rtol=1e-5)
    shrunk = dmd_direction(10 * fake, 10 * real, 10 * x)
    torch.testing.assert_close(shrunk, direction)  # normalised


def test_gradient_of_the_loss_is_the_direction():
    x = torch.randn(2, 3, 4, generator=generator("x")).requires_grad_()
    direction = torch.randn(2, 3, 4, generator=generator("direction"))
    dmd_loss(x, direction).backward()
    torch.testing.assert_close(x.grad, direction / x.numel())
    x.grad = None
    dmd_loss(x, torch.zeros_like(x)).backward()
    assert not x.grad.any()


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_critic_that_equals_the_teacher_pushes_nowhere(guidance, distiller, student):
    """With guidance that holds where there is no event: the teacher without the text is then the teacher itself."""
    distiller.settings = replace(QUICK, guidance=guidance)
    distiller.pool.settings = replace(distiller.pool.settings, caption=0.0, text_start=0.0)
    batch, motion, latents = distiller.rollout(student, 0, learn=False)
    batch.context[:, :8] = 0
    same = copy.deepcopy(distiller.real)
    assert not distiller.direction(same, batch, motion, latents, 7).any()
    moved = distiller.direction(student, batch, motion, latents, 7)
    assert moved.abs().mean() > 1e-3


def test_direction_is_what_the_scores_say(distiller, student, config):
    """Written out for one batch with texts and guidance: real = c + w (c - u), u without the event's text."""
    distiller.pool.settings = replace(distiller.pool.settings, caption=1.0)
    batch, motion, latents = distiller.rollout(student, 0, learn=False)
    assert batch.context[:, :8].any()
    ours = distiller.direction(student, batch, motion, latents, 3)
    stream = generator(QUICK.seed, "score", 3)
    sigma = torch.rand(2, generator=stream, dtype=torch.float64).clamp(0.02, 0.98)
    noise = torch.randn(latents.shape, generator=stream)
    x = torch.stack([flow.add_noise(latents[i], noise[i], float(sigma[i])) for i in range(2)])
    silent = torch.cat([torch.zeros_like(batch.context[:, :8]), batch.context[:, 8:]], dim=1)
    with torch.no_grad():
        fake, conditional, unconditional = (
            dit(x, sigma, distiller.conditions(dit, batch, motion, context))
            for dit, context in ((student, batch.context), (distiller.real, batch.context), (distiller.real, silent))
        )
    real = conditional + QUICK.guidance * (conditional - unconditional)
    torch.testing.assert_close(ours, dmd_direction(fake, real, latents), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, dmd_direction(fake, conditional, latents), atol=1e-3)


def test_critic_follows_the_generators_blocks(distiller, teacher, student):
    """Its loss is flow matching of what was dreamt; its gradient stays with it."""
    batch, motion, latents = distiller.rollout(student, 5, learn=True)
    critic = copy.deepcopy(teacher)
    loss = distiller.critic_loss(critic, batch, motion, latents, 5)
    stream = generator(QUICK.seed, "critic", 5)
    sigma = torch.rand(2, generator=stream, dtype=torch.float64).clamp(0.02, 1)
    noise = torch.randn(latents.shape, generator=stream)
    conditions = distiller.conditions(critic, batch, motion, batch.context)
    torch.testing.assert_close(loss, flow_loss(critic, conditions, latents.detach(), sigma, noise, 0.4))
    loss.backward()
    assert all(critic.get_parameter(name).grad.any() for name in COMPRESSION)
    assert all(p.grad is None for p in [*student.parameters(), *distiller.real.parameters()])


# ---- Self-Forcing -----------------------------------------------------------------------------------------------------


def test_gradient_flows_through_the_exit_step_and_the_compression_alone(distiller, student, monkeypatch):
    """One evaluation a block has a gradient, the last of them; what the worlds become has none."""
    graded: list[bool] = []
    forward = DiT.forward

    def watched(self: DiT, x: Tensor, *rest, **named) -> Tensor:
        output = forward(self, x, *rest, **named)
        graded.append(output.requires_grad)
        assert not x.requires_grad  # nothing came through the steps before
        return output

    monkeypatch.setattr(DiT, "forward", watched)
    exits = set()
    for number in range(6):
        graded.clear()
        _, _, latents = distiller.rollout(student, number, learn=True)
        assert graded == [False] * (len(graded) - 1) + [True]
        exits.add(len(graded) - 1)
        student.zero_grad()
        latents.square().mean().backward()
        for name in (*COMPRESSION, "patch_embedding.weight", "head.head.weight", "prior_embeddings.0.weight"):
            assert student.get_parameter(name).grad.any()
        assert not any(t.requires_grad for t in tensors_of(distiller))
    assert len(exits) >= 3 and exits <= {0, 1, 2, 3}


def test_without_learning_nothing_has_a_gradient(distiller, student):
    _, _, latents = distiller.rollout(student, 0, learn=False)
    assert not latents.requires_grad
    _, _, learning = distiller.rollout(student, 0, learn=True)
    assert learning.requires_grad


def test_the_generators_loss_teaches_the_generator_alone(distiller, teacher, student):
    critic = copy.deepcopy(teacher)
    nn.init.normal_(critic.head.head.weight, generator=generator("critic"))
    rollouts = (distiller.rollout(student, number, learn=True) for number in range(8))
    with_pasts = (r for r in rollouts if r[0].worlds.history.present.all())  # a text start has none
    batch, motion, latents = next(with_pasts)
    distiller.generator_loss(critic, batch, motion, latents, 1).backward()
    assert all(student.get_parameter(name).grad.any() for name in COMPRESSION)
    assert all(p.grad is None for p in [*critic.parameters(), *distiller.real.parameters()])


def test_worlds_live_on_the_generators_blocks(distiller, student, config):
    """A block that was dreamt is the newest history of its world, and the next block's past."""
    for number in range(5):
        batch, _, latents = distiller.rollout(student, number, learn=True)
        for row, slot in enumerate(batch.index):
            entry = distiller.pool.entries[slot]
            if entry is not None:
                for newest in (entry.worlds.history.latents, entry.past.latents):
                    assert torch.equal(newest[0, :, -config.block_latents :], latents[row].detach())
                assert not torch.equal(latents[row], batch.truth[row])


# ---- the same worlds as the environment's -----------------------------------------------------------------------------


def with_events(batch: Batch, model: WorldModel, events: list[str | None]) -> Batch:
    """The batch with its events embedded as the environment does (the corpus keeps texts in half precision)."""
    context, pooled = model.conditioning.context(batch.actions, events)
    return replace(batch, context=context, pooled=pooled)


@pytest.fixture
def model(config, student, frozen_vae, distiller) -> WorldModel:
    return WorldModel(config, copy.deepcopy(student), frozen_vae, distiller.conditioning)


@torch.no_grad()
@pytest.mark.parametrize("event", [None, "heavy rain"])
def test_one_world_is_dreamt_bit_for_bit_as_in_the_environment(event, config, distiller, student, model):
    """Same seed, actions and text, block after block: latents, pictures and all that is carried on."""
    pool, state = distiller.pool, None
    pool.settings = replace(pool.settings, text_start=0.0)
    for step in range(6):
        batch = with_events(pool.sample(student, distiller.vae, 1, 1.0, 0), model, [event])
        slot = batch.index[0]
        pool.entries[slot] = replace(pool.entries[slot], block=step, last=12)
        state = WorldState(batch.worlds, (11,), (0,), ("",)) if state is None else state
        streams = [generator("old frames", 11, step)]
        _, latents, video = distiller.dream(student, batch, block_noise(config, [11], [step]), streams)
        state, frames = model.step(state, batch.actions, [event])
        assert torch.equal(state.worlds.history.latents[:, :, -config.block_latents :], latents)
        np.testing.assert_array_equal(to_pictures(video)[0], frames[0])
        entry = pool.entries[slot]
        assert entry is not None
        assert torch.equal(entry.worlds.history.latents, state.worlds.history.latents)
        assert torch.equal(entry.worlds.memory.total, state.worlds.memory.total)
        assert torch.equal(entry.worlds.picture, state.worlds.picture)
    assert float(state.worlds.frame) == 6 * config.block_latents


@torch.no_grad()
def test_a_training_batch_is_dreamt_as_its_worlds_alone(config, distiller, student, model, corpus):
    """As training does it, in a batch and with the memory summed up anew: equal but for the rounding of sums.

    Only the ground has depth here: distances that a random network makes up multiply rounding from block to block. By processor,
    rounding moves a threshold of the prior in a few blocks: without the memory, less than .6 of a block is near.
    """
    for dit in (student, model.dit):  # the model holds a copy
        torch.nn.init.zeros_(dit.priors[0].depth.head.weight)
    states: dict[int, WorldState] = {}
    compared, equal = 0, []
    for step in range(8):
        batch = distiller.pool.sample(student, distiller.vae, 3, 1.0, step)
        entries = [distiller.pool.entries[slot] for slot in batch.index]
        ages = (batch.worlds.frame // config.block_latents).tolist()
        seeds, steps = [100 + slot for slot in batch.index], ages
        expected = []
        for row, (slot, entry) in enumerate(zip(batch.index, entries, strict=True)):
            assert entry is not None
            if ages[row] == 0:
                states[slot] = WorldState(entry.worlds, (seeds[row],), (0,), ("",))
            event = distiller.pool.prompt(entry)
            states[slot], frames = model.step(states[slot], [batch.actions[row]], [event])
            expected.append((states[slot].worlds.history.latents[0, :, -config.block_latents :], frames[0]))
        remembering = replace(batch, worlds=replace(batch.worlds, memory=student.encode_memory(batch.past)))
        streams = [generator("old frames", seed, age) for seed, age in zip(seeds, steps, strict=True)]
        _, latents, video = distiller.dream(student, remembering, block_noise(config, seeds, steps), streams)
        for row, (block, frames) in enumerate(expected):
            near = torch.isclose(latents[row], block, atol=2e-2, rtol=2e-2).float().mean()
            difference = np.abs(to_pictures(video)[row].astype(int) - frames)
            assert near > 0.85 and difference.mean() < 1.5
            equal.append(bool(torch.isclose(latents[row], block, atol=1e-4, rtol=1e-3).all() and difference.max() <= 1))
            compared += ages[row] > 0
    assert compared >= 6 and np.mean(equal) > 0.75


# ---- whole runs -------------------------------------------------------------------------------------------------------


def leave(folder: Path) -> dict[str, Tensor]:
    """Generator, critic and the generator's average."""
    names = ("model.safetensors", "model_1.safetensors")
    found = {f"{name}/{key}": v for name in names for key, v in load_file(folder / "checkpoint" / name).items()}
    average = torch.load(folder / "checkpoint" / "custom_checkpoint_1.pkl", weights_only=True)
    return found | {f"average/{key}": value for key, value in average.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_distillation_runs_and_resumes_exactly(config, data_folder, vae_folder, weights_folder, tmp_path, monkeypatch):
    """Losses are finite, both networks move, and 6 steps at once equal 3 and 3 more from the checkpoint alone."""
    losses: list[tuple[int, float]] = []
    update = stage._update

    def watched(run, which: int, *rest) -> float:
        losses.append((which, update(run, which, *rest)))
        return losses[-1][1]

    monkeypatch.setattr(stage, "_update", watched)

    def run(name: str, steps: int) -> dict[str, Tensor]:
        train(config, data_folder, vae_folder, weights_folder, tmp_path / name, QUICK, steps, None)
        return leave(tmp_path / name)

    start, whole = run("none", 0), run("whole", 6)
    assert [which for which, _ in losses] == [1, 1, 0, 1, 1, 0, 1, 1]  # the generator learns at steps 2 and 4
    assert all(np.isfinite(loss) and loss > 0 for _, loss in losses)
    for name in ("model.safetensors", "model_1.safetensors", "average/module."):
        assert any(not torch.equal(value, start[key]) for key, value in whole.items() if key.startswith(name))
    half = run("parts", 3)
    assert not equal(half, whole)
    assert equal(run("parts", 6), whole)


def test_command_line(config, data_folder, vae_folder, weights_folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "train", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(stage, "prepare_cpu", lambda: None)
    words = (
        f"distill debug --data {data_folder} --vae {vae_folder} --initial {weights_folder} --out {tmp_path} "
        "--steps 5 --critic-lr 0.01 --guidance 0"
    )
    monkeypatch.setattr("sys.argv", words.split())
    stage.main()
    settings = Settings(updates=TwoTimescale(critic_lr=0.01), guidance=0.0)
    assert given == [(config, data_folder, vae_folder, weights_folder, tmp_path, settings, 5, None)]
