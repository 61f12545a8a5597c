"""A person at the keyboard as the policy of a recording: what is held when a step begins is its action."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from train.recordings.pictures import Pictures, find_pictures
from train.recordings.spaces import Actions, action_meanings
from yume_gym.keyboard import keyboard
from yume_gym.window import Window


class Person:
    """Shows an environment in a window, `rate` actions a second; Esc, or closing the window, ends the recording.

    Keys are those of `yume_gym.keyboard`. As a policy maker it is given one environment after another, all of one kind.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._window: Window | None = None

    def __call__(self, env: gymnasium.Env, rng: np.random.Generator) -> Any:
        pictures = Pictures(env, find_pictures(env.observation_space))
        actions = Actions(env.action_space, action_meanings(env))
        keys = keyboard(actions.spec)

        def act(observation: Any) -> Any:
            picture = pictures.take(observation)
            if self._window is None:
                height, width, _ = picture.shape
                self._window = Window(f"recording: {' '.join(keys.keys)}", height, width, self.rate)
            self._window.show(picture[None])
            held = self._window.held()
            if held is None:
                self._window.close()
                raise KeyboardInterrupt
            return actions.given(np.asarray(keys.action(held)))

        return act
