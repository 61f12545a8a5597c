"""Training of a further memorised town: the first stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scenes import standing
from test_voxels import COUNTED, places_of

from train import finder as finder_stage
from train import places as stage
from train.data.commands import render
from train.data.corpus import Corpus, town_of, town_start
from train.data.latents import encode
from train.data.shards import Shard, find_shards
from train.land import STARTS, starting_pictures
from train.places import load_places, train
from train.street.walks import StreetRecipe, known_street
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.priors.config import scene_of, with_scene
from world_model.priors.distance_field import APART
from world_model.priors.finder import Finder
from world_model.priors.places import Places
from world_model.rollout import constrained_motion, generator
from world_model.worlds import start_worlds
from yume_gym.street.simulator import StreetSimulator

pytestmark = pytest.mark.usefixtures("few_views")

QUICK = replace(COUNTED, batch=6, table_lr=1e-1, candidates=60, captions=2, texts=4, ema=0.9)


@pytest.fixture(scope="module")
def two_towns(town_config) -> ModelConfig:
    places = replace(scene_of(town_config).places, towns=(0, 5), bricks=16384)
    return with_scene(town_config, places=places)


@pytest.fixture(scope="module")
def walks_there(two_towns, vae_folder, tmp_path_factory) -> Path:
    """Walks through the second town, encoded."""
    folder = tmp_path_factory.mktemp("there")
    render(two_towns, folder, StreetRecipe.of(two_towns, 16, 3, town_seed=5), walks=6)
    encode(two_towns, folder, vae_folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def learnt(two_towns, town_config, data_folder, vae_folder, walks_there, tmp_path_factory) -> tuple[Path, Path]:
    """Runs that train the first town alone, and then the second."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    train(town_config, data_folder, vae_folder, first, QUICK, 30, None)
    train(two_towns, walks_there, vae_folder, second, QUICK, 40, None, first)
    return first, second


def test_trajectories_are_in_the_coordinates_of_their_town(two_towns, walks_there, town_config):
    corpus, shard = Corpus(two_towns, walks_there), Shard(find_shards(walks_there)[0])
    assert corpus.towns == [1] and town_of(two_towns, shard.header) == 1
    start = APART * scene_of(two_towns).places.period
    assert town_start(two_towns, 1).tolist() == [start, 0.0]
    x, z = corpus.position(2, 3)
    frame = 3 * two_towns.frames_per_block - 1
    assert (x - start, z) == pytest.approx(tuple(shard.position[2, frame].tolist()), abs=1e-6)
    with pytest.raises(ValueError, match=r"walks are of town 5; debug knows the towns \(0,\)"):
        Corpus(town_config, walks_there)


def test_a_further_town_leaves_the_first_as_it_was(learnt, two_towns, town_config):
    """All that the first town is made of is bit by bit what it was, and worlds in it look the same."""
    first, second = (load_file(folder / stage.WEIGHTS) for folder in learnt)
    for name, value in first.items():
        if not name.startswith(("where.", "bricks")):
            assert torch.equal(second[name][: len(value)], value), name
    for name in ("distance", "walkable", "tables.0", "tables.1", "views"):
        own, fresh = second[name][len(first[name]) :], places_of(two_towns).state_dict()[name][len(first[name]) :]
        assert own.shape == first[name].shape and not torch.equal(own, fresh)
    one, two = places_of(town_config), places_of(two_towns)
    load_places(one, learnt[0])
    load_places(two, learnt[1])
    place, yaw = torch.rand(1, 5, 2, dtype=torch.float64) * 200, torch.rand(1, 5, dtype=torch.float64) * 6
    look = torch.randn(1, scene_of(two_towns).places.look)
    assert torch.equal(two(place, yaw, 0 * yaw, look), one(place, yaw, 0 * yaw, look))
    there = place + torch.tensor([APART * scene_of(two_towns).places.period, 0.0], dtype=torch.float64)
    assert not torch.equal(two(there, yaw, 0 * yaw, look), two(place, yaw, 0 * yaw, look))
    facts = json.loads((learnt[1] / "places.json").read_text())["places_training"]
    assert facts["steps"] == 30 and facts["town 5"]["steps"] == 40 and facts["town 5"]["psnr"] > 0
    views = two.views[two.choices(1)]
    street = known_street(two_towns, 1)
    assert street.town_seed == 5 and all(street.town.free(x, z, 0.3) for x, z, _ in views.tolist())


def test_training_learns_a_further_town(learnt, two_towns, walks_there):
    corpus = Corpus(two_towns, walks_there)
    blocks = [(walk, block) for walk in (4, 5) for block in (1, 2, 3)]

    @torch.no_grad()
    def loss(places: Places) -> float:
        found, truth = stage.see(places, corpus, blocks, generator("loss"))
        return float((found - truth).square().mean())

    before, after = places_of(two_towns), places_of(two_towns)
    load_places(before, learnt[0])
    load_places(after, learnt[1])
    assert not before.known(1) and after.known(1)
    before.stand(after.distance[after.rows(1)], None, town=1)  # the geometry without the appearance
    assert loss(after) < 0.99 * loss(before)


