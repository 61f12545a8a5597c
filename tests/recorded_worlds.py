"""Small models of recorded environments, one of each kind of action space, with outcome heads."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from train.generator.shapes import recorded_config
from train.recordings import Recording
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig
from world_model.heads import Calibration, HeadsConfig, OutcomeHeads, save_heads
from world_model.model import WorldModel
from world_model.weights import save_weights
from yume_gym.keyboard import action_space

SIDE, STARTS = 64, 3
SPACES = {
    "discrete": ActionSpec("discrete", (4,), meanings=("NOOP", "FIRE", "RIGHT", "LEFT")),
    "multi_discrete": ActionSpec("multi_discrete", (3, 2)),
    "multi_binary": ActionSpec("multi_binary", (2, 2, 2)),
    "box": ActionSpec("box", low=(-1.0, -1.0), high=(1.0, 1.0)),
}
GYMNASIUM = {
    "discrete": gym.spaces.Discrete(4),
    "multi_discrete": gym.spaces.MultiDiscrete([3, 2]),
    "multi_binary": gym.spaces.MultiBinary(3),
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
}


def config_of(kind: str) -> ModelConfig:
    return recorded_config(
        kind, Recording(f"{kind}-v0", SIDE, SIDE, 10.0, SPACES[kind], frames_per_step=2), False, "tiny"
    )


def heads_of(config: ModelConfig, **changed: object) -> OutcomeHeads:
    sizes = HeadsConfig(
        "classes",
        (-1.0, 0.0, 1.0),
        config.dit.latent_channels,
        config.block_latents,
        config.action_width,
        width=8,
        hidden=8,
        embedding=4,
        calibration=Calibration(**changed),
    )
    torch.manual_seed(0)
    return OutcomeHeads(sizes).eval().requires_grad_(False)


@pytest.fixture(name="folders", scope="module")
def folders_fixture(tmp_path_factory, make_dit, make_vae) -> dict[str, Path]:
    """Weights of a model for each action space, with starting pictures and heads; "plain" is without heads."""
    found = {}
    for kind in (*SPACES, "plain"):
        config = config_of("discrete" if kind == "plain" else kind)
        found[kind] = folder = tmp_path_factory.mktemp(kind)
        pictures = np.random.default_rng(0).integers(0, 256, (STARTS * SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pictures).save(folder / "starts.png")
        tensors = {"dit.safetensors": make_dit(config).state_dict(), "vae.safetensors": make_vae(config).state_dict()}
        save_weights(folder, config, tensors, {})
        if kind != "plain":
            save_heads(folder, heads_of(config, termination_threshold=1.0))
    return found


@pytest.fixture(name="models", scope="module")
def models_fixture(folders) -> dict[str, WorldModel]:
    return {kind: WorldModel.load(folder, device="cpu", dtype="float32") for kind, folder in folders.items()}


def with_heads(model: WorldModel, heads: OutcomeHeads | None) -> WorldModel:
    return WorldModel(model.config, model.dit, model.vae, model.conditioning, model.starts, heads)


def sure_heads(config: ModelConfig, reward: int, ends: float, **changed: object) -> OutcomeHeads:
    """Heads that always say reward class number `reward`, and the termination logit `ends`."""
    heads = heads_of(config, **changed)
    for layer in (heads.reward, heads.termination):
        layer.weight.zero_()
        layer.bias.zero_()
    heads.reward.bias[reward] = 3.0
    heads.termination.bias.fill_(ends)
    return heads


def actions_of(kind: str, count: int) -> list:
    space = action_space(SPACES[kind])
    space.seed(3)
    return [space.sample() for _ in range(count)]


def same(first, second) -> bool:
    return np.array_equal(first[0], second[0]) and first[1:4] == second[1:4] and first[4].keys() == second[4].keys()
