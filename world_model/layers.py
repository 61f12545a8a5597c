"""Building blocks of the DiT. Shapes: B batch, L tokens, D width, H heads, d = D / H, N context tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.camera import CameraConfig

KeyValue = tuple[Tensor, Tensor]  # each [B, H, L, d]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, computed in float32 (Wan's qk norm)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        power = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        return (wide * torch.rsqrt(power + self.eps)).to(x.dtype) * self.weight.to(x.dtype)


class FloatLinear(nn.Linear):
    """A linear layer computed in float32 whatever its weights are kept in: Wan's time embedding and its output."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without affine, in float32, then AdaLN's scale and shift."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift.to(normed.dtype), normed, 1 + scale.to(normed.dtype)).to(x.dtype)


def sinusoid(position: Tensor, dim: int) -> Tensor:
    """[..., dim] float32: cosines, then sines, base 10000, computed in float64 (Wan's timestep embedding)."""
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=position.device) / half)
    angle = position.double()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


# ---- rotary positions -------------------------------------------------------------------------------------------------


# frequencies are constants, not weights: real numbers even where a network is built on the meta device
_PLACE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def axis_frequencies(head_dim: int, positions: str) -> list[Tensor]:
    """Rotary frequencies of the three axes, [pairs of that axis] float64 each; pairs sum to head_dim / 2.

    "grid" and "centred": Wan's split (frame, row, column), base 10000. "view_sphere": frames, and angles in radians for elevation
    and azimuth; azimuth frequencies are whole numbers, so that a full turn comes back to itself.
    """
    spatial = 2 * (head_dim // 6)
    temporal = head_dim - 2 * spatial
    if positions in ("grid", "centred"):
        return [10000.0 ** (-torch.arange(0, n, 2, **_PLACE) / n) for n in (temporal, spatial, spatial)]
    angular = torch.logspace(0, 1, spatial // 2, base=24.0, **_PLACE).round()  # 24 / radian: two 7.5 degree tokens
    return [torch.logspace(0, -1, temporal // 2, base=40.0, **_PLACE) * 1.5, angular, angular]


def rotary_table(coordinates: Tensor, frequencies: list[Tensor]) -> Tensor:
    """[B, 1, L, d/2] complex64 rotations of coordinates [B, L, 3] float64 (frame, row or elevation, column or azimuth)."""
    angle = torch.cat([coordinates[..., i, None] * f.to(coordinates.device) for i, f in enumerate(frequencies)], dim=-1)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[:, None]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Applies rotary positions to interleaved pairs: x [B, H, L, d], table [B, 1, L, d/2] complex64."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def view_directions(
    yaw: Tensor,
    pitch: Tensor,
    rows: int,
    columns: int,
    row_stride: float,
    column_stride: float,
    size: tuple[int, int],
    camera: CameraConfig,
) -> Tensor:
    """Where the centres of a token grid look: [B, F, rows, columns, 2] (elevation up, azimuth right), radians.

    yaw, pitch: [B, F] of the camera. Strides are a token's size in pixels; size is the picture's (height, width).
    """
    focal = camera.focal(size[1])
    y = (torch.arange(rows, dtype=torch.float64, device=yaw.device) + 0.5) * row_stride - size[0] / 2
    x = (torch.arange(columns, dtype=torch.float64, device=yaw.device) + 0.5) * column_stride - size[1] / 2
    up, right = torch.meshgrid(-y / focal, x / focal, indexing="ij")
    cos, sin = pitch.double().cos()[..., None, None], pitch.double().sin()[..., None, None]
    forward = cos - sin * up
    elevation = torch.atan2(sin + cos * up, torch.hypot(forward, right.expand_as(forward)))
    azimuth = yaw.double()[..., None, None] + torch.atan2(right.expand_as(forward), forward)
    return torch.stack([elevation, azimuth], dim=-1)


# ---- attention --------------------------------------------------------------------------------------------------------


CACHED_SCORES = 1_500_000  # attention scores of a part: 3 MB in bfloat16, about a core's cache


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention: query [B, H, L, d], key and value [B, H, N, d] -> [B, H, L, d].

    In bfloat16 training on a CPU, torch's fused kernel spends most of the time in its backward pass. There worlds are attended
    to in parts whose scores fit the cache, by plain products.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value)
    worlds = max(1, CACHED_SCORES // (query.shape[1] * query.shape[2] * key.shape[2]))
    query = query * query.shape[-1] ** -0.5
    parts = zip(query.split(worlds), key.split(worlds), value.split(worlds), strict=True)
    return torch.cat([(q @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v for q, k, v in parts])


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys; names are Wan's."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def queries(self, x: Tensor) -> Tensor:
        return rearrange(self.norm_q(self.q(x)), "B L (H d) -> B H L d", H=self.heads)

    def keys_values(self, x: Tensor) -> KeyValue:
        key = rearrange(self.norm_k(self.k(x)), "B L (H d) -> B H L d", H=self.heads)
        return key, rearrange(self.v(x), "B L (H d) -> B H L d", H=self.heads)

    def attend(self, query: Tensor, key_value: KeyValue) -> Tensor:
        key, value = key_value
        out = attention(query, key, value)
        return self.o(rearrange(out, "B H L d -> B L (H d)"))


class ReLUSquared(nn.Module):
    """max(x, 0)^2 (Primer, arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        positive = x.relu()
        return positive * positive


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu_squared": ReLUSquared,
}


class ConvMLP(nn.Sequential):
    """Linear, activation, Linear: Wan's feed-forward, names `0` and `2`; optionally a depthwise 3x3 convolution in between.

    The convolution starts as the identity and runs over each group's own (frames, rows, columns) grid.
    """

    def __init__(self, dim: int, hidden: int, conv: bool, activation: str = "gelu_tanh") -> None:
        super().__init__(nn.Linear(dim, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, dim))
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        if self.conv is not None:
            nn.init.dirac_(self.conv.weight, groups=hidden)
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:  # type: ignore[override]
        x = self[0](x)
        if self.conv is not None and len(grids) == 1:
            x = _convolve(self.conv, x, grids[0])
        elif self.conv is not None:
            parts = x.split([f * h * w for f, h, w in grids], dim=1)
            x = torch.cat([_convolve(self.conv, part, grid) for part, grid in zip(parts, grids)], dim=1)
        return self[2](self[1](x))


def _convolve(conv: nn.Conv2d, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """`conv` over the pictures of tokens [B, F h w, D] on a grid (F, h, w)."""
    frames, rows, columns = grid
    picture = rearrange(x, "B (F h w) D -> (B F) D h w", F=frames, h=rows, w=columns)
    return rearrange(conv(picture), "(B F) D h w -> B (F h w) D", F=frames)


# ---- ReLU linear attention (channel half of TSCM) ---------------------------------------------------------------------


def linear_sums(key: Tensor, value: Tensor, table: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """S = sum rope(k) v^T [B, H, d, d] and Z = sum k [B, H, d] in float32; `weight` [B, L] scales each token."""
    key, value = key.float(), value.float()
    if weight is not None:
        key = key * weight[:, None, :, None]
    return rotate(key, table).transpose(-1, -2) @ value, key.sum(dim=-2)


def linear_read(query: Tensor, sums: tuple[Tensor, Tensor], table: Tensor, eps: float = 1e-6) -> Tensor:
    """rope(q) S / (q Z + eps): [B, H, L, d] float32. Numerator rotated, denominator not, so that it stays positive."""
    total, norm = sums
    query = query.float()
    return (rotate(query, table) @ total) / (query @ norm[..., None] + eps)
