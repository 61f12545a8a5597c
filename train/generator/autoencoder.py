"""The autoencoder of a recording: a PCA of picture patches as encoder, and convolutions that repair its losses as decoder.

Patches that change from picture to picture weigh more in the PCA: a ball is little of all variance, and all of the game.
Shapes: B clips, T pictures of a clip, H x W pixels, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.evaluation.sheet import to_video
from train.recordings import EpisodeFiles
from world_model.config import ModelConfig
from world_model.vae import PatchVAE

CHANGED = 0.004  # mean change of a patch, of -1..1, from which it counts as changed: half a grey level


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 16  # clips a step
    latent_frames: int = 3  # of a clip
    clips: int = 1500  # that the PCA is fitted to
    moving: float = 10.0  # additional weight of a changed patch
    lr: float = 1e-3
    warmup: int = 50  # steps
    cooldown: float = 0.4  # last share of the run over which the learning rate falls
    # deviation of the noise on normalised latents: the decoder forgives a generator's errors
    latent_noise: float = 0.05
    ema: float = 0.998
    seed: int = 0


class Clips:
    """Random short clips of the given episodes."""

    def __init__(self, files: EpisodeFiles, episodes: Sequence[int], frames: int) -> None:
        counts = [files.recording.frames_of(int(files.lengths[e])) for e in episodes]
        self._files, self._frames = files, frames
        self._long = [(e, count) for e, count in zip(episodes, counts) if count >= frames]
        if not self._long:
            raise ValueError(f"no episode of {files.folder} has {frames} pictures: record longer ones")
        self._share = np.array([count for _, count in self._long], dtype=np.float64)
        self._share /= self._share.sum()

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """[count, 3, T, H, W] in -1..1, uniform over all pictures."""
        clips = []
        for number in rng.choice(len(self._long), size=count, p=self._share):
            episode, length = self._long[number]
            start = int(rng.integers(length - self._frames + 1))
            clips.append(self._files.frames(episode, start, start + self._frames))
        return to_video(np.stack(clips))


def moving_weight(clips: Tensor, config: ModelConfig, moving: float) -> tuple[Tensor, Tensor]:
    """Of clips [B, 3, t + T, H, W], where t is the temporal stride: the pictures but the first t, and weights [B, F, h, w] of their
    patches, 1 where nothing changed since t pictures before and 1 + `moving` elsewhere."""
    t, s = config.vae.temporal_stride, config.vae.spatial_stride
    change = (clips[:, :, t:] - clips[:, :, :-t]).abs().mean(dim=1, keepdim=True)
    changed = F.avg_pool3d(change, (t, s, s))[:, 0] > CHANGED
    return clips[:, :, t:], 1 + moving * changed.float()


def fit_pca(vae: PatchVAE, config: ModelConfig, clips: Clips, settings: Settings) -> None:
    """Sets encoder, linear decoder and normalisation from clips of two latent frames."""
    rng = np.random.default_rng((settings.seed, 0))
    pictures, weights = moving_weight(clips.draw(settings.clips, rng), config, settings.moving)
    vae.fit_linear(pictures, weights)
    with torch.no_grad():
        vae.normalise(vae.encode_raw(pictures))
    vae.to_latent.requires_grad_(False)  # latents are settled before the decoder's convolutions are trained


def decoder_loss(vae: PatchVAE, config: ModelConfig, clips: Tensor, settings: Settings, noise: Tensor) -> Tensor:
    """L1 of pixels and of picture gradients and a little squared error; patches that changed weigh more. noise: like latents."""
    pictures, weights = moving_weight(clips, config, settings.moving)
    weights = weights / weights.mean()
    with torch.no_grad():
        raw = vae.encode_raw(pictures) + settings.latent_noise * vae.scale.view(1, -1, 1, 1, 1) * noise
    decoded, _ = vae.decode_raw(raw)
    t, s = config.vae.temporal_stride, config.vae.spatial_stride
    fine = weights.repeat_interleave(t, 1).repeat_interleave(s, 2).repeat_interleave(s, 3)[:, None]
    difference = decoded - pictures
    edges = sum((difference.diff(dim=d).abs() * fine.narrow(d, 1, fine.shape[d] - 1)).mean() for d in (-1, -2))
    return (fine * (difference.abs() + difference.square())).mean() + edges
