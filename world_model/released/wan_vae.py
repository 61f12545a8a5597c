"""Wan2.2's video autoencoder: diffusers' `AutoencoderKLWan` behind the protocol `vae.VideoVAE`, decoding as a stream.

Its decoder is causal and remembers, in front of every convolution in time, the last two frames that it has seen. Carrying these
from block to block makes every block of K latents exactly 4 K pictures, without the seams of a decoder that starts afresh.

Shapes: B videos, T frames, H x W pixels in -1..1, C latent channels, F latent frames, h x w latent size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from world_model.config import VAEConfig

REACH = 2  # frames that a causal convolution of three looks back

# of the released weights (Wan2.2, vae2_2.py); diffusers' folders carry the same numbers in their config.json
LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip

# names in Wan2.2_VAE.pth -> names in diffusers; applied one after the other, they leave diffusers' own names alone
_RENAMING = [
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"^(encoder|decoder)\.middle\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.middle\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.middle\.2\.", r"\1.mid_block.resnets.1."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\.", r".\1_blocks.\2.\1sampler.\3."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
]


def diffusers_name(name: str) -> str:
    """The diffusers name of a tensor of `Wan2.2_VAE.pth`; a diffusers name stays as it is."""
    for pattern, replacement in _RENAMING:
        name = re.sub(pattern, replacement, name)
    return name


def diffusers_config(config: VAEConfig) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan` for Wan2.2's autoencoder of these sizes."""
    return {
        "base_dim": config.width, "decoder_base_dim": config.decoder_width, "z_dim": config.latent_channels,
        "dim_mult": [1, 2, 4, 4], "num_res_blocks": config.depth, "attn_scales": [],
        "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
        "patch_size": 2, "scale_factor_temporal": config.temporal_stride, "scale_factor_spatial": config.spatial_stride,
        "latents_mean": list(LATENTS_MEAN), "latents_std": list(LATENTS_STD),
    }  # fmt: skip


class WanVAE(nn.Module):
    """Wan2.2's autoencoder; `model` is diffusers' and may be kept in any precision: latents and pictures are float32.

    Needs diffusers (``pip install 'yume-gym[yume-5b]'``); raises ImportError without it, ValueError for other strides.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: VAEConfig) -> None:
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise ImportError(
                "Wan2.2's autoencoder needs the package diffusers: pip install 'yume-gym[yume-5b]'"
            ) from error
        super().__init__()
        if (config.spatial_stride, config.temporal_stride) != (16, 4):
            raise ValueError(f"Wan2.2's autoencoder has strides of 16 pixels and 4 frames, got {config}")
        self.config = config
        self.model = AutoencoderKLWan(**diffusers_config(config))
        for name, values in (("mean", LATENTS_MEAN), ("scale", LATENTS_STD)):
            # constants, not weights: real numbers even where the module is built on the meta device
            constant = torch.tensor(values[: config.latent_channels], device="cpu").view(1, -1, 1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def encode_clip(self, video: Tensor) -> Tensor:
        """[B, 3, 1 + 4 n, H, W] in -1..1 -> [B, C, 1 + n, h, w]: the first picture alone, then four to a latent, as Wan has it.

        Pictures after the last whole four are ignored. Raises ValueError for a size that is no multiple of the stride.
        """
        stride = self.config.spatial_stride
        if video.shape[-2] % stride or video.shape[-1] % stride or video.shape[2] < 1:
            raise ValueError(
                f"a video must be a multiple of {stride} pixels on each side and have a frame, got {tuple(video.shape)}"
            )
        latents = self.model.encode(video.to(self.model.dtype)).latent_dist.mode()
        return (latents.float() - self.mean) / self.scale

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 4 F, H, W] in -1..1 -> [B, C, F, h, w]: latent number i ends with frame 4 i + 3, as `decode` gives it back.

        The very first latent holds one picture only: frame 3. Raises ValueError unless T is a multiple of 4.
        """
        stride = self.config.temporal_stride
        if video.shape[2] % stride or not video.shape[2]:
            raise ValueError(f"a video must be a multiple of {stride} frames, got {tuple(video.shape)}")
        return self.encode_clip(video[:, :, stride - 1 :])

    def encode_stream(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents of stretches [B, 3, 4 n, H, W] of one long video, one after another: together those of `encode` of all of it.

        Memory does not grow with the length: the encoder carries the frames in front of its convolutions in time.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        model, stride = self.model, self.config.temporal_stride
        memory: list[Any] = [None] * len(list(model.encoder.modules()))
        for number, video in enumerate(videos):
            pixels = patchify(video.to(model.dtype), patch_size=2)
            parts = list(pixels.split(stride, dim=2))
            if number == 0:
                parts[0] = parts[0][:, :, -1:]  # the very first latent holds one picture
            hidden = [model.encoder(part, feat_cache=memory, feat_idx=[0]) for part in parts]
            mean = model.quant_conv(torch.cat(hidden, dim=2)).chunk(2, dim=1)[0]
            yield (mean.float() - self.mean) / self.scale

    def decode(self, latents: Tensor, cache: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, C, F, h, w] -> pictures [B, 3, 4 F, H, W] in -1..1 float32, and the cache that continues the stream.

        At the start of a stream (no cache) the first latent is one picture; it stands still for the four frames.
        """
        model, videos = self.model, []
        memory: list[Any] = list(cache) if cache else [None] * len(list(model.decoder.modules()))
        started = bool(cache)
        for frame in model.post_quant_conv((latents * self.scale + self.mean).to(model.dtype)).split(1, dim=2):
            video = model.decoder(frame, feat_cache=memory, feat_idx=[0], first_chunk=not started)
            if not started:
                memory, started = _whole(memory), True
                video = video.expand(-1, -1, self.config.temporal_stride, -1, -1)
            videos.append(video)
        pixels = rearrange(torch.cat(videos, dim=2), "B (c q p) T h w -> B c T (h p) (w q)", p=2, q=2)
        return pixels.float().clamp(-1, 1), tuple(memory)


def _whole(memory: list[Any]) -> list[Tensor]:
    """What the decoder remembers after its first frame, as one kind of thing: [B, channels, 2, rows, columns] everywhere.

    diffusers then holds one frame, or the word "Rep" where a doubling of frames has yet to begin; zeros in front mean the same
    to a convolution that pads with zeros. Entries it never uses are left out.
    """
    filled: list[Tensor] = []
    for entry in memory:
        if entry is None:
            break
        if isinstance(entry, str):
            filled.append(torch.zeros_like(filled[-1]))
        else:
            padding = (0, 0, 0, 0, REACH - entry.shape[2], 0)
            filled.append(torch.nn.functional.pad(entry, padding))
    return filled
