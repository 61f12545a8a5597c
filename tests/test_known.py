"""What a model says of texts and pictures: against a slow form, in a folder of weights, and in `info` of both environments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from world_model.known import Known, features, load_known, save_known, usual_similarity
from world_model.model import WorldModel
from world_model.text import mean_token
from world_model.weights import list_files
from yume_gym.env import YumeWorldEnv
from yume_gym.vector_env import YumeWorldVectorEnv

TEXTS = ("a red house stands here", "night falls", "snow falls on the street")


@pytest.fixture
def folder(weights_folder, tmp_path) -> Path:
    """Weights that know three texts, and pictures of noise."""
    folder = Path(shutil.copytree(weights_folder, tmp_path / "weights"))
    model = WorldModel.load(folder)
    tokens = torch.stack([mean_token(model.conditioning.event(text)) for text in TEXTS])
    known = Known(TEXTS, tokens, model.config.dit.latent_channels, 0.8)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (64, model.config.height, model.config.width, 3), np.uint8)
    known.pictures.fit(features(torch.from_numpy(model.encode(pictures))))
    save_known(folder, known)
    return folder


def test_the_nearest_text_is_that_of_the_largest_cosine():
    torch.manual_seed(0)
    tokens = torch.randn(5, 7)
    known = Known([str(i) for i in range(5)], tokens, 3, 0.5)
    for row in (0, 3):
        token = tokens[row] + 0.3 * torch.randn(7)
        cosines = [float(token @ other / token.norm() / other.norm()) for other in tokens]
        found = known.nearest(token)
        assert found.text == str(int(np.argmax(cosines))) and found.similarity == pytest.approx(max(cosines), abs=1e-5)
        assert found.understood == (max(cosines) >= 0.5)
    assert Known([], torch.zeros(0, 7), 3, 0.5).nearest(tokens[0]) is None
    with pytest.raises(ValueError, match="got 1 texts and 5 rows"):
        Known(["one"], tokens, 3, 0.5)


def test_the_usual_similarity_is_a_quantile_of_nearest_others():
    torch.manual_seed(0)
    tokens = torch.randn(40, 6)
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    nearest = [max(float(unit[i] @ unit[j]) for j in range(40) if j != i) for i in range(40)]
    assert usual_similarity(tokens, 0.25) == pytest.approx(float(np.quantile(nearest, 0.25)), abs=1e-5)
    assert usual_similarity(tokens[:1]) == 1.0


def test_pictures_unlike_those_of_training_are_far(folder):
    model = WorldModel.load(folder)
    rng = np.random.default_rng(1)
    alike = rng.integers(0, 256, (model.config.height, model.config.width, 3), np.uint8)
    assert model.picture_distance(alike) < 2 < model.picture_distance(np.zeros_like(alike))


def test_info_says_what_became_of_a_text_and_of_a_picture(folder):
    model = WorldModel.load(folder)
    env = YumeWorldEnv(model)
    _, info = env.reset(seed=0, options={"events": {1: "night falls", 2: "a teapot sings"}})
    assert info["picture_distance"] > 0 and "text_understood" not in info
    assert "text_understood" not in env.step(0)[4]
    told, strange = env.step(0)[4], env.step(0)[4]
    assert told["text_understood"] is True and told["text_nearest"] == "night falls"
    assert told["text_similarity"] == pytest.approx(1, abs=1e-3)
    assert strange["text_understood"] is False and strange["text_similarity"] < 0.8
    _, info = env.reset(seed=0, options={"text": "snow falls on the street"})
    assert info["text_understood"] is True and "picture_distance" not in info


def test_the_batch_says_the_same(folder):
    envs = YumeWorldVectorEnv(2, model=WorldModel.load(folder))
    _, infos = envs.reset(seed=0, options={"each": [{"text": "night falls"}, {"events": "a teapot sings"}]})
    assert infos["_text_understood"].tolist() == [True, False] and infos["_picture_distance"].tolist() == [False, True]
    *_, infos = envs.step(np.zeros(2, np.int64))
    assert infos["_text_understood"].tolist() == [False, True] and infos["text_nearest"][1] in TEXTS


def test_weights_without_the_files_say_nothing_and_damaged_files_are_named(weights_folder, folder):
    assert load_known(weights_folder) is None and WorldModel.load(weights_folder).nearest_text("night falls") is None
    path = folder / "known.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "texts": values["texts"][:2]}))
    with pytest.raises(ValueError, match="its size or sha256 is not the manifest's"):
        load_known(folder)
    list_files(folder)
    with pytest.raises(ValueError, match=r"does not fit known\.safetensors: every known text is encoded once"):
        load_known(folder)
