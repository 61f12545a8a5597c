"""Measures a world model: `python -m train.evaluate street --out runs/evaluation` -> report.json, report.md, plots, sheets.

Everything is measured on the dream and, by the same code, on YumeStreet itself (the ceiling), on YumeStreet through the
model's autoencoder, and on a picture that never changes (the floor). An inverse-dynamics judge trained on YumeStreet only
(train/judge/) says what happened; optical flow (train/judge/motion.py) is a second opinion that was never trained.
What is finished is kept in `parts/`: a stopped evaluation goes on when started again. `--quick` takes minutes and answers
roughly; the whole takes hours, most of them ten-minute dreams.
`--bench yume` makes Yume-Bench's videos and table instead (train/evaluation/yume_bench.py; `--bench yume --help`).
`--without transformer` leaves the priors of a model alone: a figure that is as good belongs to them.
`--towns report --workers 2` measures many unseen towns together, two at a time (train/evaluation/towns.py), and
`--towns report --defects` what a person sees wrong in them (train/evaluation/defects.py).
A run folder of `train.world` gets the report of a recorded world instead (train/generator/report.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from train.engine.loop import prepare_cpu
from train.evaluation import defect_trials, defects, towns, yume_bench
from train.evaluation.parts import QUICK, Evaluation, Settings, identity_of, remove_transformer
from train.evaluation.report import write_report
from train.evaluation.store import Store, plain
from train.evaluation.targets import check, headline, verdict
from train.generator import report as recorded
from train.judge.network import WEIGHTS, Judge, judge_metadata
from world_model.model import WorldModel
from world_model.weights import find_weights, read_manifest


def evaluate(
    model: WorldModel,
    metadata: dict[str, Any],
    out: Path,
    settings: Settings,
    *,
    judge_weights: Path = WEIGHTS,
    steps: int | None = None,
    teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures what is not yet in `out`, writes the report there and returns it. `metadata` are the model's manifest.

    Raises StoreError where `out` holds the evaluation of something else, FileNotFoundError or ValueError without a fitting judge.
    """
    judge = Judge.load(model.config, judge_weights)
    store = Store(out, identity_of(metadata, settings, judge_weights, steps))
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


def load(given: argparse.Namespace) -> tuple[WorldModel, dict[str, Any]]:
    """The model that the command line asks for, and its manifest. Raises as `WorldModel.load` and `remove_transformer`."""
    model, metadata = WorldModel.load(given.model), read_manifest(find_weights(given.model))
    if given.without:
        remove_transformer(model)
        metadata = {**metadata, "files": {**metadata["files"], "without": given.without}}
    return model, metadata


def measure_towns(model: WorldModel, metadata: dict[str, Any], given: argparse.Namespace, settings: Settings) -> str:
    """Measures the unseen towns that the command line asks for, or the defects in them; returns the page."""
    seeds, judge = towns.TOWNS[given.towns][: given.count], given.judge
    if given.defects:
        plan = defect_trials.QUICK if given.quick else defect_trials.WHOLE
        return defects.evaluate_defects(
            model, metadata, given.out, seeds, plan=plan, judge_weights=judge, steps=given.steps
        )
    settings = replace(settings, walks=replace(settings.walks, horizon=given.horizon or 60.0))
    wanted = towns.Plan(settings, seeds, given.long, judge, given.steps)
    if given.workers > 1:
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=measure_share, args=(given, wanted, first)) for first in range(given.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed := sum(worker.exitcode != 0 for worker in workers):
            raise ValueError(f"{failed} of {given.workers} workers failed, see above; what they finished is kept")
    found = towns.evaluate_towns(model, metadata, given.out, wanted)
    return towns.write(given.out, model.config.name, found, model.config.frames_per_block / model.config.fps)


def measure_share(given: argparse.Namespace, plan: towns.Plan, first: int) -> None:
    """What one of several workers measures: every so many towns, from number `first` on."""
    prepare_cpu()
    torch.set_num_threads(max(1, torch.get_num_threads() // given.workers))
    towns.evaluate_towns(*load(given), given.out, plan, range(len(plan.seeds))[first :: given.workers])


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
    parser.add_argument("--defects", action="store_true", help="with --towns: measure what a person sees wrong instead")
    parser.add_argument("--without", choices=["transformer"], help="leave what the priors of a model predict alone")
    parser.add_argument("--long", type=int, default=0, help="how many of them are walked for ten minutes (default 0)")
    parser.add_argument(
        "--workers", type=int, default=1, help="with --towns: processes that share the cores (default 1)"
    )
    given = parser.parse_args(argv)
    if given.workers < 1 or (given.workers > 1 and (not given.towns or given.defects)):
        parser.error(f"--workers is 1 or more and serves --towns without --defects; got {given.workers}")
    if given.defects and not given.towns:
        parser.error("--defects measures unseen towns: add --towns report or --towns validation")
    settings = QUICK if given.quick else Settings()
    walks = {"horizon": given.horizon, "count": given.walks}
    plan = replace(settings.walks, **{name: value for name, value in walks.items() if value is not None})
    settings = replace(settings, walks=plan, seed=settings.seed if given.seed is None else given.seed)
    try:
        model, metadata = load(given)
        teacher = json.loads(given.teacher.read_text()) if given.teacher else None
        if given.towns:
            print(measure_towns(model, metadata, given, settings))
            return
        report = evaluate(
            model, metadata, given.out, settings, judge_weights=given.judge, steps=given.steps, teacher=teacher
        )
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for row in report["targets"]:
        value = "" if row["value"] is None else f"{row['value']:.3f}"
        print(f"{row['what']:62} {value:>8} {verdict(row)}")
    print(given.out / "report.md")


if __name__ == "__main__":
    main()
