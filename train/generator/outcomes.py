"""Reward and termination of rollouts, measured from predicted arrays against recorded ones.

Legend: P worlds, S steps; alive [P, S] says whether the recording goes on for so long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from train.generator.encode import encode_actions
from train.generator.measures import (
    average_precision,
    bootstrap,
    calibration_error,
    first_event,
    match_events,
    mean_interval,
    mean_survival,
    r_squared,
)
from train.generator.rollouts import World
from train.recordings import EpisodeFiles
from world_model.heads import load_heads, newest
from world_model.text import build_conditioning

TOLERANCE = 2  # steps between a predicted and a recorded event that are one
SURE = 0.5  # probability from which a world counts as ended
DENSE = 0.5  # share of rewarded steps from which rewards are values, not events
HEADS = "heads.safetensors"

# latents [P, C, 1 + S * K, h, w], the start picture's first, and actions [P, S, *shape]
# -> predicted reward [P, S] and probability of termination [P, S]
OutcomeReader = Callable[[Tensor, np.ndarray], tuple[np.ndarray, np.ndarray]]


def outcome_reader(folder: Path, world: World) -> OutcomeReader | None:
    """What reads outcomes from latents by the heads of a folder; None for a folder without heads.

    Raises what `load_heads` raises.
    """
    heads = load_heads(folder, world.config)
    if heads is None:
        return None
    conditioning = build_conditioning(world.config)

    def read(latents: Tensor, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = heads.config.block
        rewards, ends = [], []
        for step in range(actions.shape[1]):
            held = 1 + step * size
            seen = newest(latents[:, :, :held], latents[:, :, held : held + size], heads.config.frames)
            _, encoded, _ = encode_actions(world.config, conditioning, actions[:, step])
            outcome = heads.predict(seen.cpu(), encoded)
            rewards.append(outcome.reward.numpy())
            ends.append(outcome.termination_probability.numpy())
        return np.stack(rewards, axis=1), np.stack(ends, axis=1)

    return read


def reward_figures(
    rows: dict[str, np.ndarray], recorded: np.ndarray, alive: np.ndarray, typical: np.ndarray, seed: int
) -> dict[str, Any]:
    """Figures of predicted rewards [P, S] by row name; `typical` [N]: rewards of training.

    A reward above half the median size of all that are not 0 is an event. "positive" and "negative": recall and precision of such
    events, and their counts. "dense": R^2, where most steps are rewarded. Row "shuffled": the first row's predictions at other
    steps.
    """
    sizes = np.abs(typical[typical != 0])
    if not len(sizes):
        return {"kind": "none"}
    first = next(iter(rows.values()))
    rows = {**rows, "shuffled": _shuffled(first, alive, seed)}
    if (typical != 0).mean() > DENSE:

        def explained(predicted: np.ndarray) -> Any:
            def of(at: np.ndarray) -> float:
                return r_squared(recorded[at][alive[at]], predicted[at][alive[at]])

            return bootstrap(of, len(alive), seed=seed)

        scores = {name: explained(predicted) for name, predicted in rows.items()}
        return {"kind": "dense", "dense": scores}
    least = float(np.median(sizes)) / 2
    figures: dict[str, Any] = {"kind": "events", "threshold": least}
    for name, sign in (("positive", 1), ("negative", -1)):
        true = sign * recorded > least
        if true.any() or (sign * typical > least).any():
            figures[name] = {
                row: event_figures(sign * predicted > least, true, alive, seed) for row, predicted in rows.items()
            }
            figures[name]["events"] = int((true & alive).sum())
    figures["false_success"] = {
        row: false_success(predicted > least, recorded > least, alive, seed) for row, predicted in rows.items()
    }
    return figures


def event_figures(predicted: np.ndarray, true: np.ndarray, alive: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """recall and precision of events [P, S] bool within `TOLERANCE` steps, with intervals over worlds; missed and false: counts."""
    counts = np.array([match_events(p & a, t & a, TOLERANCE) for p, t, a in zip(predicted, true, alive)])

    def share(column: int) -> Callable[[np.ndarray], float]:
        return lambda at: counts[at, 0].sum() / counts[at, column].sum() if counts[at, column].sum() else np.nan

    matched, found, wanted = counts.sum(axis=0)
    return {
        "recall": bootstrap(share(2), len(counts), seed=seed),
        "precision": bootstrap(share(1), len(counts), seed=seed),
        "missed": int(wanted - matched),
        "false": int(found - matched),
    }


def false_success(
    predicted: np.ndarray, true: np.ndarray, alive: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Share of worlds without a recorded positive reward that are predicted one, with its interval; NaN where all have one."""
    idle = ~(true & alive).any(axis=1)
    return mean_interval((predicted & alive).any(axis=1)[idle].astype(float), seed=seed)


def termination_figures(probability: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
    """Of real steps [N]: average precision beside that of a constant (the share of steps that end), and calibration error beside
    that of a constant 0."""
    ended = np.asarray(ended, bool)
    return {
        "steps": len(ended),
        "ends": int(ended.sum()),
        "average_precision": average_precision(probability, ended),
        "average_precision_constant": float(ended.mean()) if ended.any() else np.nan,
        "calibration_error": calibration_error(probability, ended),
        "calibration_error_constant_0": calibration_error(np.zeros(len(ended)), ended),
    }


def survival_figures(steps: np.ndarray, ended: np.ndarray, limit: int, seed: int = 0) -> dict[str, Any]:
    """Of lives watched for `steps` [N] and `ended` [N] bool then, cut at `limit`: mean with interval, quartiles, lives, ends."""
    steps, ended = np.asarray(steps), np.asarray(ended, bool)
    cut = np.minimum(steps, limit)
    quartiles = np.percentile(cut, (25, 50, 75)).tolist() if len(cut) else [np.nan] * 3
    return {
        "mean": bootstrap(lambda at: mean_survival(steps[at], ended[at], limit), len(steps), seed=seed),
        "quartiles": quartiles,
        "lives": len(steps),
        "ended": int((ended & (steps <= limit)).sum()),
    }


def survival(probability: np.ndarray, files: EpisodeFiles, episodes: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Lives of rollouts from resets, whose probability of termination is [P, S], beside those of recorded episodes."""
    events = np.asarray(probability) >= SURE
    limit, lengths = probability.shape[1], files.lengths[list(episodes)]
    ended = files.terminated[files.starts[list(episodes)] + lengths - 1].astype(bool)
    return {
        "limit": limit,
        "rollout": survival_figures(first_event(events), np.any(events, axis=1), limit, seed),
        "recorded": survival_figures(lengths, ended, limit, seed),
    }


def _shuffled(predicted: np.ndarray, alive: np.ndarray, seed: int) -> np.ndarray:
    """The same predictions at other steps and in other worlds."""
    shuffled, rng = predicted.copy(), np.random.default_rng((seed, 2))
    shuffled[alive] = rng.permutation(predicted[alive])
    return shuffled
