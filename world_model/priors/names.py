"""Names of tensors in weights that were written when the scene prior was a part of the DiT, such as the shipped ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# first words of names: what they were, what they are
RENAMED = {
    "depth": "priors.0.depth",
    "places": "priors.0.places",
    "events": "priors.0.events",
    "prior_deviation": "priors.0.deviation",
    "guide_embedding": "prior_embeddings.0",
}


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a DiT by their names of today."""
    return {today(name): value for name, value in tensors.items()}


def today(name: str) -> str:
    """A tensor's name of today."""
    first, dot, rest = name.partition(".")
    return f"{RENAMED.get(first, first)}{dot}{rest}"
