"""Variants of a model, described as data, and which given weights fit one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from world_model.config import ModelConfig


@dataclass(frozen=True)
class Variant:
    """A model trained anew: what of its `HistoryConfig` (values, or functions of the model), of its scene prior (None: it has none)
    and of its self-generated histories is changed."""

    name: str
    what: str
    history: Mapping[str, Any] = field(default_factory=dict)
    self_forcing: Mapping[str, Any] = field(default_factory=dict)
    scene: Mapping[str, Any] | None = field(default_factory=dict)

    def history_of(self, config: ModelConfig) -> dict[str, Any]:
        """The changed fields of the `HistoryConfig` of a model."""
        return {name: value(config) if callable(value) else value for name, value in self.history.items()}


def fitting(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the `given` tensors that fit a network by name and shape."""
    own = network.state_dict()
    return {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}


def parts_of(names: Iterable[str]) -> list[str]:
    """Parts of the network that tensors belong to, such as "channel_embedding", "blocks.*.channel" and "priors.*.depth"."""
    pieces = [re.sub(r"\.\d+\.", ".*.", name).split(".") for name in names]
    return sorted({".".join(piece[: 3 if piece[0] in ("blocks", "priors") else 1]) for piece in pieces})
