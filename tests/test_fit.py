"""The training loop of a generator's stages: what a gradient step does."""

from __future__ import annotations

import torch

from train.generator.fit import Budget, Stage


def test_a_gradient_that_is_not_finite_teaches_nothing(tmp_path):
    """Not even a part of it: the other parameter would go on from half of a step."""
    model = torch.nn.Linear(2, 1)
    stage = Stage("toy", tmp_path, Budget(1.0), {"m": model}, {"m": [torch.optim.SGD(model.parameters(), 0.1)]}, {})
    before = [p.clone() for p in model.parameters()]
    for value in (torch.nan, torch.inf):
        stage.update("m", (model.weight[0, 0] * value) + model.bias.sum())
        assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))
    stage.update("m", model.bias.sum())
    assert torch.equal(model.weight, before[0]) and model.bias < before[1]
