"""Video autoencoders: one protocol, the small one of our own, and the table of all (`wan_vae` holds Wan2.2's).

Shapes: B videos, T frames, H x W pixels in -1..1, C latent channels, F = T / temporal_stride latent frames, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.config import VAEConfig
from world_model.released.wan_vae import WanVAE

DecoderCache = tuple[Tensor, ...]


class VideoVAE(Protocol):
    """What a world model needs of an autoencoder; latents are normalised to about unit variance."""

    config: VAEConfig

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] in -1..1 -> [B, C, F, h, w]; T a multiple of the temporal stride."""
        ...

    def encode_stream(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        """The latents of a long video that comes in stretches, one after another: together those of `encode` of all at once."""
        ...

    def decode(self, latents: Tensor, cache: DecoderCache | None = None) -> tuple[Tensor, DecoderCache]:
        """[B, C, F, h, w] -> video [B, 3, F * temporal_stride, H, W] in -1..1, and the cache that continues the stream.

        Causal: decoding block after block with the cache equals decoding everything at once.
        """
        ...


class PlaceNorm(nn.Module):
    """Zero mean and unit variance over the channels of each place of [N, channels, rows, columns]; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with ReLU, residual; starts as the identity. On [N, channels, rows, columns].

    normalised: the convolutions see each place with unit variance over its channels. What a row of such blocks adds grows with
    their number, not with its power.
    """

    def __init__(self, channels: int, normalised: bool = False) -> None:
        super().__init__()
        self.norm = PlaceNorm() if normalised else nn.Identity()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(self.norm(x)))))


