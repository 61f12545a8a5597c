"""How many sampler steps rollouts of a recorded world take: measured when the generator is trained, on the episodes that it was
trained on. Held-out ones stay for reports.

Where a picture and an action decide the next picture, one step is best: it gives the mean of what may follow, which is all that
there is, and noise of further steps would stay in the pictures that later ones are made from. Where much may follow, that mean is
a blur, and more steps draw one of the possibilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from train.generator.measures import psnr, sharpness
from train.generator.rollouts import RecordedWorld, Trial, World, draw_starts, recorded_trial
from train.recordings import EpisodeFiles

CHOICES = (1, 2, 3)
WORLDS, HORIZON = 16, 16  # rollouts, and steps of each
LEAST_SHARP = 0.8  # share of the recorded pictures' sharpness, below which rollouts count as blurred


@dataclass(frozen=True)
class Found:
    """Of rollouts with `steps` sampler steps: mean PSNR to what was recorded in dB, and sharpness as a share of the recorded."""

    steps: int
    psnr: float
    sharpness: float


def measured(world: World, trial: Trial) -> Found:
    """Of the steps of `trial` that were recorded."""
    shown = np.concatenate([made for made, _ in world.rollout(trial)], axis=1)
    recorded, alive = _recorded(trial)
    sharp = sharpness(shown)[alive].mean() / sharpness(recorded)[alive].mean()
    return Found(world.config.sampler.steps, float(psnr(shown, recorded, 2)[alive].mean()), float(sharp))


def _recorded(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [P, S * T, H, W, 3] of the steps of `trial`, and which of them [P, S * T] were recorded."""
    recorded = trial.pictures[:, 1:]
    return recorded, trial.alive.repeat(recorded.shape[1] // trial.steps, axis=1)


def chosen(found: Sequence[Found]) -> Found:
    """The one most like what was recorded of those that are not blurred; the sharpest where all are."""
    sharp = [one for one in found if one.sharpness >= LEAST_SHARP]
    return max(sharp, key=lambda one: one.psnr) if sharp else max(found, key=lambda one: one.sharpness)


def choose(
    world: RecordedWorld, files: EpisodeFiles, episodes: Sequence[int], seed: int
) -> tuple[Found, float, list[dict]]:
    """Sampler steps for a world, the PSNR of start pictures that never change, and what was measured with each of `CHOICES`."""
    starts = draw_starts(files, episodes, WORLDS, HORIZON, seed)
    trial = recorded_trial(files, starts, HORIZON, range(len(starts)))
    found = []
    for steps in CHOICES:
        config = replace(world.config, sampler=replace(world.config.sampler, steps=steps))
        found.append(measured(RecordedWorld(config, world.dit, world.vae, world.conditioning), trial))
    recorded, alive = _recorded(trial)
    still = psnr(np.broadcast_to(trial.pictures[:, :1], recorded.shape), recorded, 2)[alive].mean()
    return chosen(found), float(still), [asdict(one) for one in found]
