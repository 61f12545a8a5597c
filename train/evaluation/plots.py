"""The report's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.evaluation import control
from train.evaluation.control import Records
from world_model.actions import ALL_ACTIONS, LOOKS, MOVES

COLOURS = {"dream": "#c2410c", "street": "#15803d", "decoded": "#1d4ed8", "frozen": "#6b7280"}
LABELS = {"dream": "dream", "street": "YumeStreet", "decoded": "YumeStreet, decoded", "frozen": "frozen picture"}


def save_plots(folder: Path, report: dict[str, Any], records: dict[str, Records], units: np.ndarray) -> None:
    """Writes all plots into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, tuple[int, tuple[float, float], Callable[[Sequence[Axes]], None]]] = {
        "control": (1, (8, 4), lambda axes: _control(axes[0], report["control"])),
        "confusion": (3, (16, 5), lambda axes: _confusion(axes, records["dream"])),
        "motion": (4, (14, 4), lambda axes: _motion(axes, records, units)),
        "events": (2, (13, 4), lambda axes: _events(axes, report["events"])),
        "endurance": (4, (15, 4), lambda axes: _endurance(axes, report["endurance"])),
        "memory": (1, (9, 4), lambda axes: _memory(axes[0], report["memory"])),
        "fidelity": (3, (14, 4), lambda axes: _fidelity(axes, report["fidelity"])),
    }
    for name, (panels, size, draw) in drawings.items():
        figure = Figure(figsize=size, layout="constrained")
        draw(np.atleast_1d(figure.subplots(1, panels)).tolist())
        figure.savefig(folder / f"{name}.png", dpi=90)


def _control(axes: Axes, worlds: dict[str, Any]) -> None:
    for name, parts in worlds.items():
        times = [part for part in parts if part != "all"]
        joint = np.array([parts[t]["joint"] for t in times])
        low, high = (np.array([parts[t][k] for t in times]) for k in ("low", "high"))
        axes.errorbar(
            range(len(times)),
            joint,
            [joint - low, high - joint],
            color=COLOURS[name],
            label=LABELS[name],
            marker="o",
            capsize=3,
        )
        if name == "dream":
            axes.plot(
                range(len(times)),
                [parts[t]["shuffled"] for t in times],
                ":",
                color=COLOURS[name],
                label="dream, shuffled keys",
            )
    axes.axhline(1 / len(ALL_ACTIONS), color="black", linewidth=0.8, label="chance")
    axes.set_xticks(range(len(times)), times)
    axes.set(ylim=(0, 1.02), ylabel="share of blocks", title="all 81 actions told apart, by time since the start")
    axes.legend(fontsize=8)


def _confusion(axes: Sequence[Axes], records: Records) -> None:
    held, said = (control.joined(records, name) for name in ("action", "said"))
    looks = [arrows or "·" for arrows, _, _ in LOOKS.values()]
    moves = [keys or "·" for keys, _, _ in MOVES.values()]
    for ax, names, divide, title in (
        (axes[0], moves, lambda a: a // len(LOOKS), "move"),
        (axes[1], looks, lambda a: a % len(LOOKS), "look"),
    ):
        table = np.zeros((len(names), len(names)))
        np.add.at(table, (divide(held), divide(said)), 1)
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        ax.imshow(shares, vmin=0, vmax=1, cmap="magma")
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(names)), names)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.05:
                ax.text(
                    column,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if share > 0.6 else "white",
                )
        ax.set(title=title, xlabel="seen by the judge", ylabel="held")
    table = control.confusion(records)
    axes[2].imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), vmin=0, vmax=1, cmap="magma")
    edges = np.arange(0, len(ALL_ACTIONS), len(LOOKS))
    axes[2].set_xticks(edges, moves)
    axes[2].set_yticks(edges, moves)
    axes[2].set(title="all 81: nine looks within each move", xlabel="seen", ylabel="held")


