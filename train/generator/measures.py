"""What can be measured of any world from pictures, actions and outcomes: pure functions of arrays.

Legend: P starts (or worlds), S steps of each, N items, n components of an action, D features, H x W pixels. NaN marks what was not
measured: an episode that ended before a step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.linalg import eigh, eigvalsh, svd

PEAK = 255.0
LUMA = np.array([0.299, 0.587, 0.114])
# of the features' mean one: what hardly ever changes in real pictures would else outweigh all the rest
LEAST_SPREAD = 0.1
DRAWS = 1000  # resamples of a bootstrap

Interval = tuple[float, float, float]  # value, and the ends of its 95% interval


# ---- pictures ---------------------------------------------------------------------------------------------------------


def psnr(frames: np.ndarray, truth: np.ndarray, kept: int = 0) -> np.ndarray:
    """Decibels between pictures uint8 of one shape, over all axes but the first `kept`; at most 60, which equal ones get."""
    difference = frames.astype(np.float32) - truth.astype(np.float32)
    error = np.square(difference).mean(axis=tuple(range(kept, difference.ndim)), dtype=np.float64)
    return 10 * np.log10(PEAK**2 / np.maximum(error, PEAK**2 / 1e6))


def to_grey(pictures: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, 3] -> float32 [..., H, W] in 0..255; a few pictures at a time, since float64 takes eight times the room."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    grey = [(flat[first : first + 64] @ LUMA).astype(np.float32) for first in range(0, len(flat), 64)]
    return np.concatenate(grey).reshape(pictures.shape[:-1])


def sharpness(pictures: np.ndarray) -> np.ndarray:
    """Mean length of the grey pictures' gradients, grey levels a pixel, of uint8 [..., H, W, 3] -> [...]."""
    down, across = np.gradient(to_grey(pictures), axis=(-2, -1))
    return np.hypot(down, across).mean(axis=(-2, -1))


def brightness(pictures: np.ndarray) -> np.ndarray:
    """Mean grey level, 0..255, of uint8 [..., H, W, 3] -> [...]."""
    return to_grey(pictures).mean(axis=(-2, -1))


# ---- intervals --------------------------------------------------------------------------------------------------------


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, draws: int = DRAWS, seed: int = 0) -> Interval:
    """`statistic` of row numbers [count], and its 95% interval over rows drawn again (Efron 1979).

    All are NaN for no rows, the ends for one row.
    """
    if not count:
        return np.nan, np.nan, np.nan
    value = statistic(np.arange(count))
    if count == 1:
        return value, np.nan, np.nan
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(count, size=count)) for _ in range(draws)]
    return value, *_ends(np.array(drawn))


