"""Training of the generator on a toy recording: what its losses measure, and that it learns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from configs import with_dit
from toy_generator import (  # noqa: F401  (fixtures, too)
    data_fixture,
    dit_fixture,
    files_fixture,
    stream,
    toy_config_fixture,
    vae_fixture,
    windows_fixture,
)

from train.engine.optimization import TwoTimescale
from train.generator import distill, foundation
from train.generator.autoencoder import moving_weight
from train.generator.foundation import Foundation, measure_residuals, read_window
from world_model import flow
from world_model.dit import DiT


def test_a_network_without_output_explains_nothing(toy_config, windows):
    """A network whose output layer is zero leaves everything unexplained."""
    dit = DiT(toy_config)
    measure_residuals(dit, windows)
    trainer = Foundation(toy_config, windows, foundation.Settings(batch=4, noise_samples=2))
    loss, unexplained = trainer.loss(dit, 0, 0.0)
    assert float(unexplained) == pytest.approx(1) and loss.isfinite()


def test_the_expected_error_becomes_the_mean_error_and_weights_do_not_move_the_prediction():
    """Places that err .01 and 4 on average: their logarithms settle at these, and a constant prediction at the mean of its data,
    although one place weighs twenty times as much as the other."""
    data = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [2.0]]) + 3
    prediction, logarithm = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    optimizer = torch.optim.Adam([prediction, logarithm], lr=0.05)
    for _ in range(1200):
        optimizer.zero_grad()
        foundation.likelihood((prediction - data).square(), logarithm.expand_as(data)).backward()
        optimizer.step()
    torch.testing.assert_close(prediction.detach(), data.mean(dim=1, keepdim=True), rtol=0, atol=0.02)
    errors = data.var(dim=1, keepdim=True, correction=0)
    torch.testing.assert_close(logarithm.detach().exp(), errors, rtol=0.05, atol=0)
    error = errors.clone().requires_grad_()
    (weight,) = torch.autograd.grad(foundation.likelihood(error, logarithm.detach()), error)
    torch.testing.assert_close(weight[0] / weight[1], (errors[1] / errors[0]).sqrt(), rtol=0.05, atol=0)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_where_nothing_is_expected_to_change_the_moved_frames_stay(toy_config, windows, dit, sigma):
    """At every noise level, whatever else the network says; and the expected error has a value for each place."""
    window = windows.truth(windows.data.draw(3, 4, stream(), fresh=0.0), stream())
    noise = torch.randn(window.data.shape, generator=stream())
    x = flow.add_noise(window.data, noise, torch.tensor(sigma))
    still = copy.deepcopy(dit)
    with torch.no_grad():
        still.variances.weight.zero_()
        still.variances.bias.copy_(torch.tensor([-40.0, -1.0]).repeat(toy_config.dit.patch[0]))
        conditions = read_window(still, window)
        made = still.detailed(x, torch.full((3,), sigma), conditions)
    output, logarithm = made.output, made.error
    anything = dit.detailed(x, torch.full((3,), sigma), read_window(dit, window)).output
    moved = conditions.mean
    assert (output - moved).square().mean() < 0.2 * (anything - moved).square().mean()
    assert logarithm.shape == (3, 1, *output.shape[2:]) and (logarithm == -1).all()
    torch.testing.assert_close(still(x, torch.full((3,), sigma), conditions), still.flow.bounded(output))


def test_foundation_learns_the_toy(toy_config, windows):
    """A short run must beat what copying the last frame gives, with histories of its own mixed in at the end."""
    torch.manual_seed(0)
    dit = DiT(toy_config)
    measure_residuals(dit, windows)
    settings = foundation.Settings(batch=8, self_generated=foundation.SelfGenerated(begin=0.5, episode_length=6))
    trainer = Foundation(toy_config, windows, settings)
    optimizer = torch.optim.AdamW(dit.parameters(), lr=3e-3, betas=(0.9, 0.95))
    shares = []
    for step in range(70):
        loss, unexplained = trainer.loss(dit, step, step / 70)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        shares.append(float(unexplained))
    assert np.mean(shares[-20:]) < 0.8


def test_distillation_moves_the_generator_alone_when_it_is_its_turn(toy_config, windows, dit):
    settings = distill.Settings(
        batch=2, pool=4, episode_length=4, updates=TwoTimescale(generator_every=2, critic_warmup=2)
    )
    trainer = distill.Distillation(toy_config, windows, dit, settings)
    assert [number for number in range(7) if trainer.learns(number)] == [2, 4, 6]
    student = DiT(toy_config)
    student.load_state_dict(dit.state_dict())
    assert not trainer.rollout(student, 1).latents.requires_grad
    made = trainer.rollout(student, 2)
    assert made.latents.requires_grad
    critic = DiT(toy_config)  # of another opinion than the teacher
    trainer.generator_loss(critic, made, 2).backward()
    grads = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("patch_embedding_2x" in name for name in grads)  # the compressor of the history is in the gradient path


def test_a_critic_that_is_the_teacher_pushes_nowhere(toy_config, windows, dit):
    trainer = distill.Distillation(toy_config, windows, dit, distill.Settings(batch=2, pool=4, episode_length=4))
    made = trainer.rollout(dit, 1)
    assert torch.equal(trainer.direction(dit, made.window, made.latents, 1), torch.zeros_like(made.latents))


def test_moving_patches_weigh_more(toy_config):
    clips = torch.zeros(1, 3, 2, 32, 32)
    clips[:, :, 1, :8, 8:16] = 0.5
    pictures, weights = moving_weight(clips, toy_config, 10.0)
    assert pictures.shape == (1, 3, 1, 32, 32)
    assert weights[0, 0, 0].tolist() == [1, 11, 1, 1]
    assert weights.sum() == 16 + 10


def test_a_compiled_layer_gives_what_an_eager_one_gives(toy_config, make_dit):
    """The graph that `--compile` captures of a layer, run without code generation: same numbers, same gradients."""
    torch.compiler.reset()
    config = with_dit(toy_config, flow_layer=0, layers=1)
    layer = make_dit(config, 3).layers[0]
    dim, heads, (frames, rows, columns) = config.dit.dim, config.dit.heads, config.token_grid
    tokens = frames * rows * columns
    x = torch.randn(2, tokens, dim, generator=stream())
    time = torch.randn(2, 1, 6, dim, generator=stream(1))
    angle = torch.randn(2, 1, tokens, dim // heads // 2, generator=stream(2))
    table = torch.polar(torch.ones_like(angle), angle)
    results = []
    for call in (layer, torch.compile(layer, backend="aot_eager", dynamic=False)):
        layer.zero_grad()
        out, _ = call(x, time, None, table, [config.token_grid])
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 5
    for eager, captured in zip(*results):
        torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-6)
