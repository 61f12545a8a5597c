"""Models that differ from another in single numbers, and toys: recordings, and conditions of a block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from train.recordings import Provenance, Recording
from world_model.action_spaces import ActionSpec
from world_model.conditions import Conditions, Target
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.tscm import static_history

RECORDING = Recording(  # of a world with three actions
    env="toy",
    height=16,
    width=32,
    fps=8,
    action=ActionSpec("discrete", (3,)),
    frames_per_step=2,
    provenance=Provenance(original_size=(16, 32), policy="random"),
)
WALK = replace(RECORDING, env="walk", action=ActionSpec())  # recorded with a camera's angles


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


def conditions_of(dit: DiT, config: ModelConfig, worlds: int = 2) -> tuple[Conditions, torch.Tensor]:
    """Conditions of the first block of random worlds that stand still and are told nothing, and their picture [B, C, 1, h, w]."""
    latents = torch.randn(worlds, config.dit.latent_channels, 1, *config.latent_size)
    zero = torch.zeros(worlds, dtype=torch.float64)
    history = static_history(latents, dit.packing.held(1), zero, zero, torch.ones(worlds, dtype=torch.bool))
    frame = torch.arange(config.block_latents).expand(worlds, -1)
    target = Target(*(torch.zeros(worlds, config.block_latents, dtype=torch.float64) for _ in range(2)), frame)
    context = torch.zeros(worlds, 0, config.dit.text_dim)
    pooled = torch.randn(worlds, config.action_width)
    return dit.encode_conditions(history, dit.encode_memory(history), context, target, pooled), latents
