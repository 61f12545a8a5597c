"""The report of a recorded world as files: report.md, report.json, plots and contact sheets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.evaluation.sheet import save_sheet
from train.generator.records import LOOKS, SHOWN

SHEET = 6  # rollouts of the contact sheet
COLOURS = {
    "rollout": "#c2410c", "recorded": "#15803d", "autoencoder": "#1d4ed8", "start": "#6b7280", "before": "#a16207",
    "neutral": "#7c3aed", "shuffled": "#9ca3af", "chance": "#000000",
}  # fmt: skip
LABELS = {
    "rollout": "rollout", "recorded": "recorded", "autoencoder": "recorded, through the autoencoder", "start": "start picture",
    "before": "true picture of the step before", "neutral": "neutral action instead", "shuffled": "shuffled actions",
    "chance": "chance",
}  # fmt: skip
FAITHFUL = ("rollout", "autoencoder", "before", "start")
CONTROLLED = ("recorded", "autoencoder", "rollout", "shuffled", "neutral", "chance")
NOTES = {
    "fidelity": "PSNR in dB, over all pictures of a step. Distance: squared difference of channel-normalised features of the "
    "judge; made like LPIPS, but not LPIPS. Worse: share of steps whose PSNR is below that of the start picture.",
    "distribution": "Of the judge's features, to recorded steps of the same horizon at other starts of the same episodes. The "
    "recorded column is the floor. Few steps make all distances of a row too large alike: compare within rows.",
    "control": "Recorded pictures are its ceiling. Shuffled: against the actions of other steps. Neutral: rollouts under the "
    "action that does least, against the recorded actions. Chance: the commonest action of training, or the mean.",
    "drift": "They begin at held-out resets and follow actions as in training. Each mark: the 10 steps before it, in grey levels. "
    "Recorded: episodes of that age, or of all ages where none was so long (0 episodes).",
}


def write(out: Path, report: Mapping[str, Any], sheet: np.ndarray, lasting: np.ndarray) -> None:
    """Writes all into `out`. sheet uint8 [P, 2, ., H, W, 3]: truth and rollout; lasting uint8 [P, ., H, W, 3]: long rollouts."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    zoom = max(1, 128 // sheet.shape[3])
    save_sheet(out / "sheets" / "rollouts.png", [list(row) for pair in sheet[:SHEET] for row in pair], zoom)
    save_sheet(out / "sheets" / "long.png", [list(row) for row in lasting[:SHEET]], zoom)
    _save_plots(out / "plots", report)
    (out / "report.md").write_text(as_markdown(report))


# ---- text -------------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three digits, or a dash for what is missing."""
    if value is None:
        return "–"
    return f"{value}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def within(interval: Sequence[float | None]) -> str:
    """A value with its interval."""
    value, low, high = interval
    return number(value) if low is None or high is None else f"{number(value)} ({number(low)} to {number(high)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, all others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    about, settings, judge = report["about"], report["settings"], report["judge"]
    scores = ", ".join(f"{name} {number(value)}" for name, value in judge["held-out"].items())
    measure = "accuracy" if report["control"]["kind"] == "accuracy" else "R²"
    parts = (
        f"# Report on `{about['model']}`, a model of {about['environment']}", _introduction(report),
        "## Misses", "\n".join(f"- {line}" for line in report["misses"]) or "None.",
        "## Fidelity", _fidelity(report["fidelity"]), NOTES["fidelity"], "![fidelity](plots/fidelity.png)",
        "## Fréchet distance", _distribution(report["distribution"]), NOTES["distribution"],
        "## Control", _control(report["control"]),
        f"{measure} of a judge that names the action from pictures ({judge['steps']} training steps, recorded pictures only; "
        f"{scores} on {judge['held-out steps']} held-out steps). {NOTES['control']}",
        _each(report["control"]["each"]), "![control](plots/control.png)",
        "## Reward", _reward(report["reward"]), "## Termination", _termination(report["termination"]),
        "## Survival", _survival(report["survival"], about["policy"]),
        "## Drift", _drift(report["drift"]), f"{settings['long_worlds']} rollouts. {NOTES['drift']}",
        "## Speed", _speed(report["speed"]),
        "## Pictures", "![rollouts](sheets/rollouts.png)",
        f"Rows in pairs: recorded, then rollout, at steps {', '.join(map(str, SHOWN))}.",
        "![long](sheets/long.png)", "Long rollouts: the start, then each mark of the table of drift.",
    )  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(report: Mapping[str, Any]) -> str:
    about, settings = report["about"], report["settings"]
    return (
        f"{about['sampler_steps']} sampler steps. Everything is measured on {about['held_out']} episodes "
        f"({about['held_out_steps']} steps) that nothing was trained on; {about['train']} were for training. "
        f"{report['places']['starts']} rollouts begin at random places of them, from one picture, and follow "
        f"{settings['horizon']} recorded actions. In brackets: 95% bootstrap intervals over starts."
    )


