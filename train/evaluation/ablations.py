"""The table and the plots of ablations (`python -m train.ablate`), from stored results.

`stored_results` and `write_files` serve those of a generator (`python -m train.generator.ablate`), too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.evaluation.held_out import HORIZONS
from train.evaluation.store import Store

Stored = Sequence[Mapping[str, Any]]  # results of one variant, one a seed
Sampled = tuple[str, int]  # whose weights ("initial", "distilled"), and sampler steps
COLUMNS = {
    **{f"PSNR {name}, dB": f"psnr/{name}" for name in HORIZONS},
    **{f"sharpness {name}": f"sharpness/{name}" for name in HORIZONS},
    "ms a block": "milliseconds",
    "history tokens, first block": "history_tokens/first",
    "last block": "history_tokens/last",
    "parameters": "parameters",
}


def stored_results(stores: Iterable[Store], names: Iterable[str]) -> dict[str, Stored]:
    """All results in `stores` of the variants `names`, in that order; those of a variant by seed."""
    paths = [path for store in stores for path in (store.folder / "parts").glob("*.json") if path.stem != "identity"]
    stored = sorted((json.loads(path.read_text())["result"] for path in paths), key=lambda result: result["seed"])
    return {n: of for n in names if (of := [result for result in stored if result["variant"] == n])}


def write_files(
    out: Path, identity: Mapping[str, Any], results: Mapping[str, Stored], text: str, drawing: Figure
) -> None:
    """ablations.json (`identity` and results), ablations.md (`text`) and ablations.png."""
    (out / "ablations.json").write_text(json.dumps({**identity, "results": results}, indent=1) + "\n")
    (out / "ablations.md").write_text(text)
    drawing.savefig(out / "ablations.png", dpi=90)


def spread_of(results: Stored, figure: str) -> tuple[float, float]:
    """Mean over seeds, and their standard deviation (n - 1); nan for what is missing, and for the deviation of one."""
    values = [np.nan if r["figures"][figure] is None else r["figures"][figure] for r in results]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def cell(results: Stored, figure: str) -> str:
    """ "25.41 ± 0.12"; whole numbers, which all seeds share, as they are; a dash for what is missing."""
    first, (mean, spread) = results[0]["figures"][figure], spread_of(results, figure)
    if first is None or isinstance(first, int):
        return "–" if first is None else str(first)
    return f"{mean:.2f}" if np.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"


def table(results: Mapping[str, Stored], names: Iterable[str], columns: Mapping[str, str]) -> str:
    """A line for each of the variants `names`; `columns` maps their heads to names of figures."""
    heads = ("variant", "seeds", *columns)
    rows = [(n, str(len(results[n])), *(cell(results[n], f) for f in columns.values())) for n in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))


def weights_of(results: Mapping[str, Stored], trained: Mapping[str, str]) -> str:
    """What each of the `trained` variants changes, and which of its weights were not taken over."""

    def line(variant: str, what: str) -> str:
        fresh, left = (", ".join(results[variant][0][key]) or "nothing" for key in ("fresh", "left_out"))
        return f"- {variant}: {what}. Starts afresh: {fresh}. Left out of the given weights: {left}."

    return "\n".join(line(variant, what) for variant, what in trained.items() if variant in results)


def page(
    name: str, steps: int, results: Mapping[str, Stored], trained: Mapping[str, str], sampled: Mapping[str, Sampled]
) -> str:
    """ablations.md of the model `name`: results by variant, what each of the `trained` changes, and the `sampled` ones."""
    parts = (
        f"# Ablations of {name}",
        f"{steps} steps of foundation training from the same weights; mean ± standard deviation over seeds. Sharpness: the "
        "dream's mean gradient over the truth's. How to read this: docs/ablations.md.",
        "## Trained variants",
        table(results, (n for n in results if n not in sampled), COLUMNS),
        weights_of(results, trained),
        "## Sampler steps on given weights",
        table(results, (n for n in results if n in sampled), COLUMNS),
        "![ablations](ablations.png)",
    )
    return "\n\n".join(parts) + "\n"


def curves(ax: Axes, results: Mapping[str, Stored], names: Iterable[str], kind: str, horizons: Sequence[str]) -> None:
    """A figure of each of the variants `names` by horizon, with its deviation over seeds."""
    for name in names:
        means, spreads = zip(*(spread_of(results[name], f"{kind}/{horizon}") for horizon in horizons))
        ax.errorbar(list(horizons), means, np.nan_to_num(spreads), marker="o", capsize=3, label=name)


def plot(results: Mapping[str, Stored], sampled: Mapping[str, Sampled]) -> Figure:
    """PSNR and sharpness of trained variants by horizon, and PSNR of given weights by sampler steps."""
    drawing = Figure(figsize=(16, 5), layout="constrained")
    axes = drawing.subplots(1, 3)
    for ax, kind in zip(axes, ("psnr", "sharpness")):
        curves(ax, results, (n for n in results if n not in sampled), kind, list(HORIZONS))
    for weights in ("initial", "distilled"):
        names = [n for n in results if n in sampled and sampled[n][0] == weights]
        for horizon in HORIZONS if names else ():
            heights = [spread_of(results[n], f"psnr/{horizon}")[0] for n in names]
            axes[2].plot([sampled[n][1] for n in names], heights, "o-", label=f"{weights}, {horizon}")
    for ax, title in zip(axes, ("PSNR, dB", "sharpness, share of the truth", "PSNR, dB, by sampler steps")):
        ax.set(title=title)
        if ax.has_data():
            ax.legend(fontsize=8)
    axes[2].set(xscale="log")
    return drawing
