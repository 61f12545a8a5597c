"""Which views of a town a text can choose, and which it does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_voxels import COUNTED, places_of, street_of

from train.places import filled, hidden, learn_views
from train.voxels import distance_field
from world_model.rollout import generator
from world_model.text import build_text_encoder
from yume_gym.street.captions import scene_caption
from yume_gym.street.motion import WALL_MARGIN


def test_a_wall_at_arms_length_hides_a_view(town_config):
    """Two metres east of a place stands a wall without end: it hides what one sees eastwards, and nothing westwards."""
    c, places = town_config.dit.places, places_of(town_config)
    cells, levels = round(c.period / c.cell), round(c.height / c.cell)
    solid = np.zeros((cells, levels, cells), bool)
    solid[cells // 2] = True
    places.distance.copy_(distance_field(solid, c))
    x = c.period / 2 - 2.0
    looks = (math.pi / 2, -math.pi / 2, 0.0)
    east, west, along = hidden(places, torch.tensor([[x, 5.0, yaw] for yaw in looks], dtype=torch.float64)).tolist()
    assert east == 1 and west == 0
    # along it: what is more than asin(2 / 5) to its side, (1 - tan) / 2 = .28 of the columns
    assert along == pytest.approx(0.28, abs=0.05)


def test_a_text_chooses_views_of_what_it_describes(town_config, monkeypatch):
    """Captions of the views drawn again, with other words, light and weather, choose views of the same district."""
    longer = replace(town_config.text, dim=64, event_tokens=40)
    config = replace(town_config, text=longer, dit=replace(town_config.dit, text_dim=64))
    monkeypatch.setattr("world_model.places.VIEWS", 40)
    places = places_of(config)
    before = places.where.weight.clone()
    learn_views(places, config, replace(COUNTED, candidates=400, captions=8))
    assert not torch.equal(places.where.weight, before) and places.where.weight.grad is None
    street, rng, encoder = street_of(config), np.random.default_rng(77), build_text_encoder(config.text)
    districts, captions = [], []
    for x, z, yaw in places.views.tolist():
        assert street.town.free(x, z, WALL_MARGIN - 1e-3)
        street.reset(rng, position=(x, z), yaw=yaw)
        facts = street.surroundings()
        districts.append(facts["district"])
        for light, weather in (("night", "rain"), ("overcast", "fog"), ("golden", "clear")):
            captions.append(scene_caption({**facts, "light": light, "weather": weather}, rng))
    _, counts = np.unique(districts, return_counts=True)
    chance = float(np.square(counts / len(districts)).sum())
    assert len(counts) > 3 and chance < 0.4
    poses = [tuple(pose) for pose in places.views.tolist()]
    right = []
    for number, caption in enumerate(captions):
        pose = places.somewhere(generator("view", number), encoder.encode(caption, 40)[None])
        right.append(districts[poses.index(tuple(pose.tolist()))] == districts[number // 3])
    assert np.mean(right) > 2 * chance and np.mean(right) > 0.75


def test_views_for_texts_are_typical_of_their_district(town_config, monkeypatch):
    """Of ten times as many views those are kept that show most of what they are called; no district goes without."""
    monkeypatch.setattr("world_model.places.VIEWS", 40)
    few, many = places_of(town_config), places_of(town_config)
    learn_views(few, town_config, replace(COUNTED, candidates=40, captions=1))
    learn_views(many, town_config, replace(COUNTED, candidates=400, captions=1))
    street, shares, counts = street_of(town_config), [], []
    for places in (few, many):
        share, names = [], []
        for x, z, yaw in places.views.tolist():
            street.reset(np.random.default_rng(0), position=(x, z), yaw=yaw)
            names.append(street.surroundings()["district"])
            share.append(filled(street, names[-1]))
        shares.append(np.mean(share))
        counts.append(np.unique(names, return_counts=True)[1])
    assert shares[1] > shares[0] + 0.1 and counts[1].min() >= 8 and counts[1].max() <= 9