def test_a_further_town_needs_the_first(two_towns, walks_there, vae_folder, data_folder, tmp_path):
    with pytest.raises(ValueError, match="town number 1: pass --places that know the first"):
        train(two_towns, walks_there, vae_folder, tmp_path / "alone", QUICK, 1, None)
    for name, folder in (("a", data_folder), ("b", walks_there)):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for path in folder.iterdir():
            (tmp_path / "mixed" / name / path.name).hardlink_to(path)
    assert Corpus(two_towns, tmp_path / "mixed").towns == [0, 1]
    with pytest.raises(ValueError, match="walks of several towns: learn one after the other"):
        train(two_towns, tmp_path / "mixed", vae_folder, tmp_path / "mixed run", QUICK, 1, None)


def test_views_for_relocalisation_come_from_every_town(two_towns, walks_there):
    views = finder_stage.Views(two_towns, walks_there, finder_stage.Settings())
    _, walked = views.walked(5, 1)
    pictures, drawn = views.draw(12, 1)
    finder = Finder(scene_of(two_towns).places.period, (two_towns.height, two_towns.width), width=8, towns=2)
    assert (finder.labels(walked)[0][:, 0] >= 20).all()
    towns = (finder.labels(drawn)[0][:, 0] >= 20).tolist()
    assert 0 < sum(towns) < 12
    for picture, pose, there in zip(pictures, drawn.tolist(), towns):
        street = StreetSimulator.like(two_towns, 5 if there else 0)
        assert street.town.free(pose[0] - there * APART * 80.0, pose[1], 0.3)
        assert picture.shape == (3, two_towns.height, two_towns.width)


def test_relocalisation_training_goes_on(two_towns, town_config, data_folder, walks_there, tmp_path, monkeypatch):
    """From a run on one town; what is written counts the steps of both."""
    monkeypatch.setattr(finder_stage, "HELD_OUT_VIEWS", 4)
    quick = finder_stage.Settings(batch=2, walked=3, ema=0.9)
    finder_stage.train(town_config, data_folder, tmp_path / "one", quick, 2, None)
    finder_stage.train(two_towns, walks_there, tmp_path / "start", quick, 0, None, tmp_path / "one")
    finder_stage.train(two_towns, walks_there, tmp_path / "two", quick, 3, None, tmp_path / "one")
    one, start, two = (load_file(tmp_path / name / finder_stage.WEIGHTS) for name in ("one", "start", "two"))
    assert torch.equal(start["scores.weight"][:20], one["scores.weight"][:20]) and start["scores.weight"].shape[0] == 76
    assert not torch.equal(two["scores.weight"][20:40], start["scores.weight"][20:40])
    assert json.loads((tmp_path / "two" / "finder.json").read_text())["finder_training"]["steps"] == 5


def test_starting_pictures_come_from_every_town(two_towns):
    pictures, found = starting_pictures(two_towns)
    assert len(found) == 2 * len(STARTS) and len(pictures) == 2 * len(STARTS) * two_towns.height
    numbers = [round(x / (APART * 80.0)) for x, _, _ in found]
    assert numbers == [0] * len(STARTS) + [1] * len(STARTS)
    street, (x, z, yaw) = StreetSimulator.like(two_towns, 5), found[len(STARTS) + 1]
    light, weather = STARTS[1]
    own = street.reset(np.random.default_rng(0), light=light, weather=weather, position=(x - APART * 80.0, z), yaw=yaw)
    shown = pictures[(len(STARTS) + 1) * two_towns.height :][: two_towns.height]
    assert np.abs(own.astype(int) - shown).mean() < 6  # people have moved on


@torch.no_grad()
def test_worlds_of_several_towns_go_on_side_by_side(learnt, two_towns, make_dit, make_vae):
    """Each moves as its town allows: trajectories of a batch are those of each world alone."""
    dit, vae = make_dit(two_towns).requires_grad_(False), make_vae(two_towns)
    load_places(dit.priors[0].places, learnt[1])
    place = torch.stack([torch.from_numpy(town_start(two_towns, town)) + 40.0 for town in (0, 1)])
    yaw = torch.zeros(2, dtype=torch.float64)
    pictures, present = torch.zeros(2, 3, two_towns.height, two_towns.width), torch.ones(2, dtype=torch.bool)
    worlds = start_worlds(dit, vae, pictures, present, standing(yaw, place))
    walk = [Action.from_keys("W"), Action.from_keys("W")]
    together = constrained_motion(dit, worlds, walk).displacement
    for town in (0, 1):
        alone = start_worlds(dit, vae, pictures[:1], present[:1], standing(yaw[:1], place[town : town + 1]))
        assert torch.equal(constrained_motion(dit, alone, walk[:1]).displacement[0], together[town])
