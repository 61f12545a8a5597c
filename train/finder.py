"""Teaches where in its towns a picture was taken (`world_model/priors/finder.py`):
`python -m train.finder street --data DIR --out RUN`.

Pictures of the walks in DIR (folders of several towns may lie in it), and views that are rendered as they are needed, in every
light and weather; most look level and along streets, as start pictures do. Resumable. Writes `finder.safetensors` (the EMA) and
`finder.json` (steps, errors on other views).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from train.data.corpus import town_of, town_start
from train.data.shards import HELD_OUT, Shard, find_shards
from train.depth import degrade
from train.engine.arguments import read_arguments
from train.engine.checkpoints import load_network, stage_metadata
from train.engine.loop import Networks, Run, prepare_cpu
from train.evaluation.sheet import to_video
from train.street.walks import known_street
from world_model.config import ModelConfig
from world_model.priors.config import places_of
from world_model.priors.finder import HEADINGS, Finder
from world_model.rollout import generator
from yume_gym.street.simulator import LIGHTS, WEATHERS

WEIGHTS = "finder.safetensors"
HELD_OUT_VIEWS = 128


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 24  # rendered views a step
    walked: int = 72  # pictures of walks a step
    lr: float = 1.5e-3
    along: float = 0.6  # share of views along a street; the rest look anywhere
    tilted: float = 0.2  # share that look a little up or down
    blurred: float = 0.2
    ema: float = 0.995
    seed: int = 0


class Views:
    """Pictures with poses of all towns that models of a config know, drawn by key."""

    def __init__(self, config: ModelConfig, data: Path, settings: Settings) -> None:
        self.settings = settings
        self.shards = [Shard(path) for path in find_shards(data)]
        self.starts = [town_start(config, town_of(config, shard.header)) for shard in self.shards]
        places = places_of(config)
        towns = range(len(places.towns) if places is not None else 0)
        self.streets = [(known_street(config, town), town_start(config, town)) for town in towns]

    def walked(self, count: int, *key: int | str) -> tuple[Tensor, Tensor]:
        """Pictures of the walks and their poses, as `draw` gives them."""
        stream = generator("walked", *key)
        pictures, poses = [], []
        for _ in range(count):
            number = int(torch.randint(len(self.shards), (), generator=stream))
            shard, first = self.shards[number], 0 if number else HELD_OUT
            walk = int(torch.randint(min(first, len(shard) - 1), len(shard), (), generator=stream))
            frame = int(torch.randint(shard.header.frames_per_walk, (), generator=stream))
            pictures.append(shard.frames(walk, frame, frame + 1))
            poses.append((*(self.starts[number] + shard.position[walk, frame]), shard.yaw[walk, frame]))
        return to_video(np.stack(pictures))[:, :, 0], torch.tensor(np.array(poses), dtype=torch.float64)

    def draw(self, count: int, *key: int | str) -> tuple[Tensor, Tensor]:
        """Pictures [count, 3, H, W] in -1..1 and poses [count, 3] float64 (x, z; metres; yaw, radians)."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator(*key))))
        pictures, poses, s = [], [], self.settings
        for _ in range(count):
            street, start = self.streets[int(rng.integers(len(self.streets)))]
            light, weather = (names[int(rng.integers(len(names)))] for names in (LIGHTS, WEATHERS))
            yaw = None if rng.random() < s.along else float(rng.uniform(-math.pi, math.pi))
            pitch = float(rng.uniform(-0.2, 0.2)) if rng.random() < s.tilted else 0.0
            pictures.append(street.reset(rng, light=light, weather=weather, yaw=yaw, pitch=pitch))
            poses.append((*(start + street.position), street.yaw))
        return to_video(np.stack(pictures)[:, None])[:, :, 0], torch.tensor(poses, dtype=torch.float64)


@torch.no_grad()
def errors(finder: Finder, views: tuple[Tensor, Tensor]) -> dict[str, float]:
    """On given views: share of cells and headings that are right."""
    pictures, poses = views
    truth, _ = finder.labels(poses)
    right = torch.stack([part.argmax(dim=-1) for part in finder(pictures)[0]], dim=-1) == truth
    names = ("x", "z", "heading")
    return {name: float(right[:, i].float().mean()) for i, name in enumerate(names)} | {
        "all": float(right.all(1).float().mean())
    }


def train(
    config: ModelConfig,
    data: Path,
    out: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
    initial: Path | None = None,
) -> None:
    """Trains until `steps` or `minutes`, from the finder of the folder `initial` if given, evaluates and writes the weights."""
    torch.manual_seed(settings.seed)
    places = places_of(config)
    if places is None:
        raise ValueError(f"{config.name} knows no town: its scene prior has no places")
    views = Views(config, data, settings)
    held_out = views.draw(HELD_OUT_VIEWS, settings.seed, "held out")
    finder = Finder(places.period, (config.height, config.width), towns=len(places.towns))
    if initial is not None:
        missing = "--initial must be a folder of weights, or a run of train.finder"
        load_network(finder, initial, WEIGHTS, missing, "the finder", lambda state: grown(state, finder))
    optimizer = torch.optim.AdamW(finder.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-2)
    run = Run("finder", config, settings, out, Networks({"finder": finder}, [optimizer], {"finder": settings.ema}))
    average = run.averaged("finder", Finder)
    losses: list[float] = []
    for step in run.steps(steps, minutes):
        drawn, walked = (
            views.draw(settings.batch, settings.seed, "views", step),
            views.walked(settings.walked, settings.seed, step),
        )
        pictures, poses = (torch.cat(parts) for parts in zip(drawn, walked))
        pictures = degrade(pictures, settings.blurred, generator(settings.seed, "blur", step))
        scores, inside = finder(pictures)
        index, turns = finder.labels(poses)
        loss = (inside - turns).square().mean()
        loss = loss + sum(F.cross_entropy(part, index[:, i]) for i, part in enumerate(scores))
        optimizer.zero_grad()
        run.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * run.rate(steps, minutes, 50, 0.5, 0.03)
        optimizer.step()
        run.average("finder")
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            run.log({"loss": float(np.mean(losses[-100:])), **errors(average, held_out)})
        if step % 500 == 499:
            run.save()
    run.finish()
    save_file({k: v.contiguous() for k, v in average.state_dict().items()}, out / WEIGHTS)
    steps_before = stage_metadata(initial, "finder").get("steps", 0) if initial is not None else 0
    measured = {k: round(v, 4) for k, v in errors(average, held_out).items()}
    facts = {"steps": run.progress.step + steps_before, **measured}
    (out / "finder.json").write_text(json.dumps({"finder_training": facts}, indent=1))


def grown(state: dict[str, Tensor], finder: Finder) -> dict[str, Tensor]:
    """Weights of a finder of fewer towns for `finder`: cells of the others are as in an untrained one."""
    fresh, grown_state = finder.state_dict(), dict(state)
    side, cells = finder.cells[1], finder.cells[0]
    for name in ("scores.weight", "scores.bias"):
        own, known = fresh[name], state[name]
        before = len(known) - side - HEADINGS  # x cells come first
        if 0 <= before < cells and known.shape[1:] == own.shape[1:]:
            grown_state[name] = torch.cat([known[:before], own[before:cells].to(known.dtype), known[before:]])
    return grown_state


def main() -> None:
    prepare_cpu()
    config, settings, a = read_arguments(__doc__, Settings, ("batch", "walked", "lr", "seed"), ("data",), ("initial",))
    train(config, a.data, a.out, settings, a.steps, a.minutes, a.initial)


if __name__ == "__main__":
    main()
