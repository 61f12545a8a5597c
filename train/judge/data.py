"""What the judge learns from: short walks through towns of YumeStreet in which no world model is trained.

Legend: N walks of a file, B blocks of a walk, K frames of a block, T = 1 + B * K frames (the first is where the walk stands),
H x W pixels. Labels are of what happened and what can be seen, never of what was asked for:

    town_09000.safetensors   frames uint8 [N, T, H, W, 3]
                             motion float32 [N, B, 4]: metres forward and to the right, degrees to the right and up,
                                 from the camera's poses (a wall stops a walker, whatever is held)
                             light, weather, district uint8 [N, B] at the end of the block; UNKNOWN while they change
                             things uint8 [N, B, len(THINGS)]: 1 seen, 0 not in the picture, UNKNOWN for a few pixels of it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tqdm import tqdm

from train.data.shards import write_tensors
from train.street.routes import TO_AND_FRO, balanced_route, open_start
from train.street.towns import JUDGE_FIRST_TOWN
from train.street.walks import EVENT_WEIGHTS, LATER_EVENTS
from world_model.actions import ALL_ACTIONS
from world_model.config import ModelConfig
from yume_gym.street.event_kinds import KINDS
from yume_gym.street.layout import DISTRICTS
from yume_gym.street.simulator import EVENTS, LIGHTS, WEATHERS, StreetSimulator, StreetState

THINGS = tuple(kind for kind in EVENTS if KINDS[kind].draw is not None or kind == "fire")
UNKNOWN = 255
FIRST_TOWN = JUDGE_FIRST_TOWN  # seeds of the judge's towns; world models train on others
BLOCKS = 8  # of a walk
_TOWN_BLOCKS = 2
_EVENT_SHARE, _EVENT_FIRST = 0.8, (1, 3)
_THING_WEIGHT = 2  # a thing comes so many times as often as a light or a weather
_WATCHED = 0.6  # walks with a thing to see that keep looking at it
_ROUGH_SHARE = 0.15  # walks of any keys, walls or not
_CHANGED = 24  # grey levels by which a thing must change a pixel
_SEEN, _HINTED = 0.006, 0.001  # shares of changed pixels from which a thing is seen, and below which it is not
_SETTLED = 0.75  # weight of a light or weather from which it is the one that rules


@dataclass(frozen=True)
class JudgeWalk:
    """One walk: arrays as in the module's docstring without the walk axis."""

    frames: np.ndarray
    motion: np.ndarray
    light: np.ndarray
    weather: np.ndarray
    district: np.ndarray
    things: np.ndarray


def motion_between(before: StreetState, after: StreetState) -> tuple[float, float, float, float]:
    """(metres forward, metres to the right, degrees to the right, degrees up) from one state to a later one.

    Forward is along the heading half-way between the two, as a camera that turns evenly sees it.
    """
    dx, dz, heading = after.x - before.x, after.z - before.z, (before.yaw + after.yaw) / 2
    sin, cos = math.sin(heading), math.cos(heading)
    turned, tilted = math.degrees(after.yaw - before.yaw), math.degrees(after.pitch - before.pitch)
    return dx * sin + dz * cos, dx * cos - dz * sin, turned, tilted


def ruling(state: StreetState) -> tuple[int, int]:
    """(light, weather) as numbers in LIGHTS and WEATHERS, UNKNOWN while they change."""
    light, weather = np.array(state.blend.light), np.array(state.blend.weather)
    weather = np.array([weather[0], weather[1] + weather[4], weather[2], weather[3]])  # heavy rain is rain
    return _settled(light), _settled(weather)


def _settled(weights: np.ndarray) -> int:
    return int(weights.argmax()) if weights.max() >= _SETTLED * weights.sum() else UNKNOWN


