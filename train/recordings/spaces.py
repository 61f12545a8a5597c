"""Gymnasium's action spaces as an `ActionSpec`, and actions from one form to the other."""

from __future__ import annotations

from collections.abc import Sequence
from enum import EnumMeta
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from train.recordings.format import RecordingError
from world_model.action_spaces import ActionSpec


class Actions:
    """The actions of one space. `spec` describes them; they are stored flat, and numbers of a discrete space count from 0.

    Raises RecordingError for a space that models cannot be given: one with infinite bounds, or made of others.
    """

    def __init__(self, space: spaces.Space, meanings: Sequence[str] = ()) -> None:
        self.space = space
        self._start: Any = 0
        if isinstance(space, spaces.Discrete):
            self.spec = ActionSpec("discrete", (int(space.n),), meanings=tuple(meanings))
            self._start = int(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            self.spec = ActionSpec("multi_discrete", tuple(int(n) for n in space.nvec.flat))
            self._start = np.asarray(space.start)
        elif isinstance(space, spaces.MultiBinary):
            self.spec = ActionSpec("multi_binary", (2,) * int(np.prod(space.shape)))
        elif isinstance(space, spaces.Box):
            self.spec = _box(space)
        else:
            raise RecordingError(
                f"actions of {space} cannot be recorded: use a wrapper that makes them Discrete, MultiDiscrete, MultiBinary or Box"
            )

    def stored(self, action: Any) -> np.ndarray:
        """An action of the environment as it is stored: `spec.dtype`, `spec.shape`. A box's are brought within its bounds.

        Raises RecordingError for one that is not of the space.
        """
        value = np.asarray(action)
        if self.spec.kind == "box":
            value = np.clip(value.astype(np.float32).reshape(self.spec.shape), self.spec.low, self.spec.high)
        elif value.size == max(1, int(np.prod(self.spec.shape))):
            value = (value - self._start).reshape(self.spec.shape)
        try:
            return np.asarray(self.spec.check(value), self.spec.dtype)
        except (TypeError, ValueError) as error:
            raise RecordingError(
                f"the policy chose {action!r}, which is not an action of {self.space}: {error}"
            ) from error

    def given(self, stored: np.ndarray) -> Any:
        """A stored action as the environment takes it."""
        if isinstance(self.space, spaces.Discrete):
            return int(stored) + self._start
        assert self.space.shape is not None
        return (stored.reshape(self.space.shape) + self._start).astype(self.space.dtype)

    def draw(self, rng: np.random.Generator) -> Any:
        """An action of the environment, all equally likely."""
        if self.spec.kind == "box":
            return self.given(rng.uniform(self.spec.low, self.spec.high).astype(np.float32))
        return self.given(rng.integers(0, self.spec.sizes).reshape(self.spec.shape))


def action_meanings(env: gymnasium.Env) -> tuple[str, ...]:
    """What an environment calls its discrete actions, () where it does not say: Atari's, MiniGrid's and ViZDoom's way."""
    space, plain = env.action_space, env.unwrapped
    if not isinstance(space, spaces.Discrete):
        return ()
    names: list[str] = []
    if hasattr(plain, "get_action_meanings"):
        names = [str(name) for name in plain.get_action_meanings()]
    elif isinstance(getattr(plain, "actions", None), EnumMeta):
        names = [str(action.name) for action in plain.actions]  # type: ignore[attr-defined]
    elif hasattr(plain, "button_map") and hasattr(plain, "game"):
        buttons = [button.name for button in plain.game.get_available_buttons()]
        pressed = [[name for name, down in zip(buttons, row) if down] for row in plain.button_map]
        names = ["+".join(row) or "NONE" for row in pressed]
    return tuple(names) if len(names) == space.n else ()


def _box(space: spaces.Box) -> ActionSpec:
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise RecordingError(
            f"actions of {space} have infinite bounds: wrap the environment with gymnasium.wrappers.RescaleAction "
            "or set finite low and high"
        )
    try:
        return ActionSpec("box", low=tuple(space.low.ravel().tolist()), high=tuple(space.high.ravel().tolist()))
    except ValueError as error:
        raise RecordingError(f"actions of {space} cannot be recorded: {error}") from error
