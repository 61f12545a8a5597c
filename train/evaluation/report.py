"""report.json, report.md, plots, contact sheets and the side-by-side film."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.evaluation.control import Records
from train.evaluation.plots import LABELS, save_plots
from train.evaluation.targets import verdict
from train.sheet import save_sheet
from train.video import write_video

_ZOOM = 3  # of the film
Cell = str | float | int | None


def write_report(out: Path, report: dict[str, Any], records: dict[str, Records], units: np.ndarray, fps: float) -> None:
    """Writes all of it into `out`; `records` are the walks by world."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    names = save_plots(out / "plots", report, records, units)
    sheet = [list(picture) for record in records["dream"] for picture in record["pictures"].transpose(1, 0, 2, 3, 4)]
    save_sheet(out / "sheets" / "walks.png", sheet)
    film = np.concatenate(list(records["dream"][0]["film"]), axis=2)  # truth to the left
    if len(film):
        write_video(out / "side_by_side.mp4", film.repeat(_ZOOM, 1).repeat(_ZOOM, 2), fps)
    (out / "report.md").write_text(as_markdown(report, names))


def as_markdown(report: dict[str, Any], plots: Sequence[str]) -> str:
    """The report as a page; `plots` stand in the folder plots/ beside it."""
    pictures = {Path(name).stem: f"![{Path(name).stem}](plots/{name})" for name in plots}
    sections = (
        f"# Evaluation of `{report['model']['name']}`, {report['model']['steps']} sampler steps\n\n{_scope(report)}",
        f"## Targets\n\n{_targets(report)}",
        f"## The judge\n\n{_judge(report)}",
        f"## Control\n\n{_control(report['control'])}\n\n{pictures['control']}\n{pictures['confusion']}\n{pictures['motion']}",
        f"## Events\n\n{_events(report['events'])}\n\n{pictures['events']}\n\nEvery row of `sheets/events_dream_*.png` is one trial; the first has no event.",
        f"## Worlds begun from a text\n\n{_starts(report['starts'])}",
        f"## Endurance\n\n{_endurance(report['endurance'])}\n\n{pictures['endurance']}\n\n![walks](sheets/walks.png)\n\nRows in pairs: the street, then the dream.",
        f"## Memory\n\n{_memory(report['memory'])}\n\n{pictures['memory']}",
        f"## Fidelity with the street\n\n{_fidelity(report['fidelity'])}\n\n{pictures['fidelity']}\n\n`side_by_side.mp4`: the street to the left, the dream to the right.",
        f"## A town never trained on\n\n{_unseen(report['unseen_town'])}",
    )
    return "\n\n".join(sections) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table; numbers to three digits, None as a dash."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows])


def _cell(value: Cell) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    return (
        value
        if isinstance(value, str)
        else f"{value:d}"
        if isinstance(value, int)
        else f"{value:.3g}"
        if abs(value) < 100
        else f"{value:.0f}"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.1%}"


def _scope(report: dict[str, Any]) -> str:
    s = report["settings"]
    return (
        f"{s['walks']} walks of {s['horizon']:g} s, {s['starts']} text starts, {report['events']['dream']['trials']} events, "
        f"{s['memory']['scenes']} places returned to. {sum(report['seconds'].values()) / 60:.0f} minutes for events, memory and starts. "
        "YumeStreet is the ceiling of every table, a frozen picture the floor."
    )


def _targets(report: dict[str, Any]) -> str:
    rows = []
    for row in report["targets"]:
        bounds = [f"≥ {row['at_least']:g}"] if row["at_least"] is not None else []
        bounds += [f"≤ {row['at_most']:g}"] if row["at_most"] is not None else []
        rows.append((row["what"], ", ".join(bounds), row["value"], verdict(row)))
    return table(("what", "target", "value", "verdict"), rows)


def _judge(report: dict[str, Any]) -> str:
    facts = report["judge"]
    rows = [
        (name, *(_percent(report["control"][world]["all"][name]) for world in ("street", "decoded")))
        for name in ("joint", "move", "look")
    ]
    accuracy = facts["accuracy"]
    return (
        f"Trained for {facts['steps']} steps of {facts['batch']} blocks on {facts['trained_on']['towns']} towns; on "
        f"{facts['tested_on']['blocks']} blocks of a town it was not trained on: joint {accuracy['joint']:.1%}, move {accuracy['move']:.1%}, "
        f"look {accuracy['look']:.1%}; light {accuracy['light']:.1%}, weather {accuracy['weather']:.1%}, district {accuracy['district']:.1%}. "
        "On the walks of this evaluation, real and through the autoencoder:\n\n" + table(("", "real", "decoded"), rows)
    )


