"""Trajectories for the judge through two small towns."""

from __future__ import annotations

import numpy as np
import pytest

from train.judge import data as judge_data
from train.judge.data import street_of


@pytest.fixture(name="street", scope="module")
def street_fixture(config):
    return street_of(config, judge_data.FIRST_TOWN)


@pytest.fixture(name="folder", scope="module")
def folder_fixture(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge_data")
    judge_data.render(config, folder, towns=2, walks=3)
    return folder


def rng(number=0):
    return np.random.default_rng([11, number])
