"""Figures of rollouts along recorded episodes of the street: fidelity, sharpness, control, distance to the street, cost.

Legend: P worlds, S blocks, T pictures of a block, N blocks of all worlds, H x W pixels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from train.evaluation.endurance import DIMENSIONS
from train.evaluation.sheet import to_video
from train.generator.encode import check_fits
from train.generator.measures import FeatureSpace, psnr, sharpness
from train.generator.rollouts import RecordedWorld, Trial, recorded_trial
from train.judge.network import Judge
from train.recordings import EpisodeFiles, RecordingError
from world_model.dit import DiT
from world_model.text import Conditioning
from world_model.vae import VideoVAE
from world_model.worlds import start_worlds

Span = tuple[int, int]  # blocks of a rollout, from the first to the one before the second
HORIZONS: dict[str, Span] = {"1": (0, 1), "2-4": (1, 4), "5-12": (4, 12), "13-20": (12, 20)}
TOGETHER = "1-20"  # all 10 s
FEATURES = 128  # of a block, that the judge gives
MINUTE = "101-120"  # the last 10 s of a minute


@dataclass(frozen=True)
class Plan:
    """How much is rolled out."""

    worlds: int = 16  # one an episode
    long_worlds: int = 8  # of those episodes that are long enough
    blocks: int = 20  # 10 s
    long_blocks: int = 120  # 60 s
    batch: int = 8  # worlds at a time
    timed: int = 9  # blocks; the first is not counted

    def spans(self, blocks: int) -> dict[str, Span]:
        """The spans that are measured of rollouts of so many blocks."""
        if blocks > self.blocks:
            return {MINUTE: (blocks - self.blocks, blocks)}
        reached = {name: (first, min(stop, blocks)) for name, (first, stop) in HORIZONS.items() if first < blocks}
        return {**reached, TOGETHER: (0, blocks)}


@dataclass(frozen=True)
class Seen:
    """Blocks of P worlds: pictures uint8 [P, 1 + S * T, H, W, 3], sharpness [P, S], what the judge says."""

    pictures: np.ndarray
    sharpness: np.ndarray
    named: np.ndarray  # [P, S] bool: whether the action that was taken
    features: np.ndarray  # [P, S, 128]


@dataclass
class StreetMeasurement:
    """What networks of one model are measured on: recorded episodes, in towns that nothing was trained on.

    The street is read once. Raises RecordingError where no episode is long enough, or pictures and actions are not the model's.
    """

    vae: VideoVAE
    conditioning: Conditioning
    files: EpisodeFiles
    judge: Judge
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        plan, lengths = self.plan, self.files.lengths
        count = {plan.blocks: plan.worlds, plan.long_blocks: plan.long_worlds}
        rows = {n: np.flatnonzero(lengths >= n)[: count[n]] for n in (plan.blocks, plan.long_blocks)}
        if not len(rows[plan.blocks]):
            raise RecordingError(
                f"{self.files.folder} has no episode of {plan.blocks} steps, the longest has {lengths.max()}: record longer ones"
            )
        self.trials: dict[int, list[Trial]] = {n: self._trials(found, n) for n, found in rows.items() if len(found)}
        self.street = {n: [self._see(t, t.pictures) for t in trials] for n, trials in self.trials.items()}
        self.rest = {n: self._rest(found, n) for n, found in rows.items() if len(found)}
        if len(self.rest[plan.blocks]) < 3:
            raise RecordingError(
                f"{self.files.folder} has hardly a step after the {plan.blocks} that are rolled out, to which distances are taken: "
                "record longer episodes"
            )

    def figures(self, dit: DiT) -> dict[str, float]:
        """All figures of a network; NaN for spans that no rollout reaches, and for distances of fewer than three blocks."""
        check_fits(dit.config, self.files)
        world = RecordedWorld(dit.config, dit, self.vae, self.conditioning)
        names = (*HORIZONS, TOGETHER, MINUTE)
        found = {f"{kind}/{name}": np.nan for kind in ("psnr", "sharpness", "control", "frechet") for name in names}
        for blocks, trials in self.trials.items():
            made = [self._see(t, self._roll_out(world, t)) for t in trials]
            for name, span in self.plan.spans(blocks).items():
                found |= {f"{kind}/{name}": v for kind, v in self._compare(made, blocks, span).items()}
        return {**found, **self.cost(world)}

    def cost(self, world: RecordedWorld) -> dict[str, float]:
        """Median milliseconds of a block of one world, decoding included, and its history tokens."""
        trial = self._trials(np.array([self.trials[self.plan.blocks][0].episode[0]]), self.plan.timed)[0]
        times, began = [], time.perf_counter()
        for _ in world.rollout(trial):
            times.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
        picture = to_video(trial.pictures[:, :1])[:, :, 0].to(world.device)
        present = torch.ones(1, dtype=torch.bool, device=world.device)
        with torch.no_grad():
            worlds = start_worlds(world.dit, self.vae, picture, present)
            tokens = world.dit.pack(worlds.history, worlds.frame)[0].shape[1]
        return {"milliseconds": float(np.median(times[1:])), "history_tokens": tokens}

    def _trials(self, episodes: np.ndarray, blocks: int) -> list[Trial]:
        """The first blocks of episodes, in batches."""
        parts = [episodes[first : first + self.plan.batch] for first in range(0, len(episodes), self.plan.batch)]
        return [
            recorded_trial(self.files, np.stack([part, np.zeros_like(part)], axis=1), blocks, part.tolist())
            for part in parts
        ]

    def _roll_out(self, world: RecordedWorld, trial: Trial) -> np.ndarray:
        """Pictures uint8 [P, 1 + S * T, H, W, 3], the start picture first."""
        return np.concatenate([trial.pictures[:, :1], *(pictures for pictures, _ in world.rollout(trial))], axis=1)

    def _see(self, trial: Trial, pictures: np.ndarray) -> Seen:
        size, shape = self.files.recording.frames_per_step, trial.actions.shape[:2]
        blocks = np.stack([pictures[:, s * size : (s + 1) * size + 1] for s in range(trial.steps)], axis=1)
        reading = self.judge.read(blocks.reshape(-1, *blocks.shape[2:]))
        return Seen(
            pictures,
            sharpness(pictures[:, 1:]).reshape(*shape, size).mean(axis=2),
            reading.action.reshape(shape) == trial.actions,
            reading.features.reshape(*shape, -1),
        )

    def _compare(self, made: list[Seen], blocks: int, span: Span) -> dict[str, float]:
        """Figures of a span of blocks. Sharpness and control are shares of the street's, the distance a multiple of it."""
        part, size, street = slice(*span), self.files.recording.frames_per_step, self.street[blocks]
        shown = slice(1 + span[0] * size, 1 + span[1] * size)
        decibels = [psnr(a.pictures[:, shown], b.pictures[:, shown], kept=2) for a, b in zip(made, street)]
        ours, theirs = (
            {
                "sharpness": float(np.concatenate([s.sharpness[:, part] for s in seen]).mean()),
                "control": float(np.concatenate([s.named[:, part] for s in seen]).mean()),
                "frechet": self._distance(seen, blocks, part),
            }
            for seen in (made, street)
        )
        shares = {kind: ours[kind] / theirs[kind] if theirs[kind] else np.nan for kind in ours}
        return {"psnr": float(np.concatenate(decibels).mean()), **shares}

    def _distance(self, seen: list[Seen], blocks: int, part: slice) -> float:
        """Fréchet distance of a span of blocks to what was recorded before and after it in the same episodes: others have other
        skies."""
        outside = np.ones(blocks, bool)
        outside[part] = False
        real = np.concatenate([_flat(s.features[:, outside]) for s in self.street[blocks]] + [self.rest[blocks]])
        return FeatureSpace(real, DIMENSIONS).distance(np.concatenate([_flat(s.features[:, part]) for s in seen]))

    def _rest(self, episodes: np.ndarray, blocks: int) -> np.ndarray:
        """Features [N, 128] of all that was recorded after the first `blocks` of episodes."""
        size, found = self.files.recording.frames_per_step, [np.zeros((0, FEATURES), np.float32)]
        for episode in episodes.tolist():
            pictures = self.files.frames(episode, blocks * size)
            count = int(self.files.lengths[episode]) - blocks
            if count:
                steps = np.stack([pictures[s * size : (s + 1) * size + 1] for s in range(count)])
                found.append(self.judge.read(steps).features)
        return np.concatenate(found)


def _flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, FEATURES)
