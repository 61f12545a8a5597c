"""Episodes of YumeStreet in many towns, in the format of `train/recordings`: what the general model learns streets from.

Each is a pure function of (seed, town, number in that town). All 17 kinds of events come equally often, told in one of the
phrasings for training. Episodes of even numbers are walked as people do; every so often the walker turns round and back, or goes
back the way it came, so that places come into view again. Those of odd numbers are routes on which all 81 actions come equally
often: a walker goes straight on for most of the time.

Pictures carry yaw and pitch (float32, radians) and position (float32 [., 2]: x, z in metres) as extra arrays.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from train.recordings import Episode, EpisodeWriter, Provenance, Recording, RecordingError
from train.street.routes import balanced_route
from train.street.towns import TOWN_BLOCKS, TRAINING_TOWNS
from train.street.walks import ATMOSPHERES, EVENT_BLOCKS, EVENT_GAP, EVENT_SHARE, EVENT_WEIGHTS, LATER_EVENTS, WalkPlan
from world_model.action_spaces import ActionSpec
from world_model.actions import LOOKS, MOVES, Action, Look, Move
from world_model.config import ModelConfig
from yume_gym.street.captions import scene_caption
from yume_gym.street.events import EVENTS
from yume_gym.street.simulator import StreetSimulator
from yume_gym.street.walker import Walker

RETURN_SHARE = 0.05  # of blocks, outside of a return, at which the walker begins to go back the way it came
LOOK_BACK_SHARE = 0.02  # the same for turning round, waiting and turning back
RETURN_BLOCKS = (2, 8)  # blocks that are gone back, both included
PHRASINGS = Path(__file__).with_name("phrasings.json")

_MOVE_OF = {direction: move for move, (_, _, direction) in MOVES.items()}
_LOOK_OF = {direction: look for look, (_, _, direction) in LOOKS.items()}


@dataclass(frozen=True)
class EventTimes:
    """How long the events of an episode last, and how long nothing is told between them: least and most blocks, both included."""

    blocks: tuple[int, int] = EVENT_BLOCKS
    gap: tuple[int, int] = EVENT_GAP

    def __post_init__(self) -> None:
        for name, (least, most), smallest in (("blocks", self.blocks, 1), ("gap", self.gap, 0)):
            if not smallest <= least <= most:
                raise RecordingError(
                    f"--event-{name} must be two numbers, {smallest} <= least <= most, got {least} {most}"
                )


@dataclass(frozen=True)
class EpisodeTask:
    """All that an episode depends on."""

    config: ModelConfig
    seed: int
    town: int
    number: int
    blocks: int
    town_blocks: int
    events: EventTimes = EventTimes()


class ReturningWalker:
    """The street's walker, which also comes back to what it saw. Its only randomness is `rng`."""

    def __init__(self, rng: np.random.Generator, street: StreetSimulator) -> None:
        self._rng, self._walker = rng, Walker(rng, street)
        self._past: list[Action] = []
        self._back: list[Action] = []
        turn = math.radians(street.camera.turn_speed) * street.frames_per_block / street.fps  # radians a block
        self._half_turn = max(1, round(math.pi / turn))

    def act(self) -> Action:
        """The action to hold during the next block."""
        if not self._back:
            drawn = self._rng.random()
            if drawn < RETURN_SHARE:
                blocks = int(self._rng.integers(RETURN_BLOCKS[0], RETURN_BLOCKS[1] + 1))
                self._back = [opposite(action) for action in reversed(self._past[-blocks:])]
            elif drawn < RETURN_SHARE + LOOK_BACK_SHARE:
                there = Action(Move.STILL, Look.RIGHT if self._rng.random() < 0.5 else Look.LEFT)
                wait = int(self._rng.integers(0, 3))
                self._back = [there] * self._half_turn + [Action()] * wait + [opposite(there)] * self._half_turn
        action = self._back.pop(0) if self._back else self._walker.act()
        self._past.append(action)
        return action


