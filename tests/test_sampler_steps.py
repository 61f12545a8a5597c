"""How many sampler steps a recorded world takes: what is measured, and what is chosen by it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_recording import HELD_OUT, run_fixture, split_fixture  # noqa: F401  (fixtures)

from train.generator.rollouts import RecordedWorld, draw_starts, recorded_trial
from train.generator.sampler_steps import CHOICES, Found, choose, chosen, measured


def test_of_rollouts_that_are_not_blurred_the_likest_is_chosen():
    assert chosen([Found(1, 40, 0.95), Found(2, 35, 1.0), Found(3, 30, 1.0)]).steps == 1
    assert chosen([Found(1, 40, 0.6), Found(2, 35, 0.85), Found(3, 36, 0.9)]).steps == 3
    assert chosen([Found(1, 40, 0.5), Found(2, 35, 0.7), Found(3, 30, 0.6)]).steps == 2


def test_what_is_measured_is_of_recorded_steps_alone(run, split):
    """A world that shows half of the recorded contrast, and black after the recording's end."""
    starts = draw_starts(split.files, HELD_OUT, 4, 3, 0)
    starts[0] = HELD_OUT[0], int(split.files.lengths[HELD_OUT[0]]) - 2  # two more steps were recorded
    trial = recorded_trial(split.files, starts, 3, range(4))
    assert trial.alive.sum() == 11
    world = RecordedWorld.load(run)

    class Dim:
        config = world.config

        def rollout(self, trial):
            for step in range(trial.steps):
                shown = trial.pictures[:, 1 + step : 2 + step] // 2
                yield shown * trial.alive[:, step, None, None, None, None].astype(np.uint8), None

    found = measured(Dim(), trial)
    assert found.steps == world.config.sampler.steps
    assert found.sharpness == pytest.approx(0.5, abs=0.01)
    recorded = trial.pictures[:, 1:].astype(float)[trial.alive]
    decibels = [20 * math.log10(255 / np.sqrt(np.square(one - one // 2).mean())) for one in recorded]
    assert found.psnr == pytest.approx(np.mean(decibels), abs=1e-3)


def test_every_choice_is_measured_with_its_own_steps(run, split):
    world = RecordedWorld.load(run)
    best, still, found = choose(world, split.files, HELD_OUT, 0)
    assert [one["steps"] for one in found] == list(CHOICES) and best == chosen([Found(**one) for one in found])
    three = replace(world.config, sampler=replace(world.config.sampler, steps=3))
    starts = draw_starts(split.files, HELD_OUT, 16, 16, 0)
    trial = recorded_trial(split.files, starts, 16, range(len(starts)))
    again = measured(RecordedWorld(three, world.dit, world.vae, world.conditioning), trial)
    assert again.psnr == pytest.approx(found[2]["psnr"]) and again.sharpness == pytest.approx(found[2]["sharpness"])
    started = trial.pictures[:, :1].astype(float)
    apart = np.square(started - trial.pictures[:, 1:]).mean(axis=(2, 3, 4))[trial.alive]
    assert still == pytest.approx((10 * np.log10(255**2 / np.maximum(apart, 255**2 / 1e6))).mean(), abs=1e-3)
