"""The ground-truth street, and a judge of it with random weights."""

from __future__ import annotations

import pytest
import torch

from train.judge.data import street_of
from train.judge.network import Judge


@pytest.fixture(name="street", scope="module")
def street_fixture(config):
    return street_of(config, 0)


@pytest.fixture(name="judge")
def judge_fixture(config):
    torch.manual_seed(0)
    return Judge.of(config).eval()
