"""A world of the small model, its actions, and its state as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from world_model.actions import Action
from world_model.model import WorldModel, WorldState

WALK, BACK, TURN = Action.from_keys("W"), Action.from_keys("S"), Action.from_keys("", "→")
RAIN = "a heavy rainstorm begins"


def tensors(value) -> list[Tensor]:
    """All tensors inside a state."""
    if isinstance(value, Tensor):
        return [value]
    values = (
        value
        if isinstance(value, tuple)
        else [getattr(value, name) for name in getattr(value, "__dataclass_fields__", ())]
    )
    return [tensor for item in values for tensor in tensors(item)]


def same(a: WorldState, b: WorldState) -> bool:
    return (a.seeds, a.steps) == (b.seeds, b.steps) and all(map(torch.equal, tensors(a), tensors(b)))


def walk(model: WorldModel, state: WorldState, plan, events=None) -> tuple[WorldState, np.ndarray]:
    """Steps of a one-world state: the state after and all frames."""
    frames = []
    for number, action in enumerate(plan):
        state, block = model.step(state, [action], [events[number]] if events else None)
        frames.append(block[0])
    return state, np.concatenate(frames)


@pytest.fixture(name="world")
def world_fixture(world_model, pictures) -> WorldState:
    return world_model.start(pictures[:1], [""], [11])
