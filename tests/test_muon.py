"""Muon: orthogonal updates for matrices, against singular value decompositions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.engine.muon import Muon, orthogonalise
from train.engine.optimization import optimizers
from world_model.rollout import generator


def test_in_bfloat16_singular_values_are_levelled_as_well():
    matrices = torch.randn(3, 24, 40, generator=generator("narrow"))
    ours = orthogonalise(matrices, dtype=torch.bfloat16)
    assert ours.dtype == torch.float32
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.5 and values.max() < 1.4
    torch.testing.assert_close(ours, orthogonalise(matrices), atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(12, 12), (6, 20), (20, 6)])
def test_orthogonalising_keeps_singular_vectors_and_levels_singular_values(shape):
    matrices = torch.randn(3, *shape, generator=generator("matrices", *shape))
    matrices[1] *= 1000  # the size of a gradient does not matter
    matrices[2] *= 1e-4
    for matrix, ours in zip(matrices, orthogonalise(matrices), strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        seen = left.T @ ours.double() @ right.T  # diagonal if the singular vectors are the same
        assert values[0] / values[-1] > 1.5
        torch.testing.assert_close(seen, seen.diagonal().diag(), atol=2e-4, rtol=0)
        assert seen.diagonal().min() > 0.6 and seen.diagonal().max() < 1.3


def test_matrices_of_one_shape_do_not_mix():
    matrices = torch.randn(4, 5, 9, generator=generator("mix"))
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone, atol=1e-5, rtol=1e-5)


def test_nothing_to_follow_is_no_update():
    assert not orthogonalise(torch.zeros(2, 4, 3)).any()
    weight, idle = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([weight, idle], lr=0.1)
    weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 4))
    assert idle not in optimizer.state


def test_update_is_as_large_as_adams():
    """Root mean square 0.2 per unit of learning rate, whatever the shape and the gradient's size."""
    for shape, size in (((8, 64), 1.0), ((64, 8), 1e-3), ((24, 24), 50.0)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = size * torch.randn(shape, generator=generator("gradient"))
        Muon([weight], lr=0.5).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1, rel=0.25)


def test_steps_follow_the_momentum_formula(monkeypatch):
    """Nesterov momentum, orthogonalised, with decoupled weight decay: written out. In float32, wherever this runs."""
    monkeypatch.setattr("train.engine.muon.has_fast_bfloat16", lambda device: False)
    lr, mu, decay = 0.1, 0.9, 0.5
    weight = nn.Parameter(torch.randn(4, 6, generator=generator("weight")))
    expected, momentum = weight.detach().clone(), torch.zeros(4, 6)
    optimizer = Muon([weight], lr=lr, momentum=mu, weight_decay=decay)
    for step in range(3):
        gradient = torch.randn(4, 6, generator=generator("gradient", step))
        momentum = mu * momentum + (1 - mu) * gradient
        update = orthogonalise((mu * momentum + (1 - mu) * gradient)[None])[0]
        expected = (1 - lr * decay) * expected - lr * 0.2 * 6**0.5 * update
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_minimises_a_quadratic():
    target = torch.randn(10, 7, generator=generator("target"))
    stretch = torch.diag(torch.tensor([10.0, 5, 2, 1, 1, 0.5, 0.2]))  # badly conditioned
    weight = nn.Parameter(torch.zeros(10, 7))
    optimizer = Muon([weight], lr=0.4)
    losses = []
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.4 * (1 - step / 150)
        loss = ((weight - target) @ stretch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), ()])
def test_takes_matrices_only(shape):
    with pytest.raises(ValueError, match="AdamW"):
        Muon([nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(shape))], lr=0.1)


def test_every_parameter_of_the_dit_has_one_optimizer(config, make_dit):
    dit = make_dit(config).requires_grad_(True)
    muon, adam = optimizers(dit, lr=1e-3, weight_decay=0.01)
    matrices, rest = ([p for group in o.param_groups for p in group["params"]] for o in (muon, adam))
    assert isinstance(muon, Muon) and isinstance(adam, torch.optim.AdamW)
    assert {id(p) for p in matrices}.isdisjoint(id(p) for p in rest)
    assert {id(p) for p in [*matrices, *rest]} == {id(p) for p in dit.parameters()}
    by_id = {id(p): name for name, p in dit.named_parameters()}
    assert "blocks.0.self_attn.q.weight" in {by_id[id(p)] for p in matrices}
    assert {"patch_embedding.weight", "blocks.0.modulation", "head.head.weight"} <= {by_id[id(p)] for p in rest}
