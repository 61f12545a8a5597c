"""Measures a world model: `python -m train.evaluate street --out runs/evaluation` -> report.json, report.md, plots, sheets.

Everything is measured on the dream and, by the same code, on YumeStreet itself (the ceiling), on YumeStreet through the
model's autoencoder, and on a picture that never changes (the floor). An inverse-dynamics judge trained on YumeStreet only
(train/judge/) says what happened; optical flow (train/judge/motion.py) is a second opinion that was never trained.
What is finished is kept in `parts/`: a stopped evaluation goes on when started again. `--quick` takes minutes and answers
roughly; the whole takes hours, most of them ten-minute dreams.
`--bench yume` makes Yume-Bench's videos and table instead (train/evaluation/yume_bench.py; `--bench yume --help`).
A run folder of `train.world` gets the report of a recorded world instead (train/generator/report.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from train.engine.loop import prepare_cpu
from train.evaluation import control, endurance, events, fidelity, memory, starts, towns, yume_bench
from train.evaluation.report import write_report
from train.evaluation.sheet import save_sheet
from train.evaluation.store import Store, plain
from train.evaluation.targets import check, headline, verdict
from train.evaluation.walks import draw_sky, make_trial, measure_walk, psnr
from train.evaluation.worlds import Decoded, Dream, Frozen, Street, World, town
from train.generator import report as recorded
from train.judge.network import WEIGHTS, Judge, fingerprint, judge_metadata
from train.street.walks import LATER_EVENTS, StreetRecipe, render_walk
from world_model.model import WorldModel
from world_model.priors.config import places_of
from world_model.weights import find_weights, read_manifest
from yume_gym.street.simulator import StreetSimulator

VERSION = 2  # of what is measured: results of another are not mixed
PICTURE_TIMES = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 30.0, 60.0, 180.0, 600.0)  # seconds into a walk
_ROUTES, _FAR, _EVENTS, _MEMORY, _STARTS = range(5)  # each part draws its scenes from a seed of its own


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    horizon: float = 600.0  # seconds that the dream and the street are walked
    side_horizon: float = 60.0  # the same for the street through the autoencoder, the frozen picture, the unseen town
    walks: int = 8
    real_walks: int = 32  # walks of 10 s that distances are taken to
    natural_walks: int = 16  # walks of 10 s as in training, for the autoencoder
    far_walks: int = 4  # in a town that neither the world model nor the judge was trained on
    flow_every: int = 4  # blocks; optical flow is slow
    starts: int = 160
    film: float = 20.0  # seconds of the first walk
    events: events.Plan = events.Plan()
    memory: memory.Plan = memory.Plan()
    seed: int = 4_000_000
    town: int = 0  # the town that the world model learns
    town_blocks: int = 2
    far_town: int = 777


QUICK = Settings(
    horizon=10.0, side_horizon=10.0, walks=3, real_walks=8, natural_walks=4, far_walks=1, starts=6, film=10.0,
    events=events.Plan(before=1, during=2, after=2, scenes=(("day", "clear"), ("overcast", "rain")), once=True),
    memory=memory.Plan(scenes=2, waits=(2,), out=(2,)),
)  # fmt: skip


class Evaluation:
    """All parts, each computed once and stored."""

    def __init__(
        self, model: WorldModel, judge: Judge, settings: Settings, store: Store, steps: int | None = None
    ) -> None:
        self.config, self.judge, self.settings, self.store = model.config, judge, settings, store
        self.street = StreetSimulator.like(self.config, settings.town, settings.town_blocks)
        self.seconds = self.config.frames_per_block / self.config.fps
        self.units = judge.units.numpy()
        self.decoded, still = Decoded(self.street, model), Frozen(self.config.frames_per_block)
        everything: tuple[World, ...] = (Street(self.street), self.decoded, still, Dream(model, steps))
        self.worlds = {world.name: world for world in everything}

    def blocks(self, seconds: float) -> int:
        return max(1, round(seconds / self.seconds))

    def run(self) -> dict[str, Any]:
        """The report without headline and targets. What takes longest comes last."""
        report: dict[str, Any] = {"autoencoder": self.autoencoder()}
        report["starts"] = {name: self.starts(name) for name in ("street", "decoded", "dream")}
        report["memory"] = {name: self.memory(name) for name in ("street", "frozen", "dream")}
        rows = {name: self.events(name) for name in ("street", "frozen", "dream")}
        report["events"], report["later_events"] = (
            {
                name: events.score([row for row in part if (row["kind"] in LATER_EVENTS) == later])
                for name, part in rows.items()
            }
            for later in (False, True)
        )
        places = places_of(self.config)
        known = places.towns[1:] if places is not None else ()
        report["other_towns"] = {str(seed): self.elsewhere(seed, f"town_{seed}") for seed in known}
        report["unseen_town"] = self.elsewhere(self.settings.far_town, "far")
        records = {name: self.walks(name) for name in ("street", "decoded", "frozen", "dream")}
        real = self.real(self.street, "real", _ROUTES, self.settings.walks)
        report["control"] = {name: control.by_time(r, self.units, self.seconds) for name, r in records.items()}
        report["endurance"] = {name: endurance.at_marks(r, real, self.seconds) for name, r in records.items()}
        report["fidelity"] = {
            name: fidelity.by_horizon(r, self.seconds) for name, r in records.items() if name != "street"
        }
        pictures = np.stack([record["pictures"][0, 0] for record in records["street"]])
        report["fidelity"]["unrelated"] = memory.unrelated(self.judge, pictures)
        return report

    def seed(self, part: int) -> int:
        return self.settings.seed + part

    def walks(self, name: str) -> list[dict[str, np.ndarray]]:
        """The records of a world on all routes."""
        s = self.settings
        blocks = self.blocks(s.horizon if name in ("street", "dream") else min(s.horizon, s.side_horizon))
        kept = tuple(k for k in (self.blocks(t) - 1 for t in PICTURE_TIMES) if k < blocks)
        records = []
        for number in tqdm(range(s.walks), desc=f"walks, {name}", leave=False):
            film = self.blocks(min(s.film, s.horizon)) if number == 0 else 0

            def make(number: int = number, film: int = film) -> dict[str, np.ndarray]:
                # routes of one number begin alike, whatever their length
                trial = make_trial(self.street, self.seed(_ROUTES), number, blocks)
                return measure_walk(
                    self.worlds[name], self.street, self.judge, trial, flow_every=s.flow_every, kept=kept, film=film
                )

            records.append(self.store.arrays(f"walk_{name}_{number:02d}", make))
        return records

    def real(self, street: StreetSimulator, name: str, part: int, measured: int) -> endurance.RealWalks:
        """Real walks on other routes, under the skies of the `measured` walks of a part."""

        def make() -> dict[str, np.ndarray]:
            skies = [draw_sky(np.random.default_rng([self.seed(part), number])) for number in range(measured)]
            count, blocks = self.settings.real_walks, self.blocks(endurance.WINDOW)
            return endurance.real_walks(street, self.judge, self.seed(part) + 500, count, blocks, skies)

        return endurance.RealWalks(self.store.arrays(name, make))

    def autoencoder(self) -> dict[str, Any]:
        """What the autoencoder keeps of walks as training has them, on routes that it has not."""

        def make() -> dict[str, Any]:
            s, blocks = self.settings, self.blocks(endurance.WINDOW)
            recipe = StreetRecipe.of(self.config, blocks, self.seed(_ROUTES), s.town_blocks, s.town)
            walks = [render_walk(recipe, number).frames for number in range(self.settings.natural_walks)]
            return {
                "walks": len(walks),
                "psnr": control.mean(np.array([psnr(self.decoded.through(w), w) for w in walks])),
            }

        return self.store.result("autoencoder", make)

    def elsewhere(self, seed: int, name: str) -> dict[str, Any]:
        """Control and endurance in another town, stored under `name`."""
        s = self.settings
        street = town(self.street, seed)
        trials = [
            make_trial(street, self.seed(_FAR), n, self.blocks(min(s.side_horizon, s.horizon)))
            for n in range(s.far_walks)
        ]
        real = self.real(street, f"real_{name}", _FAR, s.far_walks)
        figures = {}
        for world in (Street(street), self.worlds["dream"]):
            records = [
                self.store.arrays(
                    f"{name}_{world.name}_{n:02d}",
                    partial(measure_walk, world, street, self.judge, trial, flow_every=s.flow_every),
                )
                for n, trial in enumerate(trials)
            ]
            figures[world.name] = {
                "control": control.by_time(records, self.units, self.seconds),
                "endurance": endurance.at_marks(records, real, self.seconds),
            }
        return figures

    def events(self, name: str) -> list[dict[str, Any]]:
        """The trials of all scenes, as `events.score` takes them."""
        s = self.settings
        rows: list[dict[str, Any]] = []
        for number, (scene, kinds) in enumerate(events.make_scenes(self.street, s.events, self.seed(_EVENTS))):

            def make(number: int = number, scene: Any = scene, kinds: Any = kinds) -> dict[str, Any]:
                found = events.run_scene(self.worlds[name], self.judge, scene, kinds, s.events, self.seed(_EVENTS))
                save_sheet(
                    self.store.folder / "sheets" / f"events_{name}_{number}.png", [list(r) for r in found["strips"]]
                )
                return {"rows": found["rows"]}

            rows += self.store.result(f"events_{name}_{number}", make)["rows"]
        return rows

    def memory(self, name: str) -> dict[str, Any]:
        """Distances of departure and return, and the score against the street's."""
        plan = self.settings.memory
        scenes = memory.make_scenes(self.street, plan.scenes, self.seed(_MEMORY))

        def make() -> dict[str, Any]:
            turn = memory.quarter_turn(self.config)
            trials = [
                memory.run_scene(self.worlds[name], scene, plan, turn, right=n % 2 == 0)
                for n, scene in enumerate(tqdm(scenes, desc=f"memory, {name}", leave=False))
            ]
            rows = [[picture for pictures in trial.values() for picture in pictures] for trial in trials]
            save_sheet(self.store.folder / "sheets" / f"memory_{name}.png", rows, 2)
            return memory.distances(self.judge, trials, memory.elsewhere(self.street, scenes, self.seed(_MEMORY)))

        found = self.store.result(f"memory_{name}", make)
        return memory.score(found, found if name == "street" else self.memory("street"))

    def starts(self, name: str) -> dict[str, Any]:
        """Attributes of worlds begun from texts."""
        scenes = starts.make_scenes(self.street, self.settings.starts, self.seed(_STARTS))

        def make() -> dict[str, Any]:
            figures, pictures = starts.run(self.worlds[name], self.judge, scenes)
            rows = [list(pictures[first : first + 8]) for first in range(0, len(pictures), 8)]
            save_sheet(self.store.folder / "sheets" / f"starts_{name}.png", rows, 2)
            return figures

        return self.store.result(f"starts_{name}", make)


