"""Rollouts to be measured: where they start, the recorded actions that they follow, and the model that generates them.

A batch of worlds goes through the environment's own path (`world_model.rollout.dream_block`).

Legend: P worlds, S steps, T pictures and K latent frames a step, C channels, H x W pixels, h x w latent size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from train.evaluation.sheet import to_pictures, to_video
from train.generator.encode import check_fits
from train.recordings import EpisodeFiles, RecordingError, open_episodes
from world_model import flow
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.text import Conditioning
from world_model.vae import VideoVAE
from world_model.worlds import start_worlds

RECORDING = "recording.json"
HELD_OUT = 0.1  # share of episodes that nothing is trained on, at least one


# ---- what is rolled out -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The recording that a model was trained on, and which of its episodes it was not."""

    files: EpisodeFiles
    held_out: tuple[int, ...]
    train: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> Split:
        """What the `recording.json` of a run's folder names: {"data": path, "held_out": [..], "train": [..]}.

        Raises RecordingError where it is damaged, or names episodes that the data has not.
        """
        path = folder / RECORDING
        try:
            found = json.loads(path.read_text())
            data, held_out, train = found["data"], tuple(map(int, found["held_out"])), tuple(map(int, found["train"]))
        except (ValueError, TypeError, KeyError) as error:
            raise RecordingError(
                f"{path} is damaged ({type(error).__name__}: {error}): train the world again"
            ) from error
        files = open_episodes(data)
        if not held_out or not train or set(held_out) & set(train) or max(held_out + train) >= len(files):
            raise RecordingError(
                f"{path} must name held-out and training episodes, at least one each, none both, of the {len(files)} in {data}; "
                f"got held out {held_out}, train {len(train)} up to {max(train, default=-1)}"
            )
        return cls(files, held_out, train)


def split_episodes(files: EpisodeFiles) -> tuple[list[int], list[int]]:
    """Numbers of the held-out episodes (every tenth, at least one) and of those to train on.

    Raises RecordingError for fewer than two episodes.
    """
    if len(files) < 2:
        raise RecordingError(f"{files.folder} holds {len(files)} episode: record two or more, one is held out")
    every = max(2, round(1 / HELD_OUT))
    held_out = [e for e in range(len(files)) if e % every == every - 1] or [len(files) - 1]
    return held_out, [e for e in range(len(files)) if e not in set(held_out)]


@dataclass(frozen=True)
class Trial:
    """P worlds: their start pictures, the actions they follow, and what was recorded where they do.

    pictures uint8 [P, 1 + S * T, H, W, 3], the start picture first; only [P, 1, H, W, 3] where nothing was recorded. alive [P, S]
    bool: whether the recording goes on for so long; after that pictures stand still and actions are neutral. actions
    [P, S, *shape]. texts: the text in force in each world and step, or None. reward [P, S] and terminated [P, S]: as recorded, 0
    after the end.
    """

    episode: np.ndarray
    step: np.ndarray
    pictures: np.ndarray
    alive: np.ndarray
    actions: np.ndarray
    texts: tuple[tuple[str | None, ...], ...]
    reward: np.ndarray
    terminated: np.ndarray
    seeds: tuple[int, ...]

    @property
    def steps(self) -> int:
        return self.actions.shape[1]


def neutral_action(spec: ActionSpec) -> np.ndarray:
    """`spec.noop` as a recording holds it."""
    return np.asarray(spec.noop.index if spec.kind == "first_person" else spec.noop, spec.dtype)


