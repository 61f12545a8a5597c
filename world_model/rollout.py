"""Dreaming one block, and block after block: the ONLY denoising loop. The environment, distillation and evaluation run it.

Shapes: B worlds, C latent channels, K latent frames of a block, T pictures of a block, h x w latent size, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model import flow
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.conditions import Conditions, Target
from world_model.config import ModelConfig, Tiers
from world_model.dit import DiT
from world_model.events import NOTHING
from world_model.threads import beside
from world_model.tscm import History, append_all, append_tiers
from world_model.vae import VideoVAE
from world_model.warp import OUTDATED, USELESS, Guide, guide_block
from world_model.worlds import Worlds

COVERED, MARGIN = (
    0.05,
    4,
)  # share of a pixel beyond which a picture is not looked up there, nor so many pixels around it


@dataclass(frozen=True)
class Motion:
    """Commanded camera of one block. yaw, pitch [B, T] float64 radians, displacement [B, T, 2] float64 metres (world x, z)."""

    yaw: Tensor
    pitch: Tensor
    displacement: Tensor

    def to(self, device: torch.device | str) -> Motion:
        """The same on another device."""
        return Motion(self.yaw.to(device), self.pitch.to(device), self.displacement.to(device))


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


@dataclass(frozen=True)
class Ahead:
    """A block about to be dreamt: its place in history, with empty latents still to be filled, its guide if there is one, the text
    in force (`Worlds.told`) and where that changes light or weather (changed [B] bool), the course of its event, and where the
    last picture shows what that brings (covered [B, 1, H, W], or None)."""

    place: History
    guide: Guide | None
    told: Tensor
    changed: Tensor
    course: Tensor
    covered: Tensor | None


def motion_of(config: ModelConfig, actions: Sequence[Action], yaw: Tensor, pitch: Tensor) -> Motion:
    """The commanded motion of a block for each world's action."""
    parts = [
        commanded_motion(action, float(y), float(p), config.frames_per_block, config.fps, config.camera)
        for action, y, p in zip(actions, yaw, pitch)
    ]
    return Motion(*(torch.stack([torch.from_numpy(part[i]) for part in parts]).to(yaw.device) for i in range(3)))


def commanded(dit: DiT, worlds: Worlds, actions: Sequence[Action]) -> Motion:
    """`motion_of` worlds; in a town that the model knows, as far as one can walk there."""
    motion = motion_of(dit.config, actions, worlds.yaw, worlds.pitch)
    if dit.places is None:
        return motion
    return replace(motion, displacement=dit.places.walk(worlds.place, motion.displacement))


def prepare_block(
    dit: DiT, vae: VideoVAE, worlds: Worlds, motion: Motion, context: Tensor, pooled: Tensor
) -> tuple[Conditions, Ahead]:
    """Conditions of the next block, and what `advance` needs of it."""
    config = dit.config
    last = slice(config.vae.temporal_stride - 1, None, config.vae.temporal_stride)
    target = Target(
        motion.yaw[:, last],
        motion.pitch[:, last],
        worlds.frame[:, None] + torch.arange(config.block_latents, device=worlds.frame.device),
    )
    words = context[:, : config.text.event_tokens]
    told = words.float().sum(dim=1)
    new = (told != worlds.told).any(dim=-1)
    course, kind, quiet = worlds.course, None, (told == 0).all(dim=-1)
    if dit.events is not None and dit.places is not None:
        kind = dit.events.read(words).masked_fill(~worlds.history.known, NOTHING)  # a first text describes, nothing happens
        words = dit.events.heard(words, kind)
        context = torch.cat([words, context[:, config.text.event_tokens :]], dim=1)
        things = dit.events.things(kind)
        if _some(new & things):
            begun = torch.cat(
                [dit.events.begin(kind, dit.places, worlds.place, worlds.yaw), worlds.frame[:, None]], dim=1
            )
            course = torch.cat([torch.where((new & things)[:, None], begun, course[:, :4]), course[:, 4:]], dim=1)
        quiet = quiet | things
    changed = new & (worlds.frame > 0) & ~(quiet & (course[:, 4] == 0))
    course = torch.cat([course[:, :4], (~quiet)[:, None].double()], dim=1)
    with beside(lambda: _guide(dit, vae, worlds, motion, changed), worlds.picture.device) as guided:
        history = worlds.history if worlds.history.frames else None
        conditions = dit.read(history, worlds.memory, context, target, pooled)
        known, thing = None, None
        if dit.places is not None:
            shown = worlds.history.latents
            look = dit.places.looks(shown[:, :, 0], shown[:, :, -1], worlds.history.known, words)
            stand = worlds.place[:, None] + motion.displacement[:, last]
            rays = dit.places.rays(stand, target.yaw, target.pitch)
            known = dit.places.painted(rays, look)
            if dit.events is not None and kind is not None and _some(things):
                age = target.frame - course[:, 3:4].long()
                away = dit.places.clear_sight(stand, target.yaw, target.pitch)
                thing = dit.events(kind, stand, target.yaw, target.pitch, away, course[:, :3], age, known)
        guide = guided()
    sure = None
    if thing is not None and dit.events is not None and known is not None and guide is not None:
        known, _ = dit.events.over(vae, known, *thing)
        guide = guide.with_things(vae, *dit.events.over(vae, guide.latents, *thing), thing[1])
        sure = F.avg_pool3d(thing[1], (1, dit.events.patch, dit.events.patch))
    latents, valid = (guide.latents, guide.valid) if guide is not None else (None, None)
    conditions = dit.show(conditions, latents, valid, known, sure)
    place = History(
        worlds.history.latents[:, :, :0],
        target.frame,
        target.yaw,
        target.pitch,
        torch.ones_like(target.frame, dtype=torch.bool),
    )
    return conditions, Ahead(place, guide, told, changed, course, None if thing is None else thing[1][:, :, -1])