def evaluate(
    model: WorldModel, metadata: dict[str, Any], out: Path, settings: Settings, *, judge_weights: Path = WEIGHTS,
    steps: int | None = None, teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures what is not yet in `out`, writes the report there and returns it. `metadata` are the model's manifest.

    Raises StoreError where `out` holds the evaluation of something else, FileNotFoundError or ValueError without a fitting judge.
    """
    judge = Judge.load(model.config, judge_weights)
    identity = {
        "version": VERSION, "model": metadata.get("files"), "steps": steps, "judge": fingerprint(judge_weights),
        "settings": dataclasses.asdict(settings),
    }  # fmt: skip
    store = Store(out, identity)
    evaluation = Evaluation(model, judge, settings, store, steps)
    found = evaluation.run()
    report = {
        "model": {
            "name": model.config.name,
            "steps": steps or model.config.sampler.steps,
            "training": metadata.get("training"),
        },
        "settings": dataclasses.asdict(settings),
        "judge": judge_metadata(judge_weights),
        **found,
        "seconds": store.seconds,
    }
    report = plain(report)
    report["headline"] = headline(report, teacher)
    report["targets"] = check(report)
    write_report(
        out, report, {name: evaluation.walks(name) for name in evaluation.worlds}, evaluation.units, model.config.fps
    )
    return report


def evaluate_towns(
    model: WorldModel, metadata: dict[str, Any], out: Path, settings: Settings, seeds: Sequence[int], *, events_in: int = 8,
    long: int = 0, judge_weights: Path = WEIGHTS, steps: int | None = None,
) -> str:  # fmt: skip
    """Measures the towns of `seeds` in turn, writes the report of them together and returns its page.

    Events are tried in the first `events_in` towns; the first `long` are walked for ten minutes. Raises as `evaluate` does.
    """
    judge = Judge.load(model.config, judge_weights)
    found, seconds = [], model.config.frames_per_block / model.config.fps
    for number, seed in enumerate(tqdm(seeds, desc="towns")):
        own = towns.town_settings(settings, seed, number, long)
        identity = {
            "version": VERSION, "model": metadata.get("files"), "steps": steps, "judge": fingerprint(judge_weights),
            "settings": dataclasses.asdict(own),
        }  # fmt: skip
        evaluation = Evaluation(model, judge, own, Store(out / f"town_{seed}", identity), steps)
        found.append(towns.measure(evaluation, number < events_in))
    return towns.write(out, model.config.name, found, seconds)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = {word.partition("=")[0] for word in argv}
    if "--bench" in options:
        return yume_bench.main(argv)
    if argv and "--towns" not in options and recorded.is_recorded(argv[0]):
        return recorded.main(argv)
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset's name or a folder of weights")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report; finished parts in it are kept")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours, rough figures")
    parser.add_argument("--horizon", type=float, help="seconds of the longest walks (default 600, quick 10)")
    parser.add_argument("--walks", type=int, help="how many of them (default 8, quick 3)")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the model's)")
    parser.add_argument("--seed", type=int, help="of routes and scenes")
    parser.add_argument("--judge", type=Path, default=WEIGHTS, help="the judge's weights")
    parser.add_argument("--teacher", type=Path, help="report.json of the same evaluation of the many-step teacher")
    parser.add_argument("--towns", choices=sorted(towns.TOWNS), help="measure unseen towns together instead")
    parser.add_argument("--count", type=int, default=20, help="how many of them (default 20)")
    parser.add_argument("--long", type=int, default=0, help="how many of them are walked for ten minutes (default 0)")
    given = parser.parse_args(argv)
    changed = {name: getattr(given, name) for name in ("horizon", "walks", "seed") if getattr(given, name) is not None}
    settings = replace(QUICK if given.quick else Settings(), **changed)
    try:
        model = WorldModel.load(given.model)
        teacher = json.loads(given.teacher.read_text()) if given.teacher else None
        metadata = read_manifest(find_weights(given.model))
        judge = given.judge
        if given.towns:
            seeds, settings = towns.TOWNS[given.towns][: given.count], replace(settings, horizon=given.horizon or 60.0)
            print(
                evaluate_towns(
                    model, metadata, given.out, settings, seeds, long=given.long, judge_weights=judge, steps=given.steps
                )
            )
            return
        report = evaluate(model, metadata, given.out, settings, judge_weights=judge, steps=given.steps, teacher=teacher)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for row in report["targets"]:
        value = "" if row["value"] is None else f"{row['value']:.3f}"
        print(f"{row['what']:62} {value:>8} {verdict(row)}")
    print(given.out / "report.md")


if __name__ == "__main__":
    main()
