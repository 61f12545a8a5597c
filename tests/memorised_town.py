"""A model of a memorised town with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from towns import streets

from train.street.voxels import distance_field
from world_model.actions import Action
from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.priors.config import scene_of
from world_model.priors.finder import Finder
from world_model.text import Conditioning
from world_model.weights import save_weights

WALK, TURN = Action.from_keys("W"), Action.from_keys("", "→")


@pytest.fixture(name="town_dit", scope="module")
def town_dit_fixture(town_config, make_dit) -> DiT:
    """Random weights in which every layer does something, a town of streets, and views from all over them."""
    dit, rng = make_dit(town_config).requires_grad_(False), np.random.default_rng(5)
    solid, walkable = streets(town_config)
    dit.priors[0].places.stand(distance_field(solid, scene_of(town_config).places))
    dit.priors[0].places.walkable.copy_(walkable)
    cells = walkable.nonzero().numpy()
    cells = (cells[rng.integers(len(cells), size=len(dit.priors[0].places.views))] + 0.5) * scene_of(
        town_config
    ).places.cell
    yaws = rng.uniform(-np.pi, np.pi, (len(cells), 1))
    dit.priors[0].places.views.copy_(torch.from_numpy(np.concatenate([cells, yaws], axis=1)))
    return dit


POSES = [(0.5, 20.0, 0.0), (41.0, 3.0, 1.5), (20.0, 39.0, -1.6)]


@pytest.fixture(name="town_folder", scope="module")
def town_folder_fixture(town_config, town_dit, make_vae, pictures, tmp_path_factory) -> Path:
    """A whole weights folder of a model of a town: three starting pictures and where they were taken."""
    folder = tmp_path_factory.mktemp("town")
    Image.fromarray(np.concatenate(pictures[:3])).save(folder / "starts.png")
    (folder / "starts.json").write_text(json.dumps(POSES))
    torch.manual_seed(0)
    finder = Finder(scene_of(town_config).places.period, (town_config.height, town_config.width))
    tensors = {
        "dit.safetensors": town_dit.state_dict(),
        "vae.safetensors": make_vae(town_config).state_dict(),
        "text.safetensors": {"actions": Conditioning(town_config.text).actions},
        "finder.safetensors": finder.state_dict(),
    }
    save_weights(folder, town_config, tensors, {"made": "random weights for tests"})
    return folder


@pytest.fixture(name="town_model")
def town_model_fixture(town_folder) -> WorldModel:
    return WorldModel.load(town_folder, device="cpu", dtype="float32")
