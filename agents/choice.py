"""Fewer actions: agents that learn or choose among some of an environment's discrete actions, such as five of a street's 81."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Discrete
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from world_model.actions import Action


def action_number(text: str) -> int:
    """The number of an action: "13", or keys of a first-person world as in "W", "→", "W →" and "S+A left"; "noop" is 0.

    Raises ValueError for what is neither.
    """
    if text.strip().isdigit():
        return int(text)
    try:
        keys = [word for word in text.replace("noop", "").split() if set(word.lower()) <= set("wasd+")]
        looks = [word for word in text.replace("noop", "").split() if word not in keys]
        return Action.from_keys("+".join(keys), "+".join(looks) if len(looks) > 1 else "".join(looks)).index
    except ValueError as error:
        raise ValueError(f"no action {text!r}: give its number, or keys as in 'W' and 'W right' ({error})") from error


def check_actions(actions: Sequence[int], space: Space) -> np.ndarray:
    """`actions` as an array. Raises ValueError where the space is not Discrete, has not all of them, or one comes twice."""
    if not isinstance(space, Discrete) or space.start != 0:
        raise ValueError(f"fewer actions can be chosen of a Discrete space that begins at 0, this one is {space}")
    if len(set(actions)) != len(actions) or not all(0 <= action < space.n for action in actions):
        raise ValueError(f"actions must be different numbers from 0 to {int(space.n) - 1}, got {list(actions)}")
    return np.array(actions, dtype=np.int64)


class FewerActions(VecEnvWrapper):
    """Worlds whose action i is the action `actions[i]` of the wrapped ones. Raises what `check_actions` raises."""

    def __init__(self, venv: VecEnv, actions: Sequence[int]) -> None:
        self.actions = check_actions(actions, venv.action_space)
        super().__init__(venv, action_space=Discrete(len(actions)))

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(self.actions[actions])

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


class Translated:
    """An agent that learnt in `FewerActions`, in worlds with all actions. Raises what `check_actions` raises, and ValueError for an
    agent of another number of actions."""

    def __init__(self, agent: Any, actions: Sequence[int], space: Space) -> None:
        self.agent, self.actions = agent, check_actions(actions, space)
        if agent.action_space != Discrete(len(actions)):
            raise ValueError(f"the agent chooses of {agent.action_space}, its settings name {len(actions)} actions")

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        found, state = self.agent.predict(observation, state, episode_start, deterministic)
        return self.actions[found], state
