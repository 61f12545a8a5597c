"""One layer of the DiT, and its head. Shapes: B worlds, L tokens, D width, H heads, d = D / H."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.layers import (
    Attention,
    ConvMLP,
    FloatLinear,
    KeyValue,
    RMSNorm,
    linear_read,
    linear_sums,
    modulate,
    rotate,
)

Grid = tuple[int, int, int]  # frames, rows, columns of tokens


class ChannelAttention(nn.Module):
    """Predicted tokens read all history through ReLU linear attention (eq. 5-6); `up` starts at zero."""

    def __init__(self, dim: int, channel_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.down, self.up = nn.Linear(dim, channel_dim), nn.Linear(channel_dim, dim)
        self.q, self.k, self.v = (nn.Linear(channel_dim, channel_dim) for _ in range(3))
        self.norm_q, self.norm_k, self.norm_out = (RMSNorm(channel_dim, eps) for _ in range(3))

    def keys_values(self, z: Tensor) -> KeyValue:
        key, value = self.norm_k(self.k(z)).relu(), self.v(z)
        return tuple(rearrange(t, "B L (H d) -> B H L d", H=self.heads) for t in (key, value))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor], table: Tensor) -> Tensor:
        z = self.down(x)
        query = rearrange(self.norm_q(self.q(z)).relu(), "B L (H d) -> B H L d", H=self.heads)
        total, norm = linear_sums(*self.keys_values(z), table)
        out = linear_read(query, (past[0] + total, past[1] + norm), table)
        return self.up(self.norm_out(rearrange(out, "B H L d -> B L (H d)").to(x.dtype)))


class Block(nn.Module):
    """Self-attention, cross-attention, channel attention, feed-forward; six AdaLN vectors (shift, scale, gate, twice)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, layer, channel = config.dit, config.dit.layer, config.dit.history.channel
        self.eps = layer.eps
        self.self_attn = Attention(c.dim, c.heads, layer.eps)
        self.cross_attn = Attention(c.dim, c.heads, layer.eps) if c.text_dim else None
        self.norm3 = nn.LayerNorm(c.dim, eps=layer.eps) if c.text_dim else None
        self.channel = ChannelAttention(c.dim, channel.dim, channel.heads, layer.eps) if channel else None
        self.ffn = ConvMLP(c.dim, layer.ffn_dim, layer.mlp_conv, layer.activation)
        self.modulation = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)
        with torch.no_grad():
            self.modulation[:, [2, 5]] += (
                1.0  # open gates: a fresh model that starts nearly closed learns several times slower
            )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: KeyValue | None,
        table: Tensor,
        grids: list[Grid],
        past: KeyValue | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_table: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x [B, L, D], time [B, L or 1, 6, D]; returns x and this layer's rotated keys and values.

        `past` is attended to besides x. `memory` is read by the last tokens only, as many as `memory_table` has.
        """
        v = (self.modulation[:, None] + time).unbind(2)
        normed = modulate(x, v[0], v[1], self.eps)
        query = rotate(self.self_attn.queries(normed), table)
        key, value = self._keys_values(normed, table)
        seen = (key, value) if past is None else (torch.cat([past[0], key], 2), torch.cat([past[1], value], 2))
        x = torch.addcmul(x, self.self_attn.attend(query, seen), v[2].to(x.dtype))
        if self.cross_attn is not None and self.norm3 is not None and context is not None:
            x = x + self.cross_attn.attend(self.cross_attn.queries(self.norm3(x)), context)
        if self.channel is not None and memory is not None and memory_table is not None:
            own = x.shape[1] - memory_table.shape[-2]
            read = self.channel(x[:, own:], memory, memory_table)
            x = x + (F.pad(read, (0, 0, own, 0)) if own else read)
        x = torch.addcmul(x, self.ffn(modulate(x, v[3], v[4], self.eps), grids), v[5].to(x.dtype))
        return x, (key, value)

    def keys_values(self, x: Tensor, time: Tensor, table: Tensor) -> KeyValue:
        """What `forward` returns second, and nothing else of it: all that others need of the last layer's history."""
        v = (self.modulation[:, None] + time).unbind(2)
        return self._keys_values(modulate(x, v[0], v[1], self.eps), table)

    def _keys_values(self, normed: Tensor, table: Tensor) -> KeyValue:
        key, value = self.self_attn.keys_values(normed)
        return rotate(key, table), value


class Head(nn.Module):
    """AdaLN and the projection back to latent patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.dit
        self.eps = c.layer.eps
        self.head = FloatLinear(c.dim, c.latent_channels * c.patch[0] * c.patch[1] * c.patch[2])
        self.modulation = nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)

    def normed(self, x: Tensor, time: Tensor) -> Tensor:
        """What the projection `head` reads: x [B, L, D] after AdaLN with time [B, L or 1, D]."""
        shift, scale = (self.modulation[:, None] + time[:, :, None]).unbind(2)
        return modulate(x, shift, scale, self.eps)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.head(self.normed(x, time))


def unpatch(tokens: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """Latent patches [B, L, p q r C] of a grid of tokens, put together: [B, C, F p, h q, w r]."""
    p, q, r = patch
    return rearrange(tokens, "B (F h w) (p q r C) -> B C (F p) (h q) (w r)", F=grid[0], h=grid[1], p=p, q=q, r=r)
