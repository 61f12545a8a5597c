"""Yume-Bench (arXiv:2507.17744): `python -m train.evaluate MODEL --bench yume --out runs/bench --pictures FOLDER`.

Videos of 96 frames from start pictures, one held action each, at 544 x 960 and 16 frames/s where the model can.
Instruction following is told by two estimators: the inverse-dynamics judge, and pose estimation (pose.py).
Five figures are VBench's (vbench_figures.py). The paper's rows stand beside ours, marked published. Its instruction following is
another measurement and has a column of its own. A figure that cannot be computed is named with the reason.
`--street` measures YumeStreet itself by the same code: what the estimators reach on videos that do what is held.
Finished videos are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.data.video import write_video
from train.engine.loop import prepare_cpu
from train.evaluation.pose import held_keys
from train.evaluation.published import COLUMNS, ROWS
from train.evaluation.store import Store, plain
from train.evaluation.vbench_figures import FILES, Unavailable, default_weights, measure
from train.judge.network import WEIGHTS, Judge
from train.street.routes import open_start
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.config import ModelConfig
from world_model.cost.plan import parse_size
from world_model.model import WorldModel
from yume_gym.pictures import load_picture
from yume_gym.street.simulator import StreetSimulator

SIZE, FPS, FRAMES = "544x960", 16, 96
# held throughout a video: keys alone, and the commonest pairs
HELD = (
    ("W", ""),
    ("", "→"),
    ("S", ""),
    ("", "←"),
    ("A", ""),
    ("", "↑"),
    ("D", ""),
    ("", "↓"),
    ("W", "→"),
    ("W", "←"),
    ("W+A", ""),
    ("W+D", ""),
)
ESTIMATORS = {"instruction_following_judge": "inverse dynamics", "instruction_following_pose": "pose estimation"}


@dataclass(frozen=True)
class Settings:
    """What is measured. `walks` videos; their pictures and actions take turns."""

    walks: int = len(HELD)
    frames: int = FRAMES
    stride: float = 0.25  # seconds between two pictures whose relative pose is estimated
    steps: int | None = None  # sampler steps, the model's own if None
    seed: int = 0


Video = tuple[np.ndarray, float]  # uint8 [1 + frames, H, W, 3], the start picture first; seconds that the frames took


def dreamt(model: WorldModel, pictures: Sequence[np.ndarray], settings: Settings) -> Callable[[int, Action], Video]:
    """Videos of a world model, by number and action."""

    def make(number: int, action: Action) -> Video:
        picture = pictures[number % len(pictures)]
        state, parts = model.start([picture], [""], [settings.seed + number]), [picture[None]]
        began = time.perf_counter()
        while sum(map(len, parts)) <= settings.frames:
            state, frames = model.step(state, [action], steps=settings.steps)
            parts.append(frames[0])
        return np.concatenate(parts)[: settings.frames + 1], time.perf_counter() - began

    return make


def walked(config: ModelConfig, settings: Settings) -> Callable[[int, Action], Video]:
    """Videos of YumeStreet, by number and action: what is held is done, but where a wall is in the way."""

    def make(number: int, action: Action) -> Video:
        street = StreetSimulator.like(config)
        parts = [open_start(street, np.random.default_rng([settings.seed, number]), "day", "clear")[None]]
        began = time.perf_counter()
        while sum(map(len, parts)) <= settings.frames:
            parts.append(street.step(action).frames)
        return np.concatenate(parts)[: settings.frames + 1], time.perf_counter() - began

    return make


def blocks_of(video: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Whole blocks of `size` frames, each with the picture before it."""
    for first in range(0, len(video) - size, size):
        yield video[first : first + size + 1]


def done_by(action: Action, config: ModelConfig, blocks: int) -> list[Action]:
    """What a held action does in each block: at the limit of the tilt an arrow up or down does nothing any more."""
    pitch, done = 0.0, []
    for _ in range(blocks):
        pitches = commanded_motion(action, 0.0, pitch, config.frames_per_block, config.fps, config.camera)[1]
        moved = abs(pitches[-1] - pitch) > abs(pitches[0] - pitch) * config.frames_per_block / 2
        arrows = "".join(arrow for arrow in action.arrows if moved or arrow in "←→")
        done.append(Action.from_keys(action.keys, arrows))
        pitch = float(pitches[-1])
    return done