class CausalTime(nn.Module):
    """Each place looks back over two frames: x + conv over (t-2, t-1, t); starts as the identity. On [B, F, channels, h, w]."""

    reach = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(channels, channels, (self.reach + 1, 1, 1))
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the mixed frames and the frames to hand to the next call; without a past the first frame stands still before."""
        past = x[:, :1].expand(-1, self.reach, -1, -1, -1) if past is None else past
        seen = torch.cat([past, x], dim=1)
        mixed = self.mix(seen.transpose(1, 2)).transpose(1, 2)
        return x + F.relu(mixed), seen[:, -self.reach :]


class PatchVAE(nn.Module):
    """The small autoencoder: a linear patch transform (a PCA), and convolutions of `config.width` that repair what it loses when
    decoding (0: none).

    The linear part alone is an autoencoder: `fit_linear` sets it from patch statistics, and the convolutional branch of the
    decoder starts at zero. Encoding looks at each latent frame's own pixels only and never changes with the decoder's training;
    decoding looks back over two latent frames.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        s, t, c, width = config.spatial_stride, config.temporal_stride, config.latent_channels, config.width
        if s != 8:
            raise ValueError(f"PatchVAE has a spatial stride of 8, got {s}")
        pixels = 3 * t * s * s
        self.to_latent, self.to_pixels = nn.Linear(pixels, c), nn.Linear(c, pixels)
        self.decoder = self._convolutions(width, config.depth, 3 * t * (s // 2) ** 2) if width else None
        self.decoder_in = nn.Conv2d(c, width, 3, padding=1) if width else None
        self.decoder_time = CausalTime(width) if width else None
        self.register_buffer("mean", torch.zeros(c))
        self.register_buffer("scale", torch.ones(c))

    @staticmethod
    def _convolutions(width: int, depth: int, outputs: int) -> nn.Sequential:
        """From latents' size to twice as fine, where each place says its pixels; the last layer starts at zero."""
        half = max(width // 2, 4)
        layers = nn.Sequential(
            *(ResBlock(width) for _ in range(depth)),
            nn.Conv2d(width, 4 * half, 1),
            nn.PixelShuffle(2),
            *(ResBlock(half) for _ in range(depth)),
            nn.ReLU(),
            nn.Conv2d(half, outputs, 3, padding=1),
        )
        for parameter in layers[-1].parameters():
            nn.init.zeros_(parameter)
        return layers

    def _patches(self, video: Tensor) -> Tensor:
        t, s = self.config.temporal_stride, self.config.spatial_stride
        if video.shape[2] % t or video.shape[3] % s or video.shape[4] % s:
            raise ValueError(
                f"a video must be a multiple of {t} frames and {s} pixels on each side, got {tuple(video.shape)}"
            )
        return rearrange(video, "B c (F t) (h p) (w q) -> B F h w (c t p q)", t=t, p=s, q=s)

    def encode_raw(self, video: Tensor) -> Tensor:
        """Latents before normalisation."""
        return rearrange(self.to_latent(self._patches(video)), "B F h w C -> B C F h w")

    def decode_raw(self, latents: Tensor, cache: DecoderCache | None = None) -> tuple[Tensor, DecoderCache]:
        """The inverse of `encode_raw`; not clamped."""
        t, s = self.config.temporal_stride, self.config.spatial_stride
        shortcut = self.to_pixels(rearrange(latents, "B C F h w -> B F h w C"))
        shortcut = rearrange(shortcut, "B F h w (c t p q) -> B c (F t) (h p) (w q)", t=t, p=s, q=s)
        if self.decoder is None or self.decoder_in is None or self.decoder_time is None:
            return shortcut, ()
        frames = rearrange(latents, "B C F h w -> (B F) C h w")
        hidden = self.decoder_in(frames).unflatten(0, (latents.shape[0], latents.shape[2]))
        hidden, past = self.decoder_time(hidden, cache[0] if cache else None)
        fine = self.decoder(hidden.flatten(0, 1))
        fine = rearrange(
            fine, "(B F) (c t p q) h w -> B c (F t) (h p) (w q)", B=latents.shape[0], t=t, p=s // 2, q=s // 2
        )
        return shortcut + fine, (past,)

    def encode(self, video: Tensor) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        return (self.encode_raw(video) - self.mean.view(shape)) / self.scale.view(shape)

    def encode_stream(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(self.encode, videos)  # a latent frame looks at its own pictures only

    def decode(self, latents: Tensor, cache: DecoderCache | None = None) -> tuple[Tensor, DecoderCache]:
        shape = (1, -1, 1, 1, 1)
        video, cache = self.decode_raw(latents * self.scale.view(shape) + self.mean.view(shape), cache)
        return video.clamp(-1, 1), cache

    @torch.no_grad()
    def fit_linear(self, videos: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sets the linear shortcut to the PCA of the patches of `videos`; returns the components' standard deviations [C].

        weights [B, F, h, w]: how much each patch counts. Small things that move are little of all variance: without more weight
        a PCA drops them.
        """
        patches = self._patches(videos).flatten(0, -2).double()
        share = patches.new_ones(len(patches), 1) if weights is None else weights.double().flatten()[:, None]
        share = share / share.mean()
        mean = (share * patches).mean(dim=0)
        variance, basis = torch.linalg.eigh((patches - mean).T @ (share * (patches - mean)) / len(patches))
        order = variance.argsort(descending=True)[: self.config.latent_channels]
        components = basis[:, order].T.float()
        self.to_latent.weight.copy_(components)
        self.to_latent.bias.copy_(-components @ mean.float())
        self.to_pixels.weight.copy_(components.T)
        self.to_pixels.bias.copy_(mean.float())
        return variance[order].clamp(min=0).sqrt().float()

    @torch.no_grad()
    def normalise(self, raw: Tensor, softness: float = 0.5) -> None:
        """Sets mean and scale from raw latents [B, C, F, h, w]: a channel of deviation s is divided by s**softness.

        1 whitens; below, strong channels stay stronger (a softened spectrum), and the mean variance is 1.
        """
        deviation = raw.transpose(0, 1).flatten(1).std(dim=1).clamp(min=1e-4)
        scale = deviation**softness
        scale = scale * ((deviation / scale) ** 2).mean().sqrt()
        self.mean.copy_(raw.transpose(0, 1).flatten(1).mean(dim=1))
        self.scale.copy_(scale)


Autoencoder = PatchVAE | WanVAE
VAES: dict[str, type[PatchVAE] | type[WanVAE]] = {"patch": PatchVAE, "wan2.2": WanVAE}


def build_vae(config: VAEConfig) -> Autoencoder:
    """The autoencoder a config names, with fresh weights. Raises NotImplementedError for a kind that cannot be built here."""
    if config.kind not in VAES:
        raise NotImplementedError(
            f"autoencoder {config.kind!r} is not available in this version: known kinds are {', '.join(VAES)}"
        )
    return VAES[config.kind](config)