def _fidelity(bins: Mapping[str, Any]) -> str:
    rows = [
        [f"{steps}, {kind}", *(within(row[name][kind]) for name in FAITHFUL), within(row["worse"]) if kind == "psnr" else ""]
        for kind in ("psnr", "distance") for steps, row in bins.items()
    ]  # fmt: skip
    return table(["steps", *(LABELS[name] for name in FAITHFUL), "worse"], rows)


def _distribution(bins: Mapping[str, Any]) -> str:
    names = ("recorded", "autoencoder", "rollout", "neutral", "start")
    rows = [[steps, *(number(row[name]) for name in names), number(row["steps"])] for steps, row in bins.items()]
    return table(["steps", *(LABELS[name] for name in names), "number of steps"], rows)


def _control(part: Mapping[str, Any]) -> str:
    rows = [[name, *(within(row[c]) for c in CONTROLLED), number(row["steps"])] for name, row in part["score"].items()]
    return table(["component, steps", *(LABELS[c] for c in CONTROLLED), "number of steps"], rows)


def _each(each: Mapping[str, Any]) -> str:
    if not each:
        return ""
    worst = sorted(each.items(), key=lambda item: item[1]["rollout"])
    rows = [[name, *(number(row[k]) for k in ("rollout", "recorded", "share", "steps"))] for name, row in worst]
    head = ["choice", "rollout", "recorded", "share", "number of steps"]
    return "Recall of each choice, the worst first:\n\n" + table(head, rows)


def _reward(part: Mapping[str, Any]) -> str:
    if "missing" in part or part["kind"] == "none":
        return f"Not measured: {part.get('missing', 'no reward of training differs from 0')}."
    if part["kind"] == "dense":
        rows = [[LABELS[name], within(score)] for name, score in part["dense"].items()]
        return "Most steps are rewarded. R² of predicted rewards:\n\n" + table(["rewards read from", "R²"], rows)
    lines = []
    for name in ("positive", "negative"):
        rows = [
            [LABELS[row], within(f["recall"]), within(f["precision"]), number(f["missed"]), number(f["false"])]
            for row, f in part.get(name, {}).items() if row != "events"
        ]  # fmt: skip
        if rows:
            lines += [
                f"{part[name]['events']} {name} rewards were recorded. A predicted one within 2 steps counts:",
                table(["read from", "recall", "precision", "missed", "false"], rows),
            ]
    rows = [[LABELS[row], within(value)] for row, value in part["false_success"].items()]
    success = "Share of worlds without a recorded positive reward that are given one:"
    return "\n\n".join([*lines, success, table(["read from", "false success"], rows)])


def _termination(part: Mapping[str, Any]) -> str:
    if "missing" in part:
        return f"Not measured: {part['missing']}."
    rows = [
        ["heads", number(part["average_precision"]), number(part["calibration_error"])],
        ["a constant", number(part["average_precision_constant"]), number(part["calibration_error_constant_0"])],
    ]
    told = f"{part['ends']} of {part['steps']} held-out steps end an episode; read from recorded pictures."
    return f"{told}\n\n" + table(["", "average precision", "calibration error"], rows)


def _survival(part: Mapping[str, Any], policy: str) -> str:
    if "missing" in part:
        return f"Not measured: {part['missing']}."
    rows = [
        [name, within(row["mean"]), ", ".join(map(number, row["quartiles"])), number(row["lives"]), number(row["ended"])]
        for name, row in part.items() if name != "limit"
    ]  # fmt: skip
    told = f"Steps lived from a reset; lives are cut at {part['limit']}. Recorded lives are of all episodes."
    note = f"{told} Rollouts follow actions of other episodes. Policy of the recording: {policy or 'not named'}."
    return table(["", "mean", "quartiles", "lives", "of them ended"], rows) + f"\n\n{note}"


def _drift(marks: Mapping[str, Any]) -> str:
    rows = [
        [
            mark,
            *(cell for name in LOOKS for cell in (within(row[name]), within(row[f"recorded_{name}"]))),
            number(row["episodes"]),
        ]
        for mark, row in marks.items()
    ]
    return table(["step", *(head for name in LOOKS for head in (name, "recorded")), "recorded episodes"], rows)


