"""How far a generated block is from what a model was trained on: the Mahalanobis distance of its features (Lee et al. 2018).

Lee et al. fit one Gaussian for each class. Reward classes are too unequal for that: here one Gaussian is fitted to all blocks.

Shapes: N blocks, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHRINKAGE = 0.1  # weight of the identity in the correlation matrix: few blocks leave many directions without spread
LEAST_SPREAD = 0.05  # of the features' mean one: what never changes in the data would else outweigh all the rest


class Familiarity(nn.Module):
    """A Gaussian over features. A distance of about 1 is usual; larger ones are further from the data."""

    mean: Tensor
    whitening: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitening", torch.eye(width))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Sets the Gaussian from features [N, D]. Raises ValueError for fewer than two blocks, or what is not finite."""
        if len(features) < 2 or not features.isfinite().all():
            raise ValueError(f"a Gaussian needs the finite features of two or more blocks, got {tuple(features.shape)}")
        values = features.double()
        mean, spread = values.mean(dim=0), values.std(dim=0)
        spread = spread.clamp(min=max(LEAST_SPREAD * float(spread.mean()), 1e-6))
        scaled = (values - mean) / spread
        correlation = scaled.T @ scaled / len(scaled)
        identity = torch.eye(len(mean), dtype=correlation.dtype, device=correlation.device)
        variance, basis = torch.linalg.eigh(torch.lerp(correlation, identity, SHRINKAGE))
        self.mean.copy_(mean)
        self.whitening.copy_(basis / variance.sqrt() / spread[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """[N, D] -> [N] float32: root of the mean square of the whitened features."""
        return ((features.float() - self.mean) @ self.whitening).square().mean(dim=1).sqrt()
