"""Random inputs of a DiT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from configs import with_dit
from torch import Tensor

from world_model.conditions import Conditions, Target
from world_model.config import ModelConfig
from world_model.dit import DiT

KEPT = 1 + 2 + 3  # frames of the debug preset's buffer
SIGMA = torch.tensor([0.6, 0.9], dtype=torch.float64)


def varied(config: ModelConfig, **changes) -> ModelConfig:
    """Another DiT; priors are left out with `priors=()`."""
    priors = changes.pop("priors", config.priors)
    return replace(with_dit(config, **changes), priors=priors)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="inputs")
def inputs_fixture(config, make_history):
    """inputs(dit, batch): noisy block, and all that `prepared` takes."""

    def make(dit: DiT, batch: int = 2) -> tuple[Tensor, dict]:
        c, frames = dit.config, dit.config.block_latents
        shape = (batch, c.dit.latent_channels, frames, *c.latent_size)
        yaw, pitch = (normal(batch, frames, seed=s).double() for s in (1, 2))
        history = make_history(c, batch, KEPT, first=4)
        given = {
            "history": history,
            "memory": dit.encode_memory(history),
            "context": normal(batch, 24, c.dit.text_dim, seed=3),
            "target": Target(yaw, 0.3 * pitch, torch.arange(10, 10 + frames).expand(batch, -1)),
            "pooled": normal(batch, c.dit.text_dim, seed=4),
        }
        if c.priors:
            given["guide"] = normal(*shape, seed=5)
            given["valid"] = (1 + normal(batch, 1, *shape[2:], seed=6)).clamp(0, 1)
        return normal(*shape, seed=7), given

    return make


def prepared(dit: DiT, guide: Tensor | None = None, valid: Tensor | None = None, **given) -> Conditions:
    """Conditions with what the scene prior says where the last frame, moved as commanded, is `guide` and was in view."""
    predictions = [] if guide is None else [dit.priors[0].combined(guide, valid)]
    return dit.condition_on(dit.encode_conditions(**given), predictions)
