"""Rectified flow: the schedule's numbers, and the translations between what a network may predict."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from world_model import flow
from world_model.flow import MIN_SIGMA

LEVELS = [1.0, 0.9, 0.5, 0.1, MIN_SIGMA]


@pytest.fixture
def path() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(2, 3, 4, generator=random, dtype=torch.float64) for _ in range(2))
    return data, noise


def test_four_steps_at_shift_seven():
    expected = torch.tensor([1, 21 / 22, 0.875, 0.7, 0], dtype=torch.float64)
    torch.testing.assert_close(flow.sigma_schedule(4, 7.0), expected, rtol=0, atol=1e-12)


def test_shift_one_is_the_linear_grid():
    linear = torch.linspace(1, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(flow.sigma_schedule(10, 1.0), linear, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("steps", "shift"), [(1, 7.0), (4, 3.0), (50, 5.0)])
def test_a_schedule_falls_from_noise_to_data(steps, shift):
    sigmas = flow.sigma_schedule(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float64
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert (sigmas.diff() < 0).all()


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        flow.sigma_schedule(0, 7.0)


def test_the_ends_of_the_path(path):
    data, noise = path
    assert torch.equal(flow.add_noise(data, noise, 0.0), data)
    assert torch.equal(flow.add_noise(data, noise, 1.0), noise)


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
def test_right_predictions_of_either_kind_mean_the_same(path, sigma, as_tensor):
    data, noise = path
    level = torch.full((2, 1, 1), sigma, dtype=torch.float64) if as_tensor else sigma
    x = flow.add_noise(data, noise, level)
    outputs = {"velocity": noise - data, "data": data}
    for prediction, output in outputs.items():
        torch.testing.assert_close(flow.to_data(output, x, level, prediction), data)
        torch.testing.assert_close(flow.to_velocity(output, x, level, prediction), noise - data)


@pytest.mark.parametrize("sigma", LEVELS)
def test_to_velocity_undoes_to_data(path, sigma):
    output, x = path
    data = flow.to_data(output, x, sigma, "velocity")
    torch.testing.assert_close(flow.to_velocity(data, x, sigma, "data"), output)


def test_velocity_stays_finite_at_the_data_end(path):
    data, x = path
    for sigma in (0.0, torch.zeros(2, 1, 1, dtype=torch.float64)):
        torch.testing.assert_close(flow.to_velocity(data, x, sigma, "data"), (x - data) / MIN_SIGMA)


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
def test_the_gaussian_posterior_weighs_prior_and_observation_by_their_precision(path, sigma, variance):
    mean, x = path
    posterior, deviation = flow.gaussian_posterior(x, torch.tensor(sigma), mean, torch.tensor(variance))
    precision = 1 / variance + ((1 - sigma) / sigma) ** 2
    torch.testing.assert_close(deviation**2, torch.tensor(1 / precision, dtype=deviation.dtype))
    torch.testing.assert_close(
        posterior, (mean / variance + (1 - sigma) / sigma**2 * x) / precision, atol=1e-5, rtol=1e-5
    )


def test_the_gaussian_posterior_is_the_best_linear_denoiser():
    """Drawn from the prior and noised: the error has the promised deviation and cannot be told from x."""
    random = torch.Generator().manual_seed(0)
    data, noise = 0.5 + 2 * torch.randn(100_000, generator=random), torch.randn(100_000, generator=random)
    x = flow.add_noise(data, noise, 0.7)
    posterior, deviation = flow.gaussian_posterior(x, torch.tensor(0.7), torch.tensor(0.5), torch.tensor(4.0))
    error = data - posterior
    assert error.std() == pytest.approx(float(deviation), rel=0.02)
    assert abs(float((error * (x - x.mean())).mean())) < 0.02


def test_the_gaussian_posterior_at_the_ends_is_the_prior_and_the_data(path):
    mean, x = path
    variance = torch.tensor(4.0, dtype=torch.float64)
    for sigma, expected, spread in ((1.0, mean, 2.0), (0.0, x, 0.0)):
        posterior, deviation = flow.gaussian_posterior(x, torch.tensor(sigma), mean, variance)
        torch.testing.assert_close(posterior, expected)
        assert float(deviation) == spread


@pytest.mark.parametrize(("steps", "shift"), [(1, 7.0), (4, 7.0), (7, 3.0)])
def test_euler_is_exact_where_the_velocity_is_constant(path, steps, shift):
    data, noise = path
    sigmas, x = flow.sigma_schedule(steps, shift), noise
    for sigma, after in pairwise(sigmas):
        x = flow.euler_step(x, noise - data, sigma, after)
        torch.testing.assert_close(x, flow.add_noise(data, noise, after))
    torch.testing.assert_close(x, data)


def test_scales_of_a_block_are_orthogonal_and_add_up_to_it():
    blocks = torch.randn(3, 2, 4, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = flow.scales(blocks)
    assert len(parts) == flow.SCALES
    torch.testing.assert_close(sum(parts), blocks)
    for i, one in enumerate(parts):
        for other in parts[:i]:
            assert abs(float((one * other).sum())) < 1e-9
    # the slow form of one of them: what 2 x 2 places add to 4 x 4, in all frames alike
    corner = blocks[1, 0].mean(dim=0)
    wanted = corner[2:4, 6:8].mean() - corner[0:4, 4:8].mean()
    torch.testing.assert_close(parts[2][1, 0, :, 2:4, 6:8], wanted.expand(4, 2, 2))
    odd = torch.randn(1, 1, 2, 3, 6, generator=torch.Generator().manual_seed(1))  # no squares of 2 or 4 places
    assert [bool(part.any()) for part in flow.scales(odd)] == [True, False, False, True, True]


@pytest.mark.parametrize("shape", [(4, 8, 12), (1, 8, 12), (2, 3, 6)])
def test_white_noise_has_no_scale_that_is_larger_than_others(shape):
    noise = torch.randn(3000, 1, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.amplitudes(noise), torch.ones(flow.SCALES, 1), rtol=0.06, atol=0.06)


def test_correlated_noise_has_the_covariance_of_the_data():
    """Data whose blocks have a level of their own, and whose frames are alike: against the covariance of places and frames."""
    random = torch.Generator().manual_seed(0)
    level, still, rest = (torch.randn(4000, 1, *s, generator=random) for s in ((1, 1, 1), (1, 4, 4), (2, 4, 4)))
    data = 2 * level + still + 0.5 * rest
    noise = torch.randn(4000, 1, 2, 4, 4, generator=random)
    made = flow.correlated(noise, flow.amplitudes(data).expand(4000, -1, -1))
    # of the same variance as white noise: that of the data is 4 + 1 + 1/4
    wanted, found = (x.flatten(1).T.cov() for x in (data / 5.25**0.5, made))
    assert found.diagonal().mean() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.08)
    torch.testing.assert_close(flow.correlated(noise, torch.ones(4000, flow.SCALES, 1)), noise)
