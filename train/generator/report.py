"""Measures a world learnt from a recording: `python -m train.evaluate runs/breakout` -> runs/breakout/report/report.md and .json.

Needs no simulator, only episodes that nothing was trained on: the run's `recording.json` names them. Every figure stands beside its
controls: the recording itself, the recording through the autoencoder, a picture that never changes, shuffled or neutral actions.
Finished parts are kept, so a stopped evaluation goes on; --anew measures all again. --quick takes a minute and answers roughly.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.engine.loop import prepare_cpu
from train.evaluation.store import Store, plain
from train.generator import judge as judging
from train.generator import outcomes, page, records
from train.generator.figures import HORIZONS, bins, control, fidelity, ragged
from train.generator.judge import Judge, component_names, component_sizes, components
from train.generator.measures import FeatureSpace, mean_interval
from train.generator.records import LOOKS, Record
from train.generator.rollouts import (
    RECORDING,
    RecordedWorld,
    Split,
    World,
    draw_starts,
    fits,
    long_trial,
    recorded_trial,
)
from world_model.weights import read_manifest

VERSION = 1  # of what is measured: results of another are not mixed
LONG_BATCH = 4  # long rollouts at a time: what a stop can cost
WINDOW = 10  # steps before a mark that are looked at
DIMENSIONS = 24  # principal directions of the features of real steps, at most


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    starts: int = 64
    horizon: int = 50  # steps
    batch: int = 16  # worlds at a time
    long_worlds: int = 8
    marks: tuple[int, ...] = (10, 50, 200, 1000)  # steps of long rollouts
    judge: judging.Settings = judging.Settings()
    timed: int = 20  # steps
    seed: int = 0


QUICK = Settings(
    starts=6,
    horizon=16,
    batch=6,
    long_worlds=2,
    marks=(10, 20),
    timed=4,
    judge=judging.Settings(minutes=0.35, batch=32, tested=500),
)


class WorldReport:
    """All parts, each computed once and stored."""

    def __init__(
        self,
        world: World,
        judge: Judge,
        split: Split,
        settings: Settings,
        store: Store,
        reader: outcomes.OutcomeReader | None = None,
    ) -> None:
        self.world, self.judge, self.split, self.settings, self.store, self.reader = (
            world,
            judge,
            split,
            settings,
            store,
            reader,
        )
        s, files = settings, split.files
        starts = draw_starts(files, split.held_out, 2 * s.starts, s.horizon, s.seed)
        half = (len(starts) + 1) // 2
        self.starts, self.others = starts[:half], starts[half:] if len(starts) > 1 else starts
        self.size, self.long = world.config.frames_per_block, max(s.marks)

    def run(self) -> dict[str, Any]:
        """The report. What takes longest comes last."""
        found = self.measured()
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "fidelity": lambda: fidelity(found, self.settings.horizon, self.settings.seed),
            "distribution": lambda: self.distribution(found),
            "control": lambda: self.control(found),
            "speed": self.speed,
            "reward": lambda: self.reward(found),
            "termination": self.termination,
            "drift": self.drift,
            "survival": self.survival,
        }
        return {"places": {"starts": len(self.starts), "others": len(self.others)}} | {
            name: self.store.result(name, make) for name, make in parts.items()
        }

    def measured(self) -> Record:
        """Records of all held-out starts."""

        def make(first: int) -> Record:
            rows = self.starts[first : first + self.settings.batch]
            seeds = [self.settings.seed * 1009 + first + row for row in range(len(rows))]
            trial = recorded_trial(self.split.files, rows, self.settings.horizon, seeds)
            return records.record(self.world, self.judge, trial, self.reader)

        numbers = range(0, len(self.starts), self.settings.batch)
        return records.join([self.store.arrays(f"record_{n:03d}", lambda n=n: make(n)) for n in numbers])  # type: ignore[misc]

    def distribution(self, found: Record) -> dict[str, Any]:
        """Frechet distances to recorded steps at other held-out starts, by horizon."""
        trial = recorded_trial(self.split.files, self.others, self.settings.horizon, [0] * len(self.others))
        real = records.measure(self.judge, trial.pictures, trial.pictures, self.size)["features"]
        table: dict[str, Any] = {}
        for name, part in bins(HORIZONS, self.settings.horizon).items():
            reference = real[:, part][trial.alive[:, part]]
            points = min(len(reference), int(found["alive"][:, part].sum()))
            space = FeatureSpace(reference, max(1, min(DIMENSIONS, points // 4))) if len(reference) > 2 else None
            rows = {row: found[f"{row}.features"][:, part][found["alive"][:, part]] for row in records.ROWS}
            table[name] = {row: space.distance(values) if space else np.nan for row, values in rows.items()} | {
                "steps": points
            }
        return table

    def control(self, found: Record) -> dict[str, Any]:
        """Actions that the judge names, by component and steps: accuracy, or R^2 of a box."""
        spec, files = self.world.config.action, self.split.files
        taught = np.concatenate(
            [files.action[files.starts[e] : files.starts[e] + files.lengths[e]] for e in self.split.train]
        )
        classes, s = bool(component_sizes(spec)), self.settings
        return control(found, components(spec, taught), component_names(spec), classes, s.horizon, s.seed)

    def reward(self, found: Record) -> dict[str, Any]:
        if self.reader is None:
            return {"missing": f"no {outcomes.HEADS} in the folder"}
        files = self.split.files
        typical = np.concatenate(
            [files.reward[files.starts[e] : files.starts[e] + files.lengths[e]] for e in self.split.train]
        )
        rows = {"rollout": found["rollout.reward"], "recorded": found["recorded.reward"]}
        return outcomes.reward_figures(rows, found["reward"], found["alive"], typical, self.settings.seed)

    def termination(self) -> dict[str, Any]:
        """From the latents of whole held-out episodes."""
        if self.reader is None:
            return {"missing": f"no {outcomes.HEADS} in the folder"}
        said, ended, files = [], [], self.split.files
        for episode in self.split.held_out:
            span = slice(files.starts[episode], files.starts[episode] + files.lengths[episode])
            said.append(self.reader(self.world.encode(files.frames(episode)[None]), files.action[span][None])[1][0])
            ended.append(files.terminated[span])
        return outcomes.termination_figures(np.concatenate(said), np.concatenate(ended))

    def lasting(self) -> Record:
        """Records of long rollouts."""
        s = self.settings

        def make(first: int) -> Record:
            trial = long_trial(self.split, min(LONG_BATCH, s.long_worlds - first), first, self.long, s.seed)
            return records.long_record(self.world, trial, s.marks, self.reader)

        names = range(0, s.long_worlds, LONG_BATCH)
        return records.join([self.store.arrays(f"long_{n:03d}", lambda n=n: make(n)) for n in names])  # type: ignore[misc]

    def drift(self) -> dict[str, Any]:
        """Looks of long rollouts by age, beside recorded episodes of that age, or of all ages where none was so old."""
        found, files, old = self.lasting(), self.split.files, (*self.split.held_out, *self.split.train)[:32]
        real = {e: records.look(files.frames(e)[: 1 + self.long * self.size][None], self.size) for e in old}
        table: dict[str, Any] = {}
        for mark in self.settings.marks:
            part = slice(max(0, mark - WINDOW), mark)
            aged = [looks for e, looks in real.items() if files.lengths[e] >= mark]
            row: dict[str, Any] = {"episodes": len(aged)}
            for name in LOOKS:
                at_age = [looks[name][0, part] for looks in aged] or [looks[name][0] for looks in real.values()]
                row[name] = mean_interval(found[name][:, part], seed=self.settings.seed)
                row[f"recorded_{name}"] = mean_interval(ragged(at_age), seed=self.settings.seed)
            table[f"{mark}"] = row
        return table

    def survival(self) -> dict[str, Any]:
        if self.reader is None:
            return {"missing": f"no {outcomes.HEADS} in the folder"}
        every = (*self.split.held_out, *self.split.train)
        return outcomes.survival(self.lasting()["terminated"], self.split.files, every, self.settings.seed)

    def speed(self) -> dict[str, Any]:
        """Median milliseconds a step with one world, and steps a second of all worlds in a batch of eight; pictures included."""
        timed, table = self.settings.timed, {}
        for worlds in (1, 8):
            trial = long_trial(self.split, worlds, 0, timed + 2, self.settings.seed)
            moments = []
            for _ in self.world.rollout(trial):
                moments.append(time.perf_counter())
            seconds = float(np.median(np.diff(moments)))
            table[f"batch {worlds}"] = {"milliseconds": 1000 * seconds, "worlds_a_second": worlds / seconds}
        config = self.world.config
        table["recorded world"] = {
            "milliseconds": 1000 * config.frames_per_block / config.fps,
            "worlds_a_second": np.nan,
        }
        return table | {
            "machine": {"device": str(getattr(self.world, "device", "cpu")), "threads": torch.get_num_threads()}
        }


def is_recorded(folder: str | Path) -> bool:
    """Whether a folder is a run of `train.world`: then this report is the one to make."""
    return (Path(folder) / RECORDING).is_file()


def world_report(folder: Path, out: Path, settings: Settings, device: str = "cpu") -> dict[str, Any]:
    """Measures what is not yet in `out` and writes the report there.

    Raises StoreError where `out` holds the report of something else, ValueError or FileNotFoundError for missing or unfit files.
    """
    split, world = Split.read(folder), RecordedWorld.load(folder, device)
    fits(world, split)
    judge = judging.train_judge(folder, split.files, split.train, split.held_out, settings.judge, device)
    metadata = read_manifest(folder)
    path = folder / judging.NAME
    identity = {
        "version": VERSION,
        "model": {name: f for name, f in metadata["files"].items() if name != path.name},
        "judge": judging.fingerprint(path),
        "held-out episodes": list(split.held_out),
        "settings": dataclasses.asdict(settings),
    }
    store = Store(out, identity)
    report = WorldReport(world, judge, split, settings, store, outcomes.outcome_reader(folder, world))
    return finish(report, judging.judge_metadata(path), metadata.get("training"))


def finish(report: WorldReport, judge: dict[str, Any], training: Any = None) -> dict[str, Any]:
    """Runs all parts of a report and writes its files."""
    recording, split = report.split.files.recording, report.split
    about = {
        "model": report.world.config.name,
        "sampler_steps": report.world.config.sampler.steps,
        "training": training,
        "environment": recording.env,
        "policy": recording.provenance.policy,
        "held_out": len(split.held_out),
        "train": len(split.train),
        "held_out_steps": int(split.files.lengths[list(split.held_out)].sum()),
    }
    found = plain({"about": about, "settings": dataclasses.asdict(report.settings), "judge": judge, **report.run()})
    found["misses"] = page.misses(found)
    page.write(report.store.folder, found, report.measured()["sheet"], report.lasting()["pictures"])
    return found


def main(argv: Sequence[str]) -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="run folder of train.world")
    parser.add_argument(
        "--out", type=Path, help="folder for the report (default: report, or report-quick, in the run's folder)"
    )
    parser.add_argument("--quick", action="store_true", help="a minute, rough figures")
    parser.add_argument("--anew", action="store_true", help="measure again what is finished")
    parser.add_argument("--starts", type=int, help="held-out places that rollouts start at (default 64, quick 6)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, help="of starts and noise")
    given = parser.parse_args(argv)
    changed = {name: getattr(given, name) for name in ("starts", "seed") if getattr(given, name) is not None}
    out = given.out or given.model / ("report-quick" if given.quick else "report")
    if given.anew:
        shutil.rmtree(out / "parts", ignore_errors=True)
    try:
        found = world_report(given.model, out, replace(QUICK if given.quick else Settings(), **changed), given.device)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n".join(found["misses"]))
    print(out / "report.md")
