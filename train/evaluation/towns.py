"""A world model in many towns that it never saw: `python -m train.evaluate MODEL --towns report --out DIR`.

A walk, a look away, text starts and events in each town, by the same code and judge as the evaluation of one town. Figures are of
all towns together; intervals are over towns drawn again. The first `long` towns are walked for ten minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from train.evaluation import control, endurance, events, memory
from train.evaluation.parts import Evaluation, Settings, identity_of
from train.evaluation.sheet import save_sheet
from train.evaluation.store import Store, plain
from train.generator.measures import Interval, bootstrap
from train.judge.network import WEIGHTS, Judge
from train.street.towns import REPORT_TOWNS, TOWN_BLOCKS, VALIDATION_TOWNS
from world_model.model import WorldModel

TOWNS = {"report": REPORT_TOWNS, "validation": VALIDATION_TOWNS}
WORLDS = ("dream", "street", "frozen")
DRAWS = 200  # of a bootstrap
SHEET_TOWNS = 10
EVENT_TOWNS = 8  # in which events are tried
EVENT_SKIES = (("day", "clear"), ("overcast", "clear"), ("golden", "clear"), ("night", "clear"))


@dataclass(frozen=True)
class Found:
    """What was measured in one town, by world: a walk, distances of the look away, rows of events, figures of text starts."""

    walks: dict[str, dict[str, np.ndarray]]
    real: dict[str, np.ndarray]
    memory: dict[str, dict[str, dict[str, float]]]
    events: dict[str, list[dict[str, Any]]]
    starts: dict[str, dict[str, Any]]


Figure = Callable[[Sequence[Found], str], float]  # of some towns, in one world


@dataclass(frozen=True)
class Row:
    """A line of the table: what it says, its target, and its figure."""

    what: str
    bound: str
    figure: Figure


def _blocks(
    towns: Sequence[Found], world: str, begin: float, end: float, seconds: float
) -> list[dict[str, np.ndarray]]:
    """The blocks between two times of the walks that reach the second; blocks last `seconds`."""
    walks = [town.walks[world] for town in towns if len(town.walks[world]["action"]) * seconds >= end]
    return control.between(walks, begin, end, seconds)


def share_of_street(measure: Callable[[control.Records], float], begin: float, end: float, seconds: float) -> Figure:
    """A figure of the blocks between two times, over that of the street's own. NaN where no walk is so long."""

    def share(towns: Sequence[Found], world: str) -> float:
        made, true = (_blocks(towns, name, begin, end, seconds) for name in (world, "street"))
        return measure(made) / measure(true) if made else np.nan

    return share


def named(walks: control.Records) -> float:
    """Share of blocks whose action the judge names."""
    return float(np.mean(control.joined(walks, "action") == control.joined(walks, "said")))


def sharp(walks: control.Records) -> float:
    return float(np.mean(control.joined(walks, "sharpness")))


def fidelity(first: int, stop: int) -> Figure:
    """PSNR to the street in blocks [first, stop), dB."""
    return lambda towns, world: float(np.mean([town.walks[world]["psnr"][first:stop] for town in towns]))


def distance(end: float, seconds: float) -> Figure:
    """Fréchet distance to real walks of the last seconds before `end`, over that of the street's own blocks."""

    def ratio(towns: Sequence[Found], world: str) -> float:
        record = {name: np.concatenate([town.real[name] for town in towns]) for name in towns[0].real}
        real = endurance.RealWalks(record)
        measure = share_of_street(
            lambda walks: real.distance(control.joined(walks, "features")), end - endurance.WINDOW, end, seconds
        )
        return measure(towns, world)

    return ratio


def of_events(figure: str, *phrasing: str) -> Figure:
    """A figure of `events.score`; NaN where no events were tried."""

    def value(towns: Sequence[Found], world: str) -> float:
        rows = [row for town in towns for row in town.events.get(world, ())]
        found: Any = events.score(rows)[figure] if rows else np.nan
        return found[phrasing[0]] if rows and phrasing else found

    return value


def return_score(towns: Sequence[Found], world: str) -> float:
    """Score of looking away for two blocks, of the mean distances of all towns."""

    def pooled(name: str) -> dict[str, dict[str, float]]:
        names = ("return", "away", "unrelated")
        return {
            kind: {figure: float(np.mean([town.memory[name][kind][figure] for town in towns])) for figure in names}
            for kind in towns[0].memory[name]
        }

    return memory.score(pooled(world), pooled("street"))["turn_2"]["score"]


def started(towns: Sequence[Found], world: str) -> float:
    return float(np.mean([town.starts[world]["mean"] for town in towns])) if world in towns[0].starts else np.nan


