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
from world_model.album import Album
from world_model.camera import commanded_motion
from world_model.conditions import Conditions, Target
from world_model.config import ModelConfig, Tiers
from world_model.dit import DiT
from world_model.threads import beside
from world_model.tscm import ChannelMemory, History, append_all, append_tiers, still_history
from world_model.vae import DecoderCache, VideoVAE
from world_model.warp import OUTDATED, Guide, guide_block

NOT_HELD = -(2**62)  # frame index of padding in a batch of unequal histories


@dataclass(frozen=True)
class Motion:
    """Commanded camera of one block. yaw, pitch [B, T] float64 radians, displacement [B, T, 2] float64 metres (world x, z)."""

    yaw: Tensor
    pitch: Tensor
    displacement: Tensor

    def to(self, device: torch.device | str) -> Motion:
        """The same on another device."""
        return Motion(self.yaw.to(device), self.pitch.to(device), self.displacement.to(device))


@dataclass(frozen=True)
class Worlds:
    """B worlds between two blocks, as tensors; immutable.

    yaw, pitch [B] float64 (commanded so far), frame [B] int64 (latent frames dreamt so far), picture [B, 3, H, W] in -1..1
    (the last one), cache of the streaming decoder, place [B, 2] float64 where they stand (world x, z; metres: in the town's
    coordinates if the model knows one, else from the start), doubt [B, 1, H, W] of the last picture (warp.py), told [B, text_dim]
    (sum of the tokens of the text last in force), album of earlier pictures.
    """

    history: History
    memory: ChannelMemory | None
    yaw: Tensor
    pitch: Tensor
    frame: Tensor
    picture: Tensor
    cache: DecoderCache
    place: Tensor
    doubt: Tensor
    told: Tensor
    album: Album


def join_worlds(worlds: Sequence[Worlds]) -> Worlds:
    """One batch of several; shorter histories (of models that hold all of theirs) are padded in front with `NOT_HELD` frames."""
    if len(worlds) == 1:
        return worlds[0]
    longest = max(w.history.frames for w in worlds)
    histories = [_padded(w.history, longest - w.history.frames) for w in worlds]
    rows = ("latents", "frame", "yaw", "pitch", "present")
    history = History(*(torch.cat([getattr(h, name) for h in histories]) for name in rows))
    memories = [w.memory for w in worlds if w.memory is not None]
    memory = (
        ChannelMemory(*(torch.cat([getattr(m, name) for m in memories], dim=1) for name in ("total", "norm")))
        if memories
        else None
    )
    cache = tuple(torch.cat(parts) for parts in zip(*(w.cache for w in worlds)))
    yaw, pitch, frame, picture, place, doubt, told = (
        torch.cat([getattr(w, name) for w in worlds])
        for name in ("yaw", "pitch", "frame", "picture", "place", "doubt", "told")
    )
    album = Album.join([w.album for w in worlds])
    return Worlds(history, memory, yaw, pitch, frame, picture, cache, place, doubt, told, album)


def split_worlds(worlds: Worlds) -> list[Worlds]:
    """The worlds of a batch, each a batch of one; the inverse of `join_worlds`."""

    def one(i: int) -> Worlds:
        part = slice(i, i + 1)
        h, m = worlds.history, worlds.memory
        held = slice(int((h.frame[i] == NOT_HELD).sum()), None)
        rows = (values[part, held] for values in (h.frame, h.yaw, h.pitch, h.present))
        history = History(h.latents[part, :, held], *rows)
        memory = ChannelMemory(m.total[:, part], m.norm[:, part]) if m is not None else None
        cache = tuple(c[part] for c in worlds.cache)
        return Worlds(
            history, memory, worlds.yaw[part], worlds.pitch[part], worlds.frame[part], worlds.picture[part], cache,
            worlds.place[part], worlds.doubt[part], worlds.told[part], worlds.album.row(i),
        )  # fmt: skip

    return [one(i) for i in range(worlds.yaw.shape[0])]


def _padded(history: History, missing: int) -> History:
    if not missing:
        return history
    front = (missing, 0)
    latents = F.pad(history.latents, (0, 0, 0, 0, *front))
    frame = F.pad(history.frame, front, value=NOT_HELD)
    return History(latents, frame, *(F.pad(row, front) for row in (history.yaw, history.pitch, history.present)))


def generator(*key: int | str) -> torch.Generator:
    """A CPU random stream that depends on `key` alone: the same wherever and in whatever batch it is used."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def block_noise(config: ModelConfig, seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Initial noise [B, C, K, h, w] of block number `steps[i]` in the world of seed `seeds[i]`."""
    shape = (config.dit.latent_channels, config.block_latents, *config.latent_size)
    noise = torch.stack([torch.randn(shape, generator=generator("noise", s, n)) for s, n in zip(seeds, steps)])
    return noise * config.sampler.temperature


