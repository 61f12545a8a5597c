"""Rewards from pictures alone: what a dreamed world, which keeps no score, can be asked for.

A reward is any callable of the `RewardFn` form, or an `EpisodeReward`, which may remember the episode and look at the model's
latents; `REWARDS` names the built-in ones, as in `gymnasium.make("YumeWorld-v0", reward="motion")`. `GoalPicture` needs a
picture and `TextGoal` a text: `reward=GoalPicture("goal.png")`, or "goal:goal.png" and "text:a snowy night" for short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from world_model.checks import short
from yume_gym.episode_reward import EpisodeReward
from yume_gym.latent_rewards import GoalPicture, Latents, Novelty
from yume_gym.learned_rewards import Beacon, TextGoal

__all__ = [
    "LEARNED",
    "REWARDS",
    "Beacon",
    "EpisodeReward",
    "GoalPicture",
    "Latents",
    "Novelty",
    "Reward",
    "RewardFn",
    "TextGoal",
    "begin_reward",
    "call_reward",
    "find_reward",
    "motion",
    "restore_reward",
    "step_reward",
]


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


Reward = RewardFn | EpisodeReward

REWARDS: dict[str, Reward] = {"beacon": Beacon(), "motion": motion, "novelty": Novelty()}
WITH_VALUE: dict[str, Callable[[str], Reward]] = {"goal": GoalPicture, "text": TextGoal}  # "goal:PATH", "text:WORDS"
LEARNED = "learned"  # the name of the reward that a model's own heads predict


def find_reward(reward: str | Reward | None, also: tuple[str, ...] = ()) -> Reward | None:
    """The reward of pictures that `reward` names or is; None stays None (an environment without a task).

    also: names that the caller knows itself, for messages.

    Raises ValueError for an unknown name, TypeError for what is neither a name nor an `EpisodeReward` nor callable, and what
    `GoalPicture` and `TextGoal` raise.
    """
    if isinstance(reward, str):
        name, colon, value = reward.partition(":")
        if colon and name in WITH_VALUE:
            return WITH_VALUE[name](value)
        if reward not in REWARDS:
            known = ", ".join(sorted({*also, *REWARDS, "goal:PATH", "text:WORDS"}))
            raise ValueError(f"unknown reward {reward!r}: use None, one of {known}, or a function of your own")
        return REWARDS[reward]
    if isinstance(reward, type) and issubclass(reward, EpisodeReward):
        raise TypeError(f"reward is the class {reward.__name__}: give an instance of it, {reward.__name__}(...)")
    if reward is not None and not isinstance(reward, EpisodeReward) and not callable(reward):
        raise TypeError(f"reward must be None, a str, an EpisodeReward or a callable, got {type(reward).__name__}")
    return reward


def call_reward(reward: RewardFn, previous: np.ndarray, action: Any, current: np.ndarray) -> tuple[float, bool]:
    """`reward` of one step as plain (float, bool).

    Raises TypeError where it returns anything else than such a pair, ValueError for a reward that is not finite, or where it
    writes into the frames, which are read-only.
    """
    with _explained():
        result = reward(_read_only(previous), action, _read_only(current))
    return _checked(result)


def begin_reward(reward: Reward | None, frames: np.ndarray) -> Any:
    """The reward's state of an episode that begins with a block of frames; None of a function, which has none."""
    if not isinstance(reward, EpisodeReward):
        return None
    with _explained():
        return reward.begin(_read_only(frames))


def step_reward(
    reward: Reward, state: Any, previous: np.ndarray, action: Any, current: np.ndarray
) -> tuple[float, bool, Any]:
    """(reward, terminated, the reward's state afterwards) of one step. Raises what `call_reward` raises."""
    if not isinstance(reward, EpisodeReward):
        return *call_reward(reward, previous, action, current), None
    with _explained():
        result = reward.step(state, _read_only(previous), action, _read_only(current))
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"step of an EpisodeReward returns ((reward, terminated), state), this one gave {short(result)}"
        )
    return *_checked(result[0]), result[1]


def restore_reward(reward: Reward | None, state: Any, frames: np.ndarray) -> Any:
    """The reward's state to continue with where an environment's state is restored that holds `state` and `frames`.

    A state of an environment whose reward remembered nothing holds None: the reward then begins with those frames. Raises
    ValueError for the state of another reward.
    """
    if not isinstance(reward, EpisodeReward):
        return None
    if state is None:
        return begin_reward(reward, frames)
    try:
        reward.check(state)
    except ValueError as error:
        raise ValueError(f"this state was taken with another reward, or was changed: {error}") from error
    return state


def _checked(result: Any) -> tuple[float, bool]:
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


@contextmanager
def _explained() -> Iterator[None]:
    """A note for rewards that write into their frames."""
    try:
        yield
    except ValueError as error:
        if "read-only" in str(error):
            error.add_note("the frames that a reward is given are the environment's: write to a copy of them")
        raise


def _read_only(frames: np.ndarray) -> np.ndarray:
    seen = frames.view()
    seen.flags.writeable = False
    return seen
