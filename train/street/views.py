"""Single views of YumeStreet with what is true of them: what picture heads learn from (`train.picture_heads`).

A beacon view has a pillar of light at a drawn distance, and is drawn again without it. A told view has light, weather, district
and, half of the time, an event that has been going on for a few seconds; texts are of the same facts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.street.descriptions import sentence
from world_model.actions import Action
from world_model.config import ModelConfig
from yume_gym.street.beacon import ARRIVAL_RADIUS
from yume_gym.street.captions import DISTRICT_WORDS, LIGHT_WORDS, WEATHER_WORDS
from yume_gym.street.event_kinds import KINDS
from yume_gym.street.events import EVENTS
from yume_gym.street.simulator import LIGHTS, WEATHERS, StreetSimulator

Facts = dict[
    str, str | None
]  # "light", "weather", "district" and "event": of a view all but the event; of a text what it says

FARTHEST = 60.0  # metres of a beacon
DISTANCES = (
    (0.3, ARRIVAL_RADIUS, 0.3),
    (ARRIVAL_RADIUS, 20.0, 0.45),
    (20.0, FARTHEST, 0.25),
)  # metres, and their share
LEAST_PIXELS, LEAST_CHANGE = 8, 12  # a pillar is seen where so many pixels differ by so many grey levels
HELD_OUT_TEXTS = 5  # one text in so many is never trained on
EVENT_STEPS = (3, 12)  # blocks that an event has been going on
ASTRAY = 0.6  # share of beacon views after a walk that follows no street
ASTRAY_KEYS = (("W", ""), ("W", ""), ("W", "→"), ("W", "←"), ("", "→"), ("W+A", ""), ("W", "↑"), ("W", "↓"))
_TRIES = 40


@dataclass(frozen=True, eq=False)
class BeaconViews:
    """pictures uint8 [N, H, W, 3]; distance float32 [N], metres, inf without a beacon; seen bool [N]: whether it is in view."""

    pictures: np.ndarray
    distance: np.ndarray
    seen: np.ndarray

    @property
    def arrived(self) -> np.ndarray:
        """bool [N]: near enough to a beacon in view."""
        return self.seen & (self.distance <= ARRIVAL_RADIUS)


def beacon_views(config: ModelConfig, towns: Sequence[int], count: int, seed: int) -> BeaconViews:
    """`count` views with a beacon around, evenly from all towns, each followed by the same view without."""
    rng, pictures, distances, seen = np.random.default_rng([seed, 1]), [], [], []
    for number, town in enumerate(towns):
        street = StreetSimulator.like(config, town)
        for _ in range(len(range(number, count, len(towns)))):
            picture, bare, distance = beacon_view(street, rng)
            changed = np.abs(picture.astype(np.int16) - bare).max(axis=-1) >= LEAST_CHANGE
            pictures += [picture, bare]
            distances += [distance, math.inf]
            seen += [changed.sum() >= LEAST_PIXELS, False]
    return BeaconViews(np.stack(pictures), np.array(distances, np.float32), np.array(seen))


def beacon_view(street: StreetSimulator, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """(picture, the same without the pillar, metres to it); the pillar is mostly within the field of view."""
    while True:
        street.reset(rng, light=str(rng.choice(LIGHTS)), weather=str(rng.choice(WEATHERS)))
        if rng.random() < ASTRAY:
            walk_astray(street, rng)
        bare = street.render()
        x, z = street.position
        half = math.radians(street.camera.horizontal_fov) / 2
        for _ in range(_TRIES):
            low, high, _ = DISTANCES[int(rng.choice(len(DISTANCES), p=[share for *_, share in DISTANCES]))]
            distance, turn = float(rng.uniform(low, high)), street.yaw + float(rng.uniform(-1.1, 1.1)) * half
            place = (x + distance * math.sin(turn), z + distance * math.cos(turn))
            if street.town.free(*place, margin=1.0):
                street.beacon(place)
                return street.render(), bare, distance


def walk_astray(street: StreetSimulator, rng: np.random.Generator) -> None:
    """Turns and walks as agents do, into corners and along walls; nothing is drawn."""
    for _ in range(int(rng.integers(1, 16))):
        action = Action.from_keys(*ASTRAY_KEYS[int(rng.integers(len(ASTRAY_KEYS)))])
        street.set_state(street.ahead(action)[0][-1])


@dataclass(frozen=True, eq=False)
class ToldViews:
    """pictures uint8 [N, H, W, 3] and what is true of each."""

    pictures: np.ndarray
    facts: tuple[Facts, ...]


def told_views(config: ModelConfig, towns: Sequence[int], count: int, seed: int) -> ToldViews:
    """`count` views of all lights, weathers, districts and events, evenly from all towns."""
    rng, pictures, facts = np.random.default_rng([seed, 2]), [], []
    kinds = [None] * len(KINDS) + list(KINDS)
    for number, town in enumerate(towns):
        street = StreetSimulator.like(config, town)
        for _ in range(len(range(number, count, len(towns)))):
            street.reset(rng, light=str(rng.choice(LIGHTS)), weather=str(rng.choice(WEATHERS)))
            kind = kinds[int(rng.integers(len(kinds)))]
            if kind is not None:
                street.set_event(kind)
                for _ in range(int(rng.integers(*EVENT_STEPS))):
                    street.set_state(street.ahead(Action.from_keys("", ""))[0][-1])
            seen = street.surroundings()
            pictures.append(street.render())
            facts.append({**{name: str(seen[name]) for name in ("light", "weather", "district")}, "event": kind})
    return ToldViews(np.stack(pictures), tuple(facts))


def texts(sentences: int, seed: int) -> tuple[list[tuple[str, Facts]], list[tuple[str, Facts]]]:
    """(texts to train on, texts that nothing is trained on), each with the facts that it tells: words for light, weather,
    district and events, and so many `sentences` of several facts."""
    rng = np.random.default_rng([seed, 3])
    tables = {"light": LIGHT_WORDS, "weather": WEATHER_WORDS, "district": DISTRICT_WORDS}
    fragments = json.loads((Path(__file__).parent / "descriptions.json").read_text())
    bank: list[tuple[str, Facts]] = []
    for name, table in tables.items():
        for value, words in table.items():
            every = [*words, *(text.rstrip("_") for text in fragments[name].get(value, ()))]
            bank += [(text, {name: value}) for text in every]
    for _ in range(sentences):
        facts: Facts = {
            name: (str(rng.choice(list(table))) if rng.random() < 0.6 else None) for name, table in tables.items()
        }
        if any(facts.values()):
            bank.append((sentence(facts, rng), {name: value for name, value in facts.items() if value}))
    order = rng.permutation(len(bank))
    held_out = [bank[i] for i in order[::HELD_OUT_TEXTS]]
    trained = [bank[i] for place, i in enumerate(order) if place % HELD_OUT_TEXTS]
    for kind, event in EVENTS.items():
        trained += [(text, event_facts(kind)) for text in event.phrases]
        held_out += [(text, event_facts(kind)) for text in event.held_out]
    return trained, held_out


def event_facts(kind: str) -> Facts:
    """What a text of an event says: the light and weather that it brings, or the event itself."""
    brings = {"light": KINDS[kind].light, "weather": _weather(KINDS[kind].weather)}
    told: Facts = {name: value for name, value in brings.items() if value is not None}
    return told if told and KINDS[kind].draw is None else {"event": kind}


def _weather(name: str | None) -> str | None:
    return "rain" if name == "heavy_rain" else name


def fits(told: Sequence[Mapping[str, str | None]], shown: Sequence[Mapping[str, str | None]]) -> np.ndarray:
    """bool [views, texts]: whether all that a text tells is true of a view."""
    found = np.ones((len(shown), len(told)), bool)
    for (row, view), (column, text) in itertools.product(enumerate(shown), enumerate(told)):
        found[row, column] = all(view[name] == value for name, value in text.items())
    return found
