"""YumeWorld-v0 on a tiny world with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from configs import with_video

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.model import WorldModel
from world_model.presets import get_preset
from yume_gym.env import YumeWorldEnv

# as small as Stable-Baselines3 accepts pictures
CONFIG = with_video(get_preset("debug"), height=48, width=64)
FORWARD = Action.from_keys("W").index
RIGHT = Action.from_keys("", "→").index


@pytest.fixture(name="weights", scope="module")
def weights_fixture(tmp_path_factory, make_weights) -> Path:
    """A folder of random weights in which every layer does something."""
    pictures = np.random.default_rng(0).integers(0, 256, (4 * CONFIG.height, CONFIG.width, 3), dtype=np.uint8)
    return make_weights(tmp_path_factory.mktemp("weights"), CONFIG, pictures)


@pytest.fixture(name="model", scope="module")
def model_fixture(weights) -> WorldModel:
    return WorldModel.load(weights, device="cpu", dtype="float32")


@pytest.fixture(name="env")
def env_fixture(model):
    made = YumeWorldEnv(model=model)
    yield made
    made.close()


def picture(seed: int = 0, size: tuple[int, int] = (CONFIG.height, CONFIG.width)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def rollout(env, seed, actions, **options):
    first, _ = env.reset(seed=seed, options=options)
    return [first, *(env.step(action)[0] for action in actions)]


def equal(some, others) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
