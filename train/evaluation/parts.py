"""All parts of the evaluation of a street model, each computed once and stored: what `python -m train.evaluate` reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from train.evaluation import control, endurance, events, fidelity, memory, starts, walks
from train.evaluation.sheet import save_sheet
from train.evaluation.store import Store
from train.evaluation.walks import draw_sky, make_trial, measure_walk, psnr
from train.evaluation.worlds import Decoded, Dream, Frozen, Street, World, town
from train.judge.network import Judge, fingerprint
from train.street.walks import LATER_EVENTS, StreetRecipe, render_walk
from world_model.model import WorldModel
from world_model.priors.config import places_of
from yume_gym.street.simulator import StreetSimulator

VERSION = 2  # of what is measured: results of another are not mixed
PICTURE_TIMES = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 30.0, 60.0, 180.0, 600.0)  # seconds into a walk
_ROUTES, _FAR, _EVENTS, _MEMORY, _STARTS = range(5)  # each part draws its scenes from a seed of its own


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    walks: walks.Plan = walks.Plan()
    starts: int = 160  # text starts
    events: events.Plan = events.Plan()
    memory: memory.Plan = memory.Plan()
    seed: int = 4_000_000  # of routes and scenes
    town: int = 0  # the town that the world model learns
    town_blocks: int = 2  # the town is a torus of this many blocks each way
    far_town: int = 777


QUICK = Settings(
    walks.Plan(count=3, horizon=10.0, side_horizon=10.0, real=8, natural=4, far=1, film=10.0),
    starts=6,
    events=events.Plan(before=1, during=2, after=2, scenes=(("day", "clear"), ("overcast", "rain")), once=True),
    memory=memory.Plan(scenes=2, waits=(2,), out=(2,)),
)


def identity_of(metadata: dict[str, Any], settings: Settings, judge_weights: Path, steps: int | None) -> dict[str, Any]:
    """What a `Store` of these results is of. `metadata` are the model's manifest; `steps`: of the sampler, None for its own."""
    return {
        "version": VERSION,
        "model": metadata.get("files"),
        "steps": steps,
        "judge": fingerprint(judge_weights),
        "settings": asdict(settings),
    }


@torch.no_grad()
def remove_transformer(model: WorldModel) -> None:
    """Leaves a model with what its priors predict, in place: the last layer of its transformer says nothing.

    Raises ValueError for a model without priors.
    """
    if not model.config.priors:
        raise ValueError(f"{model.config.name!r} has no priors: without its transformer nothing is left to measure")
    assert model.dit.head is not None  # a denoiser has no priors beside it
    for parameter in model.dit.head.head.parameters():
        parameter.zero_()


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
        real = self.real(self.street, "real", _ROUTES, self.settings.walks.count)
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
        plan = self.settings.walks
        blocks = self.blocks(plan.horizon if name in ("street", "dream") else min(plan.horizon, plan.side_horizon))
        kept = tuple(k for k in (self.blocks(t) - 1 for t in PICTURE_TIMES) if k < blocks)
        records = []
        for number in tqdm(range(plan.count), desc=f"walks, {name}", leave=False):
            film = self.blocks(min(plan.film, plan.horizon)) if number == 0 else 0

            def make(number: int = number, film: int = film) -> dict[str, np.ndarray]:
                # routes of one number begin alike, whatever their length
                trial = make_trial(self.street, self.seed(_ROUTES), number, blocks)
                return measure_walk(
                    self.worlds[name], self.street, self.judge, trial, flow_every=plan.flow_every, kept=kept, film=film
                )

            records.append(self.store.arrays(f"walk_{name}_{number:02d}", make))
        return records

    def real(self, street: StreetSimulator, name: str, part: int, measured: int) -> endurance.RealWalks:
        """Real walks on other routes, under the skies of the `measured` walks of a part."""

        def make() -> dict[str, np.ndarray]:
            skies = [draw_sky(np.random.default_rng([self.seed(part), number])) for number in range(measured)]
            count, blocks = self.settings.walks.real, self.blocks(endurance.WINDOW)
            return endurance.real_walks(street, self.judge, self.seed(part) + 500, count, blocks, skies)

        return endurance.RealWalks(self.store.arrays(name, make))

    def autoencoder(self) -> dict[str, Any]:
        """What the autoencoder keeps of walks as training has them, on routes that it has not."""

        def make() -> dict[str, Any]:
            s, blocks = self.settings, self.blocks(endurance.WINDOW)
            recipe = StreetRecipe.of(self.config, blocks, self.seed(_ROUTES), s.town_blocks, s.town)
            walks = [render_walk(recipe, number).frames for number in range(s.walks.natural)]
            return {
                "walks": len(walks),
                "psnr": control.mean(np.array([psnr(self.decoded.through(w), w) for w in walks])),
            }

        return self.store.result("autoencoder", make)

    def elsewhere(self, seed: int, name: str) -> dict[str, Any]:
        """Control and endurance in another town, stored under `name`."""
        plan = self.settings.walks
        street = town(self.street, seed)
        trials = [
            make_trial(street, self.seed(_FAR), n, self.blocks(min(plan.side_horizon, plan.horizon)))
            for n in range(plan.far)
        ]
        real = self.real(street, f"real_{name}", _FAR, plan.far)
        figures = {}
        for world in (Street(street), self.worlds["dream"]):
            records = [
                self.store.arrays(
                    f"{name}_{world.name}_{n:02d}",
                    partial(measure_walk, world, street, self.judge, trial, flow_every=plan.flow_every),
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
