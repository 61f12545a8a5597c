"""The table and the plots of a generator's ablations (`python -m train.generator.ablate`), from stored results."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from train.evaluation.ablations import Stored, curves, spread_of, table, weights_of
from train.generator.street_figures import HORIZONS, MINUTE, TOGETHER

COLUMNS = {
    **{f"PSNR {name}, dB": f"psnr/{name}" for name in HORIZONS},
    f"sharpness {TOGETHER}": f"sharpness/{TOGETHER}",
    "sharpness 13-20": "sharpness/13-20",
    f"control {TOGETHER}": f"control/{TOGETHER}",
    f"Fréchet {TOGETHER}": f"frechet/{TOGETHER}",
    "ms a block": "milliseconds",
    "history tokens": "history_tokens",
    "s a step": "seconds_a_step",
    f"sharpness {MINUTE}": f"sharpness/{MINUTE}",
    f"control {MINUTE}": f"control/{MINUTE}",
    f"Fréchet {MINUTE}": f"frechet/{MINUTE}",
}


def page(name: str, steps: int, results: Mapping[str, Stored], what: Mapping[str, str], same: Mapping[str, str]) -> str:
    """ablations.md of the model `name`: results by variant, `what` each changes, and which are the `same` as others."""
    known = [
        figure for of in results.values() for r in of for figure, value in r["figures"].items() if value is not None
    ]
    columns = {head: figure for head, figure in COLUMNS.items() if figure in known}
    parts = [
        f"# Ablations of {name}",
        f"{steps} steps of foundation training from the same weights, `before` none; mean ± standard deviation over seeds. Numbers "
        "behind a figure are blocks of half a second. Rollouts go along recorded actions, in towns of no training. Sharpness and "
        "control are shares of the street's own, the Fréchet distance is a multiple of the street's own.",
        table(results, results, columns),
        weights_of(results, what),
        "\n".join(f"- {variant}: the same as {other} here." for variant, other in same.items()),
        "![ablations](ablations.png)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(results: Mapping[str, Stored]) -> Figure:
    """PSNR and sharpness by horizon; control and Fréchet distance of 10 s by variant."""
    drawing = Figure(figsize=(18, 5), layout="constrained")
    axes = drawing.subplots(1, 4)
    for ax, kind in zip(axes, ("psnr", "sharpness")):
        curves(ax, results, results, kind, list(HORIZONS))
        ax.set(xlabel="blocks")
        if results:
            ax.legend(fontsize=8)
    for ax, kind in zip(axes[2:], ("control", "frechet")):
        for name, of in results.items():
            mean, spread = spread_of(of, f"{kind}/{TOGETHER}")
            ax.errorbar([mean], [name], xerr=[np.nan_to_num(spread)], marker="o", capsize=3)
        ax.invert_yaxis()
    titles = (
        "PSNR, dB",
        "sharpness, share of the street's",
        "control, share of the street's",
        "Fréchet distance over the street's",
    )
    for ax, title in zip(axes, titles):
        ax.set(title=title)
    return drawing
