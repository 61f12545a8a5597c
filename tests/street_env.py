"""A small YumeStreet-v0 and actions in it."""

from __future__ import annotations

import gymnasium as gym
import pytest

import yume_gym  # noqa: F401
from world_model.actions import Action

FORWARD = Action.from_keys("W").index
RIGHT = Action.from_keys("", "→").index


@pytest.fixture(name="env")
def env_fixture():
    made = gym.make("YumeStreet-v0", preset="debug").unwrapped
    yield made
    made.close()


def rollout(env, seed, actions, **options):
    first, _ = env.reset(seed=seed, options=options)
    return [first, *(env.step(action)[0] for action in actions)]
