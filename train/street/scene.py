"""The scene prior in training: its parts within a DiT, and what else of training knows of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from world_model.dit import DiT
from world_model.priors.scene import ScenePrior, SceneState
from world_model.worlds import WorldBatch

PARTS = ("depth", "places", "events")  # each learnt by a stage of its own


def scene_prior(dit: DiT) -> ScenePrior | None:
    """The scene prior of a DiT, if it has one."""
    return next((prior for prior in dit.priors if isinstance(prior, ScenePrior)), None)


def part_name(part: str) -> str:
    """The name within a DiT of a part of its scene prior."""
    return f"priors.0.{part}"


def part_of(dit: DiT, part: str) -> Any:
    """One of the `PARTS` of a DiT's scene prior, or None."""
    scene = scene_prior(dit)
    found: nn.Module | None = getattr(scene, part) if scene is not None else None
    return found


def without_doubt(worlds: WorldBatch, true: Tensor) -> WorldBatch:
    """`worlds`, of which those whose last block is the truth (true [B] bool) do not doubt it."""

    def settled(state: Any) -> Any:
        if not isinstance(state, SceneState):
            return state
        return replace(state, doubt=state.doubt.masked_fill(true[:, None, None, None], 0))

    return replace(worlds, priors=tuple(settled(state) for state in worlds.priors))
