"""Conditions of a block: camera motion, frame numbers and poses, and what all its sampler steps share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from world_model import batch
from world_model.appearance_flow import Moves
from world_model.blocks import Grid
from world_model.denoiser import DenoiserConditions
from world_model.layers import KeyValue
from world_model.memory import Told, WorldBatch
from world_model.tscm import ChannelMemory, History


@dataclass(frozen=True)
class Pose:
    """Where the camera is when a world begins: yaw, pitch [B] float64 radians, position [B, 2] float64 metres (world x, z)."""

    yaw: Tensor
    pitch: Tensor
    position: Tensor

    @classmethod
    def origin(cls, worlds: int, device: torch.device | str) -> Pose:
        """Of worlds that begin nowhere in particular: at the origin, looking straight ahead."""
        zero = torch.zeros(worlds, dtype=torch.float64, device=device)
        return cls(yaw=zero, pitch=zero, position=zero[:, None].expand(-1, 2))


@dataclass(frozen=True)
class Motion:
    """Commanded camera of one block. yaw, pitch [B, T] float64 radians, displacement [B, T, 2] float64 metres (world x, z)."""

    yaw: Tensor
    pitch: Tensor
    displacement: Tensor


@dataclass(frozen=True)
class Target:
    """Where and when the block to dream is: yaw, pitch [B, K] float64 radians (commanded), frame [B, K] int64; and what worlds are
    told, where that is kept."""

    yaw: Tensor
    pitch: Tensor
    frame: Tensor
    told: Told | None = None

    def every(self, step: int) -> Target:
        """The last of each `step` latent frames: of tokens that cover so many."""
        last = slice(step - 1, None, step)
        return Target(self.yaw[:, last], self.pitch[:, last], self.frame[:, last], self.told)


@dataclass(frozen=True)
class DetailedPrediction:
    """The network's `output` [B, C, K, h, w]. Of models with `residual`, the logarithm of its squared error as the network expects
    it, relative to what the flow loss weighs it by, [B, 1, K, h, w] (heteroscedastic regression, Kendall and Gal 2017, eq. 8)."""

    output: Tensor
    error: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """What one prior predicts of a block: data ~ N(mean, variance), [B, C, K, h, w] each; `features` that the generator is
    conditioned on, [B, channels, K, h, w]; `auxiliary` values that only the prior's `update` reads."""

    mean: Tensor
    variance: Tensor
    features: Tensor
    auxiliary: Any = None


@dataclass(frozen=True)
class BlockContext:
    """A block about to be generated: the worlds before it, the commanded motion, frame numbers and poses of its latent frames, the
    text conditions (context [B, N, text_dim]: event tokens then action tokens, zero-padded), what the worlds are told where the
    model asks for it, each prior's prediction, and how far the camera comes in each frame, [B, K, 3], where the model says so
    (`Camera.travelled`)."""

    worlds: WorldBatch
    motion: Motion
    target: Target
    context: Tensor
    told: Told | None = None
    predictions: tuple[Prediction, ...] = ()
    travelled: Tensor | None = None

    def history(self, latents: Tensor) -> History:
        """What the block adds to the worlds' history once its `latents` [B, C, K, h, w] are known."""
        present = torch.ones_like(self.target.frame, dtype=torch.bool)
        past, stride = self.worlds.history.position, self.motion.yaw.shape[1] // self.target.frame.shape[1]
        position = None
        if past is not None:
            commanded = self.motion.displacement[:, stride - 1 :: stride]
            walked = commanded if self.travelled is None else self.travelled.double()
            position = walked + past[:, -1:] if past.shape[1] else walked
        return History(latents, self.target.frame, self.target.yaw, self.target.pitch, present, position)


@dataclass(frozen=True)
class HistoryTokens:
    """The packed history as the layers read it: tokens if attention is "joint", their keys and values if it is "cached"."""

    pairs: list[KeyValue]  # of every layer that reads it; empty if "joint"
    tokens: Tensor | None  # [B, n, D]; None if "cached"
    grids: list[Grid]  # of the groups in `tokens`


@dataclass(frozen=True)
class ChannelRead:
    """The channel memory that every layer reads."""

    memory: ChannelMemory
    table: Tensor  # rotary table of the block's tokens


@dataclass(frozen=True)
class Conditions:
    """All that a block's sampler steps share.

    The output of a network that predicts data is counted from `mean`, in units that `variance` decides (`flow.gaussian_posterior`),
    where these are given: data ~ N(mean, variance) is what was known before. Without them it is the data itself.
    """

    context: list[KeyValue | None]  # of every layer; None for a model without text
    history: HistoryTokens
    table: Tensor  # rotary table of the tokens attended to together with the target
    channel: ChannelRead | None  # None for a model without a channel path
    bias: Tensor | None  # [B, L, D] added to the target's tokens: the screen embedding and the priors' features
    pooled: Tensor | None  # [B, D] pooled action and text
    mean: Tensor | None = None  # [B, C, K, h, w]
    variance: Tensor | None = None  # [B, C, K, h, w]
    # of appearance flow: how the block is made of earlier frames, and what was in view [B, 1, K, h, w]
    moves: Moves | None = None
    visible: Tensor | None = None
    denoiser: DenoiserConditions | None = None  # of a model with a denoiser of its own

    def correlated(self, noise: Tensor) -> Tensor:
        """Noise as the network takes it away, of white noise [B, C, K, h, w]."""
        return noise if self.denoiser is None else self.denoiser.correlated(noise)

    def repeat(self, times: int) -> Conditions:
        """The same conditions for `times` noise draws of every world (draws of one world are neighbours)."""
        return batch.repeat(self, times)
