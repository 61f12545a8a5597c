"""A deeper network that computes what a trained one does, to train on from there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# what a layer adds to the tokens goes through these
OUTPUTS = ("self_attn.o.", "cross_attn.o.", "channel.up.", "ffn.2.")
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


def deepened(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state of a DiT for one of `layers` layers that computes the same.

    New layers are spread evenly, each a copy of the one below it that adds nothing yet: `OUTPUTS` are zero. As it is where it has
    that many. Raises ValueError for one that has more.
    """
    found = {int(match[1]) for name in tensors if (match := _LAYER.fullmatch(name))}
    if len(found) > layers:
        raise ValueError(f"weights of {len(found)} layers cannot go on as {layers}: choose a model at least as deep")
    sources = [layer * len(found) // layers for layer in range(layers)]
    state = {name: value for name, value in tensors.items() if not _LAYER.fullmatch(name)}
    for layer, source in enumerate(sources):
        new = layer > 0 and sources[layer - 1] == source
        prefix = f"blocks.{source}."
        for name in (name for name in tensors if name.startswith(prefix)):
            rest, value = name.removeprefix(prefix), tensors[name]
            state[f"blocks.{layer}.{rest}"] = (
                value.new_zeros(value.shape) if new and rest.startswith(OUTPUTS) else value
            )
    return state