def table(seconds: float) -> list[Row]:
    """The rows; a block lasts `seconds`."""
    first, minute, ten = (0.0, 5.0, seconds), (50.0, 60.0, seconds), (590.0, 600.0, seconds)
    return [
        Row("control, share of the street's, first 5 s", ">= .95", share_of_street(named, *first)),
        Row("control, 50 to 60 s", ">= .90", share_of_street(named, *minute)),
        Row("control, at 10 min", ">= .85", share_of_street(named, *ten)),
        Row("PSNR, block 1, dB", ">= 26", fidelity(0, 1)),
        Row("PSNR, blocks 2 to 4, dB", ">= 22", fidelity(1, 4)),
        Row("sharpness, share of the street's, 0 to 10 s", ">= .85", share_of_street(sharp, 0.0, 10.0, seconds)),
        Row("sharpness, 50 to 60 s", ">= .80", share_of_street(sharp, *minute)),
        Row("sharpness, at 10 min", ">= .75", share_of_street(sharp, *ten)),
        Row("Fréchet distance over the street's, 0 to 10 s", "<= 1.3", distance(10.0, seconds)),
        Row("Fréchet distance, 50 to 60 s", "<= 1.6", distance(60.0, seconds)),
        Row("Fréchet distance, at 10 min", "<= 2.0", distance(600.0, seconds)),
        Row("look away for two blocks and back: score", ">= .70", return_score),
        Row("events seen, phrasings of training", ">= .90", of_events("recall", "seen")),
        Row("events seen, unseen phrasings", ">= .80", of_events("recall", "unseen")),
        Row("events where there is none", "<= .02", of_events("false_triggers")),
        Row("text start: light, weather, district", ">= .85", started),
    ]


def _figure(row: Row, found: Sequence[Found], world: str, numbers: Sequence[int]) -> float:
    """A row's figure of `world` over some of the towns."""
    return row.figure([found[i] for i in numbers], world)


def figures(found: Sequence[Found], seconds: float) -> dict[str, dict[str, Interval]]:
    """{row: {world: (value, low, high)}}, intervals over towns."""
    return {
        row.what: {world: bootstrap(partial(_figure, row, found, world), len(found), DRAWS) for world in WORLDS}
        for row in table(seconds)
    }


@dataclass(frozen=True)
class Plan:
    """Which towns are measured, by their seeds, and how. Events are tried in the first `EVENT_TOWNS`; the first `long` are walked
    for ten minutes; `steps` are of the sampler (None: the model's)."""

    settings: Settings
    seeds: Sequence[int]
    long: int = 0
    judge_weights: Path = WEIGHTS
    steps: int | None = None


def evaluate_towns(
    model: WorldModel, metadata: dict[str, Any], out: Path, plan: Plan, numbers: Sequence[int] | None = None
) -> list[Found]:
    """What is measured in the towns of a plan, in turn, or in those of some `numbers`; what is in `out` is not measured again.

    `metadata` are the model's manifest. Raises as `train.evaluate.evaluate` does.
    """
    judge = Judge.load(model.config, plan.judge_weights)
    found = []
    for number in tqdm(range(len(plan.seeds)) if numbers is None else numbers, desc="towns"):
        seed = plan.seeds[number]
        own = town_settings(plan.settings, seed, number, plan.long)
        store = Store(out / f"town_{seed}", identity_of(metadata, own, plan.judge_weights, plan.steps))
        found.append(measure(Evaluation(model, judge, own, store, plan.steps), number < EVENT_TOWNS))
    return found


def town_settings(settings: Settings, town: int, number: int, long: int) -> Settings:
    """What is measured in one town."""
    sky = EVENT_SKIES[number % len(EVENT_SKIES)]
    horizon = 600.0 if number < long else settings.walks.horizon
    return replace(
        settings,
        walks=replace(settings.walks, count=1, horizon=horizon, side_horizon=10.0, real=8, flow_every=10_000, film=0.0),
        starts=8,
        events=events.Plan(before=1, during=4, after=0, scenes=(sky,)),
        memory=memory.Plan(scenes=2, waits=(2,), out=(2,)),
        seed=settings.seed + 1000 * town,
        town=town,
        town_blocks=TOWN_BLOCKS,
    )


def measure(evaluation: Evaluation, with_events: bool) -> Found:
    """All that the table asks for of one town."""
    walks = {name: evaluation.walks(name)[0] for name in WORLDS}
    return Found(
        walks=walks,
        real=evaluation.real(evaluation.street, "real", 0, 1).record,
        memory={name: evaluation.memory(name) for name in WORLDS},
        events={name: evaluation.events(name) for name in WORLDS} if with_events else {},
        starts={name: evaluation.starts(name) for name in ("dream", "street")},
    )


def write(out: Path, name: str, found: Sequence[Found], seconds: float) -> str:
    """Writes towns.json, towns.md and a sheet of walks; returns the page."""
    rows = figures(found, seconds)
    bounds = {row.what: row.bound for row in table(seconds)}
    lines = [
        f"`{name}` in {len(found)} towns that it was not trained on. 95% intervals over towns.",
        "",
        "| what | target | dream | street | frozen picture |",
        "|---|---|---|---|---|",
    ]
    for what, worlds in rows.items():
        cells = [cell(worlds[world]) for world in WORLDS]
        lines.append(f"| {what} | {bounds[what]} | " + " | ".join(cells) + " |")
    page = "\n".join(lines) + "\n"
    (out / "towns.md").write_text(page)
    (out / "towns.json").write_text(json.dumps(plain(rows), indent=1) + "\n")
    pairs = [town.walks["dream"]["pictures"].swapaxes(0, 1) for town in found[:SHEET_TOWNS]]
    save_sheet(out / "sheets" / "walks.png", [list(strip) for pair in pairs for strip in pair])
    return page


def cell(interval: Interval) -> str:
    """A figure with its interval, as a page has it."""
    value, low, high = interval
    if not np.isfinite(value):
        return "–"
    return f"{value:.3g}" if not np.isfinite(low) else f"{value:.3g} ({low:.3g} to {high:.3g})"