def mean_interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of values [P, ...] without their NaN, and its 95% interval over starts drawn again; NaN as in `bootstrap`."""
    rows = np.asarray(values, float).reshape(len(values), -1)
    known = np.isfinite(rows)
    total, count = np.where(known, rows, 0).sum(axis=1), known.sum(axis=1)
    total, count = total[count > 0], count[count > 0]
    if len(total) < 2:
        return (float(total[0] / count[0]) if len(total) else np.nan), np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(total), size=(draws, len(total)))
    return float(total.sum() / count.sum()), *_ends(total[drawn].sum(axis=1) / count[drawn].sum(axis=1))


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return np.nan, np.nan
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


# ---- actions ----------------------------------------------------------------------------------------------------------


def accuracy(held: np.ndarray, said: np.ndarray) -> float:
    """Share of numbers [N] or rows [N, n] that are equal; NaN of none."""
    equal = np.asarray(held) == np.asarray(said)
    return float(equal.reshape(len(equal), -1).all(axis=1).mean()) if len(equal) else np.nan


def r_squared(held: np.ndarray, said: np.ndarray) -> float:
    """1 - squared error of `said` [N] over the spread of `held` [N]: 1 is perfect, 0 the mean, below it worse than the mean.

    NaN where `held` is always the same.
    """
    spread = np.square(held - np.mean(held)).sum() if len(held) else 0.0
    return float(1 - np.square(np.asarray(held) - said).sum() / spread) if spread > 0 else np.nan


# ---- distributions ----------------------------------------------------------------------------------------------------


def frechet(points: np.ndarray, others: np.ndarray) -> float:
    """Squared Frechet distance of Gaussians fitted to [N, D] and [M, D] (Heusel et al. 2017, eq. 6).

    Few points make it too large, equally for all samples of one size: compare only those.
    """
    covariance, other = (np.atleast_2d(np.cov(p, rowvar=False)) for p in (points, others))
    values, vectors = eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.sqrt(np.maximum(eigvalsh(root @ other @ root), 0)).sum()
    return float(((points.mean(0) - others.mean(0)) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * product)


class FeatureSpace:
    """The features of real steps, standardised and turned to their principal directions."""

    def __init__(self, features: np.ndarray, dimensions: int) -> None:
        """features [N, D], N of 2 or more; at most `dimensions` directions are kept."""
        self.middle, spread = features.mean(axis=0), features.std(axis=0)
        self.spread = np.maximum(spread, max(LEAST_SPREAD * spread.mean(), 1e-6))
        _, _, directions = svd((features - self.middle) / self.spread, full_matrices=False)
        self.directions = directions[:dimensions]
        self.points = self.project(features)

    def project(self, features: np.ndarray) -> np.ndarray:
        """[N, dimensions] of features [N, D]."""
        return (features - self.middle) / self.spread @ self.directions.T

    def distance(self, features: np.ndarray) -> float:
        """Frechet distance of steps' features [N, D] to the real ones; NaN for fewer than three."""
        return frechet(self.points, self.project(features)) if len(features) > 2 else np.nan


# ---- outcomes ---------------------------------------------------------------------------------------------------------


def match_events(predicted: np.ndarray, true: np.ndarray, tolerance: int) -> tuple[int, int, int]:
    """(matched, predicted, true) counts of events [S] bool; a pair lies at most `tolerance` steps apart, each event in one pair.

    Both are gone through in order, which pairs as many as possible.
    """
    found, wanted = np.flatnonzero(predicted), np.flatnonzero(true)
    matched = i = j = 0
    while i < len(found) and j < len(wanted):
        if abs(found[i] - wanted[j]) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif found[i] < wanted[j]:
            i += 1
        else:
            j += 1
    return matched, len(found), len(wanted)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall steps of scores [N] for labels [N] bool; equal scores count as one threshold.

    NaN without a true label. A constant score gets the share of true labels.
    """
    labels = np.asarray(labels, bool)
    if not labels.any():
        return np.nan
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits = labels[order].cumsum()
    last = np.append(np.diff(np.asarray(scores)[order]) != 0, True)  # of each run of equal scores
    precision = (hits / np.arange(1, len(hits) + 1))[last]
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean distance of probability and frequency over equal bins of 0..1, by their items.

    probabilities, labels [N]; NaN of none.
    """
    if not len(probabilities):
        return np.nan
    place = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    gaps = np.bincount(place, np.asarray(probabilities, float) - np.asarray(labels, float), bins)
    return float(np.abs(gaps).sum() / len(place))


def first_event(events: np.ndarray) -> np.ndarray:
    """[P] steps lived up to and with the first event of [P, S] bool; S where there is none."""
    return np.where(events.any(axis=1), events.argmax(axis=1) + 1, events.shape[1])


def mean_survival(steps: np.ndarray, ended: np.ndarray, limit: int) -> float:
    """Mean steps lived, of lives cut at `limit` (area under the curve of Kaplan and Meier 1958).

    steps [N]: how long each was watched; ended [N] bool: whether it ended then, or was only watched no longer. NaN of none.
    """
    if not len(steps):
        return np.nan
    alive, area, before = 1.0, 0.0, 0
    for time in np.unique(np.minimum(steps, limit)):
        area += alive * (time - before)
        at_risk = (steps >= time).sum()
        alive *= 1 - (ended & (steps == time)).sum() / at_risk
        before = time
    return float(area + alive * (limit - before))
