"""Trains and tests the judge that `train.evaluate` asks. It ships trained; this is how it was made:

    python -m train.judge render --data data/judge                               walks through towns of its own
    python -m train.judge render --data data/judge_test --towns 1 --first-town 0 --walks 60 --seed 77
    python -m train.judge train --data data/judge --test data/judge_test --out runs/judge

`--test` walks are through the town that the world model learns, which the judge never sees in training. The result is
train/judge/judge.safetensors and, beside it, a JSON with its steps and accuracy. Resumable.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.engine.loop import Networks, Run, prepare_cpu
from train.judge import data as judge_data
from train.judge.architecture import EARLY, FIRST_THINGS
from train.judge.data import THINGS, UNKNOWN
from train.judge.motion import LUMA
from train.judge.network import (
    SEEN,
    WEIGHTS,
    Judge,
    axes_of,
    classes_of,
    judge_metadata,
    load_weights,
    to_float,
)
from train.street.walks import LATER_EVENTS
from world_model.actions import LOOKS
from world_model.config import ModelConfig
from world_model.presets import get_preset
from world_model.rollout import generator
from world_model.weights import with_own

LOOSE = 0.03  # deviation of the turn that pictures are turned back by in training, in shares of a held key's
AXES = ("forward", "right", "turn", "tilt")
_LATER = tuple(f"/{kind}" for kind in LATER_EVENTS)  # how the names of their figures end


@dataclass(frozen=True)
class Degradation:
    """What pictures of training are seen through: a dream is never as sharp as the street, and must be read all the same."""

    blurred: float = 0.5  # share of blocks seen through a blur ...
    passes: int = 5  # ... of up to so many means over 3 x 3 pixels
    noise: float = 0.025  # largest deviation of the noise added to pictures of 0..1


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 40
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 50
    ema: float = 0.99
    things: float = 0.6  # share of pictures to look at that show something unusual, which few blocks do
    degradation: Degradation = Degradation()
    seed: int = 0
    only: str | None = None  # "motion", "sight" or "later": the network that is trained; all if None
    fresh: bool = False  # the network `only` starts afresh, and others go on from given weights


class Blocks:
    """All blocks of a folder of walks."""

    def __init__(self, folder: Path) -> None:
        walks = judge_data.load(folder)
        self.frames = walks.pop("frames")
        self.size = (self.frames.shape[1] - 1) // walks["motion"].shape[1]
        self.per_walk = walks["motion"].shape[1]
        self.unusual = np.flatnonzero((walks["things"] == 1).any(axis=-1))
        self.labels = {name: array.reshape(-1, *array.shape[2:]) for name, array in walks.items()}

    def __len__(self) -> int:
        return len(self.labels["motion"])

    def pictures(self, number: int) -> np.ndarray:
        """uint8 [K + 1, H, W, 3]."""
        walk, block = divmod(number, self.per_walk)
        return self.frames[walk, block * self.size : (block + 1) * self.size + 1]

    def draw(self, settings: Settings, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A batch: grey pictures of blocks [B, K + 1, H, W] and, of other blocks, the last in colour [B, 3, H, W], both 0..1,
        and their labels: of motion for the first, of all else for the second. "loose" [B, 2] is added to the true turn.

        Half are mirrored, half run backwards in time (all motions are then their opposites), some are blurred, all have noise.
        """
        through = settings.degradation
        stream = generator("judge", settings.seed, step)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=stream)))
        chosen = rng.integers(len(self), size=settings.batch)
        mirrored, reversed_, blurred = rng.random((3, settings.batch)) < [[0.5], [0.5], [through.blurred]]
        others = rng.integers(len(self), size=settings.batch)
        if len(self.unusual):
            unusual = rng.choice(self.unusual, settings.batch)
            others = np.where(rng.random(settings.batch) < settings.things, unusual, others)
        labels = {name: array[others] for name, array in self.labels.items()}
        labels["motion"] = self.labels["motion"][chosen]
        labels["motion"][mirrored] *= np.array([1, -1, -1, 1], np.float32)
        labels["motion"][reversed_] *= -1
        turned, seen_last = (
            np.stack([self.pictures(i)[..., ::-1, :] if m else self.pictures(i) for i, m in zip(numbers, mirrored)])
            for numbers in (chosen, others)
        )
        sight = to_float(seen_last[:, -1])
        grey = torch.from_numpy(turned @ (LUMA / 255).astype(np.float32))
        grey[reversed_] = grey[reversed_].flip(1)
        noise = through.noise * torch.rand(settings.batch, 1, 1, 1, generator=stream)
        passes = np.where(blurred, rng.integers(1, through.passes + 1, settings.batch), 0)
        for seen in (grey, sight):
            for number in range(through.passes):
                seen[passes > number] = F.avg_pool2d(seen[passes > number], 3, 1, 1, count_include_pad=False)
            seen += noise * torch.randn(seen.shape, generator=stream)
        # steps are judged after about the true turn every other time, else after the judged one, so that both parts learn at once
        loose = LOOSE * torch.randn(settings.batch, 2, generator=stream)
        loose[::2] = torch.nan
        return grey, sight, {**{name: torch.from_numpy(array) for name, array in labels.items()}, "loose": loose}


