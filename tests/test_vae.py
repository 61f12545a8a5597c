"""The small autoencoder: streaming, its PCA start, and normalised latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from world_model.config import ModelConfig, VAEConfig
from world_model.vae import build_vae


def strided(config: ModelConfig, temporal_stride: int) -> ModelConfig:
    return replace(config, vae=replace(config.vae, temporal_stride=temporal_stride))


def latents_of(config: ModelConfig, frames: int, seed: int = 0) -> Tensor:
    shape = (2, config.vae.latent_channels, frames, *config.latent_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def patches(video: Tensor, t: int) -> np.ndarray:
    """Rows of (colour, frame, row, column) values of t x 8 x 8 patches, cut by hand."""
    _, _, frames, height, width = video.shape
    cut = [
        video[:, :, f : f + t, y : y + 8, x : x + 8].flatten(1)
        for f in range(0, frames, t)
        for y in range(0, height, 8)
        for x in range(0, width, 8)
    ]
    return torch.cat(cut).double().numpy()


# ---- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("blocks", [[2, 2, 2], [1, 1, 1, 1, 1, 1], [1, 3, 2], [5, 1]])
@torch.no_grad()
def test_decoding_block_by_block_equals_decoding_at_once(stride, blocks, config, make_vae):
    config = strided(config, stride)
    vae, latents = make_vae(config), latents_of(config, 6)
    whole, _ = vae.decode_raw(latents)
    cache, videos = None, []
    for part in latents.split(blocks, dim=2):
        video, cache = vae.decode_raw(part, cache)
        assert video.shape == (2, 3, part.shape[2] * stride, config.height, config.width)
        videos.append(video)
    torch.testing.assert_close(torch.cat(videos, dim=2), whole, atol=1e-5, rtol=1e-5)
    restarted = torch.cat([vae.decode_raw(part)[0] for part in latents.split(blocks, dim=2)], dim=2)
    assert not torch.allclose(restarted, whole, atol=1e-3)  # without the cache there would be seams


@torch.no_grad()
def test_decoding_looks_back_two_frames_and_never_ahead(config, make_vae):
    vae, latents = make_vae(config), latents_of(config, 6)
    changed = latents.clone()
    changed[:, :, 2] += 1
    moved = (vae.decode_raw(changed)[0] - vae.decode_raw(latents)[0]).abs().amax(dim=(0, 1, 3, 4))
    assert (moved > 1e-3).tolist() == 4 * [False] + 6 * [True] + 2 * [False]  # pictures of latents 2, 3 and 4


@torch.no_grad()
def test_encoding_looks_at_a_latents_own_pictures_alone(config, make_vae, make_videos):
    vae, video = make_vae(config), make_videos(config, 1, 5)
    changed = video.clone()
    changed[:, :, 4:6] *= -1
    moved = (vae.encode(changed) - vae.encode(video)).abs().amax(dim=(0, 1, 3, 4))
    assert (moved > 1e-3).tolist() == [False, False, True, False, False]


# ---- the linear start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_linear_fit_is_the_best_one_by_singular_values(stride, config, make_videos):
    config = strided(config, stride)
    vae, videos = build_vae(config.vae), make_videos(config, 4, 4)
    deviations = vae.fit_linear(videos)
    rows = patches(videos, stride)
    mean = rows.mean(axis=0)
    _, singular, basis = np.linalg.svd(rows - mean, full_matrices=False)
    count = config.vae.latent_channels
    np.testing.assert_allclose(deviations.numpy(), singular[:count] / len(rows) ** 0.5, rtol=1e-4)
    projector = vae.to_latent.weight.double().numpy()
    np.testing.assert_allclose(projector.T @ projector, basis[:count].T @ basis[:count], atol=1e-4)

    best = (rows - mean) @ basis[:count].T @ basis[:count] + mean
    decoded, _ = vae.decode_raw(vae.encode_raw(videos))
    np.testing.assert_allclose(patches(decoded, stride), best, atol=1e-4)
    assert np.abs(best - rows).max() > 1e-2  # the fit has less than everything to work with


@torch.no_grad()
def test_convolutions_of_the_decoder_start_silent_and_then_speak(config, make_vae):
    latents = latents_of(config, 3)
    for vae, silent in ((build_vae(config.vae), True), (make_vae(config), False)):
        pixels = vae.to_pixels(latents.permute(0, 2, 3, 4, 1)).unflatten(-1, (3, 2, 8, 8))
        linear = pixels.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(2, 3, 6, 32, 48)
        assert torch.allclose(vae.decode_raw(latents)[0], linear, atol=1e-3) == silent


@torch.no_grad()
def test_without_convolutions_the_linear_part_is_all(config, make_videos):
    """Width 0: the same pictures as with convolutions that are still silent, nothing to carry, nothing else to store."""
    videos, both = make_videos(config, 2, 4), (build_vae(replace(config.vae, width=0)), build_vae(config.vae))
    for vae in both:
        vae.fit_linear(videos)
        vae.normalise(vae.encode_raw(videos))
    latents = both[0].encode(videos)
    (bare, cache), (silent, _) = (vae.decode(latents) for vae in both)
    assert torch.equal(bare, silent) and cache == ()
    assert torch.equal(torch.cat([both[0].decode(part, cache)[0] for part in latents.split(1, dim=2)], dim=2), bare)
    assert not any("decoder" in name for name in both[0].state_dict())
    assert set(both[0].state_dict()) < set(both[1].state_dict())


# ---- normalisation ----------------------------------------------------------------------------------------------------


def unequal(config: ModelConfig) -> Tensor:
    """Raw latents whose channels differ in mean and spread."""
    spread = torch.logspace(-1, 1, config.vae.latent_channels).view(1, -1, 1, 1, 1)
    return latents_of(config, 40) * spread + spread.flip(1)


@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0])
def test_normalised_latents_have_mean_variance_one_and_a_softened_spectrum(softness, config):
    vae, raw = build_vae(config.vae), unequal(config)
    vae.normalise(raw, softness)
    shape = (1, -1, 1, 1, 1)
    latents = ((raw - vae.mean.view(shape)) / vae.scale.view(shape)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(8), atol=1e-4, rtol=0)
    assert latents.var(dim=1).mean() == pytest.approx(1, abs=1e-3)
    before, after = raw.transpose(0, 1).flatten(1).std(dim=1), latents.std(dim=1)
    torch.testing.assert_close(after / after[0], (before / before[0]) ** (1 - softness), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_encode_and_decode_work_on_normalised_latents(config, make_vae, make_videos):
    vae, video = make_vae(config), make_videos(config, 2, 3)
    raw, shape = vae.encode_raw(video), (1, -1, 1, 1, 1)
    torch.testing.assert_close(vae.encode(video), (raw - vae.mean.view(shape)) / vae.scale.view(shape))
    torch.testing.assert_close(
        vae.decode(vae.encode(video))[0], vae.decode_raw(raw)[0].clamp(-1, 1), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(vae.encode(video), raw, atol=1e-2)


@torch.no_grad()
def test_decoded_pixels_stay_in_range(config, make_vae):
    video, _ = make_vae(config).decode(20 * latents_of(config, 2))
    assert video.min() == -1
    assert video.max() == 1


# ---- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 3, 32, 48), (1, 3, 2, 30, 48), (1, 3, 2, 32, 50)])
def test_a_video_that_does_not_fit_is_refused(shape, config):
    with pytest.raises(ValueError, match="multiple of 2 frames and 8 pixels"):
        build_vae(config.vae).encode(torch.zeros(shape))


def test_an_unknown_kind_is_refused():
    with pytest.raises(NotImplementedError, match=r"'other'.*patch"):
        build_vae(VAEConfig(kind="other"))


def test_a_stride_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="spatial stride of 8, got 16"):
        build_vae(VAEConfig(kind="patch", spatial_stride=16, width=8, depth=1))
