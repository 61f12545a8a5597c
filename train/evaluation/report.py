"""report.json, report.md, plots, contact sheets and the side-by-side film."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.video import write_video
from train.evaluation.control import AXES, Records
from train.evaluation.plots import LABELS, save_plots
from train.evaluation.sheet import save_sheet
from train.evaluation.targets import lookup, verdict

_ZOOM = 3  # of the film
# columns of the tables: (head, path of the figure, whether it is a share to be given in percent)
Columns = Sequence[tuple[str, str, bool]]
CONTROL: Columns = (
    ("blocks", "blocks", False), ("joint", "joint", True), ("from", "low", True), ("to", "high", True),
    ("macro", "joint_macro", True), ("switch", "switch", True), ("stay", "stay", True), ("move", "move", True),
    ("look", "look", True), ("shuffled", "shuffled", True),
)  # fmt: skip
RECALL: Columns = tuple((name, f"recall/{name}", True) for name in AXES)
LINES: Columns = (
    ("yaw slope", "slope/turn", False), ("R²", "r2/turn", False), ("by flow", "flow_slope/turn", False),
    ("R²", "flow_r2/turn", False), ("tilt slope", "slope/tilt", False), ("R²", "r2/tilt", False),
    ("by flow", "flow_slope/tilt", False), ("R²", "flow_r2/tilt", False), ("forward slope", "slope/forward", False),
    ("R²", "r2/forward", False), ("judges agree: turn", "agreement/turn", True), ("tilt", "agreement/tilt", True),
)  # fmt: skip
EVENTS: Columns = (
    ("recall", "recall/seen", True), ("unseen phrasing", "recall/unseen", True), ("false triggers", "false_triggers", True),
    ("blocks until visible", "blocks_until_visible", False), ("within 2", "visible_within_2", True),
    ("gone after", "gone_after", True), ("distance during", "during_distance", False), ("after", "return_distance", False),
    ("control", "control", True), ("without event", "control_without", True),
)  # fmt: skip
KINDS: Columns = (
    ("YumeStreet", "street", True),
    ("dream", "seen", True),
    ("unseen phrasing", "unseen", True),
    ("imagined by the dream", "imagined", True),
    ("in YumeStreet", "street_imagined", True),
)
STARTS: Columns = (
    ("starts", "starts", False),
    *((name, name, True) for name in ("light", "weather", "district", "mean")),
)
ENDURANCE: Columns = (
    ("Fréchet", "frechet", False),
    ("sharpness", "sharpness", False),
    ("contrast", "contrast", False),
    ("colour shift", "colour_shift", False),
    ("change", "change", False),
    *((name, f"motion/{name}", False) for name in AXES),
)
MEMORY: Columns = tuple((name, name, False) for name in ("return", "away", "unrelated", "looked_away", "score"))
FIDELITY: Columns = (("PSNR dB", "psnr", False), ("SSIM", "ssim", False), ("perceptual distance", "distance", False))
ELSEWHERE: Columns = (
    ("blocks", "control/blocks", False),
    ("joint", "control/joint", True),
    ("yaw slope", "control/slope/turn", False),
    ("R²", "control/r2/turn", False),
    *((head, f"endurance/{path}", percent) for head, path, percent in ENDURANCE[:5]),
)


def write_report(out: Path, report: dict[str, Any], records: dict[str, Records], units: np.ndarray, fps: float) -> None:
    """Writes all of it into `out`; `records` are the walks by world."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    save_plots(out / "plots", report, records, units)
    pairs = [list(strip) for record in records["dream"] for strip in record["pictures"].swapaxes(0, 1)]
    save_sheet(out / "sheets" / "walks.png", pairs)
    film = np.concatenate(list(records["dream"][0]["film"]), axis=2)  # truth to the left
    if len(film):
        write_video(out / "side_by_side.mp4", film.repeat(_ZOOM, 1).repeat(_ZOOM, 2), fps)
    (out / "report.md").write_text(as_markdown(report))


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page; the plots stand in plots/, the sheets in sheets/ beside it."""
    model, settings, control = report["model"], report["settings"], report["control"]
    autoencoder = report["autoencoder"]
    overall = {LABELS[name]: parts["all"] for name, parts in control.items()}
    starts = {LABELS[name]: part for name, part in report["starts"].items()}
    events = {LABELS[name]: part for name, part in report["events"].items()}
    fidelity = dict(report["fidelity"])
    unrelated = {"unrelated pictures": {"distance": fidelity.pop("unrelated")}}
    parts = (
        f"# Evaluation of `{model['name']}`, {model['steps']} sampler steps",
        f"{settings['walks']['count']} walks of {settings['walks']['horizon']:g} s, {settings['starts']} text starts, "
        f"{report['events']['dream']['trials']} events, {settings['memory']['scenes']} places returned to. "
        "YumeStreet is the ceiling of every table, a frozen picture the floor.",
        "## Targets", _targets(report["targets"]),
        "## The judge", _judge(report),
        "## Control",
        "All 81 actions told apart by the judge, by time since the start, with 95% intervals. Shuffled: against the keys of other "
        "blocks; chance is 1.2%.",
        table(_flat({name: control[name] for name in ("dream", "street")}), CONTROL),
        table(overall, CONTROL),
        "Recall of each axis, mean over its three classes:", table(overall, RECALL),
        "Seen against commanded motion, by the judge and by optical flow:", table(overall, LINES),
        _plots("control", "confusion", "motion"),
        "## Events", table(events, EVENTS), "Distances are to the same walk without the event.",
        table(_kinds(report["events"]), KINDS), _plots("events"),
        "Kinds that came later, which the judge knows less well:",
        table({LABELS[name]: part for name, part in report["later_events"].items()}, EVENTS),
        table(_kinds(report["later_events"]), KINDS),
        "Every row of `sheets/events_dream_*.png` is one trial; the first has no event.",
        "## Worlds begun from a text", table({**starts, "commonest value": report["starts"]["street"]["chance"]}, STARTS),
        "## Endurance", table(_flat(report["endurance"]), ENDURANCE),
        "Sharpness, contrast, change and motion as shares of real walks'; colour in grey levels of 255.",
        _plots("endurance"), "![walks](sheets/walks.png)", "Rows in pairs: the street, then the dream.",
        "## Memory", table(_flat(report["memory"]), MEMORY),
        "Perceptual distances to the departure. turn_n: 90° aside, n blocks of waiting, back; walk_n: n blocks forward and back. "
        "Unrelated: to other places under the same sky. Score 1: as in the street; 0: no liker than another place; times how far "
        "the world looked away.",
        _plots("memory"),
        "## Fidelity with the street", table({**_flat(fidelity), **unrelated}, FIDELITY), _plots("fidelity"),
        f"The autoencoder on {autoencoder['walks']} walks like those of training: {autoencoder['psnr']:.1f} dB.",
        "`side_by_side.mp4`: the street to the left, the dream to the right.",
        *(
            part for seed, worlds in report["other_towns"].items()
            for part in (f"## Town {seed}, known by heart as well", table(_elsewhere(worlds), ELSEWHERE))
        ),
        "## A town never trained on", table(_elsewhere(report["unseen_town"]), ELSEWHERE),
    )  # fmt: skip
    return "\n\n".join(parts) + "\n"


def table(rows: Mapping[str, Mapping[str, Any]], columns: Columns) -> str:
    """A Markdown table of figures by row; numbers to three digits, a dash for what is missing."""
    lines = ["| | " + " | ".join(head for head, _, _ in columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for name, figures in rows.items():
        cells = [_cell(lookup(figures, path), percent) for _, path, percent in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    if percent:
        return f"{value:.1%}"
    return f"{value}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _flat(worlds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"dream, 10s": figures} of {"dream": {"10s": figures}}."""
    return {f"{LABELS[name]}, {part}": figures for name, parts in worlds.items() for part, figures in parts.items()}