def opposite(action: Action) -> Action:
    """The action that leads back: both directions reversed."""
    (forward, right), (turn, tilt) = action.walk, action.turn
    return Action(_MOVE_OF[-forward, -right], _LOOK_OF[-turn, -tilt])


def plan_episode(rng: np.random.Generator, blocks: int, times: EventTimes = EventTimes()) -> WalkPlan:
    """Light, weather and events like those of `train.street.walks.plan_walk`, but with all kinds of events, each equally likely."""
    light, weather, _ = ATMOSPHERES[int(rng.choice(len(ATMOSPHERES), p=_atmosphere_shares()))]
    if rng.random() >= EVENT_SHARE:
        return WalkPlan(light, weather, ())
    here = {light, weather} if (light, weather) == ("day", "clear") else {light, weather} - {"day"}
    able = [kind for kind, (_, same) in EVENT_WEIGHTS.items() if same not in here] + list(LATER_EVENTS)
    events: list[tuple[str, int, int]] = []
    first = 1 + int(rng.integers(times.gap[0], times.gap[1] + 1))
    while first < blocks:
        kinds = [kind for kind in able if not events or kind != events[-1][0]]
        stop = first + int(rng.integers(times.blocks[0], times.blocks[1] + 1))
        events.append((kinds[int(rng.integers(len(kinds)))], first, stop))
        first = stop + int(rng.integers(times.gap[0], times.gap[1] + 1))
    return WalkPlan(light, weather, tuple(events))


def render_episode(task: EpisodeTask) -> Episode:
    """The episode of a task."""
    planner, start, feet, words = np.random.default_rng([task.seed, task.town, task.number]).spawn(4)
    street = _street(task.config, task.town, task.town_blocks)
    plan = plan_episode(planner, task.blocks, task.events)
    frames = [street.reset(start, light=plan.light, weather=plan.weather)[None]]
    act = actor(task, feet, street)
    surroundings = street.surroundings()
    caption = scene_caption(surroundings, words)
    changes = _changes(plan, task.blocks)
    looks = [[(street.yaw, street.pitch, *street.position)]]
    actions = []
    for block in range(task.blocks):
        if block in changes:
            street.set_event(changes[block])
        action = act()
        states, _ = street.ahead(action)
        looks.append([(state.yaw, state.pitch, state.x, state.z) for state in states])
        frames.append(street.step(action).frames)
        actions.append(action.index)
    camera = np.concatenate(looks).astype(np.float32)
    last = np.arange(task.blocks) == task.blocks - 1
    return Episode(
        frames=np.concatenate(frames),
        action=np.array(actions, np.int64),
        reward=np.zeros(task.blocks, np.float32),
        terminated=np.zeros(task.blocks, np.uint8),
        truncated=last.astype(np.uint8),
        caption=caption,
        texts=tuple((block, None if kind is None else _phrase(kind, words)) for block, kind in changes.items()),
        info={
            "town": task.town,
            "number": task.number,
            "light": plan.light,
            "weather": plan.weather,
            "district": surroundings["district"],
            "kinds": [[block, kind] for block, kind in changes.items()],
        },
        extra={"yaw": camera[:, 0], "pitch": camera[:, 1], "position": camera[:, 2:]},
    )


def actor(task: EpisodeTask, rng: np.random.Generator, street: StreetSimulator) -> Callable[[], Action]:
    """What says the next action of an episode."""
    if task.number % 2:
        return iter(balanced_route(street, rng, task.blocks).actions).__next__
    return ReturningWalker(rng, street).act


def first_caption(task: EpisodeTask) -> str:
    """The caption of an episode, without rendering it."""
    planner, start, _, words = np.random.default_rng([task.seed, task.town, task.number]).spawn(4)
    street = _street(task.config, task.town, task.town_blocks)
    plan = plan_episode(planner, task.blocks, task.events)
    street.reset(start, light=plan.light, weather=plan.weather)
    return scene_caption(street.surroundings(), words)


