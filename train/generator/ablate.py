"""Ablations of a generator of the street, same budget, small runs with seeds:

    python -m train.generator.ablate RUN --data EPISODES --validation EPISODES --out DIR [--steps 60] [--seeds 3] [--only NAME ...]
        [--sampler-steps 1 2 50]

RUN is a folder of weights that `train.street_world` wrote. Every variant of `ablation_variants.TRAINED` goes on from them for
`--steps` steps of foundation training on the first folder of episodes, once a seed, and is rolled out along episodes of the second,
in towns of no training. So are RUN's own weights, `before`, also with other numbers of sampler steps. A result is written once, to
`parts/`; the same command goes on where it was stopped. Writes `ablations.md`, `ablations.png` and `ablations.json`, all from
stored results.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.engine.loop import prepare_cpu
from train.engine.optimization import optimizers
from train.engine.precision import has_fast_bfloat16
from train.engine.sharding import own_device
from train.engine.variants import fitting, parts_of
from train.evaluation.ablations import stored_results, write_files
from train.evaluation.store import Store
from train.generator import foundation
from train.generator.ablation_page import page, plot
from train.generator.ablation_variants import TRAINED, settings_on, variants_of
from train.generator.encode import encode_recording
from train.generator.fit import Budget, Stage
from train.generator.rollouts import split_episodes
from train.generator.street_figures import Plan, StreetMeasurement
from train.generator.windows import LatentSet, Windows
from train.judge.network import WEIGHTS, Judge
from train.judge.network import fingerprint as judge_fingerprint
from train.recordings import EpisodeFiles, open_episodes
from train.street.text_table import TextTable
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.text import Conditioning, build_conditioning
from world_model.vae import build_vae
from world_model.weights import dit_tensors, find_weights, load_into, read_captions, read_config, read_manifest

VERSION = 1  # of what is measured: results of another are not mixed
BEFORE = "before"  # name of the given weights as they are
MOST_STEPS = 100  # of a sampler


@dataclass(frozen=True)
class Budgets:
    """How much is trained and rolled out."""

    settings: foundation.Settings
    steps: int = 60
    episodes: int = 200  # of training that are read, at most
    plan: Plan = Plan()


def take_over(config: ModelConfig, initial: Path, seed: int) -> tuple[DiT, dict[str, list[str]]]:
    """A DiT of `config` with all tensors of the folder `initial` that fit it by name and shape; parts of it that start "fresh", and
    those of `initial` that are "left_out"."""
    torch.manual_seed(seed)
    dit, given = DiT(config), dit_tensors(initial)
    taken = fitting(dit, given)
    dit.load_state_dict(taken, strict=False)
    fresh, left = dit.state_dict().keys() - taken.keys(), given.keys() - taken.keys()
    return dit, {"fresh": parts_of(fresh), "left_out": parts_of(left)}


class GeneratorAblation:
    """All variants of one generator, each computed once and stored below `out`; `run` is its folder of weights.

    Raises StoreError where `out` holds results of something else, ValueError for a model with priors or without tiers, for other
    pictures or actions, FileNotFoundError for what is missing.
    """

    def __init__(
        self, run: Path, data: Path, validation: Path, out: Path, budgets: Budgets, encoder: TextTable | None = None
    ) -> None:
        self.initial, self.out, self.budgets, self.device = run, out, budgets, own_device()
        self.config = read_config(run)
        if self.config.priors:
            raise ValueError(f"{run} has priors, whose ablations are train.ablate's: pass a run of train.street_world")
        self.variants, self.same = variants_of(self.config, budgets.settings)
        judge, self.files, shown = Judge.load(self.config), open_episodes(data), open_episodes(validation)
        self.identity = {
            "version": VERSION,
            "weights": read_manifest(run)["files"],
            **dataclasses.asdict(budgets),
            "data": listing(self.files),
            "validation": listing(shown),
            "judge": judge_fingerprint(WEIGHTS),
        }
        self.store = Store(out, self.identity)
        self.vae = build_vae(self.config.vae)
        load_into(self.vae, run, "vae.safetensors")
        self.vae.eval().requires_grad_(False).to(self.device)
        captions = read_captions(run) if self.config.action.kind == "first_person" else None
        self.conditioning: Conditioning = build_conditioning(self.config, captions, encoder)
        self.measurement = StreetMeasurement(self.vae, self.conditioning, shown, judge, budgets.plan)
        self._data: LatentSet | None = None

    @property
    def data(self) -> LatentSet:
        """The episodes of training, encoded when they are first needed."""
        if self._data is None:
            episodes = split_episodes(self.files)[1][: self.budgets.episodes]
            self._data = encode_recording(self.config, self.vae, self.files, episodes, self.conditioning, self.device)
        return self._data

    def run(self, seeds: int, only: Sequence[str] = (), sampler_steps: Sequence[int] = ()) -> None:
        """Computes what is not yet stored, of all variants or `only` some, with seeds 0, 1 ...; first the given weights, also with
        so many `sampler_steps`.

        Raises ValueError for an unknown name.
        """
        known = [BEFORE, *self.variants, *self.same]
        unknown = sorted(set(only) - set(known))
        if unknown:
            raise ValueError(f"unknown variant {unknown[0]!r}: choose from {', '.join(known)}")
        wanted = {self.same.get(name, name) for name in only or known}
        if BEFORE in wanted:
            self.store.result(f"{BEFORE}_seed0", self.before)
        for steps in sampler_steps:
            self.store.result(f"{sampled(steps)}_seed0", partial(self.before, steps))
        for seed in range(seeds):
            for name in (n for n in self.variants if n in wanted):
                self.store.result(f"{name}_seed{seed}", partial(self.train, name, seed))
                shutil.rmtree(self.run_folder(name, seed), ignore_errors=True)

    def run_folder(self, name: str, seed: int) -> Path:
        """Where the training of a variant keeps its checkpoint until it is measured."""
        return self.out / "runs" / f"{name}_seed{seed}"

    def before(self, steps: int | None = None) -> dict[str, Any]:
        """The result of the given weights, with so many sampler steps or their own."""
        name, config = BEFORE, self.config
        if steps is not None:
            name, config = sampled(steps), replace(config, sampler=replace(config.sampler, steps=steps))
        dit, parts = take_over(config, self.initial, 0)
        figures = {**self.measurement.figures(dit.to(self.device)), "seconds_a_step": None}
        return {"variant": name, "seed": 0, **parts, "figures": figures}

    def train(self, name: str, seed: int) -> dict[str, Any]:
        """The result of a trained variant."""
        config, settings = self.variants[name]
        dit, parts = take_over(config, self.initial, seed)
        dit.to(self.device)
        stage = self._trained(dit, replace(settings, seed=seed), self.run_folder(name, seed))
        average: DiT = stage.averaged("dit")  # type: ignore[assignment]
        figures = {**self.measurement.figures(average), "seconds_a_step": stage.seconds / stage.step}
        return {"variant": name, "seed": seed, **parts, "figures": figures}

    def _trained(self, dit: DiT, settings: foundation.Settings, folder: Path) -> Stage:
        """Foundation training of `dit`, from its checkpoint in `folder` if there is one."""
        opt, steps = settings.optimization, self.budgets.steps
        trainer = foundation.Foundation(dit.config, Windows(dit.config, self.data), settings)
        if settings.self_generated.begin == 0:  # else few of the pool's worlds would begin anew within so few steps
            trainer.pool.generated.fill_(True)
        stage = Stage(
            "foundation",
            folder,
            Budget(float("inf"), steps, min(opt.warmup, 1 + steps // 4), opt.cooldown),
            {"dit": dit},
            {"dit": optimizers(dit, opt.lr, opt.weight_decay, opt.optimizer)},
            {"dit": settings.ema},
            {"pool": trainer.pool},
        )

        def step(number: int, done: float) -> dict[str, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=has_fast_bfloat16(self.device)):
                loss, unexplained = trainer.loss(dit, number, done)
            stage.update("dit", loss)
            return {"loss": loss, "unexplained": unexplained}

        stage.run(step)
        return stage

    def write(self) -> None:
        """ablations.json, ablations.md and ablations.png from all that is stored, whatever was asked for now."""
        results = stored_results([self.store], (BEFORE, *map(sampled, range(1, MOST_STEPS + 1)), *self.variants))
        what = {variant.name: variant.what for variant in TRAINED}
        text = page(self.config.name, self.budgets.steps, results, what, self.same)
        write_files(self.out, self.store_identity(), results, text, plot(results))

    def store_identity(self) -> dict[str, Any]:
        """What is measured and how, and the model."""
        return {**self.identity, "model": dataclasses.asdict(self.config)}


def sampled(steps: int) -> str:
    """Name of the given weights with so many sampler steps."""
    return f"{BEFORE}, sampler steps: {steps}"


def listing(files: EpisodeFiles) -> list[tuple[str, int]]:
    """Names and sizes of the files of a recording."""
    return [(path.name, path.stat().st_size) for path in files.paths]


def main(argv: Sequence[str] | None = None) -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a generator's weights, without priors (train.street_world)")
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded episodes to train on")
    parser.add_argument("--validation", type=Path, required=True, help="folder of episodes in towns of no training")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results; finished ones in it are kept")
    parser.add_argument("--steps", type=int, default=60, help="of training, each variant and seed (default 60)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--batch", type=int, help="worlds a step (default: as in train.street_world)")
    parser.add_argument("--worlds", type=int, default=Plan.worlds, help=f"rolled out (default {Plan.worlds})")
    parser.add_argument(
        "--long-worlds", type=int, default=Plan.long_worlds, help=f"the same for a minute (default {Plan.long_worlds})"
    )
    parser.add_argument(
        "--sampler-steps", type=int, nargs="+", default=[], help="with how many the given weights are rolled out, too"
    )
    parser.add_argument("--texts", type=Path, help="file of encoded texts, where the text encoder is not installed")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="variants to compute; others stay as stored"
    )
    given = parser.parse_args(argv)
    for name in ("steps", "seeds", "worlds", "long_worlds"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(given, name)}")
    if wrong := [steps for steps in given.sampler_steps if not 1 <= steps <= MOST_STEPS]:
        parser.error(f"--sampler-steps must be 1 to {MOST_STEPS}, got {wrong[0]}")
    settings = settings_on(own_device())
    if given.batch is not None:
        if given.batch < 2:
            parser.error(f"--batch must be 2 or more, since one world may live on its own history; got {given.batch}")
        settings = replace(settings, batch=given.batch)
    budgets = Budgets(settings, given.steps, plan=Plan(worlds=given.worlds, long_worlds=given.long_worlds))
    try:
        encoder = TextTable(given.texts) if given.texts else None
        ablation = GeneratorAblation(find_weights(given.run), given.data, given.validation, given.out, budgets, encoder)
        ablation.run(given.seeds, given.only, given.sampler_steps)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    ablation.write()
    print(given.out / "ablations.md")


if __name__ == "__main__":
    main()
