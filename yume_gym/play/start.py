"""What a played world starts from, and the true street that may be driven beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from PIL import Image

from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.model import WorldModel
from world_model.threads import single_thread
from yume_gym.env import world_start
from yume_gym.first_person import EnvState
from yume_gym.street.env import YumeStreetEnv
from yume_gym.street.events import match_event


@dataclass(frozen=True, eq=False)
class Start:
    """What a world starts from, as a player asks for it.

    seed: >= 0; with the same model the same seed, image, text and keys give the same frames, and the frames that `YumeWorld-v0`
    gives after ``reset(seed=seed, options={"image": image, "text": text})``.
    image: path, PIL image or uint8 array [H, W, 3]; text: at most 500 characters; twin: drive `YumeStreet-v0` beside the
    dream, which then starts from the street's first picture (no image then; a text has to name a light, weather or district).
    """

    seed: int = 0
    image: str | os.PathLike | Image.Image | np.ndarray | None = None
    text: str | None = None
    twin: bool = False


@dataclass(frozen=True, eq=False)
class Origin:
    """A checked `Start`, and what `WorldModel.start` takes: picture uint8 [H, W, 3] or None, text or None, seed.

    In `start` an image of the player's is an array of the model's size. `street` is the twin's first moment, if it is wanted.
    """

    start: Start
    picture: np.ndarray | None
    text: str | None
    seed: int
    street: EnvState | None
    twin: Twin | None


class Twin:
    """`YumeStreet-v0` in a model's own sizes, by day and in clear weather unless a text asks for others.

    States are values, as a dream's are. May be used from several threads.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._env = YumeStreetEnv(preset=config.name, light="day", weather="clear")
        self._lock = threading.Lock()

    def begin(self, seed: int, text: str | None) -> tuple[EnvState, np.ndarray]:
        """The street at a place drawn with `seed`, and its picture uint8 [H, W, 3]. Raises ValueError for an unfit text."""
        with self._lock:
            picture, _ = self._env.reset(seed=seed, options={"text": text})
            return self._env.get_state(), picture

    def advance(self, state: EnvState, action: Action, event: str | None) -> tuple[EnvState, np.ndarray]:
        """The street a block later, and its frames uint8 [T, H, W, 3]. An event that it does not know passes it by."""
        drawn = event if knows_event(event) else None
        episode = state.episode
        with self._lock:
            self._env.set_state(state)
            if drawn != episode.schedule.at(episode.step):
                self._env.trigger_event(drawn)
            _, _, _, _, info = self._env.step(action.index)
            return self._env.get_state(), info["frames"]


def knows_event(event: str | None) -> bool:
    """Whether the street can draw `event` (None it can)."""
    return event is None or match_event(event) is not None


@single_thread()
def prepare(model: WorldModel, start: Start, twin: Twin | None = None) -> Origin:
    """Checks `start`, reads its picture and draws what it leaves open. A `twin` of before is used again.

    Raises TypeError, ValueError or FileNotFoundError, as `YumeWorldEnv.reset` does.
    """
    if isinstance(start.seed, bool) or not isinstance(start.seed, (int, np.integer)):
        raise TypeError(f"seed must be a whole number, got {type(start.seed).__name__}")
    if start.seed < 0:
        raise ValueError(f"seed must be 0 or more, got {start.seed}")
    street, options = None, _given(image=start.image, text=start.text)
    if start.twin:
        if model.config.action.kind != "first_person":
            raise ValueError(
                f"{model.config.name!r} has actions of its own, the street those of a walker: leave out the twin"
            )
        if start.image is not None:
            raise ValueError("with a twin the dream starts where the street starts: leave out the image, or the twin")
        twin = twin or Twin(model.config)
        street, options["image"] = twin.begin(int(start.seed), start.text)
    picture, text, seed = world_start(model, options, np_random(int(start.seed))[0])
    image = picture if start.image is not None else None
    return Origin(replace(start, seed=int(start.seed), image=image, text=text), picture, text, seed, street, twin)


def _given(**options: Any) -> dict[str, Any]:
    wanted: Mapping[str, Any] = options
    return {name: value for name, value in wanted.items() if value is not None}