def seen_things(street: StreetSimulator, picture: np.ndarray) -> np.ndarray:
    """uint8 [len(THINGS)]: which things of events `picture`, the street's current frame, shows."""
    seen = np.zeros(len(THINGS), np.uint8)
    state = street.get_state()
    present = [event for event in state.events if event.kind in THINGS]
    for event in present:
        street.set_state(replace(state, events=tuple(other for other in state.events if other is not event)))
        changed = (abs(street.render().astype(int) - picture).max(axis=-1) > _CHANGED).mean()
        now = 1 if changed >= _SEEN else 0 if changed < _HINTED else UNKNOWN
        seen[THINGS.index(event.kind)] = max(seen[THINGS.index(event.kind)], now)
    street.set_state(state)
    return seen


def make_walk(street: StreetSimulator, rng: np.random.Generator, blocks: int = BLOCKS, later: int = 0) -> JudgeWalk:
    """A walk somewhere in the street's town: a pure function of the town, `rng` and how many times as often as others the
    kinds of events come that came `later` than the judge's first walks."""
    light, weather = (
        LIGHTS[int(rng.integers(len(LIGHTS)))],
        WEATHERS[int(rng.choice(len(WEATHERS), p=(0.4, 0.2, 0.2, 0.2)))],
    )
    frames = [open_start(street, rng, light, weather)[None]]
    if rng.random() < _ROUGH_SHARE:
        actions = [ALL_ACTIONS[int(i)] for i in rng.integers(len(ALL_ACTIONS), size=blocks)]
    else:
        actions = list(balanced_route(street, rng, blocks).actions)
    kind, first = None, -1
    if rng.random() < _EVENT_SHARE:
        kinds = [kind for kind, (_, same) in EVENT_WEIGHTS.items() if same not in (light, weather)]
        kinds += (_THING_WEIGHT - 1) * [kind for kind in kinds if kind in THINGS]
        kinds += later * LATER_EVENTS
        kind = kinds[int(rng.integers(len(kinds)))]
        first = int(rng.integers(_EVENT_FIRST[0], _EVENT_FIRST[1] + 1))
    if kind in THINGS and rng.random() < _WATCHED:
        actions[first:] = [TO_AND_FRO[k % len(TO_AND_FRO)] for k in range(blocks - first)]
    rows: list[tuple] = []
    for block, action in enumerate(actions):
        if block == first:
            street.set_event(kind)
        before = street.get_state()
        frames.append(street.step(action).frames)
        after = street.get_state()
        district = DISTRICTS.index(street.surroundings()["district"])
        rows.append((motion_between(before, after), *ruling(after), district, seen_things(street, frames[-1][-1])))
    motion, lights, weathers, districts, things = zip(*rows)
    return JudgeWalk(
        np.concatenate(frames),
        np.array(motion, np.float32),
        np.array(lights, np.uint8),
        np.array(weathers, np.uint8),
        np.array(districts, np.uint8),
        np.stack(things),
    )


def street_of(config: ModelConfig, town_seed: int) -> StreetSimulator:
    """A town in the picture size, rate and block length of `config`."""
    return StreetSimulator.like(config, town_seed, _TOWN_BLOCKS)


def render(
    config: ModelConfig, out: Path, towns: int, walks: int, seed: int = 0, first_town: int = FIRST_TOWN, later: int = 0
) -> None:
    """Writes one file of `walks` for each of `towns` towns; files that are there are kept. For `later` see `make_walk`."""
    for town in range(first_town, first_town + towns):
        path = town_path(out, town)
        if path.exists():
            continue
        street = street_of(config, town)
        rngs = (np.random.default_rng([seed, town, number]) for number in range(walks))
        made = [make_walk(street, rng, later=later) for rng in tqdm(rngs, desc=path.name, total=walks, mininterval=5)]
        out.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {name: np.stack([getattr(walk, name) for walk in made]) for name in vars(made[0])})


def town_path(folder: Path, town: int) -> Path:
    return folder / f"town_{town:05d}.safetensors"


def load(folder: Path) -> dict[str, np.ndarray]:
    """All walks of a folder, the walk axis first. Raises FileNotFoundError without any."""
    paths = sorted(folder.glob("town_*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"no walks in {str(folder)!r}: make some with `python -m train.judge render --data {folder}`"
        )
    parts = [load_file(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
