"""The state of generated worlds between two blocks.

Shapes: B worlds, C latent channels, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from world_model.tscm import ChannelMemory, History
from world_model.vae import DecoderCache

UNCHANGED = 2**31  # blocks since the text changed, at most
PriorState = Any  # a prior's own: an immutable dataclass of tensors


@dataclass(frozen=True)
class Told:
    """What worlds are told, of models with an expert for texts (expert.py): mean token of the text in force and of the one before
    it, [B, text_dim] each, and how many blocks were generated since the text changed, [B] int64."""

    text: Tensor
    before: Tensor
    since: Tensor

    @classmethod
    def always(cls, text: Tensor) -> Told:
        """Of worlds that were told nothing else before: text [B, text_dim]."""
        since = torch.full((len(text),), UNCHANGED, dtype=torch.int64, device=text.device)
        return cls(text, torch.zeros_like(text), since)

    def then(self, text: Tensor) -> Told:
        """A block later, told `text` [B, text_dim]."""
        changed = (text != self.text).any(dim=1)
        return Told(
            text,
            torch.where(changed[:, None], self.text, self.before),
            torch.where(changed, 0, (self.since + 1).clamp(max=UNCHANGED)),
        )


@dataclass(frozen=True)
class WorldBatch:
    """B worlds between two blocks, as tensors; immutable.

    yaw, pitch [B] float64 (commanded so far), frame [B] int64 (latent frames generated so far), picture [B, 3, H, W] in -1..1
    (the last one), cache of the streaming decoder, the states of the model's priors, and what the worlds are told where the model
    asks for it.
    """

    history: History
    memory: ChannelMemory | None
    yaw: Tensor
    pitch: Tensor
    frame: Tensor
    picture: Tensor
    cache: DecoderCache
    priors: tuple[PriorState, ...]
    told: Told | None = None
