"""Rollouts, one block at a time: the only denoising loop. The environment, distillation and evaluation run it.

Shapes: B worlds, C latent channels, K latent frames of a block, T pictures of a block, h x w latent size, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from world_model import flow
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.conditions import BlockContext, Conditions, Motion, Target
from world_model.config import ModelConfig
from world_model.denoiser import Denoiser, DenoiserConditions
from world_model.dit import DiT
from world_model.priors.base import Prediction
from world_model.retrieval import View
from world_model.text import mean_token
from world_model.threads import in_parallel
from world_model.vae import VideoVAE
from world_model.worlds import WorldBatch


def generator(*key: int | str) -> torch.Generator:
    """A CPU random stream that depends on `key` alone: the same wherever and in whatever batch it is used."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def block_noise(
    config: ModelConfig, seeds: Sequence[int], steps: Sequence[int], temperature: float | None = None
) -> Tensor:
    """Initial noise [B, C, K, h, w] of block number `steps[i]` in the world of seed `seeds[i]`, at the sampler's temperature or
    another."""
    shape = (config.dit.latent_channels, config.block_latents, *config.latent_size)
    noise = torch.stack([torch.randn(shape, generator=generator("noise", s, n)) for s, n in zip(seeds, steps)])
    return noise * (config.sampler.temperature if temperature is None else temperature)


def commanded_motions(config: ModelConfig, actions: Sequence[Action], yaw: Tensor, pitch: Tensor) -> Motion:
    """The commanded motion of a block for each world's action. Actions other than first-person ones move no camera."""
    if config.action.kind != "first_person":
        frames = config.frames_per_block
        still = yaw.new_zeros(len(actions), frames, 2)
        return Motion(yaw[:, None].expand(-1, frames), pitch[:, None].expand(-1, frames), still)
    parts = [
        commanded_motion(action, float(y), float(p), config.frames_per_block, config.fps, config.camera)
        for action, y, p in zip(actions, yaw, pitch)
    ]
    return Motion(*(torch.stack([torch.from_numpy(part[i]) for part in parts]).to(yaw.device) for i in range(3)))


def constrained_motion(dit: DiT, worlds: WorldBatch, actions: Sequence[Action]) -> Motion:
    """`commanded_motions` worlds, as far as the model's priors let them go."""
    motion = commanded_motions(dit.config, actions, worlds.yaw, worlds.pitch)
    for prior, state in zip(dit.priors, worlds.priors, strict=True):
        motion = prior.constrain(state, motion)
    return motion


def end_view(worlds: WorldBatch, motion: Motion) -> View:
    """The camera at the end of a block, of worlds whose frames are held with positions."""
    place = worlds.history.position
    assert place is not None
    return View(motion.yaw[:, -1:], motion.pitch[:, -1:], place[:, -1:] + motion.displacement[:, -1:])


def encode_conditions(
    dit: DiT, vae: VideoVAE, worlds: WorldBatch, motion: Motion, context: Tensor, pooled: Tensor
) -> tuple[Conditions, BlockContext]:
    """Conditions of the next block (text, compressed history and the predictions of priors), and the context that
    `append_and_decode` needs."""
    config = dit.config
    last = slice(config.vae.temporal_stride - 1, None, config.vae.temporal_stride)
    frame = worlds.frame[:, None] + torch.arange(config.block_latents, device=worlds.frame.device)
    told = None if worlds.told is None else worlds.told.then(mean_token(context[:, : config.text.event_tokens]))
    target = Target(yaw=motion.yaw[:, last], pitch=motion.pitch[:, last], frame=frame, told=told)
    block = conditioned = BlockContext(worlds=worlds, motion=motion, target=target, context=context, told=told)
    for prior, state in zip(dit.priors, worlds.priors, strict=True):
        conditioned = replace(conditioned, context=prior.condition_text(state, conditioned))

    def predict() -> tuple[Prediction, ...]:
        return tuple(prior.predict(state, block, vae) for prior, state in zip(dit.priors, worlds.priors))

    with in_parallel(predict, worlds.picture.device) if len(dit.priors) else nullcontext(predict) as predicted:
        history = dit.packing.read(worlds.history, lambda: end_view(worlds, motion)) if worlds.history.frames else None
        conditions = dit.encode_conditions(history, worlds.memory, conditioned.context, target, pooled)
        predictions = predicted()
    camera = None if conditions.moves is None else conditions.moves.camera
    travelled = None if camera is None else camera.travelled
    return dit.condition_on(conditions, predictions), replace(block, predictions=predictions, travelled=travelled)


@dataclass(frozen=True)
class Sampling:
    """What the sampler of a block starts from, and the noise levels that it passes through (`denoise_block`)."""

    noise: Tensor  # [B, C, K, h, w]
    sigmas: Tensor  # [n + 1], from 1 to 0
    exit_step: int | None = None  # of Self-Forcing: the step whose clean estimate is taken; None: the last one's


