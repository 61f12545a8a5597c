"""What all sampler steps of a block share: text, compressed history and moved frames, before any noise is seen.

Shapes: B worlds, C latent channels, K latent frames of the block, h x w latent size, D width, L predicted tokens, N context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from world_model import flow
from world_model.appearance_flow import AppearanceFlow
from world_model.blocks import Grid
from world_model.conditions import ChannelRead, Conditions, HistoryTokens, Prediction, Target
from world_model.denoiser import Denoiser, DenoiserConditions
from world_model.history_embedding import HistoryEmbedding
from world_model.layers import KeyValue, rotary_table, sinusoid
from world_model.parallax import travelled
from world_model.priors.base import Priors
from world_model.sources import Sources, choose
from world_model.text import mean_token
from world_model.tscm import ChannelMemory, History


class ConditionEncoder(HistoryEmbedding):
    """`Conditions` of a block. The subclass sets the parts that are named here."""

    text_embedding: nn.Sequential | None
    time_embedding: nn.Sequential
    time_projection: nn.Sequential
    action_embedding: nn.Linear | None
    pooled_text: nn.Linear | None
    residual_deviation: Tensor | None
    flow: AppearanceFlow | None
    flow_embedding: nn.Module | None
    denoiser: Denoiser | None
    found: nn.Linear | None
    priors: Priors
    prior_embeddings: nn.ModuleList
    activation_checkpointing: bool

    def encode_conditions(
        self,
        history: History | None,
        memory: ChannelMemory | None,
        context: Tensor,
        target: Target,
        pooled: Tensor | None = None,
    ) -> Conditions:
        """What all sampler steps of a block share, of words and of the past.

        context [B, N, text_dim]: event tokens then action tokens, zero-padded. pooled [B, text_dim]: mean action token.
        """
        c = self.config.dit
        keys = self._text_keys(context)
        grid: Grid = (target.frame.shape[1] // c.patch[0], *self._latent_rows(history))
        start = target.frame[:, 0]
        groups = target.every(c.patch[0])
        read, running = HistoryTokens([], None, []), 0
        coordinates = torch.zeros(context.shape[0], 0, 3, dtype=torch.float64, device=context.device)
        if history is not None:
            tokens, coordinates, grids = self.pack(history, start)
            running = sum(g[0] for g in grids)
            if c.history.attention == "cached":
                table = rotary_table(coordinates, self.frequencies)
                read = HistoryTokens(self._encode(tokens, table, keys, grids), None, [])
            else:
                read = HistoryTokens([], tokens, grids)
        relative = groups.frame - start[:, None]
        own = self.positions.tokens(relative, groups.yaw, groups.pitch, grid, 1, running)
        both = own if read.tokens is None else torch.cat([coordinates, own], dim=1)
        channel = None
        if c.history.channel is not None:
            kernel = (1, *c.patch[1:])
            coords = self.positions.kernels(groups.frame.double(), groups.yaw, groups.pitch, grid, kernel)
            channel = ChannelRead(memory or self.empty_memory(context), rotary_table(coords, self.channel_frequencies))
        screen = (
            None if self.screen is None else repeat(self.screen, "1 D h w -> B (F h w) D", B=len(context), F=grid[0])
        )
        bias = self._recent(history, screen)
        if history is None and self._kernels_vary:
            zero = self._no_kernel().expand(len(context), 1, 1)
            bias = zero if bias is None else bias + zero
        mean, variance = self._precondition(history)
        action = self._action(pooled)
        conditions = Conditions(
            context=keys,
            history=read,
            table=rotary_table(both, self.frequencies),
            channel=channel,
            bias=bias,
            pooled=self._pooled(context, action),
            mean=mean,
            variance=variance,
        )
        return conditions if history is None else self._moved(conditions, history, target, context, action)

    def travelled(self, history: History, target: Target, pooled: Tensor | None) -> Tensor | None:
        """How far the camera comes in each frame of the block (`Camera.travelled`); None of a model that does not say so."""
        action = self._action(pooled)
        if self.flow is None or self.flow.odometer is None or action is None:
            return None
        sources = choose(history, self.config.block_latents, target.yaw, target.pitch)
        way = self.flow.odometer(action, sources.views, sources.places)
        return travelled(way, sources.views) * history.has_past[:, None, None]

    def _action(self, pooled: Tensor | None) -> Tensor | None:
        """[B, D] of the action's mean token, or of its encoding, [B, text_dim]."""
        known = self.action_embedding is not None and pooled is not None
        return self.action_embedding(pooled.to(self.dtype)) if known else None  # type: ignore[misc, union-attr]

    def _pooled(self, context: Tensor, action: Tensor | None) -> Tensor | None:
        """What joins the timestep embedding, [B, D]: the action [B, D] and the mean token of the text; None where neither does."""
        parts = [] if action is None else [action]
        if self.pooled_text is not None:
            parts.append(self.pooled_text(self._mean_text(context).to(self.dtype)))
        return torch.stack(parts).sum(dim=0) if parts else None

    def _mean_text(self, context: Tensor) -> Tensor:
        """[B, text_dim]: the mean token of the event's text."""
        return mean_token(context[:, : self.config.text.event_tokens])

    def _text_keys(self, context: Tensor) -> list[KeyValue | None]:
        """Keys and values of the text in every layer; None where there is no cross-attention."""
        if self.text_embedding is None:
            return [None] * len(self.blocks)
        text = self.text_embedding(context.to(self.dtype))
        return [layer.cross_attn.keys_values(text) if layer.cross_attn else None for layer in self.layers]

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

    def _encode(self, x: Tensor, table: Tensor, context: list[KeyValue | None], grids: list[Grid]) -> list[KeyValue]:
        """Cached history: its tokens attend to each other only, at noise level 0, once a block.

        With appearance flow, only the layers that do not see the noise read it: they are an encoder, and the others decode what it
        found out (DDT, arXiv 2504.05741)."""
        _, time = self._time(torch.zeros(x.shape[0], 1, device=x.device), None)
        readers = self.layers[: self.config.dit.output.flow_layer or None]
        pairs = []
        for block, key_value in zip(readers[:-1], context):
            x, pair = self._run(block, x, time, key_value, table, grids)
            pairs.append(pair)
        return [*pairs, readers[-1].keys_values(x, time, table)]

    def _time(self, timestep: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Head vector [B, n, D] and block vectors [B, n, 6, D], float32, of timesteps [B, n] in 0..1000."""
        embedded = self.time_embedding(sinusoid(timestep, self.config.dit.embedding.freq_dim))
        if pooled is not None:
            embedded = embedded + pooled[:, None]
        return embedded, self.time_projection(embedded).unflatten(-1, (6, -1))

    def _run(self, block: nn.Module, *args):
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _layers(
        self, tokens: Tensor, time: Tensor, conditions: Conditions, grids: list[Grid], numbers: range
    ) -> Tensor:
        """Layers of these numbers."""
        pairs, channel = conditions.history.pairs, conditions.channel
        for i in numbers:
            tokens, _ = self._run(
                self.blocks[i],
                tokens,
                time,
                conditions.context[i],
                conditions.table,
                grids,
                pairs[i] if i < len(pairs) else None,
                (channel.memory.total[i], channel.memory.norm[i]) if channel else None,
                channel.table if channel else None,
            )
        return tokens

    def _before_noise(
        self, conditions: Conditions, tokens: Tensor, history: History, target: Target
    ) -> tuple[Tensor, Sources]:
        """The block's tokens after the layers that do not see the noisy block, and what they say the displacements of."""
        c = self.config.dit
        grid: Grid = (target.frame.shape[1] // c.patch[0], *self._latent_rows(history))
        nothing = torch.ones(len(tokens), 1, device=tokens.device)
        _, time = self._time(1000 * nothing, conditions.pooled)
        tokens = self._layers(tokens, time, conditions, [grid], range(c.output.flow_layer))
        return tokens, choose(history, self.config.block_latents, target.yaw, target.pitch, target.told)

    def _moved(
        self, conditions: Conditions, history: History, target: Target, context: Tensor, action: Tensor | None
    ) -> Conditions:
        """`conditions` after the layers that do not see the noisy block: they say how earlier frames move (appearance_flow.py).
        What they found out, and the blended frames, are added to the block's tokens; predictions start from these."""
        if self.flow is None or conditions.mean is None or conditions.bias is None:
            return conditions
        tokens, sources = self._before_noise(conditions, conditions.bias, history, target)
        mean, moves = self.flow(tokens, sources, self._mean_text(context), action)
        if moves.camera is not None:  # a world that begins from a text has not come from anywhere
            come = moves.camera.travelled * history.has_past[:, None, None]
            moves = replace(moves, camera=replace(moves.camera, travelled=come))
        if self.config.dit.output.kept_size:
            mean = self.flow.bounded(mean)
        visible = self.flow.visible(moves.used) * history.has_past[:, None, None, None, None]
        conditions = replace(conditions, bias=tokens, mean=mean, moves=moves, visible=visible)
        if self.flow_embedding is not None:
            shown = torch.cat([mean, visible], dim=1).to(self.dtype)
            return replace(conditions, bias=tokens + self.flow_embedding(shown).flatten(2).transpose(1, 2))
        return replace(conditions, denoiser=self._read_by_denoiser(tokens, mean, visible, history, sources, context))

    def _read_by_denoiser(
        self, tokens: Tensor, mean: Tensor, visible: Tensor, history: History, sources: Sources, context: Tensor
    ) -> DenoiserConditions:
        """What a denoiser reads: moved frames, text, and what the layers found out about each latent place. That a text has just
        changed is the expert's concern, if there is one."""
        assert self.flow is not None and self.denoiser is not None and self.found is not None
        known = history.has_past
        read = self.denoiser.conditions(
            mean * known[:, None, None, None, None],
            visible,
            self.flow.pictures(sources.start[:, :, None])[:, 0],
            context[:, : self.config.text.event_tokens],
            self._mean_text(context) * known[:, None],
            torch.where(known, self.denoiser.settings.blocks, -1),
        )
        _, rows, columns = self.config.token_grid
        a, b = self.config.dit.patch[1:]
        found = rearrange(self.found(tokens), "B (h w) (a b D) -> B (h a w b) D", h=rows, w=columns, a=a, b=b)
        return replace(read, bias=read.bias + found)