def _motion(axes: Sequence[Axes], records: dict[str, Records], units: np.ndarray) -> None:
    for k, ax in enumerate(axes):
        for shift, name in ((-0.15, "street"), (0.15, "dream")):
            commanded = control.commanded_of(control.joined(records[name], "action"), units)[:, k]
            seen = control.joined(records[name], "motion")[:, k]
            jitter = np.random.default_rng(0).normal(0, 0.03, len(seen))
            ax.plot(
                commanded / units[k] + shift + jitter,
                seen / units[k],
                ".",
                color=COLOURS[name],
                alpha=0.3,
                label=LABELS[name],
            )
        ax.plot([-1, 1], [-1, 1], color="black", linewidth=0.8)
        ax.set(
            title=control.AXES[k],
            xlabel="commanded (1: a key held)",
            ylabel="seen by the judge" if k == 0 else "",
            ylim=(-2, 2),
        )
    axes[0].legend(fontsize=8)


def _events(axes: Sequence[Axes], worlds: dict[str, Any]) -> None:
    kinds = list(worlds["dream"]["kinds"])
    bars = (
        ("street", "seen", COLOURS["street"], "YumeStreet"),
        ("dream", "seen", COLOURS["dream"], "dream, phrasing of training"),
        ("dream", "unseen", "#fdba74", "dream, unseen phrasing"),
    )
    for k, (world, phrasing, colour, label) in enumerate(bars):
        shares = [worlds[world]["kinds"][kind][phrasing] or 0 for kind in kinds]
        axes[0].bar(np.arange(len(kinds)) + 0.27 * (k - 1), shares, 0.25, color=colour, label=label)
    axes[0].set(title="recall", ylim=(0, 1.05))
    for k, world in enumerate(("street", "dream")):
        shares = [worlds[world]["imagined"][kind] or 0 for kind in kinds]
        axes[1].bar(np.arange(len(kinds)) + 0.4 * k - 0.2, shares, 0.38, color=COLOURS[world], label=LABELS[world])
    axes[1].set(title="seen where there is no event", ylim=(0, 1.05))
    for ax in axes:
        ax.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right", fontsize=8)
        ax.legend(fontsize=8)


def _endurance(axes: Sequence[Axes], worlds: dict[str, Any]) -> None:
    titles = {
        "frechet": "Fréchet distance to real blocks",
        "sharpness": "sharpness, share of real",
        "contrast": "contrast, share of real",
        "change": "change between pictures, share of real",
    }
    longest = sorted(
        {mark for marks in worlds.values() for mark in marks}, key=lambda mark: float(mark.removesuffix("s"))
    )
    for ax, (figure, title) in zip(axes, titles.items()):
        for name, marks in worlds.items():
            ax.plot(
                [longest.index(m) for m in marks],
                [marks[m][figure] for m in marks],
                "o-",
                color=COLOURS[name],
                label=LABELS[name],
            )
        ax.set_xticks(range(len(longest)), longest)
        ax.set(title=title)
        ax.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)


def _memory(axes: Axes, worlds: dict[str, Any]) -> None:
    trials = list(worlds["street"])
    for k, name in enumerate(("street", "dream")):
        for offset, figure, hatch in ((0, "return", ""), (1, "away", "//"), (2, "unrelated", "..")):
            axes.bar(
                np.arange(len(trials)) + 0.13 * (3 * k + offset) - 0.33,
                [worlds[name][t][figure] or 0 for t in trials],
                0.12,
                color=COLOURS[name],
                hatch=hatch,
                edgecolor="white",
                label=f"{LABELS[name]}: {figure}",
            )
    axes.set_xticks(range(len(trials)), [t.replace("turn_", "90°, wait ").replace("walk_", "out ") for t in trials])
    axes.set(title="perceptual distance to the departure (return: low is memory)")
    axes.legend(fontsize=8)


def _fidelity(axes: Sequence[Axes], worlds: dict[str, Any]) -> None:
    for ax, figure in zip(axes, ("psnr", "ssim", "distance")):
        for name in ("decoded", "dream", "frozen"):
            parts = worlds[name]
            ax.plot(
                list(parts), [part[figure] for part in parts.values()], "o-", color=COLOURS[name], label=LABELS[name]
            )
        if figure == "distance" and worlds["unrelated"] is not None:
            ax.axhline(worlds["unrelated"], color="black", linewidth=0.8, label="unrelated pictures")
        ax.set(title={"psnr": "PSNR to the street, dB", "ssim": "SSIM", "distance": "perceptual distance"}[figure])
        ax.tick_params(axis="x", rotation=30)
        ax.legend(fontsize=8)
