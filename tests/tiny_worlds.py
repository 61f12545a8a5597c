"""A world of one dot for tests of recording: importing this registers Tiny-v0."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.float32([[-1.0, 0.0]]), np.float32([[1.0, 0.5]])),
    "infinite": spaces.Box(-np.inf, np.inf, (2,)),
    "tuple": spaces.Tuple((spaces.Discrete(2),)),
}
SHAPES = {"rgb": (32, 48, 3), "gray": (32, 48, 1), "flat": (32, 48)}


class TinyWorld(gymnasium.Env):
    """Shows its count of steps as brightness, and where its dot is. Reward 1 a step; ends after `length` steps and a random few."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self, actions: str = "discrete", pictures: str = "rgb", length: int = 6, render_mode: str | None = None
    ):
        self.action_space = ACTIONS[actions]
        self._pictures, self._length, self.render_mode = pictures, length, render_mode
        picture = spaces.Box(0, 255, SHAPES.get(pictures, SHAPES["rgb"]), np.uint8)
        numbers = spaces.Box(0, 1, (2,), np.float32)
        self.observation_space = picture if pictures in SHAPES else numbers
        if pictures == "dict":
            self.observation_space = spaces.Dict(
                {
                    "small": spaces.Box(0, 255, (7, 7, 3), np.uint8),
                    "depth": spaces.Box(0, 255, (32, 48, 1), np.uint8),
                    "screen": picture,
                }
            )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.last = 0, self._length + int(self.np_random.integers(4))
        self.dot = int(self.np_random.integers(48))
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"not an action: {action!r}")
        self.time += 1
        self.dot = (self.dot + int(np.sum(action))) % 48
        return self._observation(), 1.0, self.time >= self.last, False, self._info()

    def render(self) -> np.ndarray | None:
        if self._pictures == "none":
            return None
        picture = np.full((32, 48, 3), self.time, np.uint8)
        picture[:, self.dot] = 255
        return picture

    def _info(self) -> dict[str, Any]:
        return {"task": "find the dot" if self.time < 3 else None, "number": 3}

    def _observation(self) -> Any:
        picture = np.zeros((32, 48, 3), np.uint8) if self._pictures == "none" else self.render()
        assert picture is not None
        if self._pictures in SHAPES:
            return picture[..., : SHAPES[self._pictures][-1]] if self._pictures != "flat" else picture[..., 0]
        if self._pictures == "dict":
            return {"small": np.zeros((7, 7, 3), np.uint8), "depth": picture[..., :1] // 2, "screen": picture}
        return np.zeros(2, np.float32)


if "Tiny-v0" not in gymnasium.registry:
    gymnasium.register("Tiny-v0", TinyWorld)


def always_last(env: gymnasium.Env, rng: np.random.Generator):
    """A policy for tests: the last of the actions of a discrete space."""
    return lambda observation: env.action_space.start + env.action_space.n - 1


def mistaken(env: gymnasium.Env, rng: np.random.Generator):
    """A policy for tests that chooses what is no action."""
    return lambda observation: 99