def _kinds(worlds: Mapping[str, Any]) -> dict[str, Any]:
    dream, street = worlds["dream"], worlds["street"]
    return {
        kind: {
            **dream["kinds"][kind],
            "imagined": dream["imagined"][kind],
            "street": street["kinds"][kind]["seen"],
            "street_imagined": street["imagined"][kind],
        }
        for kind in dream["kinds"]
    }


def _elsewhere(worlds: Mapping[str, Any]) -> dict[str, Any]:
    """Control of all blocks, endurance at the last mark."""
    return {
        LABELS[name]: {"control": figures["control"]["all"], "endurance": list(figures["endurance"].values())[-1]}
        for name, figures in worlds.items()
    }


def _plots(*names: str) -> str:
    return "\n".join(f"![{name}](plots/{name}.png)" for name in names)


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| what | target | value | verdict |", "|---|---|---:|---|"]
    for row in targets:
        bounds = [
            f"{sign} {row[name]:g}" for sign, name in (("≥", "at_least"), ("≤", "at_most")) if row[name] is not None
        ]
        lines.append(f"| {row['what']} | {', '.join(bounds)} | {_cell(row['value'], False)} | {verdict(row)} |")
    return "\n".join(lines)


def _judge(report: dict[str, Any]) -> str:
    metadata = report["judge"]
    names = ("joint", "move", "look", "light", "weather", "district")
    rows = {f"a town it was not trained on, {metadata['tested_on']['blocks']} blocks": metadata["accuracy"]}
    for world in ("street", "decoded"):
        rows[f"the walks of this evaluation, {LABELS[world]}"] = report["control"][world]["all"]
    stages = "; ".join(
        f"{stage['network']}: {stage['steps']} steps of {stage['batch']}, from {stage['blocks']} blocks of {stage['towns']} towns"
        for stage in metadata["training"]
    )
    return f"Trained on YumeStreet ({stages}). How often it is right, the ceiling of all that follows:\n\n" + table(
        rows, tuple((name, name, True) for name in names)
    )