def motion_loss(judge: Judge, grey: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the loss of blocks: moves, looks and motion."""
    rotation = labels["motion"][:, 2:] / judge.units[2:] + labels["loose"]
    move, look, motion, _ = judge.motion(grey, rotation)
    truth = classes_of(labels["motion"].numpy(), judge.units.numpy())
    return {
        "move": F.cross_entropy(move, torch.from_numpy(truth[0])),
        "look": F.cross_entropy(look, torch.from_numpy(truth[1])),
        "motion": 4 * F.smooth_l1_loss(motion, labels["motion"] / judge.units, beta=0.2),
    }


def scene_loss(judge: Judge, sight: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the loss of pictures: light, weather, district and the first things."""
    parts = {}
    light, weather, district, things, *_ = judge.sight(sight)
    for name, logits in (("light", light), ("weather", weather), ("district", district)):
        known = labels[name] != UNKNOWN
        parts[name] = F.cross_entropy(logits[known], labels[name][known].long())
    return {**parts, "things": things_loss(things, labels["things"][:, :FIRST_THINGS])}


def later_loss(judge: Judge, sight: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss of later things in pictures; the stages of sight that they are told from learn nothing by it."""
    with torch.no_grad():
        edges = judge.sight.maps(sight, EARLY)[-1]
    return {"later": things_loss(judge.later(edges), labels["things"][:, FIRST_THINGS:])}


def things_loss(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != UNKNOWN
    return 6 * F.binary_cross_entropy_with_logits(logits[known], labels[known].float())


def judge_loss(
    judge: Judge, batch: tuple[Tensor, Tensor, dict[str, Tensor]], only: str | None = None
) -> dict[str, Tensor]:
    """All parts of the loss of a batch, or those of one network."""
    grey, sight, labels = batch
    parts = {} if only in ("sight", "later") else motion_loss(judge, grey, labels)
    parts |= {} if only in ("motion", "later") else scene_loss(judge, sight, labels)
    return parts if only in ("motion", "sight") else {**parts, **later_loss(judge, sight, labels)}


def accuracy(judge: Judge, blocks: Blocks) -> dict[str, float]:
    """How often the judge is right on all blocks."""
    reading = judge.read(np.stack([blocks.pictures(i) for i in range(len(blocks))]))
    motion = blocks.labels["motion"]
    move, look = classes_of(motion, judge.units.numpy())
    figures = {
        "joint": float(((reading.move == move) & (reading.look == look)).mean()),
        "move": float((reading.move == move).mean()),
        "look": float((reading.look == look).mean()),
    }
    truth, said = axes_of(len(LOOKS) * move + look), axes_of(reading.action)
    for axis, name in enumerate(AXES):
        recalls = [float((said[truth[:, axis] == sign, axis] == sign).mean()) for sign in (-1, 0, 1)]
        figures[f"recall/{name}"] = float(np.mean(recalls))
        error = reading.motion[:, axis] - motion[:, axis]
        figures[f"r2/{name}"] = float(1 - error.var() / motion[:, axis].var())
    for name in ("light", "weather", "district"):
        known = blocks.labels[name] != UNKNOWN
        figures[name] = float((getattr(reading, name)[known] == blocks.labels[name][known]).mean())
    for number, thing in enumerate(THINGS):
        there, seen = blocks.labels["things"][:, number], reading.things[:, number] > SEEN
        if (there == 1).any():
            figures[f"seen/{thing}"] = float(seen[there == 1].mean())
        figures[f"imagined/{thing}"] = float(seen[there == 0].mean())
    return {name: round(value, 4) for name, value in figures.items()}


def train(
    config: ModelConfig,
    data: Path,
    test: Path,
    out: Path,
    weights: Path,
    settings: Settings,
    steps: int,
    initial: Path | None = None,
) -> None:
    """Trains for `steps`, tests and writes the weights; `initial` are weights to go on from."""
    torch.manual_seed(settings.seed)
    judge = Judge.of(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if initial is not None:
        own = [settings.only] if settings.fresh and settings.only else []
        judge.load_state_dict(with_own(judge, load_weights(config, initial), own))
    if settings.only == "later":
        judge.sight.eval()  # its means and deviations stay too
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    run = Run("judge", config, settings, out, Networks({"judge": judge}, [optimizer], {"judge": settings.ema}))
    blocks, unseen = (Blocks(folder) for folder in (data, test))
    average = run.averaged("judge", Judge)
    for step in run.steps(steps):
        parts = judge_loss(judge, blocks.draw(settings, step), settings.only)
        optimizer.zero_grad()
        run.accelerator.backward(sum(parts.values()))
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        rate = min(1.0, (step + 1) / settings.warmup, max(0.02, 1.5 * (1 - step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rate
        optimizer.step()
        run.average("judge")
        if step % 100 == 99:
            run.log({name: float(part.detach()) for name, part in parts.items()})
        if step % 250 == 249:
            run.log(accuracy(average.eval(), unseen))
            run.save()
    run.finish()
    figures = accuracy(average.eval(), unseen)
    stage = {
        "network": settings.only or "both",
        "steps": run.progress.step,
        "batch": settings.batch,
        "minutes": round(run.progress.seconds / 60, 1),
        "blocks": len(blocks),
        "towns": len(list(data.glob("town_*.safetensors"))),
    }
    before = [] if initial is None else judge_metadata(initial)["training"]
    before = [done for done in before if not (settings.fresh and done["network"] == settings.only)]
    tested = {"blocks": len(unseen), "town": "one that the judge was not trained on"}
    if settings.only == "later" and initial is not None:  # all else is as accurate as it was, where it was tested
        earlier, later = judge_metadata(initial), {k: v for k, v in figures.items() if k.endswith(_LATER)}
        figures, stage["tested_on"] = {**earlier.get("accuracy", {}), **later}, tested
        tested = earlier.get("tested_on", tested)
    average.save(weights, {"training": [*before, stage], "tested_on": tested, "accuracy": figures})
    print("\n".join(f"{name:20} {value:.3f}" for name, value in figures.items()))


def main(argv: Sequence[str] | None = None) -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="preset whose pictures the judge reads (default street)")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render", help="walks with labels")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--towns", type=int, default=16)
    command.add_argument("--first-town", type=int, default=judge_data.FIRST_TOWN)
    command.add_argument("--walks", type=int, default=100, help="of each town")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--later", type=int, default=0, help="times as often as others that later kinds of events come"
    )
    command = commands.add_parser("train", help="walks -> judge.safetensors")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--test", type=Path, required=True, help="walks to test on")
    command.add_argument("--out", type=Path, required=True, help="run folder; a checkpoint in it is resumed")
    command.add_argument("--weights", type=Path, default=WEIGHTS, help="file to write")
    command.add_argument("--steps", type=int, default=3000)
    command.add_argument("--only", choices=("motion", "sight", "later"), help="train one network")
    command.add_argument("--initial", type=Path, help="weights to go on from")
    command.add_argument("--fresh", action="store_true", help="only the network that is not trained is taken from them")
    given = parser.parse_args(argv)
    if given.command == "train" and given.fresh and not (given.only and given.initial):
        parser.error("--fresh leaves one network of given weights out: it needs --only and --initial")
    config = get_preset(given.model)
    if given.command == "render":
        judge_data.render(config, given.data, given.towns, given.walks, given.seed, given.first_town, given.later)
    else:
        settings = Settings(only=given.only, fresh=given.fresh)
        train(config, given.data, given.test, given.out, given.weights, settings, given.steps, given.initial)
