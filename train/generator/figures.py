"""Figures of fidelity and control, read from the records of rollouts (train.generator.records).

Legend: P worlds, S steps, N actions, n components of an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.generator.measures import Interval, accuracy, bootstrap, mean_interval, r_squared
from train.generator.records import Record

HORIZONS = ((1, 1), (2, 4), (5, 15), (16, 50))  # steps, first and last
CONTROL_BINS = ((1, 10), (11, 50))
JUDGED = ("recorded", "autoencoder", "rollout", "neutral")
DRAWS = 300  # resamples of a score, which is slower than a mean


def bins(wanted: Sequence[tuple[int, int]], horizon: int) -> dict[str, slice]:
    """Steps of each bin that a horizon reaches, by names such as "2-4"."""
    cut = [(first, min(last, horizon)) for first, last in wanted if first <= horizon]
    return {f"{a}-{b}" if a < b else f"{a}": slice(a - 1, b) for a, b in cut}


def ragged(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of unequal length as one array, NaN behind the shorter."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def fidelity(found: Record, horizon: int, seed: int) -> dict[str, Any]:
    """PSNR and distance to the truth by horizon, with intervals over starts; "worse": share of steps whose rollout has a lower PSNR
    than the start picture."""
    table: dict[str, Any] = {}
    for name, part in bins(HORIZONS, horizon).items():
        rows = {
            row: {kind: mean_interval(found[f"{row}.{kind}"][:, part], seed=seed) for kind in ("psnr", "distance")}
            for row in ("rollout", "autoencoder", "before", "start")
        }
        own, still = found["rollout.psnr"][:, part], found["start.psnr"][:, part]
        table[name] = {**rows, "worse": mean_interval(np.where(np.isnan(own), np.nan, own < still), seed=seed)}
    return table


def control(
    found: Record, taught: np.ndarray, names: list[str], classes: bool, horizon: int, seed: int
) -> dict[str, Any]:
    """Score of what the judge says against the actions held, by component ("all": every component right) and steps.

    taught [N, n]: actions of training, whose commonest (mean, of a box) is chance. "each": recall of every choice over all steps.
    """
    rng = np.random.default_rng((seed, 3))
    parts = bins(CONTROL_BINS, horizon)
    columns = {name: [k] for k, name in enumerate(names)}
    if classes and len(names) > 1:
        columns["all"] = list(range(len(names)))
    alive, held = found["alive"], found["held"]
    table: dict[str, Any] = {"kind": "accuracy" if classes else "R2", "score": {}, "each": {}}
    for name, column in columns.items():
        usual = _commonest(taught[:, column]) if classes else taught[:, column].mean(axis=0)
        for steps, part in parts.items():
            here, true = alive[:, part], held[:, part][..., column]

            said = {row: found[f"{row}.said"][:, part][..., column] for row in JUDGED}
            other = true.copy()
            other[here] = rng.permutation(true[here])
            pairs = {row: (true, values) for row, values in said.items()}
            pairs |= {"shuffled": (other, said["rollout"]), "chance": (true, np.broadcast_to(usual, true.shape))}
            figures = {row: scored(classes, *pair, here, seed) for row, pair in pairs.items()}
            table["score"][f"{name}, {steps}"] = figures | {"steps": int(here.sum())}
        if classes and len(column) == 1:
            for choice in np.unique(held[alive][:, column]):
                at = alive & (held[..., column[0]] == choice)
                rows = ("recorded", "rollout")
                recall = {row: float((found[f"{row}.said"][at][:, column[0]] == choice).mean()) for row in rows}
                table["each"][f"{name} {choice}"] = recall | {
                    "share": float(at.sum() / alive.sum()),
                    "steps": int(at.sum()),
                }
    return table


def scored(classes: bool, true: np.ndarray, said: np.ndarray, here: np.ndarray, seed: int) -> Interval:
    """Accuracy, or R^2, of said [P, S, n] where `here` [P, S], with its interval over starts."""
    score = accuracy if classes else r_squared
    return bootstrap(lambda at: score(true[at][here[at]], said[at][here[at]]), len(here), DRAWS, seed)


def _commonest(rows: np.ndarray) -> np.ndarray:
    values, counts = np.unique(rows, axis=0, return_counts=True)
    return values[counts.argmax()]