@dataclass(frozen=True)
class Ahead:
    """A block about to be dreamt: its place in history, with empty latents still to be filled, its guide if there is one, the text
    in force (`Worlds.told`) and where that is another one than before (changed [B] bool)."""

    place: History
    guide: Guide | None
    told: Tensor
    changed: Tensor


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


def start_worlds(
    dit: DiT, vae: VideoVAE, pictures: Tensor, present: Tensor, yaw: Tensor | None = None, pitch: Tensor | None = None,
    place: Tensor | None = None,
) -> Worlds:  # fmt: skip
    """Worlds that stood still before a start picture [B, 3, H, W] in -1..1; present [B] bool is False for a text start.

    yaw, pitch [B] and place [B, 2] (world x, z; metres) float64: where the picture was taken, if that is known; else straight
    ahead from the origin.
    """
    config = dit.config
    batch, device = pictures.shape[0], pictures.device
    video = pictures[:, :, None].expand(-1, -1, config.start_latents * config.vae.temporal_stride, -1, -1)
    latents = vae.encode(video)
    zero = torch.zeros(batch, dtype=torch.float64, device=device)
    yaw, pitch = zero if yaw is None else yaw, zero if pitch is None else pitch
    place = zero[:, None].expand(-1, 2) if place is None else place
    packing = config.dit.packing
    length = 1 + packing.old[0] + packing.recent_frames if isinstance(packing, Tiers) else config.start_latents
    history = still_history(latents, length, yaw, pitch, present)
    memory = dit.remember(
        history.select(
            torch.arange(history.frames - config.start_latents, history.frames, device=device).repeat(batch, 1)
        )
    )
    with torch.no_grad():
        _, cache = vae.decode(latents)
    return Worlds(
        history, memory, yaw, pitch, torch.zeros(batch, dtype=torch.int64, device=device), pictures, cache, place,
        torch.zeros_like(pictures[:, :1]), pictures.new_zeros(batch, config.text.dim),
        Album.empty(batch, config.dit.guide_memory, config.height, config.width, device),
    )  # fmt: skip


def empty_worlds(dit: DiT, vae: VideoVAE, batch: int, device: torch.device) -> Worlds:
    """Worlds before anything was seen: the next block is dreamt from text alone.

    Released packing then holds no frame at all; tiers hold frames that are marked as absent.
    """
    config = dit.config
    pictures = torch.zeros(batch, 3, config.height, config.width, device=device)
    absent = torch.zeros(batch, dtype=torch.bool, device=device)
    if isinstance(config.dit.packing, Tiers):
        return start_worlds(dit, vae, pictures, absent)
    latents = torch.zeros(batch, config.dit.latent_channels, 0, *config.latent_size, device=device)
    row = torch.zeros(batch, 0, dtype=torch.float64, device=device)
    history = History(latents, row.long(), row, row, row.bool())
    memory = dit.no_memory(pictures) if config.dit.channel else None
    angle = torch.zeros(batch, dtype=torch.float64, device=device)
    album = Album.empty(batch, config.dit.guide_memory, config.height, config.width, device)
    return Worlds(
        history, memory, angle, angle, angle.long(), pictures, (), row.new_zeros(batch, 2), pictures[:, :1],
        pictures.new_zeros(batch, config.text.dim), album,
    )  # fmt: skip


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
    changed = (told != worlds.told).any(dim=-1) & (worlds.frame > 0)
    with beside(lambda: _guide(dit, vae, worlds, motion, changed), worlds.picture.device) as guided:
        history = worlds.history if worlds.history.frames else None
        conditions = dit.read(history, worlds.memory, context, target, pooled)
        known = None
        if dit.places is not None:
            shown = worlds.history.latents
            look = dit.places.looks(shown[:, :, 0], shown[:, :, -1], worlds.history.known, words)
            stand = worlds.place[:, None] + motion.displacement[:, last]
            known = dit.places(stand, target.yaw, target.pitch, look)
        guide = guided()
    latents, valid = (guide.latents, guide.valid) if guide is not None else (None, None)
    conditions = dit.show(conditions, latents, valid, known)
    place = History(
        worlds.history.latents[:, :, :0],
        target.frame,
        target.yaw,
        target.pitch,
        torch.ones_like(target.frame, dtype=torch.bool),
    )
    return conditions, Ahead(place, guide, told, changed)


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
    kept = worlds.album.without(ahead.changed)
    album = kept.add(worlds.picture, worlds.yaw, worlds.pitch, worlds.place, worlds.history.known & ~ahead.changed)
    after = Worlds(
        history, memory, motion.yaw[:, -1], motion.pitch[:, -1], worlds.frame + block.frames, video[:, :, -1], cache,
        worlds.place + motion.displacement[:, -1], doubt, ahead.told, album,
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