def followed(said: Sequence[Action | None], done: Sequence[Action]) -> dict[str, float]:
    """Shares of blocks in which an estimator names what is done; a block that it cannot read counts as wrong."""
    pairs = [(s is not None and s.move == d.move, s is not None and s.look == d.look) for s, d in zip(said, done)]
    move, look = (float(np.mean(column)) for column in zip(*pairs))
    return {"both": float(np.mean([all(pair) for pair in pairs])), "move": move, "look": look}


class Bench:
    """The videos of one world and what is measured on them; what is finished is kept in `store`."""

    def __init__(
        self, config: ModelConfig, make: Callable[[int, Action], Video], settings: Settings, store: Store, judge: Path
    ) -> None:
        self.config, self.make, self.settings, self.store = config, make, settings, store
        self.videos = store.folder / "videos"
        self.reasons: dict[str, str] = {}
        self.judge: Judge | None = None
        try:
            self.judge = Judge.load(config, judge)
        except (FileNotFoundError, ValueError) as error:
            self.reasons["instruction_following_judge"] = str(error)
        try:
            import cv2  # noqa: F401
        except ImportError:
            self.reasons["instruction_following_pose"] = "opencv is not installed: pip install 'yume-gym[video]'"

    def walk(self, number: int) -> dict[str, Any]:
        """One video, written, and what the estimators read in it."""
        action = Action.from_keys(*HELD[number % len(HELD)])
        video, seconds = self.make(number, action)
        self.videos.mkdir(parents=True, exist_ok=True)
        write_video(self.videos / f"walk_{number:03d}.mp4", video[1:], self.config.fps)
        blocks = list(blocks_of(video, self.config.frames_per_block))
        done = done_by(action, self.config, len(blocks))
        found: dict[str, Any] = {"action": action.meaning, "seconds": seconds}
        if self.judge is not None:
            read = self.judge.read(np.stack(blocks)).action
            found["instruction_following_judge"] = followed([Action.from_index(int(i)) for i in read], done)
        if "instruction_following_pose" not in self.reasons:
            camera, fps = self.config.camera, self.config.fps
            stride = min(max(1, round(fps * self.settings.stride)), self.config.frames_per_block)
            found["instruction_following_pose"] = followed([held_keys(b, fps, camera, stride) for b in blocks], done)
        return found

    def run(self, python: Path | None, weights: Path, device: str) -> dict[str, Any]:
        """All figures, and the reasons for those that there are none of."""
        walks = [self.store.result(f"walk_{n:03d}", partial(self.walk, n)) for n in range(self.settings.walks)]
        figures: dict[str, Any] = {"seconds": float(np.mean([walk["seconds"] for walk in walks]))}
        for name in ESTIMATORS:
            rows = [walk[name] for walk in walks if name in walk]
            figures[name] = float(np.mean([row["both"] for row in rows])) if rows else None
            for part in ("move", "look") if rows else ():
                figures[f"{name}_{part}"] = float(np.mean([row[part] for row in rows]))
        for name in FILES:
            try:
                each = self.store.result(f"vbench_{name}", partial(measure, self.videos, name, python, weights, device))
                figures[name] = float(np.mean(list(each.values())))
            except Unavailable as reason:
                figures[name], self.reasons[name] = None, str(reason)
        return {"figures": figures, "reasons": self.reasons, "walks": walks}


def conditions(config: ModelConfig, settings: Settings) -> list[str]:
    """How the videos differ from the bench's, in words."""
    size, frames = f"{config.height}x{config.width}", settings.frames
    told = [f"videos are {size}, the bench's are {SIZE}"] if size != SIZE else []
    told += [f"{config.fps} frames a second, the bench has {FPS}"] if config.fps != FPS else []
    return told + ([f"{frames} frames, the bench has {FRAMES}"] if frames != FRAMES else [])


