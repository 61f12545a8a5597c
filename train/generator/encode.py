"""Recordings into latents: what an autoencoder makes of all pictures of a recording, with its actions and texts, on one device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.evaluation.sheet import to_video
from train.generator.windows import EventTexts, LatentSet, StepTexts
from train.recordings import EpisodeFiles, RecordingError
from world_model import batch as batches
from world_model.config import ModelConfig
from world_model.text import Conditioning, mean_token
from world_model.vae import VideoVAE

CHUNK = 64  # steps of an episode that are encoded at a time


def check_fits(config: ModelConfig, files: EpisodeFiles) -> None:
    """Raises RecordingError where a model is of another picture size, block length or action space than a recording."""
    found = files.recording
    pairs = {
        "pictures": ((found.height, found.width), (config.height, config.width)),
        "pictures a step": (found.frames_per_step, config.frames_per_block),
        "actions": (found.action, config.action),
    }
    for name, (recorded, wanted) in pairs.items():
        if recorded != wanted:
            raise RecordingError(
                f"{name} of {files.folder} are {recorded}, the model {config.name!r} has {wanted}: record anew"
            )


@torch.no_grad()
def encode_episode(
    config: ModelConfig, vae: VideoVAE, frames: np.ndarray, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Latents [1 + n * K, C, h, w] of an episode of n steps; [n, C, h, w] of the picture before each step, standing still."""
    size, stride = config.frames_per_block, config.vae.temporal_stride
    pictures = torch.from_numpy(frames).to(device)
    later, before = pictures[1:], pictures[:-1:size]
    steps = len(later) // size
    chunks = [slice(begin, begin + CHUNK) for begin in range(0, steps, CHUNK)]
    videos = [to_video(later[chunk.start * size : chunk.stop * size])[None] for chunk in chunks]
    blocks = [vae.encode(video)[0].transpose(0, 1) for video in videos]
    still = [vae.encode(to_video(before[chunk, None]).expand(-1, -1, stride, -1, -1))[:, :, 0] for chunk in chunks]
    stills = torch.cat(still).half()
    return torch.cat([stills[:1], torch.cat(blocks).half()]), stills


def encode_recording(
    config: ModelConfig,
    vae: VideoVAE,
    files: EpisodeFiles,
    episodes: Sequence[int],
    conditioning: Conditioning,
    device: torch.device | str = "cpu",
) -> LatentSet:
    """A `LatentSet` of the given episodes. Raises RecordingError for a recording that does not fit `config`, or no episodes."""
    check_fits(config, files)
    if not len(episodes):
        raise RecordingError(f"no episodes of {files.folder} to train on: record more")
    latents, stills, angles, steps, texts = [], [], [], [], _Texts()
    captions = []
    for episode in episodes:
        rows, still = encode_episode(config, vae, files.frames(episode), device)
        latents.append(rows)
        stills.append(still)
        angles.append(_angles(config, files, episode))
        length = int(files.lengths[episode])
        steps.append(np.arange(files.starts[episode], files.starts[episode] + length))
        texts.add(files.text_at(episode, step) for step in range(length))
        captions.append(texts.row(files.captions[episode]))
    first, begin = _ends([len(rows) for rows in latents])[:-1], _ends([len(s) for s in steps])
    if config.vae.temporal_stride == 1:  # a latent is a frame: standing still looks like the frame
        still_rows = torch.cat([row + config.block_latents * torch.arange(len(s)) for row, s in zip(first, steps)])
    else:
        still_rows = sum(len(rows) for rows in latents) + torch.arange(int(begin[-1]))
        latents += stills
    every = np.concatenate(steps)
    actions = files.action[every]
    numbers, encoded, table = encode_actions(config, conditioning, actions)
    told = EventTexts(texts.encode(config, conditioning), torch.tensor(texts.rows), torch.tensor(captions))
    found = LatentSet(
        torch.cat(latents),
        torch.cat(angles),
        first,
        begin,
        still_rows,
        encoded,
        StepTexts(table, numbers),
        told,
        torch.from_numpy(files.reward[every]),
        torch.from_numpy(files.terminated[every]).float(),
        torch.zeros(len(every), config.block_latents, 3) if config.dit.camera else None,
    )
    return batches.move(found, device)


def encode_actions(
    config: ModelConfig, conditioning: Conditioning, actions: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Of actions [S, ...]: their row [S] in a table of caption tokens, their encoding [S, A], and the table."""
    if config.action.kind == "first_person":
        numbers = torch.from_numpy(actions.astype(np.int64))
        return numbers, mean_token(conditioning.actions)[numbers], conditioning.actions
    none = torch.zeros(len(actions), dtype=torch.int64)
    return none, torch.from_numpy(config.action.encode(actions)), torch.zeros(1, 0, config.text.dim)


class _Texts:
    """Texts of a recording, numbered; 0 is no text."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.rows: list[int] = []

    def row(self, text: str | None) -> int:
        return self.numbers.setdefault(text, len(self.numbers) + 1) if text else 0

    def add(self, texts) -> None:
        self.rows += [self.row(text) for text in texts]

    def encode(self, config: ModelConfig, conditioning: Conditioning) -> Tensor:
        nothing = torch.zeros(1, config.text.event_tokens, config.text.dim, dtype=torch.float16)
        if not config.dit.text_dim:
            return nothing.expand(len(self.numbers) + 1, -1, -1)
        return torch.cat([nothing, *(conditioning.event(text).half()[None] for text in self.numbers)])


def _angles(config: ModelConfig, files: EpisodeFiles, episode: int) -> Tensor:
    """[1 + n * K, 2] float32 yaw and pitch of each latent frame; zeros where the recording has none."""
    count = 1 + int(files.lengths[episode]) * config.block_latents
    if not {"yaw", "pitch"} <= set(files.extras):
        return torch.zeros(count, 2)
    stride = config.vae.temporal_stride
    pairs = np.stack([files.extra(name, episode)[::stride] for name in ("yaw", "pitch")], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(pairs, dtype=np.float32))


def _ends(counts: list[int]) -> Tensor:
    """[n + 1] int64: 0 and the running sums."""
    return torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
