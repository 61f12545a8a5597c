"""From configs to priors: the only place that knows which kinds there are."""

from __future__ import annotations

from world_model.config import ModelConfig
from world_model.priors.base import Priors
from world_model.priors.scene import ScenePrior

PRIORS: dict[str, type[ScenePrior]] = {"scene": ScenePrior}


def build_priors(config: ModelConfig) -> Priors:
    """All priors of a model, untrained and frozen: they are not trained with the generator."""
    priors = Priors(PRIORS[prior.kind](prior, config) for prior in config.priors)
    return priors.requires_grad_(False)
