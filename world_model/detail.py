"""Convolutions at the latents' own size, after the transformer, so that places in different tokens agree on what they show.

A token spans several latent places and frames, more numbers than its width: on its own it draws a mosaic of tokens, and what the
noisy block shows in detail does not pass through it. U-ViT ends with a convolution for the same reason (arXiv 2209.12152, 3.1).

Shapes: B worlds, C latent channels, K latent frames of a block, h x w latent size.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.vae import ResBlock

DEPTH = 3  # residual blocks


class DetailHead(nn.Module):
    """What is added to the transformer's output: a function of its tokens, of the noisy block and of the moved frames around each
    place. A fresh one adds nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.dit
        self.channels, width = c.dim // 4, c.dim // 3
        self.features = nn.Linear(c.dim, self.channels * math.prod(c.patch))
        self.enter = nn.Conv2d(self.channels + 2 * c.latent_channels + 1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResBlock(width) for _ in range(DEPTH)))
        self.leave = nn.Conv2d(width, c.latent_channels, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, x: Tensor, mean: Tensor, visible: Tensor) -> Tensor:
        """features [B, `channels`, K, h, w] of the tokens, noisy block x and moved frames [B, C, K, h, w], how much of these was in
        view [B, 1, K, h, w] -> [B, C, K, h, w]."""
        seen = torch.cat([features, *(part.to(features.dtype) for part in (x, mean, visible))], dim=1)
        places = rearrange(seen, "B C K h w -> (B K) C h w")
        made = self.leave(torch.relu(self.blocks(self.enter(places))))
        return rearrange(made, "(B K) C h w -> B C K h w", K=x.shape[2])
