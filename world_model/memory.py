"""The state of generated worlds between two blocks.

Shapes: B worlds, C latent channels, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.tscm import ChannelMemory, History
from world_model.vae import DecoderCache

UNCHANGED = 2**31  # blocks since the text changed, at most
TEXTS = 4  # that are remembered: what was told before an event, and before one that followed another
PriorState = Any  # a prior's own: an immutable dataclass of tensors


@dataclass(frozen=True)
class Told:
    """The last `TEXTS` texts that worlds were told, newest first: their mean tokens, `texts` [B, TEXTS, text_dim], and how many
    blocks were generated since each began to be told, `ago` [B, TEXTS] int64. Of models with an expert for texts (denoiser.py)."""

    texts: Tensor
    ago: Tensor

    @property
    def before(self) -> Tensor:
        """[B, text_dim] mean token of the text before the one that is told now."""
        return self.texts[:, 1]

    @property
    def since(self) -> Tensor:
        """[B] int64 blocks that were generated since the text changed."""
        return self.ago[:, 0]

    @classmethod
    def always(cls, text: Tensor) -> Told:
        """Of worlds that were told nothing else before: text [B, text_dim]."""
        ago = torch.full((len(text), TEXTS), UNCHANGED, dtype=torch.int64, device=text.device)
        return cls(F.pad(text[:, None], (0, 0, 0, TEXTS - 1)), ago)

    def then(self, text: Tensor) -> Told:
        """A block later, told `text` [B, text_dim]."""
        changed = (text != self.texts[:, 0]).any(dim=1)[:, None]
        ago = (self.ago + 1).clamp(max=UNCHANGED)
        texts = torch.cat([text[:, None], self.texts[:, :-1]], dim=1)
        return Told(
            torch.where(changed[..., None], texts, self.texts),
            torch.where(changed, torch.cat([torch.zeros_like(ago[:, :1]), ago[:, :-1]], dim=1), ago),
        )

    def same(self, age: Tensor) -> Tensor:
        """[B, n] bool: whether blocks were told what is told now, that are `age` [B, n] blocks older than the newest one. Of a text
        that is too long ago nothing is known: no."""
        told_then = (age[..., None] < self.ago[:, None]).int().argmax(dim=-1)  # the first text that had begun by then
        known = age < self.ago[:, -1:]
        alike = (self.texts == self.texts[:, :1]).all(dim=-1)
        return known & alike.gather(1, told_then)


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