def every_phrase() -> set[str]:
    """All texts by which episodes are told of events."""
    return {phrase for kind in EVENTS for phrase in (*EVENTS[kind].phrases, *_more_phrases()[kind])}


def render_episodes(
    config: ModelConfig,
    out: Path,
    *,
    towns: int,
    episodes_per_town: int = 2,
    blocks: int = 32,
    first_town: int = TRAINING_TOWNS.start,
    workers: int = 1,
    seed: int = 0,
    events: EventTimes = EventTimes(),
) -> None:
    """Renders `episodes_per_town` episodes of so many `blocks` in each of `towns` towns, those from `first_town` on.

    What stands in `out` of the same settings is kept and continued. Raises RecordingError where it was made with others, or for
    counts below 1.
    """
    for name, value in (("towns", towns), ("episodes-per-town", episodes_per_town), ("blocks", blocks)):
        if value < 1:
            raise RecordingError(f"--{name} must be 1 or more, got {value}")
    source = {
        "world": "street",
        "first_town": first_town,
        "episodes_per_town": episodes_per_town,
        "blocks": blocks,
        "town_blocks": TOWN_BLOCKS,
        "policies": ["walker", "balanced"],
        "camera": dataclasses.asdict(config.camera),
    }
    if events != EventTimes():
        source["events"] = {name: list(value) for name, value in dataclasses.asdict(events).items()}
    recording = Recording(
        env="YumeStreet",
        height=config.height,
        width=config.width,
        fps=config.fps,
        action=ActionSpec(),
        frames_per_step=config.frames_per_block,
        provenance=Provenance(
            original_size=(config.height, config.width), policy="walker and balanced", seed=seed, source=source
        ),
    )
    tasks = [
        EpisodeTask(config, seed, town, number, blocks, TOWN_BLOCKS, events)
        for town in range(first_town, first_town + towns)
        for number in range(episodes_per_town)
    ]
    with EpisodeWriter(out, recording) as writer:
        bar = tqdm(total=len(tasks), initial=min(writer.episodes, len(tasks)), desc="episodes", unit="episode")
        with bar, closing(_rendered(tasks[writer.episodes :], workers)) as rendered:
            for episode in rendered:
                writer.add(episode)
                bar.update()


def _rendered(tasks: list[EpisodeTask], workers: int) -> Generator[Episode, None, None]:
    """Episodes in the order of `tasks`, made in this process (workers 0 or 1) or in several."""
    if workers <= 1 or len(tasks) < 2:
        yield from map(render_episode, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(render_episode, tasks, chunksize=2)  # neighbours share a town


def _changes(plan: WalkPlan, blocks: int) -> dict[int, str | None]:
    """{block: kind that begins, None where one ends and none follows at once}."""
    changes: dict[int, str | None] = {}
    for kind, first, stop in plan.events:
        changes[first] = kind
        if stop < blocks:
            changes[stop] = None
    return changes


def _phrase(kind: str, rng: np.random.Generator) -> str:
    """A phrasing for training: of the street's own or of `phrasings.json`, each with probability one half."""
    phrases = (EVENTS[kind].phrases, _more_phrases()[kind])[int(rng.integers(2))]
    return phrases[int(rng.integers(len(phrases)))]


@cache
def _more_phrases() -> dict[str, list[str]]:
    return json.loads(PHRASINGS.read_text(encoding="utf-8"))["phrases"]


@cache
def _atmosphere_shares() -> np.ndarray:
    shares = np.array([share for *_, share in ATMOSPHERES])
    return shares / shares.sum()


@lru_cache(maxsize=1)
def _street(config: ModelConfig, town: int, town_blocks: int) -> StreetSimulator:
    """The last town stays: its episodes follow one another."""
    return StreetSimulator.like(config, town, town_blocks)