def denoise_block(
    dit: DiT | Denoiser,
    conditions: Conditions | DenoiserConditions,
    noise: Tensor,
    sigmas: Tensor,
    exit_step: int | None = None,
) -> Tensor:
    """Euler steps from white noise [B, C, K, h, w] along sigmas [n + 1]; returns clean latents.

    With `exit_step` (Self-Forcing) the steps before it run without gradient, and the clean estimate of that step is returned.
    """
    if exit_step is not None and not 0 <= exit_step < len(sigmas) - 1:
        raise ValueError(f"exit step {exit_step} is not one of the {len(sigmas) - 1} sampler steps")
    x = conditions.correlated(noise)
    prediction = dit.config.dit.output.prediction
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        level = torch.full((x.shape[0],), sigma, dtype=torch.float64, device=x.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and exit_step in (None, i)):
            output = dit(x, level, conditions)
            if i == exit_step:
                return flow.to_data(output, x, sigma, prediction)
            x = flow.euler_step(x, flow.to_velocity(output, x, sigma, prediction), sigma, sigma_next)
    return x


def generate_block(dit: DiT, conditions: Conditions, block: BlockContext, sampling: Sampling) -> Tensor:
    """Clean latents [B, C, K, h, w] of a block.

    A model's expert, if it has one, generates worlds that begin from a text. Where the text has just changed, what is coarse in
    view is the expert's, and all that is not in view: a text changes light, weather and what stands there, and details stay.
    """
    expert, told, settings = dit.expert, block.told, dit.config.dit.expert
    mean, visible = conditions.mean, conditions.visible
    if expert is None or settings is None or told is None or dit.flow is None or mean is None or visible is None:
        return denoise_block(dit, conditions, sampling.noise, sampling.sigmas, sampling.exit_step)
    past = block.worlds.history.present.any(dim=1)
    latents, changed = mean, past & (told.since < settings.blocks)
    if bool(past.any()):
        latents = denoise_block(dit, conditions, sampling.noise, sampling.sigmas, sampling.exit_step)
    # which worlds, in how many steps, and the size in pixels of what is coarse enough to be the expert's in view
    kinds = (~past, settings.start_steps, 0), (changed, settings.steps, settings.coarse_size)
    for chosen, steps, size in kinds:
        rows = chosen.nonzero()[:, 0]
        if not len(rows):
            continue
        seen = past[rows, None, None, None, None]
        read = expert.conditions(
            mean[rows] * seen,
            visible[rows] * seen,
            dit.flow.pictures(block.worlds.history.latents[rows, :, :1])[:, 0],
            block.context[rows, : dit.config.text.event_tokens],
            told.before[rows] * past[rows, None],
            torch.where(past[rows], told.since[rows], -1),
            guided=expert.guidance != 1,
        )
        # a picture that stands still has one noise for all of its frames
        noise = torch.where(seen, sampling.noise[rows], sampling.noise[rows, :, :1])
        made = denoise_block(expert, read, noise, flow.sigma_schedule(steps, settings.shift))
        if size:
            made = latents[rows] + dit.flow.coarser(made - latents[rows], visible[rows], size)
        latents = latents.index_copy(0, rows, made.to(latents.dtype))
    return latents


def append_and_decode(
    dit: DiT, vae: VideoVAE, block: BlockContext, latents: Tensor, streams: Sequence[torch.Generator]
) -> tuple[WorldBatch, Tensor]:
    """Worlds after a block of latents [B, C, K, h, w], and its pictures [B, 3, T, H, W] in -1..1.

    Latents enter the history as given: detach them first where gradients must not flow through time.
    """
    channel, worlds, new = dit.config.dit.history.channel, block.worlds, block.history(latents)
    history = dit.packing.append(worlds.history, new, streams)
    memory = worlds.memory
    if memory is not None and channel is not None:
        added = dit.encode_memory(new)
        assert added is not None
        memory = memory.add(added, channel.decay ** -(-new.frames // channel.patch[0]))
    with torch.no_grad():
        video, cache = vae.decode(latents.detach(), worlds.cache)
        states = []
        for prior, state, prediction in zip(dit.priors, worlds.priors, block.predictions, strict=True):
            after, video = prior.update(state, block, prediction, latents.detach(), video)
            states.append(after)
    return WorldBatch(
        history=history,
        memory=memory,
        yaw=block.motion.yaw[:, -1],
        pitch=block.motion.pitch[:, -1],
        frame=worlds.frame + new.frames,
        picture=video[:, :, -1],
        cache=cache,
        priors=tuple(states),
        told=block.told,
    ), video


def dream_block(
    dit: DiT,
    vae: VideoVAE,
    worlds: WorldBatch,
    actions: Sequence[Action],
    context: Tensor,
    pooled: Tensor,
    sampling: Sampling,
    streams: Sequence[torch.Generator],
) -> tuple[WorldBatch, Tensor, Tensor]:
    """One whole step: commanded motion, conditions, denoising, history. Returns worlds, latents and pictures."""
    motion = constrained_motion(dit, worlds, actions)
    conditions, block = encode_conditions(dit, vae, worlds, motion, context, pooled)
    latents = generate_block(dit, conditions, block, sampling)
    after, video = append_and_decode(dit, vae, block, latents.detach(), streams)
    return after, latents, video