def _control(worlds: dict[str, Any]) -> str:
    shares = [
        (
            f"{LABELS[name]}, {time}",
            f["blocks"],
            *(_percent(f[k]) for k in ("joint", "joint_macro", "switch", "stay", "move", "look", "shuffled")),
        )
        for name, parts in worlds.items()
        for time, f in parts.items()
        if name in ("dream", "street") or time == "all"
    ]
    recalls = [
        (LABELS[name], *(_percent(r) for r in parts["all"]["recall"].values())) for name, parts in worlds.items()
    ]
    lines = [
        (LABELS[name], f["slope/turn"], f["r2/turn"], f["flow_slope/turn"], f["flow_r2/turn"], f["slope/tilt"], f["r2/tilt"],
         f["slope/forward"], f["r2/forward"], _percent(f["agreement/turn"]), _percent(f["agreement/tilt"]))
        for name, f in ((name, parts["all"]) for name, parts in worlds.items())
    ]  # fmt: skip
    return "\n\n".join(
        (
            table(("", "blocks", "joint", "macro", "switch", "stay", "move", "look", "shuffled"), shares),
            "Recall of each axis, mean over its three classes:",
            table(("", "forward", "right", "turn", "tilt"), recalls),
            "Seen against commanded motion, and how often the judge and optical flow agree on turn and tilt:",
            table(
                (
                    "",
                    "yaw slope",
                    "R²",
                    "by flow",
                    "R²",
                    "tilt slope",
                    "R²",
                    "forward slope",
                    "R²",
                    "agree: turn",
                    "tilt",
                ),
                lines,
            ),
        )
    )


def _events(worlds: dict[str, Any]) -> str:
    rows = [
        (LABELS[name], _percent(f["recall"]["seen"]), _percent(f["recall"]["unseen"]), _percent(f["false_triggers"]), f["blocks_until_visible"],
         _percent(f["visible_within_2"]), _percent(f["gone_after"]), f["during_distance"], f["return_distance"], _percent(f["control"]), _percent(f["control_without"]))
        for name, f in worlds.items()
    ]  # fmt: skip
    head = (
        "",
        "recall",
        "unseen phrasing",
        "false triggers",
        "blocks until visible",
        "within 2",
        "gone after",
        "distance to the walk without: during",
        "after",
        "control",
        "without event",
    )
    kinds = [
        (
            kind,
            *(
                _percent(worlds[w]["kinds"][kind][p])
                for w, p in (("street", "seen"), ("dream", "seen"), ("dream", "unseen"))
            ),
            _percent(worlds["dream"]["imagined"][kind]),
        )
        for kind in worlds["dream"]["kinds"]
    ]
    return f"{table(head, rows)}\n\n{table(('kind', 'YumeStreet', 'dream', 'unseen phrasing', 'imagined'), kinds)}"


def _starts(worlds: dict[str, Any]) -> str:
    rows = [
        (LABELS[name], f["starts"], *(_percent(f[k]) for k in ("light", "weather", "district", "mean")))
        for name, f in worlds.items()
    ]
    chance = worlds["street"]["chance"]
    rows.append(("commonest value", None, *(_percent(chance[k]) for k in ("light", "weather", "district")), None))
    return table(("", "starts", "light", "weather", "district", "mean"), rows)


def _endurance(worlds: dict[str, Any]) -> str:
    rows = [
        (
            f"{LABELS[name]}, {mark}",
            f["frechet"],
            f["sharpness"],
            f["contrast"],
            f["colour_shift"],
            f["change"],
            *f["motion"].values(),
        )
        for name, marks in worlds.items()
        for mark, f in marks.items()
    ]
    head = ("", "Fréchet", "sharpness", "contrast", "colour shift", "change", "forward", "right", "turn", "tilt")
    return (
        table(head, rows)
        + "\n\nSharpness, contrast, change and motion as shares of real walks'; colour in grey levels of 255."
    )


def _memory(worlds: dict[str, Any]) -> str:
    rows = [
        (f"{LABELS[name]}, {trial}", f["return"], f["away"], f["unrelated"], f["score"])
        for name, trials in worlds.items()
        for trial, f in trials.items()
    ]
    return table(("", "return", "away", "unrelated", "score"), rows) + (
        "\n\nPerceptual distances to the departure. turn_n: 90° aside, n blocks of waiting, back; walk_n: n blocks forward and back. "
        "Score 1: as in the street; 0: no liker than another place, or than what was seen away."
    )


def _fidelity(worlds: dict[str, Any]) -> str:
    rows = [
        (f"{LABELS[name]}, {time}", f["psnr"], f["ssim"], f["distance"])
        for name, parts in worlds.items()
        if name != "unrelated"
        for time, f in parts.items()
    ]
    return table(
        ("", "PSNR dB", "SSIM", "perceptual distance"), [*rows, ("unrelated pictures", None, None, worlds["unrelated"])]
    )


def _unseen(worlds: dict[str, Any]) -> str:
    rows = []
    for name, figures in worlds.items():
        f, last = figures["control"]["all"], list(figures["endurance"].values())[-1]
        rows.append(
            (
                LABELS[name],
                f["blocks"],
                _percent(f["joint"]),
                f["slope/turn"],
                f["r2/turn"],
                last["frechet"],
                last["sharpness"],
                last["change"],
            )
        )
    return table(("", "blocks", "joint", "yaw slope", "R²", "Fréchet", "sharpness", "change"), rows)
