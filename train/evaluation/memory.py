"""Is the place still there when one looks back? Looking away by 90 degrees and back, and walking out and back.

The camera ends where it left, so the two pictures should show the same. What counts as "the same" is what YumeStreet gives
(its people and clouds move on); what counts as nothing is how alike other places under the same sky are. A world that did not
look away at all remembers nothing: its score counts as far as what it saw while away differs as it does in YumeStreet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.evaluation.control import mean
from train.evaluation.walks import draw_sky
from train.evaluation.worlds import Scene, World
from train.judge.network import Judge
from train.street.routes import open_start
from world_model.actions import Action
from world_model.config import ModelConfig
from yume_gym.street.simulator import StreetSimulator

STILL = Action()


@dataclass(frozen=True)
class Plan:
    """Scenes; blocks to wait while looking away; blocks to walk out."""

    scenes: int = 8
    waits: tuple[int, ...] = (1, 2, 4, 8)
    out: tuple[int, ...] = (2, 4)


def make_scenes(street: StreetSimulator, count: int, seed: int) -> list[Scene]:
    """Places to leave and come back to."""
    scenes = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        picture = open_start(street, rng, *draw_sky(rng))
        scenes.append(Scene(street.get_state(), picture, seed * 1000 + number))
    return scenes


def elsewhere(street: StreetSimulator, scenes: Sequence[Scene], seed: int) -> np.ndarray:
    """[N, H, W, 3] pictures of other places under the skies of the scenes: what "no likeness" means."""
    rngs = (np.random.default_rng([seed, number, 1]) for number in range(len(scenes)))
    return np.stack([open_start(street, rng, s.state.light, s.state.weather) for rng, s in zip(rngs, scenes)])


def quarter_turn(config: ModelConfig) -> int:
    """Blocks of looking aside that make 90 degrees, or as near as blocks come."""
    return max(1, round(90 / (config.camera.turn_speed * config.frames_per_block / config.fps)))


def run_scene(world: World, scene: Scene, plan: Plan, turn_blocks: int, right: bool) -> dict[str, np.ndarray]:
    """Pictures uint8 [3, H, W, 3] of each trial: departure, farthest, return. Names are "turn_<wait>" and "walk_<blocks>"."""
    there, back = (Action.from_keys("", "→" if flag else "←") for flag in (right, not right))
    trials = {}
    start, frames = world.step(world.start(scene), STILL)
    departure = frames[-1]
    state = start
    for _ in range(turn_blocks):
        state, frames = world.step(state, there)
    away = frames[-1]
    for waited in range(1, max(plan.waits) + 1):
        state, frames = world.step(state, STILL)
        if waited in plan.waits:
            trials[f"turn_{waited}"] = np.stack([departure, away, _held(world, state, back, turn_blocks)])
    state = start
    for walked in range(1, max(plan.out, default=0) + 1):
        state, frames = world.step(state, Action.from_keys("W"))
        if walked in plan.out:
            trials[f"walk_{walked}"] = np.stack(
                [departure, frames[-1], _held(world, state, Action.from_keys("S"), walked)]
            )
    return trials


def _held(world: World, state: Any, action: Action, blocks: int) -> np.ndarray:
    """The last picture of some blocks with one action."""
    for _ in range(blocks):
        state, frames = world.step(state, action)
    return frames[-1]


def distances(judge: Judge, trials: Sequence[dict[str, np.ndarray]], others: np.ndarray) -> dict[str, dict[str, float]]:
    """For each kind of trial: perceptual distance of the departure to the return, to what was seen away, and to `others`."""
    table = {}
    for name in trials[0]:
        pictures = np.stack([trial[name] for trial in trials])
        departure, away, returned = pictures[:, 0], pictures[:, 1], pictures[:, 2]
        table[name] = {
            "return": mean(judge.distance(departure, returned)),
            "away": mean(judge.distance(departure, away)),
            "unrelated": mean(judge.distance(departure, others)),
        }
    return table


def score(world: dict[str, dict[str, float]], street: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each trial's distances with its score: 1 where the return is as like the departure as in the street, 0 where it is no
    liker than another place, times how far the world looked away (at most 1: as far as the street)."""
    table = {}
    for name, figures in world.items():
        best, nothing = street[name]["return"], street[name]["unrelated"]
        looked_away = min(1.0, figures["away"] / street[name]["away"]) if street[name]["away"] else math.nan
        like = (nothing - figures["return"]) / (nothing - best) if nothing > best else math.nan
        table[name] = {**figures, "looked_away": looked_away, "score": like * looked_away}
    return table


def unrelated(judge: Judge, pictures: np.ndarray) -> float:
    """Mean perceptual distance between pictures [N, H, W, 3] and others of them; NaN for a single one."""
    if len(pictures) < 2:
        return math.nan
    return float(
        np.mean(
            [judge.distance(pictures, np.roll(pictures, shift, axis=0)) for shift in range(1, min(len(pictures), 4))]
        )
    )
