"""What a prior is: something beside the generator that says what the next block looks like.

A model has a list of them, which may be empty. A prior is not trained with the generator, and has a state of its own in every
world: an immutable dataclass of tensors, whose first dimension is that of the batch (batch.py). The generator gets the text
conditions that the priors return, is conditioned on their features, and starts from the mean and variance that they predict
(`DiT.condition_on`).

Shapes: B worlds, C latent channels, K latent frames of a block, T its pictures, h x w latent size, H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from world_model.conditions import BlockContext, Motion, Pose, Prediction
from world_model.memory import PriorState
from world_model.vae import VideoVAE


class Prior(nn.Module):
    """What the next block looks like according to something other than the generator.

    channels: of its features. deviation [n, C]: of the data from what it predicts, measured in training; the first row is that of
    what it did not see.
    """

    channels: int
    deviation: Tensor

    # ---- where worlds begin -------------------------------------------------------------------------------------------

    def load_starts(self, folder: Path, pictures: np.ndarray | None) -> None:
        """Reads from a weights folder what only beginning a world needs; `pictures` uint8 [n, H, W, 3] are shipped with it."""

    def locate(self, vae: VideoVAE, picture: Tensor) -> tuple[Pose, float] | None:
        """Where a picture [1, 3, H, W] in -1..1 was taken, and how unlike the prior's own view it looks; None if it cannot tell."""
        return None

    def estimate_pose(self, vae: VideoVAE, picture: Tensor) -> Pose | None:
        """The initial pose of a world that begins from a picture; None: anywhere."""
        return None

    def sample_pose(self, context: Tensor, stream: torch.Generator) -> Pose | None:
        """The initial pose of a world that begins from a text (context [1, N, text_dim]), sampled with `stream`; None: anywhere."""
        return None

    @abstractmethod
    def initial_state(self, pictures: Tensor, pose: Pose) -> PriorState:
        """The state of worlds that begin at `pose` from pictures [B, 3, H, W] in -1..1."""

    # ---- a block ------------------------------------------------------------------------------------------------------

    def constrain(self, state: PriorState, motion: Motion) -> Motion:
        """The commanded motion, cut short where the prior has obstacles."""
        return motion

    def condition_text(self, state: PriorState, block: BlockContext) -> Tensor:
        """The text conditions (`block.context`) that the generator gets."""
        return block.context

    @abstractmethod
    def predict(self, state: PriorState, block: BlockContext, vae: VideoVAE) -> Prediction:
        """What the block looks like. Takes no gradient; `block.context` is the unchanged one."""

    @abstractmethod
    def update(
        self, state: PriorState, block: BlockContext, prediction: Prediction, latents: Tensor, video: Tensor
    ) -> tuple[PriorState, Tensor]:
        """After denoising: the state after the block, and its decoded pictures [B, 3, T, H, W] in -1..1, perhaps refined."""


class Priors(nn.ModuleList):
    """The priors of a model."""

    def __iter__(self) -> Iterator[Prior]:
        return super().__iter__()  # type: ignore[return-value]
