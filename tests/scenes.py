"""Short ways to the scene prior of worlds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from world_model.conditions import BlockContext, Pose
from world_model.priors.scene import Ahead, SceneState
from world_model.worlds import WorldBatch


def predicted(block: BlockContext) -> Ahead:
    """What the scene prior predicted for a block."""
    return block.predictions[0].auxiliary


def state_of(worlds: WorldBatch) -> SceneState:
    return worlds.priors[0]


def with_state(worlds: WorldBatch, **changes: Tensor) -> WorldBatch:
    """Worlds whose scene prior's state is changed."""
    return replace(worlds, priors=(replace(state_of(worlds), **changes),))


def standing(yaw: Tensor, place: Tensor | None = None, pitch: Tensor | None = None) -> Pose:
    still = torch.zeros_like(yaw)
    nowhere = torch.zeros(len(yaw), 2, dtype=torch.float64)
    return Pose(yaw=yaw, pitch=still if pitch is None else pitch, position=nowhere if place is None else place)
