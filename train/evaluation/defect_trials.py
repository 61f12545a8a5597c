"""Rollouts of a town in which a person would see what is wrong: keys and texts by the clock, in the world and in the street.

All rollouts of a town begin at one position on a clear day. Rollouts with an event begin like the one that stands still.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cbook import get_sample_data

from train.evaluation.defect_figures import changes, deviations
from train.evaluation.worlds import Dream, Scene, Street, World
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.pictures import load_picture
from yume_gym.street.env import YumeStreetEnv
from yume_gym.street.events import EVENTS, match_event
from yume_gym.street.simulator import StreetSimulator, StreetState

STILL, FORWARD, RIGHT = Action(), Action.from_keys("W"), Action.from_keys("", "→")
NOTHING = ("nothing happens", "a cat sits on the wall")  # texts of no event, and of none that could be mistaken for one
OTHERS = (
    "a dog trots along the road",
    "cherry blossoms are everywhere",
    "the street is flooded",
    "an earthquake shakes the town",
    "a brass band marches past",
)
ENDED = ("night", "fog", "heavy_rain")
FALLING = {"rain": "heavy_rain", "snow": "snow"}
UNDERSTOOD = "text_understood"  # key of `info`: False where the text in force is no event that the world can show
SMOOTH, PHOTOGRAPH = "a smooth picture", "a photograph"


@dataclass(frozen=True)
class Plan:
    """Seconds of each part of the rollouts."""

    before: float = 2.0  # standing still, before a text begins
    text: float = 2.0  # with a text that is no known event
    event: float = 3.0  # with an event
    after: float = 2.0  # since its end
    still: float = 12.0  # standing still without a text; at least before + event + after
    walk: float = 4.0  # W held along the street
    wall: float = 60.0  # W held aslant towards a side of the street
    picture: float = 8.0  # standing still after a start from a picture

    def __post_init__(self) -> None:
        least = self.before + max(self.text, self.event + self.after)
        if self.still < least:
            raise ValueError(
                f"still is {self.still} s, shorter than a rollout with a text ({least} s) that it is compared with: make it longer"
            )


WHOLE = Plan()
QUICK = Plan(still=7.0, wall=6.0, picture=2.0)


@dataclass(frozen=True)
class Part:
    """An action that is held for some blocks, with the text in force."""

    action: Action
    blocks: int
    text: str | None = None


class PatientStreet(Street):
    """The ground truth, in which a text that it cannot draw changes nothing."""

    def step(self, state: StreetState, action: Action, event: str | None = None) -> tuple[StreetState, np.ndarray]:
        return super().step(state, action, event if event and match_event(event) else None)


class ReadyDream(Dream):
    """A world model that starts a scene once: looking for a picture in the towns that it knows takes seconds."""

    def __init__(self, model: WorldModel, steps: int | None = None) -> None:
        super().__init__(model, steps)
        self.started: dict[int, Any] = {}  # by the seed of the scene

    def start(self, scene: Scene) -> Any:
        if scene.seed not in self.started:
            self.started[scene.seed] = super().start(scene)
        return self.started[scene.seed]


def scripts(plan: Plan, config: ModelConfig) -> dict[str, list[Part]]:
    """The rollouts by name: "still", "walk", "wall", "turn", "text_<number>" and "event_<kind>"."""
    seconds = config.frames_per_block / config.fps

    def of(length: float) -> int:
        return max(1, round(length / seconds))

    before, after = Part(STILL, of(plan.before)), Part(STILL, of(plan.after))
    turn = max(1, round(360 / (config.camera.turn_speed * seconds)))
    texts = {f"text_{k}": [before, Part(STILL, of(plan.text), text)] for k, text in enumerate(NOTHING + OTHERS)}
    kinds = dict.fromkeys((*ENDED, *FALLING.values()))
    events = {f"event_{k}": [before, Part(STILL, of(plan.event), EVENTS[k].phrases[0]), after] for k in kinds}
    return {
        "still": [Part(STILL, of(plan.still))],
        "walk": [Part(FORWARD, of(plan.walk))],
        "wall": [Part(RIGHT, 1), Part(FORWARD, of(plan.wall))],
        "turn": [Part(STILL, 1), Part(RIGHT, turn)],
        **texts,
        **events,
    }


def roll_out(
    world: World, scene: Scene, parts: Sequence[Part], *, keep: bool = True, size: float = math.inf
) -> dict[str, np.ndarray]:
    """Arrays of a rollout of B blocks of K pictures from a scene.

    pictures uint8 [1 + B * K, H, W, 3]: the scene's, then all others; none without `keep`. change [B * K]: mean absolute
    difference of successive pictures, grey levels. deviation [B * K]: over each picture. moved [B]: metres that the street's
    walker moved in a torus of `size` metres; NaN in other worlds.
    """
    state = world.start(scene)
    last, films, rows, moved = scene.picture, [scene.picture[None]], [], []
    for part in parts:
        for _ in range(part.blocks):
            before, (state, frames) = state, world.step(state, part.action, part.text)
            rows.append((changes(np.concatenate([last[None], frames])), deviations(frames)))
            moved.append(_way(before, state, size))
            last = frames[-1]
            if keep:
                films.append(frames)
    change, deviation = (np.concatenate(column) for column in zip(*rows))
    pictures = np.concatenate(films) if keep else np.empty((0, *last.shape), np.uint8)
    return {"pictures": pictures, "change": change, "deviation": deviation, "moved": np.array(moved)}


def _way(before: Any, after: Any, size: float) -> float:
    """Metres from a state of the street to another, the short way round; NaN for other states."""
    if not isinstance(after, StreetState):
        return math.nan
    ways = (abs(after.x - before.x), abs(after.z - before.z))
    return math.hypot(*(min(way, abs(size - way)) for way in ways))


# ---- the environment ----------------------------------------------------------------------------------------------------


def told(env: YumeWorldEnv | YumeStreetEnv, options: dict[str, Any]) -> list[bool]:
    """Whether the environment says of each of the texts `OTHERS` that it was not understood: in `info`, or by a ValueError."""
    env.reset(seed=0, options=options)
    answers = []
    for text in OTHERS:
        try:
            env.trigger_event(text)
        except ValueError:
            answers.append(True)
            continue
        *_, info = env.step(STILL.index)
        answers.append(info.get(UNDERSTOOD) is False)
    return answers


def start_pictures(config: ModelConfig) -> dict[str, np.ndarray]:
    """Pictures uint8 [H, W, 3] of nowhere: a smooth one made here, and the photograph that Matplotlib ships."""
    down, across = np.meshgrid(np.linspace(0, 1, config.height), np.linspace(0, 1, config.width), indexing="ij")
    waves = [np.sin(2 * math.pi * (down + across)), np.cos(math.pi * down), np.sin(math.pi * across)]
    smooth = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    photograph = Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return {SMOOTH: smooth, PHOTOGRAPH: load_picture(photograph, config.height, config.width)}


def start_from(env: YumeWorldEnv, picture: np.ndarray, blocks: int) -> dict[str, np.ndarray]:
    """pictures uint8 [1 + B * K, H, W, 3] of a world begun from `picture`, standing still; seconds []: of `reset`."""
    began = time.perf_counter()
    env.reset(seed=0, options={"image": picture})
    seconds = time.perf_counter() - began
    films = [picture[None]] + [env.step(STILL.index)[-1]["frames"] for _ in range(blocks)]
    return {"pictures": np.concatenate(films), "seconds": np.array(seconds)}


def ask(model: WorldModel, scene: Scene, steps: int | None) -> dict[str, Any]:
    """{world: answers of `told`} of a model's environment and of the street's."""
    env = YumeWorldEnv(model, steps=steps)
    return {"dream": told(env, {"image": scene.picture}), "street": told(YumeStreetEnv(), {})}


def size_of(street: StreetSimulator) -> float:
    """Metres after which the town begins again."""
    return float(street.town.size)