def draw_starts(files: EpisodeFiles, episodes: Sequence[int], count: int, horizon: int, seed: int) -> np.ndarray:
    """[count, 2] (episode, step), all different and uniform over the places that have `horizon` recorded steps before them.

    Of episodes too short for that, the first half. Fewer rows where there are fewer places.
    """
    places = [
        (episode, step)
        for episode in episodes
        for step in range(max(int(files.lengths[episode]) - horizon + 1, (int(files.lengths[episode]) + 1) // 2))
    ]
    drawn = np.random.default_rng((seed, 0)).permutation(len(places))[:count]
    return np.array([places[number] for number in drawn])


def recorded_trial(files: EpisodeFiles, starts: np.ndarray, steps: int, seeds: Sequence[int]) -> Trial:
    """The worlds of `starts` [P, 2] along what was recorded there."""
    size, spec = files.recording.frames_per_step, files.recording.action
    shape = (len(starts), steps)
    actions = np.broadcast_to(neutral_action(spec), (*shape, *spec.shape)).copy()
    reward, terminated, alive = np.zeros(shape, np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
    pictures, texts = [], []
    for row, (episode, step) in enumerate(starts.tolist()):
        count = min(steps, int(files.lengths[episode]) - step)
        span = slice(files.starts[episode] + step, files.starts[episode] + step + count)
        actions[row, :count], reward[row, :count] = files.action[span], files.reward[span]
        terminated[row, :count], alive[row, :count] = files.terminated[span], True
        shown = files.frames(episode, step * size, (step + count) * size + 1)
        pictures.append(np.concatenate([shown, np.repeat(shown[-1:], (steps - count) * size, axis=0)]))
        texts.append(tuple(files.text_at(episode, min(step + s, step + count - 1)) for s in range(steps)))
    return Trial(
        starts[:, 0], starts[:, 1], np.stack(pictures), alive, actions, tuple(texts), reward, terminated, tuple(seeds)
    )


def long_trial(split: Split, worlds: int, first: int, steps: int, seed: int) -> Trial:
    """Worlds number `first` and on, from pictures of held-out episodes' resets, under `steps` actions as recorded in training:
    a whole episode's, then those of others from random places to their ends. No text is told."""
    files, spec = split.files, split.files.recording.action
    actions: np.ndarray = np.empty((worlds, steps, *spec.shape), spec.dtype)
    for row in range(worlds):
        rng, done = np.random.default_rng((seed, 1, first + row)), 0
        while done < steps:
            episode = int(rng.choice(split.train))
            step = int(rng.integers(files.lengths[episode])) if done else 0
            taken = files.action[files.starts[episode] + step : files.starts[episode] + files.lengths[episode]]
            actions[row, done : done + len(taken)] = taken[: steps - done]
            done += len(taken)
    episodes = np.array([split.held_out[(first + row) % len(split.held_out)] for row in range(worlds)])
    pictures = np.stack([files.frames(e, 0, 1) for e in episodes.tolist()])
    nothing, shape = np.zeros(worlds, np.int64), (worlds, steps)
    texts = ((None,) * steps,) * worlds
    seeds = tuple(seed * 1009 + first + row for row in range(worlds))
    no, unrewarded = np.zeros(shape, bool), np.zeros(shape, np.float32)
    return Trial(episodes, nothing, pictures, no, actions, texts, unrewarded, no, seeds)


# ---- what rolls it out ------------------------------------------------------------------------------------------------


class World(Protocol):
    """What is measured."""

    config: ModelConfig

    def rollout(self, trial: Trial) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Step by step from the start pictures: pictures uint8 [P, T, H, W, 3] and latents [P, C, K, h, w]."""
        ...

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Latents [P, C, 1 + S * K, h, w] of videos uint8 [P, 1 + S * T, H, W, 3]; the first picture stands still."""
        ...

    def through(self, pictures: np.ndarray) -> np.ndarray:
        """What the autoencoder makes of videos uint8 [P, 1 + S * T, H, W, 3], without the first picture."""
        ...


class RecordedWorld:
    """The model in a folder of weights, as a `World`."""

    def __init__(self, config: ModelConfig, dit: DiT, vae: VideoVAE, conditioning: Conditioning) -> None:
        self.config, self.vae, self.conditioning = config, vae, conditioning
        self.dit = dit.eval().requires_grad_(False)
        self.device = next(dit.parameters()).device

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> RecordedWorld:
        """The model of a run's folder. Raises FileNotFoundError or ValueError for missing or damaged weights."""
        model = WorldModel.load(folder, device=str(device), dtype="float32")
        return cls(model.config, model.dit, model.vae, model.conditioning)

    @torch.no_grad()
    def rollout(self, trial: Trial) -> Iterator[tuple[np.ndarray, Tensor]]:
        pictures = to_video(trial.pictures[:, :1])[:, :, 0].to(self.device)
        present = torch.ones(len(pictures), dtype=torch.bool, device=self.device)
        worlds = start_worlds(self.dit, self.vae, pictures, present)
        sigmas = flow.schedule_of(self.config.sampler)
        for number in range(trial.steps):
            actions = [self.config.action.check(action) for action in trial.actions[:, number]]
            words = self.conditioning.context(actions, [texts[number] for texts in trial.texts])
            context, pooled = (w.to(self.device) for w in words)
            noise = block_noise(self.config, trial.seeds, [number] * len(actions)).to(self.device)
            streams = [generator("old frames", seed, number) for seed in trial.seeds]
            worlds, latents, video = dream_block(
                self.dit, self.vae, worlds, actions, context, pooled, Sampling(noise, sigmas), streams
            )
            yield to_pictures(video), latents

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> Tensor:
        return torch.cat([self.vae.encode(self._standing(v))[:, :, self.config.start_latents - 1 :] for v in pictures])

    @torch.no_grad()
    def through(self, pictures: np.ndarray) -> np.ndarray:
        skipped = self.config.start_latents * self.config.vae.temporal_stride
        return np.concatenate(
            [to_pictures(self.vae.decode(self.vae.encode(self._standing(v)))[0][:, :, skipped:]) for v in pictures]
        )

    def _standing(self, video: np.ndarray) -> Tensor:
        """[1, 3, ., H, W] of one video [n, H, W, 3]: its first picture as long as a world stands before it at its start."""
        still = self.config.start_latents * self.config.vae.temporal_stride
        return to_video(np.concatenate([np.repeat(video[:1], still - 1, axis=0), video])).to(self.device)[None]


def fits(world: World, split: Split) -> None:
    """Raises RecordingError where a model is of other pictures or actions than the recording."""
    check_fits(world.config, split.files)
