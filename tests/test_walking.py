"""Where one can walk in a memorised town, against closed forms and a reference loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_rays import CAMERA, CELLS, LEVELS, SMALL
from torch import Tensor

from train.street.voxels import distance_field
from world_model.priors.places import Places


def corridor() -> Places:
    """One can walk where 4 <= x < 8, all along z; there are walls beside it, and one across it at z = 0."""
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    solid = np.ones((CELLS, LEVELS, CELLS), bool)
    solid[6:18, :, 1:] = False  # x from 3 to 9
    places.stand(distance_field(solid, SMALL))
    places.walkable.zero_()
    places.walkable[8:16] = True
    return places


def way(*steps: tuple[float, float]) -> Tensor:
    """Displacement [1, T, 2] of steps (x, z; metres)."""
    return torch.tensor([steps], dtype=torch.float64).cumsum(dim=1)


def test_one_stops_before_walls_and_slides_along_them():
    places, here = corridor(), torch.tensor([[7.0, 3.0]], dtype=torch.float64)
    free = way((-0.5, 0.25), (-0.5, 0.25), (0.25, 1.0))
    assert torch.equal(places.walk(here, free), free)
    aside = places.walk(here, way((0.6, 0.5), (0.6, 0.5), (0.6, 0.5), (-0.6, 0.5)))
    assert aside[0, :, 0].tolist() == pytest.approx([0.6, 0.6, 0.6, 0.0])
    assert aside[0, :, 1].tolist() == pytest.approx([0.5, 1.0, 1.5, 2.0])
    around = torch.tensor([[7.0 - 5 * 16, -1.0]], dtype=torch.float64)  # the same wall, five times around and back
    assert places.walk(around, way((0.6, 0.5), (0.6, 0.5)))[0, :, 0].tolist() == pytest.approx([0.6, 0.6])


def test_a_lost_world_may_go():
    """Each world of a batch by itself: one inside a wall gets out of it, even through it."""
    places = corridor()
    here = torch.tensor([[12.0, 3.0], [7.0, 3.0]], dtype=torch.float64)
    steps = way((0.6, 0.0), (0.6, 0.0), (0.6, 0.1)).expand(2, -1, -1)
    walked = places.walk(here, steps)
    torch.testing.assert_close(walked[0], steps[0])
    assert walked[1, :, 0].tolist() == pytest.approx([0.6, 0.6, 0.6])


def test_walking_equals_a_slow_loop():
    rng = np.random.default_rng(3)
    places = Places(SMALL, CAMERA, (4, 6), channels=8, text=5)
    free = rng.random((CELLS, CELLS)) < 0.6
    places.walkable.copy_(torch.from_numpy(free))
    here, steps = rng.uniform(-20, 40, (40, 2)), rng.normal(0, 0.3, (40, 12, 2))
    walked = places.walk(torch.from_numpy(here), torch.from_numpy(steps.cumsum(axis=1)))

    def is_free(x: float, z: float) -> bool:
        return bool(free[math.floor(x / 0.5) % CELLS, math.floor(z / 0.5) % CELLS])

    stopped = 0
    for world in range(40):
        start, at = here[world], np.zeros(2)
        lost = not is_free(*start)
        for number, step in enumerate(steps[world]):
            for axis in (0, 1):
                there = at.copy()
                there[axis] += step[axis]
                if lost or is_free(*(start + there)):
                    at = there
                else:
                    stopped += 1
            np.testing.assert_allclose(walked[world, number], at, atol=1e-9)
    assert stopped > 40
