"""Worlds between two blocks (`memory.WorldBatch`): how they begin, and how several are one batch.

Shapes: B worlds, C latent channels, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model import batch
from world_model.conditions import Pose
from world_model.dit import DiT
from world_model.memory import Told, WorldBatch
from world_model.tscm import ChannelMemory, History, static_history
from world_model.vae import VideoVAE

PADDING_FRAME = -(2**62)  # frame index of padding in a batch of unequal histories


def collate_worlds(worlds: Sequence[WorldBatch]) -> WorldBatch:
    """One batch of several; shorter histories (of growing packings) are padded in front with frames `PADDING_FRAME`."""
    if len(worlds) == 1:
        return worlds[0]
    return batch.collate(_padded_alike(worlds))


def split_worlds(worlds: WorldBatch) -> list[WorldBatch]:
    """The worlds of a batch, each a batch of one; the inverse of `collate_worlds`."""
    return [select_worlds(worlds, [i]) for i in range(worlds.yaw.shape[0])]


def select_worlds(worlds: WorldBatch, numbers: Sequence[int], copy: bool = False) -> WorldBatch:
    """The worlds of these numbers, in this order, without padding that none of them needs.

    Neighbours are views of the batch's tensors unless a `copy` is wanted. Raises IndexError for a number out of range.
    """
    count = worlds.yaw.shape[0]
    if any(not 0 <= number < count for number in numbers):
        raise IndexError(f"worlds are numbered 0 to {count - 1}, got {list(numbers)}")
    if copy or list(numbers) != list(range(numbers[0], numbers[0] + len(numbers))):
        taken = batch.rows(worlds, torch.tensor(numbers, device=worlds.yaw.device))
    else:
        taken = worlds if len(numbers) == count else batch.rows(worlds, slice(numbers[0], numbers[0] + len(numbers)))
    return replace(taken, history=_unpadded(taken.history))


def replace_worlds(worlds: WorldBatch, numbers: Sequence[int], others: WorldBatch) -> WorldBatch:
    """A batch with `others` in place of its worlds of these numbers; the old one stays as it is."""
    padded, new = _padded_alike([worlds, others])
    return batch.replace_rows(padded, torch.tensor(numbers), new)


def batches(worlds: WorldBatch, size: int) -> list[list[int]]:
    """Numbers of all worlds, in batches of at most `size` that can go through the network together.

    Worlds of a model that holds all of its history go together only if they hold equally much. Raises ValueError for no size.
    """
    if size < 1:
        raise ValueError(f"a batch has 1 world or more, got {size}")
    held = (worlds.history.frame != PADDING_FRAME).sum(dim=1).tolist()
    alike: dict[int, list[int]] = {}
    for number, frames in enumerate(held):
        alike.setdefault(frames, []).append(number)
    return [numbers[i : i + size] for numbers in alike.values() for i in range(0, len(numbers), size)]


def _padded_alike(worlds: Sequence[WorldBatch]) -> list[WorldBatch]:
    longest = max(w.history.frames for w in worlds)
    return [replace(w, history=_padded(w.history, longest - w.history.frames)) for w in worlds]


def _padded(history: History, missing: int) -> History:
    if not missing:
        return history
    front = (missing, 0)
    return History(
        latents=F.pad(history.latents, (0, 0, 0, 0, *front)),
        frame=F.pad(history.frame, front, value=PADDING_FRAME),
        yaw=F.pad(history.yaw, front),
        pitch=F.pad(history.pitch, front),
        present=F.pad(history.present, front),
        position=None if history.position is None else F.pad(history.position, (0, 0, *front)),
    )


def _unpadded(history: History) -> History:
    """Without the padding that all worlds have."""
    missing = int((history.frame == PADDING_FRAME).sum(dim=1).min())
    if not missing:
        return history
    held = slice(missing, None)
    return History(
        latents=history.latents[:, :, held],
        frame=history.frame[:, held],
        yaw=history.yaw[:, held],
        pitch=history.pitch[:, held],
        present=history.present[:, held],
        position=None if history.position is None else history.position[:, held],
    )


def start_worlds(dit: DiT, vae: VideoVAE, pictures: Tensor, present: Tensor, pose: Pose | None = None) -> WorldBatch:
    """Worlds that stood still before a start picture [B, 3, H, W] in -1..1; present [B] bool is False for a text start.

    pose: where the picture was taken, if that is known; else straight ahead from the origin.
    """
    config = dit.config
    worlds, device = len(pictures), pictures.device
    pose = Pose.origin(worlds, device) if pose is None else pose
    video = pictures[:, :, None].expand(-1, -1, config.start_latents * config.vae.temporal_stride, -1, -1)
    latents = vae.encode(video)
    history = static_history(latents, dit.packing.held(config.start_latents), pose.yaw, pose.pitch, present)
    if dit.packing.placed:
        history = replace(history, position=pose.position[:, None].expand(-1, history.frames, -1))
    elif config.dit.camera:  # ways are counted from where a world begins
        history = replace(history, position=history.yaw.new_zeros(worlds, history.frames, 3))
    shown = torch.arange(history.frames - config.start_latents, history.frames, device=device)
    memory = dit.encode_memory(history.select(shown.repeat(worlds, 1)))
    with torch.no_grad():
        _, cache = vae.decode(latents)
    return WorldBatch(
        history=history,
        memory=memory,
        yaw=pose.yaw,
        pitch=pose.pitch,
        frame=torch.zeros(worlds, dtype=torch.int64, device=device),
        picture=pictures,
        cache=cache,
        priors=tuple(prior.initial_state(pictures, pose) for prior in dit.priors),
        told=None if dit.expert is None else Told.always(latents.new_zeros(worlds, config.dit.text_dim)),
    )


def without_history(worlds: WorldBatch) -> WorldBatch:
    """The same worlds before anything was seen, of models whose history grows: they hold no frame at all."""
    nothing = torch.zeros(worlds.yaw.shape[0], 0, dtype=torch.int64)
    memory = worlds.memory
    if memory is not None:
        memory = ChannelMemory(torch.zeros_like(memory.total), torch.zeros_like(memory.norm))
    return replace(worlds, history=worlds.history.select(nothing), memory=memory, cache=())


def empty_worlds(dit: DiT, vae: VideoVAE, worlds: int, device: torch.device, pose: Pose | None = None) -> WorldBatch:
    """Worlds before anything was seen, at `pose` or the origin: the next block is dreamt from text alone.

    A packing that grows then holds no frame at all, one of constant size frames that are marked as absent.
    """
    config = dit.config
    pictures = torch.zeros(worlds, 3, config.height, config.width, device=device)
    pose = Pose.origin(worlds, device) if pose is None else pose
    if dit.packing.constant:
        nothing = start_worlds(dit, vae, pictures, torch.zeros(worlds, dtype=torch.bool, device=device))
        states = tuple(prior.initial_state(pictures, pose) for prior in dit.priors)
        return replace(nothing, yaw=pose.yaw, pitch=pose.pitch, priors=states)
    row = torch.zeros(worlds, 0, dtype=torch.float64, device=device)
    latents = torch.zeros(worlds, config.dit.latent_channels, 0, *config.latent_size, device=device)
    return WorldBatch(
        history=History(
            latents, row.long(), row, row, row.bool(), row[..., None].expand(-1, -1, 2) if dit.packing.placed else None
        ),
        memory=dit.empty_memory(pictures) if config.dit.history.channel else None,
        yaw=pose.yaw,
        pitch=pose.pitch,
        frame=torch.zeros(worlds, dtype=torch.int64, device=device),
        picture=pictures,
        cache=(),
        priors=tuple(prior.initial_state(pictures, pose) for prior in dit.priors),
    )
