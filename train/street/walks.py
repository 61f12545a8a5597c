"""Walks through the street: light, weather, events and walker of each drawn from (seed, number of the walk) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from train.data.shards import EventChange, Trajectory, TrajectoryInfo
from world_model.camera import CameraConfig, commanded_motion
from world_model.config import ModelConfig
from world_model.priors.config import places_of
from yume_gym.street.captions import scene_caption
from yume_gym.street.events import EVENTS, sample_phrase
from yume_gym.street.layout import CELL, CELLS_PER_BLOCK
from yume_gym.street.simulator import StreetSimulator
from yume_gym.street.walker import Walker

# (light, weather, share of walks): all that a street can start in
_COMMON = {("day", "clear"): 0.40, ("overcast", "clear"): 0.08, ("golden", "clear"): 0.08, ("night", "clear"): 0.08}
ATMOSPHERES: tuple[tuple[str, str, float], ...] = tuple(
    (light, weather, _COMMON.get((light, weather), 0.03))
    for weather in ("clear", "rain", "snow", "fog")
    for light in ("day", "overcast", "golden", "night")
)
EVENT_SHARE = 0.7  # of walks have events, one after another
EVENT_GAP = (0, 10)  # blocks before the next one, both included; the first begins after block 0
EVENT_BLOCKS = (4, 18)
# kind -> weight, and the light or weather in which it would change nothing. What changes the whole picture comes more.
EVENT_WEIGHTS: dict[str, tuple[float, str | None]] = {
    "heavy_rain": (2.0, "rain"),
    "snow": (2.0, "snow"),
    "fog": (2.0, "fog"),
    "night": (2.0, "night"),
    "sun": (1.0, "day"),
    "sunset": (1.0, "golden"),
    "ufo": (1.0, None),
    "fireworks": (1.0, None),
    "ghost": (1.0, None),
    "fire": (1.0, None),
    "crowd": (1.0, None),
    "car": (1.0, None),
    "balloon": (1.0, None),
}
# kinds that came later: walks, each drawn from its number alone, are as they were without them
LATER_EVENTS = ("tornado", "dinosaur", "tram", "bubbles")


@dataclass(frozen=True)
class StreetRecipe:
    """All that a rendered walk depends on besides its number."""

    height: int
    width: int
    fps: int
    frames_per_block: int
    camera: CameraConfig
    blocks_per_walk: int
    seed: int
    town_blocks: int
    town_seed: int

    @classmethod
    def of(
        cls, config: ModelConfig, blocks_per_walk: int, seed: int, town_blocks: int = 2, town_seed: int = 0
    ) -> StreetRecipe:
        """Walks in the picture size, frame rate and block length of a model."""
        size = (config.height, config.width, config.fps, config.frames_per_block, config.camera)
        return cls(*size, blocks_per_walk, seed, town_blocks, town_seed)


@dataclass(frozen=True)
class WalkPlan:
    """What is decided before a walk begins. Each of `events` is (kind, first block, block after the last), in order."""

    light: str
    weather: str
    events: tuple[tuple[str, int, int], ...]


def plan_walk(rng: np.random.Generator, blocks: int) -> WalkPlan:
    """Light and weather by `ATMOSPHERES`; in some walks events begin that change something."""
    light, weather, _ = ATMOSPHERES[_draw(rng, [share for *_, share in ATMOSPHERES])]
    if rng.random() >= EVENT_SHARE:
        return WalkPlan(light, weather, ())
    here = {light, weather} if (light, weather) == ("day", "clear") else {light, weather} - {"day"}
    events: list[tuple[str, int, int]] = []
    first = 1 + int(rng.integers(EVENT_GAP[0], EVENT_GAP[1] + 1))
    while first < blocks:
        kinds = [kind for kind, (_, same) in EVENT_WEIGHTS.items() if same not in here]
        kinds = [kind for kind in kinds if not events or kind != events[-1][0]]
        kind = kinds[_draw(rng, [EVENT_WEIGHTS[kind][0] for kind in kinds])]
        stop = first + int(rng.integers(EVENT_BLOCKS[0], EVENT_BLOCKS[1] + 1))
        events.append((kind, first, stop))
        first = stop + int(rng.integers(EVENT_GAP[0], EVENT_GAP[1] + 1))
    return WalkPlan(light, weather, tuple(events))


def render_walk(recipe: StreetRecipe, index: int) -> Trajectory:
    """Walk number `index` of a recipe: a pure function of both."""
    planner, start, feet, words = np.random.default_rng([recipe.seed, index]).spawn(4)
    street, blocks = _simulator(recipe), recipe.blocks_per_walk
    plan = plan_walk(planner, blocks)
    street.reset(start, light=plan.light, weather=plan.weather)
    walker = Walker(feet, street)
    caption = scene_caption(street.surroundings(), words)
    changes = _changes(plan, blocks, words)
    kinds = {block: kind for block, _, kind in changes}

    frames, actions, yaws, pitches, positions, blocked = [], [], [], [], [], []
    for block in range(blocks):
        if block in kinds:
            street.set_event(kinds[block])
        action = walker.act()
        motion = (recipe.frames_per_block, recipe.fps, recipe.camera)
        yaw, pitch, _ = commanded_motion(action, street.yaw, street.pitch, *motion)
        shown = street.step(action)
        frames.append(shown.frames)
        actions.append(action.index)
        yaws.append(yaw)
        pitches.append(pitch)
        positions.append(shown.poses[:, [0, 2], 3])
        blocked.append(shown.blocked)
    return Trajectory(
        frames=np.concatenate(frames),
        action=np.array(actions, np.uint8),
        yaw=np.concatenate(yaws).astype(np.float32),
        pitch=np.concatenate(pitches).astype(np.float32),
        position=np.concatenate(positions).astype(np.float32),
        blocked=np.array(blocked, np.uint8),
        info=TrajectoryInfo(caption, changes, plan.light, plan.weather),
    )


def known_street(config: ModelConfig, town: int = 0) -> StreetSimulator:
    """The street that is number `town` of the towns that models of this config know by heart."""
    places = places_of(config)
    assert places is not None
    return StreetSimulator.like(config, places.towns[town], round(places.period / (CELL * CELLS_PER_BLOCK)))


@lru_cache(maxsize=1)
def _simulator(recipe: StreetRecipe) -> StreetSimulator:
    """One a process: building a town and compiling its kernels costs more than a walk."""
    return StreetSimulator.like(recipe, recipe.town_seed, recipe.town_blocks)


def rephrased(info: TrajectoryInfo, block: int, stream: torch.Generator) -> str | None:
    """The event's text in force during a block, in any phrasing of its kind; as it is where its kind is not known."""
    text = info.event_at(block)
    kind = next((kind for _, told, kind in info.event if told == text), None)
    if text is None or kind not in EVENTS:
        return text
    phrases = EVENTS[kind].phrases
    return phrases[int(torch.randint(len(phrases), (), generator=stream))]


def _changes(plan: WalkPlan, blocks: int, rng: np.random.Generator) -> tuple[EventChange, ...]:
    begun = {first for _, first, _ in plan.events}
    changes: list[EventChange] = []
    for kind, first, stop in plan.events:
        changes.append((first, sample_phrase(kind, rng), kind))
        if stop < blocks and stop not in begun:
            changes.append((stop, None, None))
    return tuple(changes)


def _draw(rng: np.random.Generator, weights: Sequence[float]) -> int:
    return int(rng.choice(len(weights), p=np.array(weights) / sum(weights)))
