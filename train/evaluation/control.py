"""Does the world do what is held? The judge's verdicts against the keys, by the time since the start."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.judge.network import axes_of
from world_model.actions import LOOKS, NUM_ACTIONS

AXES = ("forward", "right", "turn", "tilt")
EDGES = (0.0, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 300.0, 540.0, 600.0)  # seconds: where the bins of time begin and end
_SHARE = 1 / 3  # of what a held key does: from here on a motion counts
Records = Sequence[dict[str, np.ndarray]]


def joined(records: Records, name: str) -> np.ndarray:
    return np.concatenate([record[name] for record in records])


def between(records: Records, begin: float, end: float, seconds: float) -> list[dict[str, np.ndarray]]:
    """The blocks of every walk that begin at `begin` s or later and end by `end` s; blocks last `seconds`."""
    first, stop = round(begin / seconds), round(end / seconds)
    return [{k: v[first:stop] for k, v in record.items() if k not in ("pictures", "film")} for record in records]


def bins(records: Records, seconds: float) -> list[tuple[float, float]]:
    """The bins of time that the walks reach wholly; at least the first, cut where the walks end."""
    length = max(len(record["action"]) for record in records) * seconds
    return [(a, b) for a, b in itertools.pairwise(EDGES) if b <= length] or [(0.0, length)]


def score(records: Records, units: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Figures of all blocks of some walks. `units` [4]: what a held key does in a block (m, m, degrees, degrees).

    joint: share of blocks whose keys the judge names, all 81 told apart, low and high its 95% interval; joint_macro: mean over
    actions;
    recall: mean over the three classes of each axis; switch, stay: joint where the keys just changed, or not. shuffled: joint
    against the keys of other blocks. slope, r2: judged against commanded motion; flow_*: the same by optical flow.
    """
    held, said, switch = (joined(records, name) for name in ("action", "said", "switch"))
    right = held == said
    true, seen = axes_of(held), axes_of(said)
    commanded = commanded_of(held, units)
    motion = joined(records, "motion")
    low, high = wilson(int(right.sum()), len(right))
    lines = {name: line(commanded[:, k], motion[:, k]) for k, name in enumerate(AXES)}
    flow = {name: joined(records, name) for name in ("turn", "tilt")}
    known = np.isfinite(flow["turn"])
    by_flow = {name: line(commanded[known, AXES.index(name)], seen[known]) for name, seen in flow.items()}
    agreement = {
        name: mean(_class(seen[known], units[k]) == _class(motion[known, k], units[k]))
        for k, name, seen in ((AXES.index(name), name, seen) for name, seen in flow.items())
    }
    return {
        "blocks": len(held),
        "joint": mean(right),
        "low": low,
        "high": high,
        "joint_macro": float(np.mean([right[held == action].mean() for action in np.unique(held)])),
        "switch": mean(right[switch]),
        "stay": mean(right[~switch]),
        "shuffled": mean(np.random.default_rng(seed).permutation(held) == said),
        "chance": 1 / NUM_ACTIONS,
        "move": mean(held // len(LOOKS) == said // len(LOOKS)),
        "look": mean(held % len(LOOKS) == said % len(LOOKS)),
        "recall": {name: macro_recall(true[:, k], seen[:, k]) for k, name in enumerate(AXES)},
        "slope": {name: slope for name, (slope, _) in lines.items()},
        "r2": {name: r2 for name, (_, r2) in lines.items()},
        "flow_slope": {name: slope for name, (slope, _) in by_flow.items()},
        "flow_r2": {name: r2 for name, (_, r2) in by_flow.items()},
        "agreement": agreement,
    }


def by_time(records: Records, units: np.ndarray, seconds: float) -> dict[str, dict[str, Any]]:
    """`score` for each bin of time, under names such as "0-5s", and of "all"."""
    figures = {f"{a:g}-{b:g}s": score(between(records, a, b, seconds), units) for a, b in bins(records, seconds)}
    return {**figures, "all": score(records, units)}


def commanded_of(actions: np.ndarray, units: np.ndarray) -> np.ndarray:
    """[B, 4] metres and degrees that actions by index command in a block; walking diagonally is not faster.

    Walking while turning leads along a chord: a little shorter than the way, and the same for all that turn.
    """
    axes = axes_of(actions).astype(float)
    axes[:, :2] /= np.maximum(np.hypot(axes[:, 0], axes[:, 1]), 1)[:, None]
    return axes * units


def confusion(records: Records) -> np.ndarray:
    """[81, 81] counts: held, said."""
    table = np.zeros((NUM_ACTIONS, NUM_ACTIONS), int)
    np.add.at(table, (joined(records, "action"), joined(records, "said")), 1)
    return table


def macro_recall(true: np.ndarray, said: np.ndarray) -> float:
    """Mean over the classes that occur of how often each is named."""
    return float(np.mean([(said[true == value] == value).mean() for value in np.unique(true)])) if len(true) else np.nan


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(slope, R^2) of the least-squares line of y over x; NaN where x is always the same."""
    if len(x) < 3 or np.ptp(x) == 0:
        return np.nan, np.nan
    slope = np.cov(x, y, bias=True)[0, 1] / x.var()
    return float(slope), float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) else 0.0


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927)."""
    if not count:
        return np.nan, np.nan
    z, share = 1.96, hits / count
    middle, width = share + z * z / (2 * count), z * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return max(0.0, (middle - width) / (1 + z * z / count)), min(1.0, (middle + width) / (1 + z * z / count))


def mean(values: np.ndarray) -> float:
    """NaN of nothing."""
    return float(np.mean(values)) if len(values) else np.nan


def _class(motion: np.ndarray, unit: float) -> np.ndarray:
    return np.sign(motion) * (abs(motion) > _SHARE * unit)