def _speed(part: Mapping[str, Any]) -> str:
    machine = part["machine"]
    rows = [[k, number(r["milliseconds"]), number(r["worlds_a_second"])] for k, r in part.items() if k != "machine"]
    told = f"On {machine['device']}, {machine['threads']} threads; pictures included."
    return (
        table(["", "ms a step", "world steps a second"], rows)
        + f"\n\n{told} The recorded world's own pace is the last row."
    )


# ---- misses -----------------------------------------------------------------------------------------------------------


def misses(report: Mapping[str, Any]) -> list[str]:
    """Where the model is no better than a control, or was not measured; a sentence each."""
    found = []
    for steps, row in report["fidelity"].items():
        own, still = row["rollout"]["psnr"][0], row["start"]["psnr"][0]
        if own is not None and own <= still:
            found.append(
                f"PSNR at steps {steps}: {number(own)} dB, no better than the start picture's {number(still)} dB."
            )
        own, still = row["rollout"]["distance"][0], row["start"]["distance"][0]
        if own is not None and own >= still:
            found.append(
                f"Distance at steps {steps}: {number(own)}, no better than the start picture's {number(still)}."
            )
    for name, row in report["control"]["score"].items():
        (own, low, _), ceiling = row["rollout"], row["recorded"][0]
        bar = max((row[c][0] for c in ("shuffled", "neutral", "chance") if row[c][0] is not None), default=None)
        if ceiling is not None and row["chance"][0] is not None and ceiling <= row["chance"][0]:
            chance = number(row["chance"][0])
            found.append(f"Control, {name}: the judge itself gets {number(ceiling)}, chance {chance}; it says nothing.")
        elif own is not None and bar is not None and (own if low is None else low) <= bar:
            found.append(
                f"Control, {name}: {within(row['rollout'])} is not clearly above its best control, {number(bar)}."
            )
        elif own is not None and ceiling is not None and own < 0.9 * ceiling:
            found.append(f"Control, {name}: {number(own)} is below 90% of the ceiling, {number(ceiling)}.")
    for mark, row in report["drift"].items():
        for name in LOOKS:
            own, real = row[name][0], row[f"recorded_{name}"][0]
            if own is not None and real and not 0.8 <= own / real <= 1.25:
                found.append(f"Drift: {name} at step {mark} is {number(own)}, recorded {number(real)}.")
    pace, own = (report["speed"][k]["milliseconds"] for k in ("recorded world", "batch 1"))
    if own > pace:
        found.append(f"Speed: {number(own)} ms a step, the recorded world's own pace is {number(pace)} ms.")
    parts = ("reward", "termination", "survival")
    return found + [f"Not measured, {name}: {report[name]['missing']}." for name in parts if "missing" in report[name]]


# ---- plots ------------------------------------------------------------------------------------------------------------


def _save_plots(folder: Path, report: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, kind, title in zip(figure.subplots(1, 2), ("psnr", "distance"), ("PSNR, dB", "distance (not LPIPS)")):
        for name in FAITHFUL:
            _line(axes, name, {steps: row[name][kind] for steps, row in report["fidelity"].items()})
        axes.set(title=title, xlabel="steps from the start picture")
        axes.legend(fontsize=8)
    figure.savefig(folder / "fidelity.png", dpi=90)
    score = report["control"]["score"]
    figure = Figure(figsize=(max(6, 1.6 * len(score)), 4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(CONTROLLED):
        _line(axes, name, {steps: row[name] for steps, row in score.items()}, shift=0.1 * (place - 2.5))
    axes.set(title=f"{report['control']['kind']} of the judge, by component and steps")
    axes.legend(fontsize=8)
    figure.savefig(folder / "control.png", dpi=90)


def _line(axes: Any, name: str, points: Mapping[str, Sequence[float | None]], shift: float = 0.0) -> None:
    """Values with their intervals over named places; joined by a line unless they are shifted aside."""
    value, low, high = (np.array([np.nan if p[k] is None else p[k] for p in points.values()], float) for k in range(3))
    reach = np.nan_to_num(np.maximum([value - low, high - value], 0))
    style, at = "" if shift else "-", np.arange(len(points)) + shift
    axes.errorbar(at, value, reach, color=COLOURS[name], label=LABELS[name], marker="o", capsize=3, linestyle=style)
    axes.set_xticks(range(len(points)), list(points))
