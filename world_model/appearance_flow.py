"""Appearance flow: the newest picture, moved place by place as the network says (Zhou et al. 2016, arXiv 1605.03557; Finn et al.
2016, arXiv 1605.07157).

A camera that turns moves every pixel, and a paddle moves a few. The network says from where in the newest picture each place of
the next ones comes. Nothing about cameras is built in: displacements are learnt from recordings, like everything else.
Latents of `PatchVAE` are linear in pixels, so that pictures are moved between its linear decoder and encoder.

Shapes: B worlds, L tokens, D width, C latent channels, K latent frames of a block, h x w latent size, H x W pixels, s = H / h.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.layers import FloatLinear
from world_model.vae import PatchVAE

CELLS = 2  # displacements along each side of a latent place
SCALES = (1, 2, 4, 8)  # pixels: sizes at which a moved picture is compared


class AppearanceFlow(nn.Module):
    """Displacements from tokens, and the newest latent frame moved by them. A fresh one moves nothing."""

    encode: Tensor
    encode_bias: Tensor
    decode: Tensor
    decode_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, stride = config.dit, config.vae.spatial_stride
        if config.vae.kind != "patch" or config.vae.temporal_stride != 1:
            raise ValueError(
                f"{config.name}: appearance flow needs latents that are linear in the pixels of single pictures: autoencoder "
                f"'patch' with a temporal stride of 1"
            )
        self.stride, self.patch = stride, c.patch
        self.displacement = FloatLinear(c.dim, math.prod(c.patch) * CELLS**2 * 2)
        pixels = 3 * stride**2
        self.register_buffer("encode", torch.eye(c.latent_channels, pixels))
        self.register_buffer("encode_bias", torch.zeros(c.latent_channels))
        self.register_buffer("decode", torch.eye(pixels, c.latent_channels))
        self.register_buffer("decode_bias", torch.zeros(pixels))
        nn.init.zeros_(self.displacement.weight)

    @torch.no_grad()
    def read_autoencoder(self, vae: PatchVAE) -> None:
        """Takes over the linear encoder and decoder, normalisation included."""
        self.encode.copy_(vae.to_latent.weight / vae.scale[:, None])
        self.encode_bias.copy_((vae.to_latent.bias - vae.mean) / vae.scale)
        self.decode.copy_(vae.to_pixels.weight * vae.scale)
        self.decode_bias.copy_(vae.to_pixels.bias + vae.to_pixels.weight @ vae.mean)

    def forward(self, tokens: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, L, D] of the block, newest [B, C, h, w] -> the moved frame [B, C, K, h, w], and displacements in pixels
        [B, K, 2 (x, y), CELLS * h, CELLS * w]: where each place comes from, relative to itself.

        Latents of the moved frame stay within those of the newest one, channel by channel."""
        p = self.patch
        with torch.autocast(tokens.device.type, enabled=False):
            raw = self.displacement(tokens.float())
        rows, columns = newest.shape[-2] // p[1], newest.shape[-1] // p[2]
        flow = rearrange(
            raw, "B (F h w) (p a b d) -> B (F p) d (h a) (w b)", h=rows, w=columns, p=p[0], a=CELLS * p[1], d=2
        )
        moved = self.latents(move(self.pictures(newest[:, :, None])[:, 0], flow, 1))
        # half-moved pixels may need components that pictures of this world hardly have, where latents would be huge
        least, most = (bound(newest.float(), (-2, -1))[:, :, None, None, None] for bound in (torch.amin, torch.amax))
        return moved.clamp(least, most), flow

    def pictures(self, latents: Tensor) -> Tensor:
        """[B, C, F, h, w] -> [B, F, 3, H, W], about -1..1, by the linear decoder."""
        with torch.autocast(latents.device.type, enabled=False):
            pixels = F.linear(latents.float().movedim(1, -1), self.decode, self.decode_bias)
        return rearrange(pixels, "B F h w (c p q) -> B F c (h p) (w q)", p=self.stride, q=self.stride)

    def latents(self, pictures: Tensor) -> Tensor:
        """The inverse of `pictures`."""
        patches = rearrange(pictures, "B F c (h p) (w q) -> B F h w (c p q)", p=self.stride, q=self.stride)
        with torch.autocast(pictures.device.type, enabled=False):
            return F.linear(patches, self.encode, self.encode_bias).movedim(-1, 1)

    def loss(self, flow: Tensor, newest: Tensor, data: Tensor) -> Tensor:
        """Mean absolute difference between the newest frame, moved by `flow`, and the true block `data` [B, C, K, h, w], at
        several sizes of pixels: large displacements are learnt from coarse pictures."""
        source, target = self.pictures(newest[:, :, None])[:, 0], self.pictures(data)
        total = flow.new_zeros(())
        for scale in SCALES:
            small = F.avg_pool2d(source, scale)
            wanted = F.avg_pool2d(target.flatten(0, 1), scale).unflatten(0, target.shape[:2])
            total = total + (move(small, flow, scale) - wanted).abs().mean()
        return total / len(SCALES)


def move(picture: Tensor, flow: Tensor, scale: int) -> Tensor:
    """Pictures [B, 3, H, W] whose pixels are `scale` pixels wide, looked up at displacements [B, K, 2, rows, columns] in pixels of
    scale 1 -> [B, K, 3, H, W]. Beyond the border there is its colour."""
    worlds, frames = flow.shape[:2]
    height, width = picture.shape[-2:]
    fine = F.interpolate(flow.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False)
    y, x = (torch.arange(n, device=flow.device, dtype=fine.dtype) + 0.5 for n in (height, width))
    place = torch.stack([x.expand(height, -1) + fine[:, 0] / scale, y[:, None] + fine[:, 1] / scale], dim=-1)
    grid = place * place.new_tensor([2 / width, 2 / height]) - 1
    grid = rearrange(grid, "(B K) H W d -> B (K H) W d", B=worlds)
    moved = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(moved, "B c (K H) W -> B K c H W", K=frames)
