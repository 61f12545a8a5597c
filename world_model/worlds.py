"""Worlds between two blocks: all that a dream remembers, and how it begins.

Shapes: B worlds, C latent channels, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model import batch
from world_model.conditions import Pose
from world_model.config import Tiers
from world_model.dit import DiT
from world_model.priors.base import State
from world_model.tscm import ChannelMemory, History, still_history
from world_model.vae import DecoderCache, VideoVAE

NOT_HELD = -(2**62)  # frame index of padding in a batch of unequal histories


@dataclass(frozen=True)
class Worlds:
    """B worlds between two blocks, as tensors; immutable.

    yaw, pitch [B] float64 (commanded so far), frame [B] int64 (latent frames dreamt so far), picture [B, 3, H, W] in -1..1
    (the last one), cache of the streaming decoder, and the states of the model's priors.
    """

    history: History
    memory: ChannelMemory | None
    yaw: Tensor
    pitch: Tensor
    frame: Tensor
    picture: Tensor
    cache: DecoderCache
    priors: tuple[State, ...]


def join_worlds(worlds: Sequence[Worlds]) -> Worlds:
    """One batch of several; shorter histories (of models that hold all of theirs) are padded in front with `NOT_HELD` frames."""
    if len(worlds) == 1:
        return worlds[0]
    longest = max(w.history.frames for w in worlds)
    return batch.join([replace(w, history=_padded(w.history, longest - w.history.frames)) for w in worlds])


def split_worlds(worlds: Worlds) -> list[Worlds]:
    """The worlds of a batch, each a batch of one; the inverse of `join_worlds`."""
    alone = [batch.rows(worlds, slice(i, i + 1)) for i in range(worlds.yaw.shape[0])]
    return [replace(world, history=_held(world.history)) for world in alone]


def _padded(history: History, missing: int) -> History:
    if not missing:
        return history
    front = (missing, 0)
    return History(
        latents=F.pad(history.latents, (0, 0, 0, 0, *front)),
        frame=F.pad(history.frame, front, value=NOT_HELD),
        yaw=F.pad(history.yaw, front),
        pitch=F.pad(history.pitch, front),
        present=F.pad(history.present, front),
    )


def _held(history: History) -> History:
    """Of one world, without padding."""
    held = slice(int((history.frame[0] == NOT_HELD).sum()), None)
    return History(
        latents=history.latents[:, :, held],
        frame=history.frame[:, held],
        yaw=history.yaw[:, held],
        pitch=history.pitch[:, held],
        present=history.present[:, held],
    )


def start_worlds(dit: DiT, vae: VideoVAE, pictures: Tensor, present: Tensor, pose: Pose | None = None) -> Worlds:
    """Worlds that stood still before a start picture [B, 3, H, W] in -1..1; present [B] bool is False for a text start.

    pose: where the picture was taken, if that is known; else straight ahead from the origin.
    """
    config = dit.config
    worlds, device = len(pictures), pictures.device
    pose = Pose.origin(worlds, device) if pose is None else pose
    video = pictures[:, :, None].expand(-1, -1, config.start_latents * config.vae.temporal_stride, -1, -1)
    latents = vae.encode(video)
    packing = config.dit.packing
    length = 1 + packing.old[0] + packing.recent_frames if isinstance(packing, Tiers) else config.start_latents
    history = still_history(latents, length, pose.yaw, pose.pitch, present)
    shown = torch.arange(history.frames - config.start_latents, history.frames, device=device)
    memory = dit.remember(history.select(shown.repeat(worlds, 1)))
    with torch.no_grad():
        _, cache = vae.decode(latents)
    return Worlds(
        history=history,
        memory=memory,
        yaw=pose.yaw,
        pitch=pose.pitch,
        frame=torch.zeros(worlds, dtype=torch.int64, device=device),
        picture=pictures,
        cache=cache,
        priors=tuple(prior.begin(pictures, pose) for prior in dit.priors),
    )


def without_past(worlds: Worlds) -> Worlds:
    """The same worlds before anything was seen, of models whose history grows: they hold no frame at all."""
    nothing = torch.zeros(worlds.yaw.shape[0], 0, dtype=torch.int64)
    memory = worlds.memory
    if memory is not None:
        memory = ChannelMemory(torch.zeros_like(memory.total), torch.zeros_like(memory.norm))
    return replace(worlds, history=worlds.history.select(nothing), memory=memory, cache=())


def empty_worlds(dit: DiT, vae: VideoVAE, worlds: int, device: torch.device, pose: Pose | None = None) -> Worlds:
    """Worlds before anything was seen, at `pose` or the origin: the next block is dreamt from text alone.

    Released packing then holds no frame at all; tiers hold frames that are marked as absent.
    """
    config = dit.config
    pictures = torch.zeros(worlds, 3, config.height, config.width, device=device)
    pose = Pose.origin(worlds, device) if pose is None else pose
    if isinstance(config.dit.packing, Tiers):
        nothing = start_worlds(dit, vae, pictures, torch.zeros(worlds, dtype=torch.bool, device=device))
        states = tuple(prior.begin(pictures, pose) for prior in dit.priors)
        return replace(nothing, yaw=pose.yaw, pitch=pose.pitch, priors=states)
    row = torch.zeros(worlds, 0, dtype=torch.float64, device=device)
    latents = torch.zeros(worlds, config.dit.latent_channels, 0, *config.latent_size, device=device)
    return Worlds(
        history=History(latents=latents, frame=row.long(), yaw=row, pitch=row, present=row.bool()),
        memory=dit.no_memory(pictures) if config.dit.channel else None,
        yaw=pose.yaw,
        pitch=pose.pitch,
        frame=torch.zeros(worlds, dtype=torch.int64, device=device),
        picture=pictures,
        cache=(),
        priors=tuple(prior.begin(pictures, pose) for prior in dit.priors),
    )