def _some(flags: Tensor) -> bool:
    return flags.is_meta or bool(flags.any())  # plans count the dearer case


def _guide(dit: DiT, vae: VideoVAE, worlds: Worlds, motion: Motion, changed: Tensor) -> Guide | None:
    """The guide of the next block, for models that have one; the text in force has `changed` [B] bool."""
    if dit.depth is None:
        return None
    there = worlds.place + motion.displacement[:, -1]
    recalled = worlds.album.recall(motion.yaw[:, -1], motion.pitch[:, -1], there, worlds.place)
    if recalled is not None:  # pictures from before the text changed show another light
        recalled = replace(recalled, present=recalled.present & ~changed)
    trust = worlds.history.known * torch.where(changed, OUTDATED, 1.0)
    return guide_block(
        dit.depth, vae, worlds.picture, worlds.yaw, worlds.pitch, motion.yaw, motion.pitch, motion.displacement,
        recalled, worlds.cache, worlds.doubt if dit.places is not None else None, trust,
    )  # fmt: skip


def denoise_block(
    dit: DiT, conditions: Conditions, noise: Tensor, sigmas: Tensor, exit_step: int | None = None
) -> Tensor:
    """Euler steps from noise [B, C, K, h, w] along sigmas [n + 1]; returns clean latents.

    With `exit_step` (Self-Forcing) the steps before it run without gradient, and the clean estimate of that step is returned.
    """
    if exit_step is not None and not 0 <= exit_step < len(sigmas) - 1:
        raise ValueError(f"exit step {exit_step} is not one of the {len(sigmas) - 1} sampler steps")
    x = noise
    prediction = dit.config.dit.prediction
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        level = torch.full((x.shape[0],), sigma, dtype=torch.float64, device=x.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and exit_step in (None, i)):
            output = dit(x, level, conditions)
            if i == exit_step:
                return flow.to_data(output, x, sigma, prediction)
            x = flow.euler_step(x, flow.to_velocity(output, x, sigma, prediction), sigma, sigma_next)
    return x


def advance(
    dit: DiT,
    vae: VideoVAE,
    worlds: Worlds,
    motion: Motion,
    ahead: Ahead,
    latents: Tensor,
    draws: Sequence[torch.Generator],
) -> tuple[Worlds, Tensor]:
    """Worlds after a block of latents [B, C, K, h, w], and its pictures [B, 3, T, H, W] in -1..1.

    Latents enter the history as given: detach them first where gradients must not flow through time.
    """
    config = dit.config
    block = replace(ahead.place, latents=latents)
    packing = config.dit.packing
    if isinstance(packing, Tiers):
        history = append_tiers(worlds.history, block, packing, draws)
    else:
        history = append_all(worlds.history, block, config.dit.max_age - config.block_latents)
    memory = worlds.memory
    if memory is not None and config.dit.channel is not None:
        new = dit.remember(block)
        assert new is not None
        kernels = -(-block.frames // config.dit.channel.patch[0])
        memory = memory.add(new, config.dit.channel.decay**kernels)
    with torch.no_grad():
        video, cache = vae.decode(latents.detach(), worlds.cache)
        if ahead.guide is not None:
            video = ahead.guide.restored(video, latents.detach())
    doubt = ahead.guide.doubt if ahead.guide is not None else worlds.doubt
    clear = worlds.history.known & ~ahead.changed & (worlds.doubt < USELESS).flatten(1).all(dim=1)
    if ahead.covered is not None:  # what moves by itself is not to be looked up where it was
        hidden = F.max_pool2d(ahead.covered, 2 * MARGIN + 1, 1, MARGIN) > COVERED
        doubt = torch.where(hidden, USELESS, doubt)
    kept = worlds.album.without(ahead.changed)
    album = kept.add(worlds.picture, worlds.yaw, worlds.pitch, worlds.place, clear)
    after = Worlds(
        history, memory, motion.yaw[:, -1], motion.pitch[:, -1], worlds.frame + block.frames, video[:, :, -1], cache,
        worlds.place + motion.displacement[:, -1], doubt, ahead.told, ahead.course, album,
    )  # fmt: skip
    return after, video


def dream_block(
    dit: DiT, vae: VideoVAE, worlds: Worlds, actions: Sequence[Action], context: Tensor, pooled: Tensor, noise: Tensor,
    sigmas: Tensor, draws: Sequence[torch.Generator], exit_step: int | None = None,
) -> tuple[Worlds, Tensor, Tensor]:  # fmt: skip
    """One whole step: commanded motion, conditions, denoising, history. Returns worlds, latents and pictures."""
    motion = commanded(dit, worlds, actions)
    conditions, ahead = prepare_block(dit, vae, worlds, motion, context, pooled)
    latents = denoise_block(dit, conditions, noise, sigmas, exit_step)
    after, video = advance(dit, vae, worlds, motion, ahead, latents.detach(), draws)
    return after, latents, video
