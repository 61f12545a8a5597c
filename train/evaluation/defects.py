"""What a person sees wrong, in figures: `python -m train.evaluate MODEL --towns report --defects --out DIR`.

Writes defects.md and defects.json: one row a defect, the model's figure beside that of YumeStreet, the ground truth. Figures are
means over towns; 95% intervals are over towns drawn again. Rollouts are stored once in each town's folder. People are not measured:
nothing here tells a person in the picture that is drawn wrongly from one that is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from train.evaluation import defect_trials as trials
from train.evaluation.defect_rows import Row, Town, table
from train.evaluation.defect_trials import NOTHING, OTHERS, WHOLE, PatientStreet, Plan, ReadyDream
from train.evaluation.store import Store, plain
from train.evaluation.towns import cell
from train.evaluation.worlds import Scene, World
from train.generator.measures import Interval, bootstrap
from train.judge.network import WEIGHTS, Judge, fingerprint
from train.street.routes import open_start
from train.street.towns import TOWN_BLOCKS
from world_model.model import WorldModel
from yume_gym.street.simulator import StreetSimulator

VERSION = 1  # of the rollouts: those of another are not mixed
WORLDS = ("dream", "street")
DRAWS = 1000  # of a bootstrap


def evaluate_defects(
    model: WorldModel,
    metadata: dict[str, Any],
    out: Path,
    seeds: Sequence[int],
    *,
    plan: Plan = WHOLE,
    judge_weights: Path = WEIGHTS,
    steps: int | None = None,
) -> str:
    """Measures the towns of `seeds` in turn, writes defects.md and defects.json and returns the page.

    Starts from pictures and answers of the environments are tried with the first town only. `metadata` are the model's manifest,
    `steps` are of the sampler (None: the model's). Raises StoreError where `out` holds another evaluation, ValueError for a model
    without actions in first person or without texts, FileNotFoundError or ValueError without a fitting judge.
    """
    config = model.config
    if config.action.kind != "first_person" or config.text.kind == "none":
        raise ValueError(
            f"{config.name!r} has {config.action.kind!r} actions and {config.text.kind!r} texts: defects are measured of "
            "first-person models with texts, such as 'street'; use a model of that kind"
        )
    judge, rows = Judge.load(config, judge_weights), table(plan)
    values: dict[str, dict[str, list[float]]] = {row.name: {world: [] for world in WORLDS} for row in rows}
    for number, seed in enumerate(tqdm(seeds, desc="towns")):
        identity = {
            "version": VERSION,
            "model": metadata.get("files"),
            "steps": steps,
            "judge": fingerprint(judge_weights),
            "plan": asdict(plan),
            "texts": [*NOTHING, *OTHERS],
            "town": seed,
        }
        store = Store(out / f"town_{seed}", identity)
        town = measure(model, judge, plan, store, seed, pictures=number == 0, steps=steps)
        for row in rows:
            for world in WORLDS:
                values[row.name][world].append(row.figure(town, world))
    return write(out, config.name, rows, values)


def measure(
    model: WorldModel, judge: Judge, plan: Plan, store: Store, seed: int, *, pictures: bool, steps: int | None
) -> Town:
    """All rollouts of the town of a seed, those of an earlier start of the command read from the store.

    `pictures`: whether to start from pictures and to ask the environments, too.
    """
    config = model.config
    street = StreetSimulator.like(config, seed, TOWN_BLOCKS)
    picture = open_start(street, np.random.default_rng([seed, VERSION]))
    scene = Scene(street.get_state(), picture, seed)
    worlds: dict[str, World] = {"dream": ReadyDream(model, steps), "street": PatientStreet(street)}
    size = trials.size_of(street)
    rollouts = {
        world: {
            name: store.arrays(
                f"{name}_{world}",
                partial(trials.roll_out, worlds[world], scene, parts, keep=name != "wall", size=size),
            )
            for name, parts in tqdm(trials.scripts(plan, config).items(), desc=world, leave=False)
        }
        for world in WORLDS
    }
    starts, answers = {}, {}
    if pictures:
        blocks = max(1, round(plan.picture * config.fps / config.frames_per_block))
        env = trials.YumeWorldEnv(model, steps=steps)
        for number, (name, start) in enumerate(trials.start_pictures(config).items()):
            starts[name] = store.arrays(f"picture_{number}", partial(trials.start_from, env, start, blocks))
        answers = store.result("answers", lambda: trials.ask(model, scene, steps))
    return Town(rollouts, starts, answers, plan, config, judge)


def interval(values: Sequence[float]) -> Interval:
    """Mean over the towns that have a figure, and its 95% interval over towns drawn again."""
    known = np.array([value for value in values if np.isfinite(value)])
    return bootstrap(lambda numbers: float(known[numbers].mean()), len(known), DRAWS)


def write(out: Path, name: str, rows: Sequence[Row], values: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Writes defects.md and defects.json of values {row: {world: one a town}}; returns the page."""
    found = {row.name: {world: interval(values[row.name][world]) for world in WORLDS} for row in rows}
    count = len(values[rows[0].name]["dream"])
    lines = [
        f"`{name}` in {count} town{'s' * (count > 1)} that it was not trained on. 95% intervals over towns.",
        "Starts from pictures and what `info` says are of the first town only. People are not measured.",
        "",
        "| what | dream | street |",
        "|---|---|---|",
        *(f"| {row.what} | " + " | ".join(cell(found[row.name][world]) for world in WORLDS) + " |" for row in rows),
    ]
    page = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "defects.md").write_text(page)
    report = {
        row.name: {"what": row.what, **found[row.name], "towns": {w: list(v) for w, v in values[row.name].items()}}
        for row in rows
    }
    (out / "defects.json").write_text(json.dumps(plain(report), indent=1) + "\n")
    return page
