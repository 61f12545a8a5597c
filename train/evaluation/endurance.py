"""Does the world last? Pictures and motion at 10 s, 1, 3 and 10 minutes against real walks.

A picture that never changes stays sharp for ever, so distances are taken between blocks, in features of motion and of
sight together, and what moves is reported beside what stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.evaluation.control import AXES, Records, between, joined, mean
from train.evaluation.walks import make_trial, measure_walk
from train.evaluation.worlds import Street
from train.generator.measures import FeatureSpace
from train.judge.network import Judge
from yume_gym.street.simulator import StreetSimulator

MARKS = (10.0, 60.0, 180.0, 600.0)  # seconds
WINDOW = 10.0  # seconds before each mark that are looked at
DIMENSIONS = 24  # principal directions of the real features that distances are taken in


class RealWalks(FeatureSpace):
    """The features of real blocks, standardised and turned to their principal directions, and what real pictures are like."""

    def __init__(self, record: dict[str, np.ndarray]) -> None:
        super().__init__(record["features"], DIMENSIONS)
        self.record = record


def real_walks(
    street: StreetSimulator, judge: Judge, seed: int, walks: int, blocks: int, skies: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """One record of real walks on routes of their own, which no world is measured on, under `skies` in turn.

    Those should be the skies that worlds are measured under: else distances tell of the weather.
    """
    records = []
    for number in range(walks):
        trial = make_trial(street, seed, number, blocks, skies[number % len(skies)])
        record = measure_walk(Street(street), street, judge, trial, flow_every=blocks)
        records.append({name: record[name] for name in ("features", "sharpness", "colour", "change", "motion")})
    return {name: np.concatenate([record[name] for record in records]) for name in records[0]}


def at_marks(records: Records, real: RealWalks, seconds: float) -> dict[str, dict[str, Any]]:
    """Figures of the `WINDOW` before each mark that the walks reach, under names such as "60s"."""
    length = max(len(record["action"]) for record in records) * seconds
    marks: Sequence[float] = [mark for mark in MARKS if mark <= length] or [length]
    return {f"{mark:g}s": _figures(between(records, max(0.0, mark - WINDOW), mark, seconds), real) for mark in marks}


def _figures(records: Records, real: RealWalks) -> dict[str, Any]:
    """Sharpness, contrast and change are shares of the real walks'; colour is in grey levels."""
    colour, true = joined(records, "colour").mean(axis=0), real.record["colour"].mean(axis=0)
    motion, moved = (abs(m).mean(axis=0) for m in (joined(records, "motion"), real.record["motion"]))
    return {
        "blocks": len(joined(records, "sharpness")),
        "frechet": real.distance(joined(records, "features")),
        "sharpness": mean(joined(records, "sharpness")) / real.record["sharpness"].mean(),
        "contrast": float(colour[3:].mean() / true[3:].mean()),
        "colour_shift": float(abs(colour[:3] - true[:3]).mean()),
        "change": mean(joined(records, "change")) / real.record["change"].mean(),
        "motion": {name: float(motion[k] / moved[k]) for k, name in enumerate(AXES)},
    }


def ageing(marks: dict[str, dict[str, Any]]) -> float:
    """Frechet distance at the last mark over that at the first; NaN with a single one."""
    distances = [figures["frechet"] for figures in marks.values()]
    return distances[-1] / distances[0] if len(distances) > 1 else np.nan
