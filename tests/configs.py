"""Models that differ from another in single numbers, and a recording."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from train.recordings import Provenance, Recording
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig

RECORDING = Recording(  # of a world with three actions
    env="toy",
    height=16,
    width=32,
    fps=8,
    action=ActionSpec("discrete", (3,)),
    frames_per_step=2,
    provenance=Provenance(original_size=(16, 32), policy="random"),
)


def with_dit(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` with other numbers of its transformer: fields of its `DiTConfig`, or of the configs in that."""
    dit = config.dit
    for name, value in changes.items():
        parts = [part for part in ("layer", "embedding", "history", "output") if hasattr(getattr(dit, part), name)]
        changed = {part: replace(getattr(dit, part), **{name: value}) for part in parts} or {name: value}
        dit = replace(dit, **changed)
    return replace(config, dit=dit)


def with_video(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` with another video: `changes` are fields of its `VideoConfig`."""
    return replace(config, video=replace(config.video, **changes))
