"""Models that differ from another in single numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from world_model.config import ModelConfig


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
