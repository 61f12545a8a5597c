"""A small model with an expert for texts, or with a denoiser."""

from __future__ import annotations

import dataclasses

import numpy as np
from configs import RECORDING

from train.generator.shapes import recorded_config
from world_model.config import DenoiserConfig, ExpertConfig, ModelConfig

FINE = DenoiserConfig(dim=24, heads=2, layers=2, ffn_dim=32, blocks=2, coarse_size=0)
SMALL = ExpertConfig(dim=24, heads=2, layers=2, ffn_dim=32, blocks=2, steps=2, start_steps=3)


def toy(expert: ExpertConfig | None = SMALL, denoiser: DenoiserConfig | None = None) -> ModelConfig:
    """Pictures of 32 x 32 whose actions have no captions; texts are hashed words. With a denoiser nothing is added in view."""
    recording = dataclasses.replace(RECORDING, height=32, width=32, frames_per_step=2)
    config = recorded_config("toy", recording, True, "tiny")
    text = dataclasses.replace(config.text, kind="hashed")
    dit = dataclasses.replace(config.dit, expert=expert)
    if denoiser is not None:
        output = dataclasses.replace(dit.output, kept_size=1)
        dit = dataclasses.replace(dit, layers=output.flow_layer, output=output, denoiser=denoiser)
    return dataclasses.replace(config, text=text, dit=dit)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
