"""Rectified flow, said once: sigma 1 is pure noise, sigma 0 is data, x = (1 - sigma) * data + sigma * noise.

velocity = noise - data (Wan's sign). A network may predict velocity or data; `to_data` and `to_velocity` translate.
Pure functions; sigma is a float or a tensor that broadcasts against x.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.config import SamplerConfig

Prediction = Literal["velocity", "data"]
# x0-predicting networks have an undefined velocity at sigma 0; below this the division is not sharpened further
MIN_SIGMA = 0.02


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Moves noise levels towards noise: s*sigma / (1 + (s-1)*sigma); shift 1 changes nothing."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_schedule(steps: int, shift: float) -> Tensor:
    """[steps + 1] float64, from 1 down to 0: a linear grid of step 1/steps, shifted. 4 steps at shift 7: 1, .9545, .875, .7, 0."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    return shift_sigma(1 - torch.arange(steps + 1, dtype=torch.float64) / steps, shift)


def schedule_of(sampler: SamplerConfig, steps: int | None = None) -> Tensor:
    """`sigma_schedule` of a model's sampler, with its own number of steps or another: every rollout takes its noise levels here."""
    return sigma_schedule(sampler.steps if steps is None else steps, sampler.shift)


def add_noise(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """The point of the straight path between data and noise."""
    return (1 - sigma) * data + sigma * noise


SIDES = (4, 2, 1)  # of squares of latent places
SCALES = 2 + len(SIDES)  # into which blocks are divided


def scales(blocks: Tensor) -> list[Tensor]:
    """Orthogonal parts of blocks [B, C, K, h, w] that add up to them: the mean of a block; what means over all frames of 4 x 4
    places, then of 2 x 2 and of single ones add to it, where these divide h and w; and what changes from frame to frame."""
    still = blocks.mean(dim=2, keepdim=True)
    means = [still.mean(dim=(3, 4), keepdim=True).expand_as(blocks)]
    for side in SIDES:
        if blocks.shape[3] % side or blocks.shape[4] % side:
            means.append(means[-1])
        else:
            pooled = F.avg_pool3d(still, (1, side, side))
            grown = pooled.repeat_interleave(side, dim=3).repeat_interleave(side, dim=4)
            means.append(grown.expand_as(blocks))
    means.append(blocks)
    return [means[0], *(finer - coarser for coarser, finer in itertools.pairwise(means))]


def amplitudes(data: Tensor) -> Tensor:
    """[SCALES, C]: by how much the parts of data [B, C, K, h, w] are larger than those of white noise of the same variance."""
    frames, rows, columns = data.shape[2:]
    cells = [1]
    for side in SIDES:
        cells.append(cells[-1] if rows % side or columns % side else rows * columns // side**2)
    freedom = torch.tensor([1, *cells[1:], frames * cells[-1]], device=data.device).diff(prepend=data.new_zeros(1))
    power = torch.stack([part.square().mean(dim=(0, 2, 3, 4)) for part in scales(data)])
    white = (freedom / freedom.sum())[:, None]
    return torch.where(white > 0, power / power.sum(dim=0) / white, 1.0).sqrt()


def correlated(noise: Tensor, amplitude: Tensor) -> Tensor:
    """White noise [B, C, K, h, w] with the spectrum of data whose `amplitudes` are [B, SCALES, C].

    Places and frames of data are alike, so that the mean of a block is seen through much white noise, and details are not. Noise
    that is alike, too, hides both at once (PYoCo, Ge et al. 2023, arXiv 2305.10474, for the frames of a video).
    """
    return sum((a[:, :, None, None, None] * p for a, p in zip(amplitude.unbind(1), scales(noise))), torch.zeros(()))


def to_data(output: Tensor, x: Tensor, sigma: Tensor | float, prediction: Prediction) -> Tensor:
    """The clean latent that a network's output at (x, sigma) stands for."""
    return output if prediction == "data" else x - sigma * output


def to_velocity(output: Tensor, x: Tensor, sigma: Tensor | float, prediction: Prediction) -> Tensor:
    """The velocity that a network's output at (x, sigma) stands for."""
    if prediction == "velocity":
        return output
    floor = sigma.clamp(min=MIN_SIGMA) if isinstance(sigma, Tensor) else max(sigma, MIN_SIGMA)
    return (x - output) / floor


def euler_step(x: Tensor, velocity: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """One step along the flow: x + (sigma_next - sigma) * velocity."""
    return x + (sigma_next - sigma) * velocity


def gaussian_posterior(x: Tensor, sigma: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the data given x at noise level sigma, if data ~ N(mean, variance): a Wiener filter.

    The best linear denoiser; a network that predicts data starts from it and adds, in units of the deviation, what it knows
    (the role of c_skip and c_out in Karras et al. 2022, table 1). sigma 1 gives the prior back, sigma 0 gives x.
    """
    power = (1 - sigma) ** 2 * variance + sigma**2
    gain = (1 - sigma) * variance / power
    return mean + gain * (x - (1 - sigma) * mean), (variance * sigma**2 / power).sqrt()


def gaussian_product(mean: Tensor, variance: Tensor, other: Tensor, other_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the data if two independent observations say data ~ N(mean, variance): precisions add up."""
    share = variance / (variance + other_variance)
    return torch.lerp(mean, other, share), share * other_variance
