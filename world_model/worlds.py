"""Worlds between two blocks: all that a dream remembers, and how it begins.

Shapes: B worlds, C latent channels, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.album import Album
from world_model.config import Tiers
from world_model.dit import DiT
from world_model.tscm import ChannelMemory, History, still_history
from world_model.vae import DecoderCache, VideoVAE

NOT_HELD = -(2**62)  # frame index of padding in a batch of unequal histories


@dataclass(frozen=True)
class Worlds:
    """B worlds between two blocks, as tensors; immutable.

    yaw, pitch [B] float64 (commanded so far), frame [B] int64 (latent frames dreamt so far), picture [B, 3, H, W] in -1..1
    (the last one), cache of the streaming decoder, place [B, 2] float64 where they stand (world x, z; metres: in the town's
    coordinates if the model knows one, else from the start), doubt [B, 1, H, W] of the last picture (warp.py), told [B, text_dim]
    (sum of the tokens of the text last in force), course [B, 5] float64 of the event that it told of (events.py: x, z, heading, the
    frame before which it began, and whether its text may change light or weather), album of earlier pictures.
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
    course: Tensor
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
    yaw, pitch, frame, picture, place, doubt, told, course = (
        torch.cat([getattr(w, name) for w in worlds])
        for name in ("yaw", "pitch", "frame", "picture", "place", "doubt", "told", "course")
    )
    album = Album.join([w.album for w in worlds])
    return Worlds(history, memory, yaw, pitch, frame, picture, cache, place, doubt, told, course, album)


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
            worlds.place[part], worlds.doubt[part], worlds.told[part], worlds.course[part],
            worlds.album.row(i),
        )  # fmt: skip

    return [one(i) for i in range(worlds.yaw.shape[0])]


def _padded(history: History, missing: int) -> History:
    if not missing:
        return history
    front = (missing, 0)
    latents = F.pad(history.latents, (0, 0, 0, 0, *front))
    frame = F.pad(history.frame, front, value=NOT_HELD)
    return History(latents, frame, *(F.pad(row, front) for row in (history.yaw, history.pitch, history.present)))


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
        yaw.new_zeros(batch, 5),
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
        pictures.new_zeros(batch, config.text.dim), angle.new_zeros(batch, 5), album,
    )  # fmt: skip
