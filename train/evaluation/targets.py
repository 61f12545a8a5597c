"""What the shipped weights should reach, and whether they do. Numbers only; they are looked up in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound on a figure of the report. `figure` is its path, with "/" between keys; missing keys mean: not measured."""

    what: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None


TARGETS = (
    Target("control, joint 81-way, share of the ceiling, first 5 s", "headline/control_share_5s", at_least=0.95),
    Target("the same at 1 min", "headline/control_share_1min", at_least=0.90),
    Target("the same at 10 min", "headline/control_share_10min", at_least=0.85),
    Target("control, stay trials minus switch trials", "headline/stay_minus_switch", -0.03, 0.03),
    Target("judged against commanded yaw, slope", "headline/turn_slope", 0.9, 1.1),
    Target("judged against commanded yaw, R²", "headline/turn_r2", at_least=0.95),
    Target("event recall, phrasings of training", "headline/event_recall_seen", at_least=0.95),
    Target("event recall, unseen phrasings", "headline/event_recall_unseen", at_least=0.85),
    Target("events where there is none (false triggers)", "headline/false_triggers", at_most=0.02),
    Target("blocks until an event is visible, median", "headline/blocks_until_visible", at_most=2),
    Target("text start: light, weather, district", "headline/text_start", at_least=0.90),
    Target("Fréchet distance at 10 min / at 10 s", "headline/frechet_10min_over_10s", at_most=1.15),
    Target("look away 90° for 2 blocks and back: score", "headline/memory_turn_2", at_least=0.5),
    Target("autoencoder on held-out walks, PSNR (dB)", "headline/autoencoder_psnr", at_least=32),
    Target("few steps against the teacher: control, difference", "headline/control_over_teacher", at_least=0),
    Target("few steps against the teacher: Fréchet distance, ratio", "headline/frechet_over_teacher", at_most=1),
)


def headline(report: dict[str, Any], teacher: dict[str, Any] | None = None) -> dict[str, float | None]:
    """The figures that targets ask for; None where they were not measured."""

    def ratio(value: float | None, other: float | None) -> float | None:
        return None if value is None or not other else round(value / other, 4)

    def difference(value: float | None, other: float | None) -> float | None:
        return None if value is None or other is None else round(value - other, 4)

    def of(figure: str) -> float | None:
        return lookup(report, figure)

    def share(part: str) -> float | None:
        return ratio(of(f"control/dream/{part}/joint"), of(f"control/street/{part}/joint"))

    figures = {
        "control_share_5s": share("0-5s"),
        "control_share_1min": share("30-60s"),
        "control_share_10min": share("540-600s"),
        "control_share_all": share("all"),
        "stay_minus_switch": difference(of("control/dream/all/stay"), of("control/dream/all/switch")),
        "turn_slope": of("control/dream/all/slope/turn"),
        "turn_r2": of("control/dream/all/r2/turn"),
        "event_recall_seen": of("events/dream/recall/seen"),
        "event_recall_unseen": of("events/dream/recall/unseen"),
        "false_triggers": of("events/dream/false_triggers"),
        "blocks_until_visible": of("events/dream/blocks_until_visible"),
        "text_start": of("starts/dream/mean"),
        "frechet_10min_over_10s": ratio(of("endurance/dream/600s/frechet"), of("endurance/dream/10s/frechet")),
        "frechet_10s": of("endurance/dream/10s/frechet"),
        "memory_turn_2": of("memory/dream/turn_2/score"),
        "autoencoder_psnr": of("autoencoder/psnr"),
        "control_over_teacher": None,
        "frechet_over_teacher": None,
    }
    if teacher is not None:
        own = teacher["headline"]
        figures["control_over_teacher"] = difference(figures["control_share_all"], own["control_share_all"])
        figures["frechet_over_teacher"] = ratio(figures["frechet_10s"], own["frechet_10s"])
    return figures


def lookup(report: Mapping[str, Any], figure: str) -> float | None:
    """The number at a path, None where there is none."""
    value: Any = report
    for key in figure.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def check(report: Mapping[str, Any], targets: tuple[Target, ...] = TARGETS) -> list[dict[str, Any]]:
    """A row for each target: its bounds, the value, `met` (None: not measured) and by how much it is `missed` (0 if met)."""
    rows = []
    for target in targets:
        value = lookup(report, target.figure)
        missed = None
        if value is not None:
            below = 0.0 if target.at_least is None else target.at_least - value
            above = 0.0 if target.at_most is None else value - target.at_most
            missed = round(max(0.0, below, above), 5)
        rows.append(
            {**asdict(target), "value": value, "met": None if missed is None else missed == 0, "missed": missed}
        )
    return rows


def verdict(row: Mapping[str, Any]) -> str:
    """A row of `check` in words."""
    if row["met"] is None:
        return "not measured"
    return "met" if row["met"] else f"missed by {row['missed']:.3g}"
