"""One block, and block after block: the loop that the environment, distillation and evaluation share."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from configs import with_dit
from scenes import predicted, standing, state_of, with_state
from torch import Tensor

from world_model import flow
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.dit import DiT
from world_model.priors.scene import Ahead
from world_model.priors.warp import OUTDATED
from world_model.rollout import (
    Sampling,
    block_noise,
    commanded_motions,
    denoise_block,
    dream_block,
    encode_conditions,
    generator,
)
from world_model.vae import PatchVAE
from world_model.worlds import WorldBatch, collate_worlds, split_worlds, start_worlds

WALK, TURN = Action.from_keys("W"), Action.from_keys("", "→")
SIGMAS = flow.sigma_schedule(4, 3.0)


@pytest.fixture(scope="module")
def dit(config, make_dit) -> DiT:
    return make_dit(config)


@pytest.fixture(scope="module")
def vae(config, make_vae) -> PatchVAE:
    return make_vae(config).requires_grad_(False)


@pytest.fixture(scope="module")
def context(config) -> Tensor:
    return torch.randn(2, 24, config.dit.text_dim, generator=generator("context"))


@pytest.fixture(scope="module")
def pooled(context) -> Tensor:
    return context[:, 8:].mean(dim=1)


@pytest.fixture
def worlds(dit, vae, config, make_videos) -> WorldBatch:
    """Two worlds that have not moved yet; the second faces another way."""
    yaw = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        return start_worlds(
            dit,
            vae,
            make_videos(config, 2, 1)[:, :, 0],
            torch.ones(2, dtype=torch.bool),
            standing(yaw, pitch=0.1 * yaw),
        )


def generate_block(dit, vae, worlds, context, pooled, step: int, actions=(WALK, TURN), exit_step=None):
    seeds = (5, 6)
    noise = block_noise(dit.config, seeds, [step] * len(seeds))
    streams = [generator("old frames", seed, step) for seed in seeds]
    return dream_block(dit, vae, worlds, actions, context, pooled, Sampling(noise, SIGMAS, exit_step), streams)


def tensors(value) -> list[Tensor]:
    """All tensors inside worlds."""
    if isinstance(value, Tensor) or value is None:
        return [] if value is None else [value]
    values = value if isinstance(value, tuple) else [getattr(value, field.name) for field in fields(value)]
    return [tensor for item in values for tensor in tensors(item)]


# ---- randomness -------------------------------------------------------------------------------------------------------


def test_streams_depend_on_their_key_alone():
    first = torch.randn(4, generator=generator("noise", 3, 7))
    torch.manual_seed(99)
    assert torch.equal(torch.randn(4, generator=generator("noise", 3, 7)), first)
    for other in (("noise", 3, 8), ("noise", 4, 7), ("old frames", 3, 7), ("noise", 37)):
        assert not torch.equal(torch.randn(4, generator=generator(*other)), first)


def test_noise_of_a_world_is_its_own_in_any_batch(config):
    batch = block_noise(config, [1, 2, 1], [4, 4, 5])
    assert batch.shape == (3, 8, 2, 4, 6)
    assert torch.equal(block_noise(config, [2], [4])[0], batch[1])
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(batch[0], batch[2])
    assert abs(float(batch.std()) - 1) < 0.1
    cool = replace(config, sampler=replace(config.sampler, temperature=0.25))
    torch.testing.assert_close(block_noise(cool, [1, 2, 1], [4, 4, 5]), 0.25 * batch)
    torch.testing.assert_close(block_noise(cool, [1, 2, 1], [4, 4, 5], temperature=0.5), 0.5 * batch)


# ---- worlds -----------------------------------------------------------------------------------------------------------


def test_a_start_is_a_still_past_of_the_picture(dit, vae, config, worlds):
    history = worlds.history
    assert history.frames == 6
    assert worlds.frame.tolist() == [0, 0]
    latents = vae.encode(worlds.picture[:, :, None].expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(history.latents, latents.expand(-1, -1, 6, -1, -1))
    assert history.yaw[1].tolist() == 6 * [1.0]
    memory = dit.encode_memory(
        history.select(torch.tensor([[4, 5], [4, 5]]))
    )  # the start's own two latents, not the filling
    torch.testing.assert_close(worlds.memory.total, memory.total)


def test_a_text_start_has_no_past(dit, vae, config):
    empty = start_worlds(dit, vae, torch.zeros(1, 3, 32, 48), torch.zeros(1, dtype=torch.bool))
    assert not empty.history.present.any()
    assert not empty.memory.total.any()
    assert not empty.memory.norm.any()


@torch.no_grad()
def test_splitting_and_joining_are_inverses(dit, vae, worlds, context, pooled):
    worlds, _, _ = generate_block(dit, vae, worlds, context, pooled, 0)
    again = collate_worlds(split_worlds(worlds))
    assert all(torch.equal(a, b) for a, b in zip(tensors(worlds), tensors(again), strict=True))
    swapped = split_worlds(collate_worlds(split_worlds(worlds)[::-1]))[1]
    assert all(torch.equal(a, b) for a, b in zip(tensors(split_worlds(worlds)[0]), tensors(swapped), strict=True))


def test_motion_is_the_commanded_one_of_each_world(config):
    yaw, pitch = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.0, 0.2], dtype=torch.float64)
    motion = commanded_motions(config, [WALK, TURN], yaw, pitch)
    for world, action in enumerate((WALK, TURN)):
        expected = commanded_motion(action, float(yaw[world]), float(pitch[world]), 4, config.fps, config.camera)
        for ours, right in zip((motion.yaw, motion.pitch, motion.displacement), expected):
            np.testing.assert_array_equal(ours[world].numpy(), right)


@torch.no_grad()
def test_a_blocks_latents_have_the_poses_of_their_last_pictures(dit, vae, worlds, context, pooled):
    motion = commanded_motions(dit.config, [TURN, TURN], worlds.yaw, worlds.pitch)
    block = encode_conditions(dit, vae, worlds, motion, context, pooled)[1]
    history = block.history(torch.zeros(2, 8, 2, 4, 6))
    assert torch.equal(history.yaw, motion.yaw[:, [1, 3]])
    assert history.frame.tolist() == [[0, 1], [0, 1]]
    after, latents, video = generate_block(dit, vae, worlds, context, pooled, 0, actions=(TURN, TURN))
    assert torch.equal(after.yaw, motion.yaw[:, -1])
    assert torch.equal(after.history.latents[:, :, -2:], latents)
    assert torch.equal(after.picture, video[:, :, -1])
    assert torch.equal(state_of(after).doubt, predicted(block).guide.doubt) and state_of(after).doubt.any()
    assert after.history.frame[:, -2:].tolist() == [[0, 1], [0, 1]]


@torch.no_grad()
def test_what_is_carried_equals_what_could_be_recomputed(dit, vae, worlds, context, pooled, config):
    """Four blocks: the memory's sums from all latents at once, and the pictures from one long decoding, to which each
    block's warped-frame prior adds the high-frequency residual."""
    start, latents, videos, priors = worlds, [], [], []
    for step in range(4):
        motion = commanded_motions(config, [WALK, TURN], worlds.yaw, worlds.pitch)
        priors.append(predicted(encode_conditions(dit, vae, worlds, motion, context, pooled)[1]).guide)
        worlds, block, video = generate_block(dit, vae, worlds, context, pooled, step)
        latents.append((block, worlds.history))
        videos.append(video)
    blocks = [history.select(torch.tensor(2 * [[4, 5]])) for _, history in latents]
    everything = start.history.select(torch.tensor(2 * [[4, 5]]))
    for block in blocks:
        everything = everything.join(block)
    whole = dit.encode_memory(everything)
    torch.testing.assert_close(worlds.memory.total, whole.total, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(worlds.memory.norm, whole.norm, atol=1e-4, rtol=1e-4)
    decoded, _ = vae.decode(everything.latents)
    for video, plain, prior, (block, _) in zip(videos, decoded[:, :, 4:].split(4, dim=2), priors, latents, strict=True):
        torch.testing.assert_close(video, prior.restored(plain, block), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(video, plain, atol=1e-2)  # this prior has a residual to add


@torch.no_grad()
def test_a_worlds_size_never_grows(dit, vae, worlds, context, pooled):
    sizes, frames = {tuple(t.shape for t in tensors(worlds))}, worlds.history.latents.shape[2]
    for step in range(12):
        worlds, _, _ = generate_block(dit, vae, worlds, context, pooled, step)
        sizes.add(tuple(t.shape for t in tensors(worlds)))
        assert worlds.frame.tolist() == 2 * [2 * step + 2]
        assert worlds.history.frame[:, 3:].tolist() == 2 * [[2 * step - 1, 2 * step, 2 * step + 1]]
        assert worlds.history.frame[0, 0] == -frames  # the first frame is kept for ever
    assert len(sizes) == 1
    assert all(t.isfinite().all() for t in tensors(worlds) if t.is_floating_point())


# ---- a text that changes ----------------------------------------------------------------------------------------------


def prediction_of(dit, vae, worlds, context, pooled, actions=(WALK, TURN)) -> Ahead:
    motion = commanded_motions(dit.config, actions, worlds.yaw, worlds.pitch)
    return predicted(encode_conditions(dit, vae, worlds, motion, context, pooled)[1])


def with_prompts(context: Tensor, *texts: str) -> Tensor:
    """The same actions with other prompt embeddings in the first 8 tokens; "" is no text."""
    prompts = [torch.randn(8, context.shape[-1], generator=generator("text", text)) * bool(text) for text in texts]
    return torch.cat([torch.stack(prompts), context[:, 8:]], dim=1)


@torch.no_grad()
def test_the_confidence_in_earlier_pictures_drops_where_the_text_changes(dit, vae, worlds, context, pooled):
    """The first of two worlds gets another text in its third block: earlier pictures weigh less there, and only there."""
    park = with_prompts(context, "park", "")
    for step in range(2):
        assert prediction_of(dit, vae, worlds, park, pooled).changed.tolist() == [False, False]
        worlds, _, _ = generate_block(dit, vae, worlds, park, pooled, step)
    assert state_of(worlds).album.filled.sum(dim=1).tolist() == [2, 2]
    emptied = with_state(worlds, album=state_of(worlds).album.without(torch.tensor([True, False])))
    unchanged, bare = (prediction_of(dit, vae, state, park, pooled).guide for state in (worlds, emptied))
    assert not torch.equal(unchanged.valid[0], bare.valid[0])  # a keyframe was retrieved
    changed = prediction_of(dit, vae, worlds, with_prompts(context, "rain", ""), pooled)
    assert changed.changed.tolist() == [True, False]
    confidence = torch.tensor([OUTDATED, 1.0])[:, None, None, None, None]
    torch.testing.assert_close(changed.guide.valid, bare.valid * confidence)
    torch.testing.assert_close(changed.guide.detail, bare.detail * confidence)
    assert torch.equal(changed.guide.latents, bare.latents) and changed.guide.valid[0].any()


@torch.no_grad()
def test_the_keyframe_memory_is_cleared_where_the_text_changes(dit, vae, worlds, context, pooled):
    """And the picture that was dreamt under the new text is its first entry."""
    kept, texts = [], [("park", ""), ("park", ""), ("rain", ""), ("rain", ""), ("rain", "fog")]
    for step, prompts in enumerate(texts):
        before = worlds
        worlds, _, _ = generate_block(dit, vae, worlds, with_prompts(context, *prompts), pooled, step)
        kept.append(state_of(worlds).album.filled.sum(dim=1).tolist())
    assert kept == [[1, 1], [2, 2], [0, 3], [1, 3], [2, 0]]
    added = ((before.picture[0].clamp(-1, 1) + 1) * 127.5).round()
    newest = state_of(worlds).album.pictures[0][state_of(worlds).album.filled[0]][-1]
    torch.testing.assert_close(newest.float(), added, atol=1, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [("park", "park", False), ("park", "rain", True), ("park", "", True), ("", "rain", True), ("", "", False)],
)
def test_a_change_is_another_text_in_a_world_that_has_begun(before, now, changed, dit, vae, worlds, context, pooled):
    """Silence is a text like others; a world's first text changes nothing, and neither do its actions."""
    first, then = (with_prompts(context, text, text) for text in (before, now))
    assert not prediction_of(dit, vae, worlds, first, pooled).changed.any()
    worlds, _, _ = generate_block(dit, vae, worlds, first, pooled, 0)
    then[:, 8:] += 1
    assert prediction_of(dit, vae, worlds, then, pooled, (TURN, TURN)).changed.tolist() == [changed, changed]


# ---- the sampler and Self-Forcing -------------------------------------------------------------------------------------


def conditions_of(dit, vae, worlds, context, pooled):
    motion = commanded_motions(dit.config, [WALK, TURN], worlds.yaw, worlds.pitch)
    return encode_conditions(dit, vae, worlds, motion, context, pooled)[0]


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["data", "velocity"])
def test_denoising_is_euler_on_the_velocity(prediction, dit, vae, config, make_dit, worlds, context, pooled):
    if prediction == "velocity":
        dit = make_dit(with_dit(replace(config, priors=()), prediction="velocity"))
        worlds = replace(worlds, priors=())
    conditions, noise = conditions_of(dit, vae, worlds, context, pooled), block_noise(config, [1, 2], [0, 0])
    x = noise.double()
    for before, after in pairwise(SIGMAS):
        output = dit(x.float(), before.expand(2), conditions).double()
        velocity = output if prediction == "velocity" else (x - output) / before
        x = x + (after - before) * velocity
    torch.testing.assert_close(denoise_block(dit, conditions, noise, SIGMAS), x.float(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_leaving_at_the_last_step_is_not_leaving_early(dit, vae, worlds, context, pooled):
    whole, last, early = (generate_block(dit, vae, worlds, context, pooled, 0, exit_step=e) for e in (None, 3, 2))
    torch.testing.assert_close(last[1], whole[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last[2], whole[2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(early[1], whole[1], atol=1e-3)


@pytest.mark.parametrize("exit_step", range(4))
def test_gradient_flows_through_the_exit_step_alone(exit_step, dit, vae, config, worlds, context, pooled):
    conditions, noise = conditions_of(dit, vae, worlds, context, pooled), block_noise(config, [1, 2], [0, 0])
    target = torch.randn(noise.shape, generator=generator("target"))

    def gradients(estimate: Tensor) -> list[Tensor]:
        wanted = [p for p in dit.parameters() if p.requires_grad]
        return torch.autograd.grad((estimate * target).sum(), wanted, retain_graph=True, allow_unused=True)

    with torch.no_grad():
        x = denoise_block(dit, conditions, noise, SIGMAS[: exit_step + 1])
    sigma = float(SIGMAS[exit_step])
    expected = flow.to_data(dit(x, SIGMAS[exit_step].expand(2), conditions), x, sigma, config.dit.output.prediction)
    left = denoise_block(dit, conditions, noise, SIGMAS, exit_step)
    assert torch.equal(left, expected)
    found = False
    for ours, right in zip(gradients(left), gradients(expected), strict=True):
        assert (ours is None) == (right is None)
        if ours is not None:
            torch.testing.assert_close(ours, right)
            found = found or bool(ours.any())
    assert found


def test_gradient_reaches_the_compressors_but_not_the_past(dit, vae, worlds, context, pooled):
    """A block's estimate teaches how history is embedded and summed up; into the latents before it nothing flows back."""
    after, past, video = generate_block(dit, vae, worlds, context, pooled, 0, exit_step=1)
    _, latents, _ = generate_block(dit, vae, after, context, pooled, 1, exit_step=1)
    assert past.requires_grad
    assert not after.history.latents.requires_grad
    assert not video.requires_grad
    past.retain_grad()
    dit.zero_grad()
    latents.square().mean().backward()
    assert past.grad is None
    for name in (
        "patch_embedding_2x.weight",
        "channel_embedding.weight",
        "prior_embeddings.0.weight",
        "head.head.weight",
    ):
        assert dit.get_parameter(name).grad.any()
    dit.zero_grad()


@pytest.mark.parametrize("exit_step", [-1, 4])
def test_a_step_that_does_not_exist_is_refused(exit_step, dit, vae, config, worlds, context, pooled):
    conditions, noise = conditions_of(dit, vae, worlds, context, pooled), block_noise(config, [1, 2], [0, 0])
    with pytest.raises(ValueError, match="4 sampler steps"):
        denoise_block(dit, conditions, noise, SIGMAS, exit_step)
