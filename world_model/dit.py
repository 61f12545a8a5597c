"""The diffusion transformer: (noisy block, noise level, history, text) -> data or velocity. Yume1.5, figure 2.

One class from the 3M-parameter street to the released 5B: parameter names of the shared parts are Wan2.2's and Yume's.
What does not depend on the noise is computed once for all sampler steps of a block:

    conditions = dit.encode_conditions(history, memory, context, target, pooled)
    conditions = dit.condition_on(conditions, predictions)  # of the model's priors, if it has any
    output = dit(x, sigma, conditions)

Shapes: B worlds, C latent channels, K latent frames of the block, h x w latent size, D width, L predicted tokens, N context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from world_model import flow
from world_model.appearance_flow import AppearanceFlow
from world_model.blocks import Block, Grid, Head
from world_model.conditions import Conditions, DetailedPrediction, Prediction, Target
from world_model.config import ModelConfig
from world_model.layers import (
    FloatLinear,
    KeyValue,
    axis_frequencies,
    linear_sums,
    rotary_table,
    sinusoid,
)
from world_model.packing import build_packing
from world_model.positions import Positions
from world_model.priors.registry import build_priors
from world_model.tscm import ChannelMemory, History

MAX_LOG_VARIANCE = 8.0  # bound of log variances, on both sides


class DiT(nn.Module):
    """The whole network of one `ModelConfig`."""

    residual_deviation: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c, dim = config.dit, config.dit.dim
        self.activation_checkpointing = False
        self.patch_embedding = nn.Conv3d(c.latent_channels, dim, c.patch, c.patch)
        self.packing = build_packing(config)
        # a block's tokens may span several frames, those of its history span one
        self.kernel_ratios = self.packing.ratios if c.patch[0] == 1 else (1, *self.packing.ratios)
        for ratio in self.kernel_ratios:
            kernel = (1, c.patch[1] * ratio, c.patch[2] * ratio)
            self.add_module(f"patch_embedding_{ratio}x", nn.Conv3d(c.latent_channels, dim, kernel, kernel))
        if self.packing.two_stage:
            shrink = (1, 2 * c.patch[1], 2 * c.patch[2])
            self.patch_embedding_2x_f = nn.Conv3d(c.latent_channels, c.latent_channels, shrink, shrink)
        self.text_embedding = (
            nn.Sequential(nn.Linear(c.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
            if c.text_dim
            else None
        )
        self.time_embedding = nn.Sequential(FloatLinear(c.freq_dim, dim), nn.SiLU(), FloatLinear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), FloatLinear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(c.layers))
        self.head = Head(config)
        _, rows, columns = config.token_grid
        self.channel_embedding = (
            nn.Conv3d(c.latent_channels, c.channel.dim, c.channel.patch, c.channel.patch) if c.channel else None
        )
        self.screen = nn.Parameter(torch.zeros(1, dim, rows, columns)) if c.screen_embedding else None
        self.action_embedding = nn.Linear(config.action_width, dim) if c.pooled_action else None
        self.recent_embedding = (
            nn.Conv2d(c.latent_channels * c.recent_frames + 1, dim * config.token_grid[0], c.patch[1:], c.patch[1:])
            if c.recent_frames
            else None
        )
        # deviation of the data from where a data prediction starts, per frame of the block and channel: without a past (from
        # zero), and with one (from the newest frame)
        self.register_buffer(
            "residual_deviation", torch.ones(2, config.block_latents, c.latent_channels) if c.residual else None
        )
        # for each place, two logarithms: of the residual's variance in units of that deviation's square, of the error's variance
        self.variances = FloatLinear(c.dim, 2 * c.patch[0] * c.patch[1] * c.patch[2]) if c.residual else None
        self.flow = AppearanceFlow(config) if c.flow_layer else None
        self.flow_embedding = nn.Conv3d(c.latent_channels, dim, c.patch, c.patch) if c.flow_layer else None
        self.priors = build_priors(config)
        self.prior_embeddings = nn.ModuleList(nn.Conv3d(p.channels, dim, c.patch, c.patch) for p in self.priors)
        self.empty = nn.Parameter(torch.zeros(dim)) if self.packing.constant else None
        self.positions = Positions(config)
        self.frequencies = axis_frequencies(c.head_dim, c.positions)
        self.channel_frequencies = axis_frequencies(c.channel.dim // c.channel.heads, c.positions) if c.channel else []
        self.reset_parameters()

    @property
    def layers(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

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
        fine = self.patch_embedding.weight.sum(dim=2, keepdim=True)
        for ratio in self.kernel_ratios:
            coarse = self.get_submodule(f"patch_embedding_{ratio}x")
            weight = coarse.get_parameter("weight")
            size = tuple(weight.shape[-2:])
            spread = F.interpolate(fine.flatten(0, 2)[None], size=size, mode="nearest")[0].view_as(weight)
            weight.copy_(spread / ratio**2)
            coarse.get_parameter("bias").copy_(self.patch_embedding.get_parameter("bias"))
        for block in self.layers:
            if block.channel is not None:
                nn.init.zeros_(block.channel.up.weight)
        for layer in (self.head.head, self.action_embedding, self.variances, self.flow and self.flow.displacement):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights; latents come in any and are embedded in this one."""
        return self.patch_embedding.weight.dtype

    # ---- embedding ----------------------------------------------------------------------------------------------------

    def pack(self, history: History, start: Tensor) -> tuple[Tensor, Tensor, list[Grid]]:
        """Patchified history [B, n, D], its coordinates [B, n, 3] and the token grid of each group; block start frame [B]."""
        tokens, coordinates, grids, frames_so_far = [], [], [], 0
        for group in self.packing.groups(history.frames):
            latents = history.latents[:, :, group.start : group.stop].to(self.dtype)
            if group.two_stage:
                latents = _padded(self.patch_embedding_2x_f, latents)
            coarse = group.ratio in self.kernel_ratios
            kernel = self.get_submodule(f"patch_embedding_{group.ratio}x") if coarse else self.patch_embedding
            embedded = _padded(kernel, latents) if coarse else kernel(latents)
            if self.screen is not None:
                embedded = embedded + F.avg_pool2d(self.screen, group.ratio, ceil_mode=True)[:, :, None]
            if self.empty is not None:
                present = history.present[:, None, group.start : group.stop, None, None]
                embedded = torch.where(present, embedded, self.empty[None, :, None, None, None])
            grid: Grid = tuple(embedded.shape[2:])  # type: ignore[assignment]
            tokens.append(embedded.flatten(2).transpose(1, 2))
            part = slice(group.start, group.stop)
            relative = history.frame[:, part] - start[:, None]
            coordinates.append(
                self.positions.tokens(
                    relative, history.yaw[:, part], history.pitch[:, part], grid, group.ratio, frames_so_far
                )
            )
            grids.append(grid)
            frames_so_far += grid[0]
        if self._kernels_vary:
            tokens[0] = tokens[0] + self._no_kernel()
        return torch.cat(tokens, 1), torch.cat(coordinates, 1), grids

    @property
    def _kernels_vary(self) -> bool:
        """Whether a length of history uses some patch kernels only, and gradients are wanted of all."""
        return not self.packing.constant and torch.is_grad_enabled()

    def _no_kernel(self) -> Tensor:
        """Zero that depends on all patch kernels: all need a gradient at every step, and that of what is read, or sharded processes
        fall out of step."""
        kernels = [p for name, p in self.named_parameters() if name.startswith("patch_embedding")]
        return 0 * torch.stack([p.sum() for p in kernels]).sum()

    # ---- channel half -------------------------------------------------------------------------------------------------

    def encode_memory(self, block: History) -> ChannelMemory | None:
        """Channel sums of whole kernels of history, oldest decayed most; frames are front-padded to whole kernels.

        Because z_linear enters every layer unchanged, sums of two stretches add up: memory of (a, b) is
        ``encode_memory(a).add(encode_memory(b), decay ** kernels of b)``.
        """
        c = self.config.dit.channel
        if c is None or self.channel_embedding is None:
            return None
        depth = c.patch[0]
        missing = -block.frames % depth
        latents = F.pad(block.latents.to(self.dtype), (0, 0, 0, 0, missing, 0))
        z = _padded(self.channel_embedding, latents)
        grid: Grid = tuple(z.shape[2:])  # type: ignore[assignment]
        pad = (missing, 0)
        frame, yaw, pitch = (
            F.pad(v[:, None].double(), pad, mode="replicate")[:, 0] for v in (block.frame, block.yaw, block.pitch)
        )
        last = slice(depth - 1, None, depth)
        table = rotary_table(
            self.positions.kernels(frame[:, last], yaw[:, last], pitch[:, last], grid, c.patch),
            self.channel_frequencies,
        )
        age = torch.arange(grid[0] - 1, -1, -1, device=z.device)
        weight = (c.decay ** age.float())[None] * F.pad(block.present.float(), (missing, 0), value=1.0)[:, last]
        weight = repeat(weight, "B F -> B (F n)", n=grid[1] * grid[2])
        z = z.flatten(2).transpose(1, 2)
        count = z.shape[1]
        z = F.pad(z, (0, 0, 0, -count % 8))  # products of whole eights of rows round alike on any number of threads
        channels = [layer.channel for layer in self.layers if layer.channel is not None]
        pairs = [channel.keys_values(z) for channel in channels]
        sums = [linear_sums(k[:, :, :count], v[:, :, :count], table, weight) for k, v in pairs]
        return ChannelMemory(torch.stack([s for s, _ in sums]), torch.stack([n for _, n in sums]))

    # ---- forward ------------------------------------------------------------------------------------------------------

    def encode_conditions(
        self, history: History | None, memory: ChannelMemory | None, context: Tensor, target: Target,
        pooled: Tensor | None = None,
    ) -> Conditions:  # fmt: skip
        """What all sampler steps of a block share, of words and of the past.

        context [B, N, text_dim]: event tokens then action tokens, zero-padded. pooled [B, text_dim]: mean action token.
        """
        c = self.config.dit
        keys = self._text_keys(context)
        grid: Grid = (target.frame.shape[1] // c.patch[0], *self._latent_rows(history))
        start = target.frame[:, 0]
        target = target.every(c.patch[0])
        tokens: Tensor | None = None
        grids: list[Grid] = []
        pairs: list[KeyValue] = []
        running = 0
        coordinates = torch.zeros(context.shape[0], 0, 3, dtype=torch.float64, device=context.device)
        if history is not None:
            tokens, coordinates, grids = self.pack(history, start)
            running = sum(g[0] for g in grids)
            if c.history_attention == "cached":
                table = rotary_table(coordinates, self.frequencies)
                pairs = self._encode(tokens, table, keys, grids)
                tokens = None
        relative = target.frame - start[:, None]
        own = self.positions.tokens(relative, target.yaw, target.pitch, grid, 1, running)
        both = own if tokens is None else torch.cat([coordinates, own], dim=1)
        memory_table = None
        if c.channel is not None:
            kernel = (1, *c.patch[1:])
            coords = self.positions.kernels(target.frame.double(), target.yaw, target.pitch, grid, kernel)
            memory_table = rotary_table(coords, self.channel_frequencies)
            memory = memory or self.empty_memory(context)
        screen = (
            None if self.screen is None else repeat(self.screen, "1 D h w -> B (F h w) D", B=len(context), F=grid[0])
        )
        bias = self._recent(history, screen)
        if history is None and self._kernels_vary:
            zero = self._no_kernel().expand(len(context), 1, 1)
            bias = zero if bias is None else bias + zero
        mean, variance = self._precondition(history)
        action = self.action_embedding
        return Conditions(
            context=keys,
            history=pairs,
            tokens=tokens,
            grids=grids if tokens is not None else [],
            table=rotary_table(both, self.frequencies),
            memory=memory,
            memory_table=memory_table,
            bias=bias,
            pooled=action(pooled.to(self.dtype)) if action is not None and pooled is not None else None,
            mean=mean,
            variance=variance,
        )

    def _text_keys(self, context: Tensor) -> list[KeyValue | None]:
        """Keys and values of the text in every layer; None where there is no cross-attention."""
        if self.text_embedding is None:
            return [None] * len(self.blocks)
        text = self.text_embedding(context.to(self.dtype))
        return [layer.cross_attn.keys_values(text) if layer.cross_attn else None for layer in self.layers]

    def _recent(self, history: History | None, bias: Tensor | None) -> Tensor | None:
        """`bias` [B, L, D] plus the newest history frames, embedded place by place (channel concatenation)."""
        if self.recent_embedding is None or history is None:
            return bias
        newest = history.latents[:, :, -self.config.dit.recent_frames :].to(self.dtype)
        seen = history.has_past[:, None, None, None].to(self.dtype)
        stacked = torch.cat([rearrange(newest, "B C n h w -> B (n C) h w") * seen, seen.expand_as(newest[:, :1, 0])], 1)
        embedded = self.recent_embedding(stacked)
        tokens = rearrange(embedded, "B (F D) h w -> B (F h w) D", F=self.config.token_grid[0])
        return tokens if bias is None else bias + tokens

    def _precondition(self, history: History | None) -> tuple[Tensor | None, Tensor | None]:
        """Mean and variance [B, C, K, h, w] that a data prediction starts from (Karras et al. 2022, table 1, with a mean)."""
        if self.residual_deviation is None or history is None:
            return None, None
        last = history.latents[:, :, -1:].expand(-1, -1, self.config.block_latents, -1, -1)
        known = history.has_past[:, None, None, None, None]
        power = rearrange(self.residual_deviation.square()[history.has_past.long()], "B K C -> B C K 1 1")
        return last * known, power.expand_as(last)

    def condition_on(self, conditions: Conditions, predictions: Sequence[Prediction]) -> Conditions:
        """`conditions` of a block with each prior's prediction of it: where a data prediction starts from (`mean`, `variance`), and
        the features that are added to the tokens (`bias`). Mean and variance are set here only; without priors there are none.

        Several priors are independent observations of the data. ValueError for more or fewer predictions than priors.
        """
        if len(predictions) != len(self.priors):
            raise ValueError(
                f"a model with {len(self.priors)} priors needs as many predictions, got {len(predictions)}"
            )
        for embedding, prediction in zip(self.prior_embeddings, predictions):
            shown = embedding(prediction.features.to(self.dtype)).flatten(2).transpose(1, 2)
            bias = shown if conditions.bias is None else shown + conditions.bias
            mean, variance = prediction.mean, prediction.variance
            if conditions.mean is not None and conditions.variance is not None:
                mean, variance = flow.gaussian_product(conditions.mean, conditions.variance, mean, variance)
            conditions = replace(conditions, bias=bias, mean=mean, variance=variance)
        return conditions

    def _latent_rows(self, history: History | None) -> tuple[int, int]:
        rows, columns = self.config.latent_size if history is None else history.latents.shape[-2:]
        return rows // self.config.dit.patch[1], columns // self.config.dit.patch[2]

    def empty_memory(self, context: Tensor) -> ChannelMemory:
        """The channel memory of worlds without a past, as many as `context` has rows."""
        c = self.config.dit.channel
        assert c is not None
        shape = (len(self.blocks), context.shape[0], c.heads, c.dim // c.heads)
        zeros = torch.zeros(shape, device=context.device)
        return ChannelMemory(zeros[..., None].expand(*shape, shape[-1]), zeros)

    def _encode(self, x: Tensor, table: Tensor, context: list[KeyValue | None], grids: list[Grid]) -> list[KeyValue]:
        """Cached history: its tokens attend to each other only, at noise level 0, once a block."""
        _, time = self._time(torch.zeros(x.shape[0], 1, device=x.device), None)
        pairs = []
        for block, key_value in zip(self.layers[:-1], context):
            x, pair = self._run(block, x, time, key_value, table, grids)
            pairs.append(pair)
        return [*pairs, self.layers[-1].keys_values(x, time, table)]

    def _time(self, timestep: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Head vector [B, n, D] and block vectors [B, n, 6, D], float32, of timesteps [B, n] in 0..1000."""
        embedded = self.time_embedding(sinusoid(timestep, self.config.dit.freq_dim))
        if pooled is not None:
            embedded = embedded + pooled[:, None]
        return embedded, self.time_projection(embedded).unflatten(-1, (6, -1))

    def _run(self, block: nn.Module, *args):  # type: ignore[no-untyped-def]
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def forward(self, x: Tensor, sigma: Tensor, conditions: Conditions, history_sigma: float = 0.0) -> Tensor:
        """x [B, C, K, h, w] and noise levels sigma [B], [B, K] or [B, L] in 0..1 -> prediction, shaped like x.

        What the prediction means is `config.dit.prediction` (flow.to_data, flow.to_velocity). Odd rows and columns that do
        not fill a patch are dropped, as in the released model.
        """
        return self.detailed(x, sigma, conditions, history_sigma).output

    def detailed(self, x: Tensor, sigma: Tensor, conditions: Conditions, history_sigma: float = 0.0) -> DetailedPrediction:
        """`forward`, and what the network says of its prediction (for training)."""
        tokens, mean, flow = self._tokens(x, sigma, conditions, history_sigma)
        return replace(self._predict(x, sigma, replace(conditions, mean=mean), tokens), flow=flow)

    def _tokens(
        self, x: Tensor, sigma: Tensor, conditions: Conditions, history_sigma: float
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the head reads, [B, L, D]; the mean that a data prediction starts from; displacements of the appearance flow."""
        tokens = self.patch_embedding(x.to(self.dtype))
        grid: Grid = tuple(tokens.shape[2:])  # type: ignore[assignment]
        tokens = tokens.flatten(2).transpose(1, 2)
        if conditions.bias is not None:
            tokens = tokens + conditions.bias
        timestep = 1000 * (sigma[:, None] if sigma.dim() == 1 else sigma)
        if timestep.shape[1] not in (1, tokens.shape[1]):
            timestep = timestep.repeat_interleave(tokens.shape[1] // timestep.shape[1], dim=1)
        head, time = self._time(timestep, conditions.pooled)
        length = tokens.shape[1]
        if conditions.tokens is not None:
            past = torch.full((x.shape[0], 1), 1000 * history_sigma, device=x.device, dtype=timestep.dtype)
            _, past_time = self._time(past, None)
            time = torch.cat(
                [past_time.expand(-1, conditions.tokens.shape[1], -1, -1), time.expand(-1, length, -1, -1)], dim=1
            )
            tokens = torch.cat([conditions.tokens, tokens], dim=1)
        memory, mean, flow = conditions.memory, conditions.mean, None
        for i, block in enumerate(self.blocks):
            if self.flow is not None and self.flow_embedding is not None and mean is not None and i == self.config.dit.flow_layer:
                mean, flow = self.flow(tokens[:, -length:], mean[:, :, 0])
                shown = self.flow_embedding(mean.to(self.dtype)).flatten(2).transpose(1, 2)
                tokens = tokens + F.pad(shown, (0, 0, tokens.shape[1] - length, 0))
            tokens, _ = self._run(
                block, tokens, time, conditions.context[i], conditions.table, [*conditions.grids, grid],
                conditions.history[i] if conditions.history else None,
                (memory.total[i], memory.norm[i]) if memory is not None else None, conditions.memory_table,
            )  # fmt: skip
        return self.head.normed(tokens[:, -length:], head), mean, flow

    def _predict(self, x: Tensor, sigma: Tensor, conditions: Conditions, tokens: Tensor) -> DetailedPrediction:
        """The prediction, and the expected logarithm of its squared error where the model has one.

        With `residual`, the network says place by place how much it expects to change: where nothing does, the prediction is the
        newest frame at every noise level.
        """
        p = self.config.dit.patch
        grid = (x.shape[2] // p[0], x.shape[3] // p[1], x.shape[4] // p[2])
        out = self._unpatch(self.head.head(tokens), grid)
        if conditions.mean is None or conditions.variance is None:
            return DetailedPrediction(out)
        level = sigma.to(x.dtype).reshape(x.shape[0], 1, -1, 1, 1)
        if level.shape[2] not in (1, x.shape[2]):  # a level for every token
            level = level.reshape(x.shape[0], 1, *grid)
            for axis, size in enumerate(p):
                level = level.repeat_interleave(size, dim=2 + axis)
        variance, error = conditions.variance, None
        if self.variances is not None:
            change, error = (
                self._unpatch(self.variances(tokens), grid).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE).chunk(2, dim=1)
            )
            variance = variance * change.exp()
        mean, deviation = flow.gaussian_posterior(x, level, conditions.mean, variance)
        return DetailedPrediction(mean + deviation * out, error)

    def _unpatch(self, tokens: Tensor, grid: Grid) -> Tensor:
        p = self.config.dit.patch
        return rearrange(
            tokens, "B (F h w) (p q r C) -> B C (F p) (h q) (w r)", F=grid[0], h=grid[1], p=p[0], q=p[1], r=p[2]
        )


def _padded(layer: nn.Module, latents: Tensor) -> Tensor:
    """Zero padding at the bottom and right to whole kernels, then the convolution."""
    rows, columns = layer.kernel_size[-2:]  # type: ignore[index, misc]
    return layer(F.pad(latents, (0, -latents.shape[-1] % columns, 0, -latents.shape[-2] % rows)))
