"""Does the world last? Pictures and motion at 10 s, 1, 3 and 10 minutes against real walks.

A picture that never changes stays sharp for ever, so distances are taken between blocks, in features of motion and of
sight together, and what moves is reported beside what stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.linalg import eigh, eigvalsh, svd

from train.evaluation.control import AXES, Records, between, joined, mean
from train.evaluation.walks import make_trial, measure_walk
from train.evaluation.worlds import Street
from train.judge_network import Judge
from yume_gym.street.simulator import StreetSimulator

MARKS = (10.0, 60.0, 180.0, 600.0)  # seconds
WINDOW = 10.0  # seconds before each mark that are looked at
LEAST_SPREAD = 0.1  # of the features' mean one: what hardly ever moves in real walks would outweigh all else the first time it does
DIMENSIONS = 24  # principal directions of the real features that distances are taken in


class RealWalks:
    """The features of real blocks, standardised and turned to their principal directions, and what real pictures are like."""

    def __init__(self, record: dict[str, np.ndarray]) -> None:
        features = record["features"]
        self.middle, spread = features.mean(axis=0), features.std(axis=0)
        self.spread = np.maximum(spread, LEAST_SPREAD * spread.mean())
        _, _, directions = svd((features - self.middle) / self.spread, full_matrices=False)
        self.directions = directions[:DIMENSIONS]
        self.points = self.project(features)
        self.record = record

    def project(self, features: np.ndarray) -> np.ndarray:
        """[N, DIMENSIONS] of features [N, F]."""
        return (features - self.middle) / self.spread @ self.directions.T

    def distance(self, features: np.ndarray) -> float:
        """Frechet distance of blocks' features [N, F] to the real ones; NaN for fewer than three."""
        return frechet(self.points, self.project(features)) if len(features) > 2 else np.nan


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


def frechet(points: np.ndarray, others: np.ndarray) -> float:
    """Squared Frechet distance of Gaussians fitted to [N, D] and [M, D] (Heusel et al. 2017, eq. 6).

    Few points make it too large, equally for all samples of one size: compare only those.
    """
    covariance, other = (np.atleast_2d(np.cov(p, rowvar=False)) for p in (points, others))
    values, vectors = eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.sqrt(np.maximum(eigvalsh(root @ other @ root), 0)).sum()
    return float(((points.mean(0) - others.mean(0)) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * product)


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
