"""A small model with an expert for texts."""

from __future__ import annotations

import dataclasses

import numpy as np
from configs import RECORDING

from train.generator.shapes import recorded_config
from world_model.config import ExpertConfig, ModelConfig

SMALL = ExpertConfig(dim=24, heads=2, layers=2, ffn_dim=32, blocks=2, steps=2, start_steps=3)


def toy(expert: ExpertConfig | None = SMALL) -> ModelConfig:
    """Pictures of 32 x 32 whose actions have no captions; texts are hashed words."""
    recording = dataclasses.replace(RECORDING, height=32, width=32, frames_per_step=2)
    config = recorded_config("toy", recording, True, "tiny")
    text = dataclasses.replace(config.text, kind="hashed")
    return dataclasses.replace(config, text=text, dit=dataclasses.replace(config.dit, expert=expert))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
