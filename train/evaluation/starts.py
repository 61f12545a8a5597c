"""A world begun from a text: has its first picture the light, the weather and the district that the text asks for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.evaluation.control import mean
from train.evaluation.worlds import Scene, World
from train.judge.network import Judge
from train.street.routes import open_start
from yume_gym.street.captions import scene_caption
from yume_gym.street.layout import DISTRICTS
from yume_gym.street.simulator import LIGHTS, WEATHERS, StreetSimulator

ATTRIBUTES = {"light": LIGHTS, "weather": WEATHERS, "district": DISTRICTS}
# what captions speak of is drawn evenly, not as often as in training: a model that always dreams a clear day must not pass
SKIES = (
    ("day", "clear"),
    ("night", "clear"),
    ("overcast", "rain"),
    ("golden", "clear"),
    ("day", "snow"),
    ("day", "fog"),
    ("overcast", "clear"),
    ("night", "snow"),
    ("overcast", "fog"),
    ("night", "rain"),
)


def make_scenes(street: StreetSimulator, count: int, seed: int) -> list[tuple[Scene, dict[str, int]]]:
    """Scenes with their captions, and the attributes these name as numbers in `ATTRIBUTES`."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        picture = open_start(street, rng, *SKIES[number % len(SKIES)])
        facts = street.surroundings()
        scene = Scene(street.get_state(), picture, seed * 1000 + number, scene_caption(facts, rng))
        made.append((scene, {name: names.index(facts[name]) for name, names in ATTRIBUTES.items()}))
    return made


def run(
    world: World, judge: Judge, scenes: Sequence[tuple[Scene, dict[str, int]]]
) -> tuple[dict[str, Any], np.ndarray]:
    """(share of starts with the right light, weather, district, and the mean of the three; pictures [N, H, W, 3])."""
    pictures = np.stack([world.start_from_text(scene) for scene, _ in scenes])
    reading = judge.look_at(pictures)
    wanted = {name: np.array([attributes[name] for _, attributes in scenes]) for name in ATTRIBUTES}
    figures = {name: mean(getattr(reading, name) == wanted[name]) for name in ATTRIBUTES}
    # guessing the commonest value
    chance = {name: float(np.bincount(values).max() / len(values)) for name, values in wanted.items()}
    return {
        "starts": len(scenes),
        **figures,
        "mean": float(np.mean(list(figures.values()))),
        "chance": chance,
    }, pictures
