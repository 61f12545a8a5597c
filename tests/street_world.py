"""Small streets to walk in."""

from __future__ import annotations

import numpy as np
import pytest

from world_model.actions import Action
from yume_gym.street.simulator import StreetSimulator

FORWARD, STILL, RIGHT = Action.from_keys("W"), Action(), Action.from_keys("", "→")


@pytest.fixture(name="street")
def street_fixture() -> StreetSimulator:
    simulator = StreetSimulator()
    simulator.reset(np.random.default_rng(0), position=(0.8, 15.0), yaw=0.0)
    return simulator


@pytest.fixture(name="tiny", scope="module")
def tiny_fixture() -> StreetSimulator:
    """Four pixels a frame, one frame a block of half a second as ever: for what needs many steps and no picture."""
    return StreetSimulator(height=2, width=2, fps=2, frames_per_block=1)
