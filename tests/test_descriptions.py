"""What texts tell of a town: which view they choose, and which light and weather."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_voxels import places_of, street_of

from train.street.descriptions import FRAGMENTS, filled, hidden, learn_skies, learn_sky_words, learn_views, sentence
from train.street.voxels import distance_field
from world_model.priors.config import scene_of
from world_model.rollout import generator
from world_model.text import build_text_encoder, mean_token, scaled
from yume_gym.street.captions import scene_caption
from yume_gym.street.layout import DISTRICTS
from yume_gym.street.motion import WALL_MARGIN
from yume_gym.street.simulator import LIGHTS, WEATHERS


def test_a_wall_at_arms_length_hides_a_view(town_config):
    """Two metres east of a place stands a wall without end: it hides what one sees eastwards, and nothing westwards."""
    c, places = scene_of(town_config).places, places_of(town_config)
    cells, levels = round(c.period / c.cell), round(c.height / c.cell)
    solid = np.zeros((cells, levels, cells), bool)
    solid[cells // 2] = True
    places.stand(distance_field(solid, c))
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
    monkeypatch.setattr("world_model.priors.places.VIEWS", 24)
    places = places_of(config)
    before = places.where.weight.clone()
    learn_views(places, config, 0, 0, candidates=160, captions=8)
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
    """Of eight times as many views those are kept that show most of what they are called; no district goes without."""
    monkeypatch.setattr("world_model.priors.places.VIEWS", 20)
    few, many = places_of(town_config), places_of(town_config)
    learn_views(few, town_config, 0, 0, candidates=20, captions=1)
    learn_views(many, town_config, 0, 0, candidates=160, captions=1)
    street, shares, counts = street_of(town_config), [], []
    for places in (few, many):
        share, names = [], []
        for x, z, yaw in places.views.tolist():
            street.reset(np.random.default_rng(0), position=(x, z), yaw=yaw)
            names.append(street.surroundings()["district"])
            share.append(filled(street, names[-1]))
        shares.append(np.mean(share))
        counts.append(np.unique(names, return_counts=True)[1])
    assert shares[1] > shares[0] + 0.1 and counts[1].min() >= 4 and counts[1].max() <= 5


def test_sentences_say_what_they_are_given_and_nothing_else():
    """Every fragment belongs to one fact; sentences hold one of each fact that they are to tell."""
    fragments = json.loads(FRAGMENTS.read_text())
    facts = {"light": LIGHTS, "weather": WEATHERS, "district": DISTRICTS}
    assert all(set(fragments[name]) == set(values) for name, values in facts.items())
    every = [words for name in facts for parts in fragments[name].values() for words in parts]
    assert len(every) == len(set(every)) > 500 and len({len(parts) for parts in fragments["light"].values()}) == 1
    rng, told = np.random.default_rng(0), {}
    for number in range(300):
        wanted = {name: (*values, None)[int(rng.integers(len(values) + 1))] for name, values in facts.items()}
        text = sentence(wanted, rng)
        assert text and "_" not in text and "  " not in text and "None" not in text
        for name, value in wanted.items():
            here = fragments["place"] if (name, value) == ("district", None) else fragments[name].get(value, [])
            words = [part.rstrip("_") for part in here]
            if name == "district":  # adjectives stand between the article and the rest
                words = [part.partition(" ")[2] for part in words]
            assert not here or any(part.lower() in text.lower() for part in words), (text, name, value)
        told[text] = number
    assert len(told) > 290


def test_a_text_is_read_as_its_light_and_weather(town_config):
    """Words of light and weather are read apart, and both decide what is shown where no picture was seen."""
    longer = replace(town_config.text, dim=256, event_tokens=40)
    config = replace(town_config, text=longer, dit=replace(town_config.dit, text_dim=256))
    places = places_of(config)
    torch.nn.init.normal_(places.skies)
    figures = learn_sky_words(places, config, 0, texts=40)
    encoder, rng, right = build_text_encoder(config.text), np.random.default_rng(9), []
    assert figures["skies"] > 0.4  # of sixteen, by hashed words
    silent, picture = torch.zeros(1, dtype=torch.bool), torch.zeros(1, 8, *config.latent_size)
    for number in range(64):
        facts = {"district": "park", "light": LIGHTS[number % 4], "weather": WEATHERS[number // 16]}
        tokens = encoder.encode(sentence(facts, rng), 40)[None]
        logits = places.sky(scaled(mean_token(tokens)))[0]
        right.append([int(logits[:4].argmax()) == number % 4, int(logits[4:].argmax()) == number // 16])
        expected = places.skies[int(logits[:4].argmax()), int(logits[4:].argmax())]
        assert torch.equal(places.looks(picture, picture, silent, tokens)[0], expected)
    assert (np.mean(right, axis=0) > 0.4).all()


def test_a_sky_looks_as_walks_in_it_begin(town_config, town_corpus):
    """Nearer to their first blocks than with what their pictures tell on the mean, which is where it begins."""
    places = places_of(town_config)
    with torch.no_grad():
        for table in places.tables:
            table.normal_()
    walks: dict[tuple[int, int], list[int]] = {}
    for walk in range(len(town_corpus)):
        info = town_corpus.info(walk)
        if info.event_at(1) is None:
            walks.setdefault((LIGHTS.index(info.light), WEATHERS.index(info.weather)), []).append(walk)
    unseen = {(i, j) for i in range(4) for j in range(4)} - set(walks)
    assert walks and unseen
    before = places.skies.normal_().clone()
    learn_skies(places, town_corpus, torch.nn.functional.mse_loss, 0)
    assert all(torch.equal(places.skies[sky], before[sky]) for sky in unseen)
    for sky, own in walks.items():
        seen = torch.stack([town_corpus.block(walk, 0) for walk in own])
        known, silence = torch.ones(len(own), dtype=torch.bool), torch.zeros(len(own), 1, town_config.text.dim)
        mean = places.looks(seen[:, :, 0], seen[:, :, -1], known, silence).mean(dim=0)
        motion, start = town_corpus.motion(own, [0] * len(own)), [town_corpus.position(walk, 0) for walk in own]
        stand = torch.tensor(start, dtype=torch.float64)[:, None] + motion.displacement[:, -1:]
        view = (stand, motion.yaw[:, -1:], motion.pitch[:, -1:])
        far, near = (
            float((places(*view, look.expand(len(own), -1)) - seen[:, :, -1:]).square().mean())
            for look in (mean, places.skies[sky])
        )
        assert near < far
