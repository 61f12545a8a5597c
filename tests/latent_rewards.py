"""Short episodes of rewards that remember."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import yume_gym  # noqa: F401
from yume_gym.rewards import EpisodeReward, begin_reward, step_reward


@pytest.fixture(name="goal", scope="module")
def goal_fixture(pictures) -> np.ndarray:
    return pictures[3]


def scores(reward: EpisodeReward, blocks: list[np.ndarray]) -> list[tuple[float, bool]]:
    """(reward, terminated) of an episode that shows these blocks."""
    state, found = begin_reward(reward, blocks[0]), []
    for previous, current in pairwise(blocks):
        value, ended, state = step_reward(reward, state, previous, 0, current)
        found.append((value, ended))
    return found


class Countdown(EpisodeReward):
    """Ends after `steps`; pays how many are left."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def begin(self, frames: np.ndarray) -> int:
        return self.steps

    def step(self, state: int, previous: Any, action: Any, current: Any) -> tuple[tuple[float, bool], int]:
        return (float(state - 1), state == 1), state - 1
