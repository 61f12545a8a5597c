"""The state of generated worlds between two blocks.

Shapes: B worlds, C latent channels, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from world_model.tscm import ChannelMemory, History
from world_model.vae import DecoderCache

PriorState = Any  # a prior's own: an immutable dataclass of tensors


@dataclass(frozen=True)
class WorldBatch:
    """B worlds between two blocks, as tensors; immutable.

    yaw, pitch [B] float64 (commanded so far), frame [B] int64 (latent frames generated so far), picture [B, 3, H, W] in -1..1
    (the last one), cache of the streaming decoder, and the states of the model's priors.
    """

    history: History
    memory: ChannelMemory | None
    yaw: Tensor
    pitch: Tensor
    frame: Tensor
    picture: Tensor
    cache: DecoderCache
    priors: tuple[PriorState, ...]
