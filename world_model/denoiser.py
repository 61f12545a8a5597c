"""What draws in a block what earlier frames do not show, in tokens as fine as latent places.

A model may have two. Its `denoiser` draws, in every block, what is not in view; the transformer before it is its condition encoder
(DDT, arXiv 2504.05741, section 3). Its `expert` draws what a text decides and the past does not: a first picture, and what appears
when the text has changed. That takes several sampler steps. Two by situation are a mixture of experts; Wan 2.2 changes between two
by noise level (its model card, "MoE architecture").

Shapes: B worlds, C latent channels, K latent frames of a block, h x w latent size, L = h w tokens, N text tokens, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from world_model import flow
from world_model.blocks import Block, Head, unpatch
from world_model.config import (
    DenoiserConfig,
    DiTConfig,
    EmbeddingConfig,
    ExpertConfig,
    LayerConfig,
    ModelConfig,
    OutputConfig,
)
from world_model.detail import DetailHead
from world_model.layers import FloatLinear, KeyValue, axis_frequencies, rotary_table, sinusoid
from world_model.text import mean_token

COLOURS = 2 * 3  # mean and deviation of red, green and blue in the world's first picture


@dataclass(frozen=True)
class DenoiserConditions:
    """What all sampler steps of a block share."""

    context: list[KeyValue | None]  # of every layer
    bias: Tensor  # [B, L, D] added to the tokens
    pooled: Tensor  # [B, D] joins the timestep embedding
    mean: Tensor  # [B, C, K, h, w]: the moved frames; zeros without a past
    variance: Tensor  # the same shape: of the data about them
    visible: Tensor  # [B, 1, K, h, w] in 0..1, how much of each place is looked up in earlier frames
    amplitude: Tensor | None = None  # [B, SCALES, C] of the noise (`flow.correlated`); None: white
    untold: DenoiserConditions | None = None  # the same without the text, for guidance

    def correlated(self, noise: Tensor) -> Tensor:
        """Noise as the network takes it away, of white noise [B, C, K, h, w]."""
        return noise if self.amplitude is None else flow.correlated(noise, self.amplitude)


class Denoiser(nn.Module):
    """Denoises whole blocks; `dit(x, sigma, conditions)` as a DiT, with conditions of its own."""

    deviation: Tensor
    amplitude: Tensor | None
    places: Tensor

    def __init__(self, config: ModelConfig, e: DenoiserConfig) -> None:
        super().__init__()
        rows, columns = config.latent_size
        patch = (config.block_latents, 1, 1)
        dit = DiTConfig(
            dim=e.dim,
            heads=e.heads,
            layers=e.layers,
            patch=patch,
            latent_channels=config.dit.latent_channels,
            text_dim=config.dit.text_dim,
            layer=LayerConfig(ffn_dim=e.ffn_dim, mlp_conv=True, activation="relu_squared"),
            embedding=EmbeddingConfig(freq_dim=64),
            history=dataclasses.replace(config.dit.history, channel=None, recent_frames=0),
            output=OutputConfig(config.dit.output.prediction, config.dit.output.residual),
        )
        self.config = dataclasses.replace(config, dit=dit)
        self.settings, self.grid = e, (1, rows, columns)
        self.guidance = e.guidance if isinstance(e, ExpertConfig) else 1.0
        channels, width, text = dit.latent_channels, dit.dim, dit.text_dim
        self.patch_embedding = nn.Conv3d(channels, width, patch, patch)
        self.flow_embedding = nn.Conv3d(channels + 1, width, patch, patch)
        self.screen = nn.Parameter(0.02 * torch.randn(1, rows * columns, width))
        self.text_embedding = nn.Sequential(
            nn.Linear(text, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pooled = nn.Linear(2 * text + COLOURS, width)
        self.since = nn.Embedding(e.blocks + 2, width)  # blocks since the text changed; the last one: no past
        self.time_embedding = nn.Sequential(
            FloatLinear(dit.embedding.freq_dim, width), nn.SiLU(), FloatLinear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), FloatLinear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(e.layers))
        self.head = Head(self.config)
        self.detail = DetailHead(self.config)
        # deviation of the data about where a prediction starts: without a past from zero, with one from the moved frames
        self.register_buffer("deviation", torch.ones(2, patch[0], channels))
        # of the noise, in the same order
        self.register_buffer("amplitude", torch.ones(2, flow.SCALES, channels) if e.correlated else None)
        axes = (torch.arange(n, dtype=torch.float64) for n in self.grid)
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, 3)
        self.register_buffer("places", places, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A fresh one adds nothing to the moved frames."""
        for linear in (self.time_embedding[0], self.time_embedding[2], self.since):
            nn.init.normal_(linear.get_parameter("weight"), std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def conditions(
        self,
        mean: Tensor,
        visible: Tensor,
        start: Tensor,
        text: Tensor,
        before: Tensor,
        since: Tensor,
        guided: bool = False,
    ) -> DenoiserConditions:
        """Conditions of a block.

        mean [B, C, K, h, w] and visible [B, 1, K, h, w]: the moved frames; zeros without a past. start [B, 3, H, W]: the world's
        first picture in -1..1; text [B, N, text_dim]: what it is told, zero-padded; before [B, text_dim]: the mean token of what it
        was told before; since [B] int64: blocks since then, -1 without a past. guided: also those without the text.
        """
        known = since >= 0
        colours = torch.cat([at(start.flatten(2), dim=2) for at in (torch.mean, torch.std)], dim=1) * known[:, None]
        kind = torch.where(known, since.clamp(max=self.settings.blocks), self.settings.blocks + 1)
        dtype = self.screen.dtype
        shown = torch.cat([mean, visible], dim=1).to(dtype)
        keys = self.text_embedding(text.to(dtype))
        pooled = self.pooled(torch.cat([mean_token(text), before, colours], dim=1).to(dtype)) + self.since(kind)
        variance = rearrange(self.deviation.square()[known.long()], "B K C -> B C K 1 1").expand_as(mean)
        return DenoiserConditions(
            context=[block.cross_attn.keys_values(keys) for block in self.blocks],  # type: ignore[union-attr, operator]
            bias=self.screen + self.flow_embedding(shown).flatten(2).transpose(1, 2),
            pooled=pooled,
            mean=mean,
            variance=variance,
            visible=visible,
            amplitude=None if self.amplitude is None else self.amplitude[known.long()],
            untold=self.conditions(mean, visible, start, torch.zeros_like(text), before, since) if guided else None,
        )

    def forward(self, x: Tensor, sigma: Tensor, conditions: DenoiserConditions) -> Tensor:
        """x [B, C, K, h, w] and noise levels sigma [B] in 0..1 -> the clean block, guided where conditions are."""
        made = self._denoised(x, sigma, conditions)
        if conditions.untold is None:
            return made
        plain = self._denoised(x, sigma, conditions.untold)
        return plain + self.guidance * (made - plain)

    def _denoised(self, x: Tensor, sigma: Tensor, conditions: DenoiserConditions) -> Tensor:
        embedded = (
            self.time_embedding(sinusoid(1000 * sigma[:, None], self.config.dit.embedding.freq_dim))
            + conditions.pooled[:, None]
        )
        time = self.time_projection(embedded).unflatten(-1, (6, -1))
        table = rotary_table(self.places, axis_frequencies(self.config.dit.head_dim, "centred"))
        tokens = self.patch_embedding(x.to(conditions.bias.dtype)).flatten(2).transpose(1, 2) + conditions.bias
        for block, context in zip(self.blocks, conditions.context, strict=True):
            tokens, _ = block(tokens, time, context, table, [self.grid])
        tokens = self.head.normed(tokens, embedded)
        patch = self.config.dit.patch
        out = unpatch(self.head.head(tokens), self.grid, patch)
        out = out + self.detail(
            unpatch(self.detail.features(tokens), self.grid, patch), x, conditions.mean, conditions.visible
        )
        level = sigma.to(x.dtype)[:, None, None, None, None]
        mean, deviation = flow.gaussian_posterior(x, level, conditions.mean, conditions.variance)
        return mean + deviation * out
