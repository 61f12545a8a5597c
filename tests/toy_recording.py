"""A recording of a square that moves, and a run's folder of a small model of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from train.generator import autoencoder, report, rollouts
from train.generator import judge as judging
from train.generator.shapes import recorded_config
from train.recordings import Episode, EpisodeWriter, Provenance, Recording, open_episodes
from world_model.action_spaces import ActionSpec
from world_model.dit import DiT
from world_model.vae import PatchVAE
from world_model.weights import save_weights

STEPS, EPISODES, SIDE = 40, 8, 32
TOY = Recording(
    "Square-v0",
    SIDE,
    SIDE,
    10.0,
    ActionSpec("discrete", (3,), meanings=("NOOP", "LEFT", "RIGHT")),
    provenance=Provenance(policy="random"),
)
TRAIN, HELD_OUT = (0, 1, 2, 3, 4, 5), (6, 7)
SETTINGS = report.Settings(
    starts=5,
    horizon=12,
    batch=3,
    long_worlds=2,
    marks=(4, 12),
    judge=judging.Settings(minutes=5.0, steps=150, batch=24),
    timed=2,
)


def square(rng: np.random.Generator) -> Episode:
    """A square that actions move by 3 pixels; touching the right wall is rewarded, and the episode then ends at its last step."""
    x, frames, reward = SIDE // 2, [], []
    action = rng.integers(0, 3, STEPS)
    row = int(rng.integers(4, SIDE - 10))

    def draw() -> np.ndarray:
        frame = np.full((SIDE, SIDE, 3), 30, np.uint8)
        frame[row : row + 6, x : x + 6] = (220, 180, 40)
        return frame

    frames.append(draw())
    for a in action:
        x = int(np.clip(x + (0, -3, 3)[a], 0, SIDE - 6))
        frames.append(draw())
        reward.append(float(x == SIDE - 6))
    ended = np.zeros(STEPS, np.uint8)
    ended[-1] = 1
    return Episode(np.stack(frames), action, np.array(reward, np.float32), ended, np.zeros(STEPS, np.uint8))


@pytest.fixture(name="run", scope="module")
def run_fixture(tmp_path_factory):
    """A run's folder: a toy recording and a small model of it that learnt nothing but its autoencoder."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    with EpisodeWriter(data, TOY) as writer:
        for number in range(EPISODES):
            writer.add(square(np.random.default_rng(number)))
    files = open_episodes(data)
    config = recorded_config("toy", TOY, False, "tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, vae = DiT(config), PatchVAE(config.vae)
    clips = autoencoder.Clips(files, TRAIN, 2)
    autoencoder.fit_pca(vae, config, clips, autoencoder.Settings(clips=60))
    save_weights(
        folder, config, {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae.state_dict()}, {"training": {}}
    )
    metadata = {"data": str(data), "held_out": list(HELD_OUT), "train": list(TRAIN)}
    (folder / "recording.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture(name="split", scope="module")
def split_fixture(run):
    return rollouts.Split.read(run)
