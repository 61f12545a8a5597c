"""Records of rollouts: every step of every world measured once; all figures of the report are read from them.

Legend: P worlds, S steps, T pictures a step, n components of an action, D features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from train.generator.judge import Judge, components
from train.generator.measures import brightness, psnr, sharpness, to_grey
from train.generator.outcomes import OutcomeReader
from train.generator.rollouts import Trial, World, neutral_action

Record = dict[str, np.ndarray]
ROWS = ("rollout", "recorded", "autoencoder", "start", "neutral")  # what is measured along one trial
SHOWN = (1, 2, 4, 8, 16, 32, 50)  # steps of the contact sheet
LOOKS = ("sharpness", "brightness", "change")


def look(video: np.ndarray, size: int) -> Record:
    """Of videos uint8 [P, 1 + S * size, H, W, 3]: sharpness and brightness [P, S] of each step's last picture, and change
    [P, S], the mean difference of successive grey pictures; all in grey levels."""
    last = video[:, size::size]
    change = np.abs(np.diff(to_grey(video), axis=1)).mean(axis=(2, 3)).reshape(len(video), -1, size).mean(axis=2)
    return {"sharpness": sharpness(last), "brightness": brightness(last), "change": change}


def measure(judge: Judge, video: np.ndarray, truth: np.ndarray, size: int) -> Record:
    """Of videos uint8 [P, 1 + S * size, H, W, 3] and the true ones, steps of `size` pictures: what `look` says; psnr and distance
    [P, S] to the truth; said [P, S, n] and features [P, S, D] by the judge."""
    return join([_measure_one(judge, video[i : i + 1], truth[i : i + 1], size) for i in range(len(video))])


def _measure_one(judge: Judge, video: np.ndarray, truth: np.ndarray, size: int) -> Record:
    """`measure` of a batch so small that it fits into memory as numbers."""
    worlds, steps = len(video), (video.shape[1] - 1) // size
    own, true = (v[:, 1:].reshape(worlds, steps, size, *v.shape[2:]) for v in (video, truth))
    pairs = np.stack([video[:, s * size : (s + 1) * size + 1] for s in range(steps)], axis=1)
    said, features = judge.read(pairs.reshape(-1, *pairs.shape[2:]))
    distance = judge.distance(*(v[:, :, -1].reshape(-1, *v.shape[3:]) for v in (own, true)))
    return {
        **look(video, size),
        "psnr": psnr(own, true, kept=2),
        "distance": distance.reshape(worlds, steps),
        "said": said.reshape(worlds, steps, -1),
        "features": features.reshape(worlds, steps, -1),
    }


def before(truth: np.ndarray, size: int) -> np.ndarray:
    """Videos whose steps show the last true picture before them, of videos [P, 1 + S * size, H, W, 3]."""
    return np.concatenate([truth[:, :1], np.repeat(truth[:, :-1:size], size, axis=1)], axis=1)


def roll(world: World, trial: Trial, reader: OutcomeReader | None) -> tuple[np.ndarray, Record]:
    """The video uint8 [P, 1 + S * T, H, W, 3] of a rollout, its start picture first; outcomes [P, S] where there is a reader."""
    frames, latents = [], []
    for pictures, block in world.rollout(trial):
        frames.append(pictures)
        if reader is not None:
            latents.append(block)
    video = np.concatenate([trial.pictures[:, :1], *frames], axis=1)
    if reader is None:
        return video, {}
    reward, ended = reader(torch.cat([world.encode(trial.pictures[:, :1]), *latents], dim=2), trial.actions)
    return video, {"reward": reward, "terminated": ended}


def record(world: World, judge: Judge, trial: Trial, reader: OutcomeReader | None = None) -> Record:
    """All `ROWS` of a recorded trial, under names such as "rollout.psnr", and what was recorded: held [P, S, n], alive, reward,
    terminated [P, S]. psnr and distance of "before": the last true picture before a step. sheet uint8 [P, 2, ., H, W, 3]: the truth
    and the rollout at the steps `SHOWN`.

    Numbers are NaN after the end of a recording.
    """
    size, spec, truth = world.config.frames_per_block, world.config.action, trial.pictures
    held = components(spec, trial.actions.reshape(-1, *spec.shape)).reshape(*trial.alive.shape, -1)
    neutral = replace(trial, actions=np.broadcast_to(neutral_action(spec), trial.actions.shape).copy())
    through = np.concatenate([truth[:, :1], world.through(truth)], axis=1)
    video, outcomes = roll(world, trial, reader)
    videos = {
        "rollout": video,
        "recorded": truth,
        "autoencoder": through,
        "start": np.repeat(truth[:, :1], truth.shape[1], axis=1),
        "neutral": roll(world, neutral, None)[0],
        "before": before(truth, size),
    }
    found: Record = {"held": held, "alive": trial.alive, "reward": trial.reward, "terminated": trial.terminated}
    for row, shown in videos.items():
        for name, values in measure(judge, shown, truth, size).items():
            if row != "before" or name in ("psnr", "distance"):
                found[f"{row}.{name}"] = _alive(values, trial.alive)
    found |= {f"rollout.{name}": values for name, values in outcomes.items()}
    if reader is not None:
        real = reader(world.encode(truth), trial.actions)
        found |= {"recorded.reward": real[0], "recorded.terminated": real[1]}
    steps = [s * size for s in SHOWN if s <= trial.steps]
    return {**found, "sheet": np.stack([truth[:, steps], video[:, steps]], axis=1)}


def long_record(world: World, trial: Trial, marks: Sequence[int], reader: OutcomeReader | None = None) -> Record:
    """What `look` says of every step of long rollouts, terminated [P, S] where there is a reader, and pictures [P, ., H, W, 3]: the
    start and the steps `marks`. Only the pictures of two steps are held at a time."""
    size, last = world.config.frames_per_block, trial.pictures[:, :1]
    parts, pictures, latents = [], [last], []
    for number, (frames, block) in enumerate(world.rollout(trial), start=1):
        parts.append(look(np.concatenate([last, frames], axis=1), size))
        last = frames[:, -1:]
        if number in marks:
            pictures.append(last)
        if reader is not None:
            latents.append(block.cpu())
    found = {name: np.concatenate([part[name] for part in parts], axis=1) for name in LOOKS}
    if reader is not None:
        every = torch.cat([world.encode(trial.pictures[:, :1]).cpu(), *latents], dim=2)
        found["terminated"] = reader(every, trial.actions)[1]
    return {**found, "pictures": np.concatenate(pictures, axis=1)}


def join(records: Sequence[Record]) -> Record:
    """One record of several."""
    return {name: np.concatenate([r[name] for r in records]) for name in records[0]}


def _alive(values: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Floats become NaN where a recording has ended; whole numbers stay."""
    if values.dtype.kind != "f":
        return values
    return np.where(alive.reshape(*alive.shape, *[1] * (values.ndim - 2)), values, np.nan).astype(np.float32)
