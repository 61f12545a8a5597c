"""Rewards from pictures alone: what a dreamed world, which keeps no score, can be asked for.

A reward is any callable of the `RewardFn` form; `REWARDS` names the built-in ones, as in
`gymnasium.make("YumeWorld-v0", reward="motion")`.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np


class RewardFn(Protocol):
    """(previous frames, action, current frames) -> (reward, terminated).

    The action is an `Action` in first-person worlds; in others what the environment was given: an int or an array.
    Frames are one block each, uint8 [T, H, W, 3]; the block before the first step is the starting picture T times.
    The arrays are read-only: they are the environment's own.
    """

    def __call__(self, previous: np.ndarray, action: Any, current: np.ndarray, /) -> tuple[float, bool]: ...


def motion(previous: np.ndarray, action: Any, current: np.ndarray) -> tuple[float, bool]:
    """How much the picture changed: mean absolute difference of successive frames, 0 (frozen) to 1 (black to white).

    It asks for a lively picture and nothing else; turning on the spot earns more than walking.
    """
    frames = np.concatenate([previous[-1:], current]).astype(np.int16)
    return float(np.abs(np.diff(frames, axis=0)).mean() / 255), False


REWARDS: dict[str, RewardFn] = {"motion": motion}
LEARNED = "learned"  # the name of the reward that a model's own heads predict


def find_reward(reward: str | RewardFn | None) -> RewardFn | None:
    """The reward of pictures that `reward` names or is; None stays None (an environment without a task).

    Raises ValueError for an unknown name, TypeError for what is neither a name nor callable.
    """
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise ValueError(
                f"unknown reward {reward!r}: use None, one of {sorted(REWARDS)}, or a function of your own"
            )
        return REWARDS[reward]
    if reward is not None and not callable(reward):
        raise TypeError(f"reward must be None, a str or a callable, got {type(reward).__name__}")
    return reward


def call_reward(reward: RewardFn, previous: np.ndarray, action: Any, current: np.ndarray) -> tuple[float, bool]:
    """`reward` of one step as plain (float, bool).

    Raises TypeError where it returns anything else than such a pair, ValueError for a reward that is not finite, or where it
    writes into the frames, which are read-only.
    """
    try:
        result = reward(_read_only(previous), action, _read_only(current))
    except ValueError as error:
        if "read-only" in str(error):
            error.add_note("the frames that a reward function is given are the environment's: write to a copy of them")
        raise
    wanted = "a reward function returns (reward: float, terminated: bool)"
    try:
        value, terminated = result
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted}, this one gave {result!r}") from error
    if isinstance(value, str) or not isinstance(terminated, bool | np.bool_):
        raise TypeError(f"{wanted}, this one gave {result!r}")
    if not math.isfinite(number):
        raise ValueError(f"{wanted}, and the reward must be finite; this one gave {number}")
    return number, bool(terminated)


def _read_only(frames: np.ndarray) -> np.ndarray:
    seen = frames.view()
    seen.flags.writeable = False
    return seen