def page(name: str, report: dict[str, Any]) -> str:
    """The report as Markdown."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}" if value >= 10 else f"{value:.3f}"

    figures = report["figures"]
    head = ["model", *COLUMNS[:1], *ESTIMATORS, *COLUMNS[1:]]
    own = [figures.get(column) for column in (*COLUMNS[:1], *ESTIMATORS, *COLUMNS[1:])]
    rows = [[name, *map(cell, own)]]
    rows += [[f"{r.name} (published)", *map(cell, (r.figures[0], None, None, *r.figures[1:]))] for r in ROWS]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    parts = [f"# Yume-Bench: {name}", "\n".join(lines)]
    parts += [
        f"Published rows: {'; '.join(f'{r.name}: {r.where}' for r in ROWS)}. Their instruction following is the paper's own."
    ]
    parts += [f"Not the bench's conditions: {', '.join(report['conditions'])}."] if report["conditions"] else []
    parts += [f"Seconds: for {report['settings']['frames']} frames, on {report['device']}."]
    parts += [f"Not computed: {name}: {reason}" for name, reason in report["reasons"].items()]
    return "\n\n".join(parts) + "\n"


def start_pictures(model: WorldModel, folder: Path | None) -> list[np.ndarray]:
    """The pictures of a folder, or those that the weights ship. Raises ValueError where there are none or one cannot be read."""
    if folder is None:
        if model.starts is None:
            raise ValueError(f"the weights of {model.config.name!r} ship no starting pictures: give --pictures FOLDER")
        return list(model.starts)
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"no pictures (png, jpg) in {folder}")
    return [load_picture(file, model.config.height, model.config.width) for file in files]


def load(name: str, size: str | None) -> WorldModel:
    """A model at a size asked for, "HxW"; else the full-size one, called by its name, at the bench's, and others at their own."""
    wanted = size or (SIZE if name == "yume-5b" else None)
    return WorldModel.load(name, size=parse_size(wanted, SIZE) if wanted else None)


def main(argv: Sequence[str]) -> None:
    """The command line."""
    prepare_cpu()
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a preset's name or a folder of weights")
    parser.add_argument("--bench", choices=["yume"], required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for videos and report; what is finished is kept"
    )
    parser.add_argument("--pictures", type=Path, help="folder of start pictures (default: those that the weights ship)")
    parser.add_argument("--size", metavar="HxW", help=f"of the videos ({SIZE} for yume-5b, else the model's own)")
    parser.add_argument("--walks", type=int, default=len(HELD), help="videos")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a video")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--street", action="store_true", help="measure YumeStreet itself at the model's size and rate")
    parser.add_argument("--judge", type=Path, default=WEIGHTS, help="the inverse-dynamics judge's weights")
    parser.add_argument("--vbench-python", type=Path, help="Python of an environment with the package vbench")
    parser.add_argument(
        "--vbench-weights", type=Path, default=default_weights(), help="folder of its networks' weights"
    )
    given = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(walks=given.walks, frames=given.frames, steps=given.steps, seed=given.seed)
    try:
        if min(settings.walks, settings.frames) < 1:
            raise ValueError("--walks and --frames must be 1 or more")
        model = load(given.model, given.size)
        config = model.config
        pictures = [] if given.street else start_pictures(model, given.pictures)
        name = "YumeStreet" if given.street else config.name
        identity = {"bench": "yume", "world": name, "size": [config.height, config.width], **vars(settings)}
        store = Store(given.out, identity)
        make = walked(config, settings) if given.street else dreamt(model, pictures, settings)
        bench = Bench(config, make, settings, store, given.judge)
        found = bench.run(given.vbench_python, given.vbench_weights, device)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    told = {"conditions": conditions(config, settings), "settings": vars(settings), "device": device}
    report = plain({"model": name, **found, **told, "published": [vars(row) for row in ROWS]})
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.out / "report.md").write_text(page(name, report), encoding="utf-8")
    print(page(name, report))
