"""The diffusion transformer: (noisy block, noise level, history, text) -> data or velocity. Yume1.5, figure 2.

One class from the 3M-parameter street to the released 5B: parameter names of the shared parts are Wan2.2's and Yume's.
What does not depend on the noise is computed once for all sampler steps of a block:

    conditions = dit.encode_conditions(history, memory, context, target, pooled)
    conditions = dit.condition_on(conditions, predictions)  # of the model's priors, if it has any
    output = dit(x, sigma, conditions)

Shapes: B worlds, C latent channels, K latent frames of the block, h x w latent size, D width, L predicted tokens, N context tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_model import flow
from world_model.appearance_flow import AppearanceFlow
from world_model.blocks import Block, Grid, Head, unpatch
from world_model.condition_encoder import ConditionEncoder
from world_model.conditions import Conditions, DetailedPrediction
from world_model.config import ModelConfig
from world_model.denoiser import Denoiser
from world_model.detail import DetailHead
from world_model.layers import FloatLinear
from world_model.priors.registry import build_priors

MAX_LOG_VARIANCE = 8.0  # bound of log variances, on both sides


class DiT(ConditionEncoder):
    """The whole network of one `ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        c, dim = config.dit, config.dit.dim
        self.activation_checkpointing = False
        self.text_embedding = (
            nn.Sequential(nn.Linear(c.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
            if c.text_dim
            else None
        )
        self.time_embedding = nn.Sequential(FloatLinear(c.embedding.freq_dim, dim), nn.SiLU(), FloatLinear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), FloatLinear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(c.layers))
        self.head = None if c.denoiser else Head(config)
        self.action_embedding = nn.Linear(config.action_width, dim) if c.embedding.pooled_action else None
        self.pooled_text = nn.Linear(c.text_dim, dim) if c.embedding.pooled_text else None
        self.recent_embedding = (
            nn.Conv2d(
                c.latent_channels * c.history.recent_frames + 1, dim * config.token_grid[0], c.patch[1:], c.patch[1:]
            )
            if c.history.recent_frames
            else None
        )
        # deviation of the data from where a data prediction starts, per frame of the block and channel: without a past (from
        # zero), and with one (from the newest frame)
        self.register_buffer(
            "residual_deviation", torch.ones(2, config.block_latents, c.latent_channels) if c.output.residual else None
        )
        # for each place, two logarithms: of the residual's variance in units of that deviation's square, of the error's variance
        own = c.output.residual and not c.denoiser
        self.variances = FloatLinear(c.dim, 2 * c.patch[0] * c.patch[1] * c.patch[2]) if own else None
        self.flow = AppearanceFlow(config) if c.output.flow_layer else None
        own = bool(c.output.flow_layer) and not c.denoiser
        self.flow_embedding = nn.Conv3d(c.latent_channels + 1, dim, c.patch, c.patch) if own else None
        self.detail = DetailHead(config) if own else None
        self.denoiser = Denoiser(config, c.denoiser) if c.denoiser else None
        # what the layers found out, for each latent place of a token
        self.found = nn.Linear(dim, c.denoiser.dim * c.patch[1] * c.patch[2]) if c.denoiser else None
        self.expert = Denoiser(config, c.expert) if c.expert else None
        self.priors = build_priors(config)
        self.prior_embeddings = nn.ModuleList(nn.Conv3d(p.channels, dim, c.patch, c.patch) for p in self.priors)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Xavier linears; coarse patch kernels interpolate the finest one; zero output and channel branches."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for linear in (self.time_embedding[0], self.time_embedding[2]):
            nn.init.normal_(linear.get_parameter("weight"), std=0.02)
        self.interpolate_coarse_kernels()
        for block in self.layers:
            if block.channel is not None:
                nn.init.zeros_(block.channel.up.weight)
        head = None if self.head is None else self.head.head
        for layer in (head, self.action_embedding, self.pooled_text, self.variances, self.found):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        for part in (self.flow, self.denoiser, self.expert):
            if part is not None:
                part.reset_parameters()

    def seeing_noise(self) -> dict[str, nn.Module]:
        """The parts that see the noisy block, by name, where a model moves frames. How frames move, and what these parts are told
        of the past, does not depend on them."""
        numbers = range(self.config.dit.output.flow_layer, len(self.blocks))
        layers: dict[str, nn.Module | None] = {f"blocks.{n}": self.blocks[n] for n in numbers}
        own = ("patch_embedding", "flow_embedding", "head", "detail", "variances")
        names = own if self.denoiser is None else ("denoiser", "found")
        parts = layers | {name: getattr(self, name) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    def forward(self, x: Tensor, sigma: Tensor, conditions: Conditions, history_sigma: float = 0.0) -> Tensor:
        """x [B, C, K, h, w] and noise levels sigma [B], [B, K] or [B, L] in 0..1 -> prediction, shaped like x.

        What the prediction means is `config.dit.output.prediction` (flow.to_data, flow.to_velocity). Odd rows and columns that do
        not fill a patch are dropped, as in the released model. Where frames are moved, the prediction is of pictures in -1..1: a
        rollout stays finite, whatever is added to its own frames block after block.
        """
        made = self.detailed(x, sigma, conditions, history_sigma).output
        return made if self.flow is None or conditions.mean is None else self.flow.bounded(made)

    def detailed(
        self, x: Tensor, sigma: Tensor, conditions: Conditions, history_sigma: float = 0.0
    ) -> DetailedPrediction:
        """`forward` before it is brought into the range of pictures, and what the network says of its prediction (for training)."""
        if self.denoiser is not None:
            return self._denoised(self.denoiser, x, sigma, conditions)
        return self._predict(x, sigma, conditions, self._tokens(x, sigma, conditions, history_sigma))

    def _denoised(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, conditions: Conditions) -> DetailedPrediction:
        """The denoiser's prediction; where moved frames are in view, these at every noise level."""
        if conditions.denoiser is None or conditions.visible is None:
            raise ValueError(
                f"{self.config.name}: its denoiser reads moved frames: give a history, of absent frames at least"
            )
        return DetailedPrediction(self._kept(denoiser(x, sigma, conditions.denoiser), conditions, conditions.visible))

    def _kept(self, made: Tensor, conditions: Conditions, share: Tensor) -> Tensor:
        """A clean block [B, C, K, h, w] of which a share [B, 1, K, h, w] gives way to the moved frames, but for what is finer than
        `kept_size`. All details finer than a denoiser's `coarse_size` are those of the moved frames."""
        kept, own = self.config.dit.output.kept_size, self.config.dit.denoiser
        if self.flow is None or conditions.mean is None or not kept:
            return made
        added = made - conditions.mean
        if own is not None and own.coarse_size:
            added = self.flow.coarser(added, torch.ones_like(share), own.coarse_size)
        return conditions.mean + self.flow.finer(added, share, kept)

    def _tokens(self, x: Tensor, sigma: Tensor, conditions: Conditions, history_sigma: float) -> Tensor:
        """What the head reads, [B, L, D]."""
        tokens = self.patch_embedding(x.to(self.dtype))
        grid: Grid = tuple(tokens.shape[2:])
        tokens = tokens.flatten(2).transpose(1, 2)
        if conditions.bias is not None:
            tokens = tokens + conditions.bias
        timestep = 1000 * (sigma[:, None] if sigma.dim() == 1 else sigma)
        if timestep.shape[1] not in (1, tokens.shape[1]):
            timestep = timestep.repeat_interleave(tokens.shape[1] // timestep.shape[1], dim=1)
        head, time = self._time(timestep, conditions.pooled)
        length, history = tokens.shape[1], conditions.history
        if history.tokens is not None:
            past = torch.full((x.shape[0], 1), 1000 * history_sigma, device=x.device, dtype=timestep.dtype)
            _, past_time = self._time(past, None)
            time = torch.cat(
                [past_time.expand(-1, history.tokens.shape[1], -1, -1), time.expand(-1, length, -1, -1)], dim=1
            )
            tokens = torch.cat([history.tokens, tokens], dim=1)
        numbers = range(self.config.dit.output.flow_layer, len(self.blocks))
        tokens = self._layers(tokens, time, conditions, [*history.grids, grid], numbers)
        assert self.head is not None
        return self.head.normed(tokens[:, -length:], head)

    def _predict(self, x: Tensor, sigma: Tensor, conditions: Conditions, tokens: Tensor) -> DetailedPrediction:
        """The prediction, and the expected logarithm of its squared error where the model has one.

        With `residual`, the network says place by place how much it expects to change: where nothing does, the prediction is where
        it starts from (the moved frames, or the newest one) at every noise level.
        """
        p = self.config.dit.patch
        grid = (x.shape[2] // p[0], x.shape[3] // p[1], x.shape[4] // p[2])
        assert self.head is not None
        out = unpatch(self.head.head(tokens), grid, p)
        if conditions.mean is None or conditions.variance is None:
            return DetailedPrediction(out)
        if self.detail is not None and conditions.visible is not None:
            features = unpatch(self.detail.features(tokens), grid, p)
            out = out + self.detail(features, x, conditions.mean, conditions.visible)
        level = sigma.to(x.dtype).reshape(x.shape[0], 1, -1, 1, 1)
        if level.shape[2] not in (1, x.shape[2]):  # a level for every token
            level = level.reshape(x.shape[0], 1, *grid)
            for axis, size in enumerate(p):
                level = level.repeat_interleave(size, dim=2 + axis)
        variance, error = conditions.variance, None
        if self.variances is not None:
            change, error = (
                unpatch(self.variances(tokens), grid, p).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE).chunk(2, dim=1)
            )
            variance = variance * change.exp()
        mean, deviation = flow.gaussian_posterior(x, level, conditions.mean, variance)
        made = mean + deviation * out
        if conditions.visible is not None:
            # what the noisy block says by itself is believed
            unknown = (deviation.square() / variance).mean(dim=1, keepdim=True)
            made = self._kept(made, conditions, unknown * conditions.visible)
        return DetailedPrediction(made, error)
