"""Rewards read by trained heads: the pillar of light and texts; their training, files, calibration and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import beacon_check
from agents.worlds import Where
from train.evaluation.picture_heads import half_and_half
from train.generator.heads import best_threshold
from train.picture_heads import Settings, balanced, main, platt, train_heads
from train.street.views import beacon_views, event_facts, fits, texts, told_views
from world_model.model import WorldModel
from world_model.picture_heads import BEACON, TEXT_GOAL, load_picture_head, save_picture_head
from world_model.presets import get_preset
from world_model.weights import read_manifest, read_strip
from yume_gym.env import YumeWorldEnv
from yume_gym.rewards import Beacon, TextGoal, begin_reward, find_reward, step_reward
from yume_gym.vector_env import YumeWorldVectorEnv

TINY = Settings(views=24, held_out=16, towns=1, steps=3, batch=8, sentences=40, starts=2)


@pytest.fixture(scope="module")
def folder(weights_folder, tmp_path_factory) -> Path:
    """The small world with both heads, trained for three steps."""
    copied = tmp_path_factory.mktemp("heads") / "world"
    shutil.copytree(weights_folder, copied)
    train_heads(copied, (BEACON, TEXT_GOAL), TINY)
    return copied


@pytest.fixture(scope="module")
def model(folder) -> WorldModel:
    return WorldModel.load(folder, device="cpu", dtype="float32")


# -- training -------------------------------------------------------------------------------------------------------------


def test_both_heads_are_written_with_their_calibration(folder, config):
    listed = read_manifest(folder)["files"]
    assert {"beacon.json", "beacon.safetensors", "beacon.png", "text_goal.json", "text_goal.safetensors"} <= set(listed)
    beacon, text = (json.loads((folder / f"{name}.json").read_text()) for name in (BEACON, TEXT_GOAL))
    assert {"seen/average_precision", "arrived/average_precision", "arrived/calibration_error"} <= set(
        beacon["measured"]
    )
    assert {"all/average_precision", "event/average_precision", "calibration_error"} <= set(text["measured"])
    assert len(beacon["calibration"]) == 2 and len(text["calibration"]) == 1
    assert len(read_strip(folder, "beacon.png", config)) == 2


def test_starting_pictures_alone_are_written_as_many_and_as_varied_as_asked(folder, config, tmp_path):
    shutil.copytree(folder, tmp_path / "world")
    before = read_manifest(folder)["files"]
    given = ["--model", str(tmp_path / "world"), "--heads", "starts", "--towns", "4", "--starts", "5", "--varied"]
    main([*given, "--start-distances", "10", "30"])
    after = read_manifest(tmp_path / "world")["files"]
    assert {name for name in after if after[name] != before[name]} == {"beacon.png"}
    pictures = read_strip(tmp_path / "world", "beacon.png", config)
    assert len(pictures) == 5 and len({picture.tobytes() for picture in pictures}) == 5


def test_views_are_what_is_said_of_them(config):
    views = beacon_views(config, (1000, 1001), 40, seed=0)
    with_beacon, without = views.pictures[::2].astype(int), views.pictures[1::2]
    differ = (np.abs(with_beacon - without).max(axis=-1) >= 12).sum(axis=(1, 2))
    assert (
        (views.seen[::2] == (differ >= 8)).all() and not views.seen[1::2].any() and np.isinf(views.distance[1::2]).all()
    )
    near = views.distance[::2] < 3
    assert near.any() and (differ[near & views.seen[::2]].mean() > differ[~near].mean())  # a near pillar is wide
    told = told_views(config, (1000,), 12, seed=0)
    dark = [picture.mean() for picture, facts in zip(told.pictures, told.facts) if facts["light"] == "night"]
    light = [picture.mean() for picture, facts in zip(told.pictures, told.facts) if facts["light"] == "day"]
    assert np.mean(dark) < np.mean(light)


def test_a_text_fits_where_all_that_it_tells_is_true():
    trained, held_out = texts(100, seed=0)
    assert not {text for text, _ in trained} & {text for text, facts in held_out if set(facts) == {"event"}}
    assert event_facts("night") == {"light": "night"} and event_facts("ufo") == {"event": "ufo"}
    view = {"light": "night", "weather": "rain", "district": "park", "event": None}
    assert fits([{"light": "night"}, {"light": "night", "weather": "snow"}, {"event": "ufo"}], [view]).tolist() == [
        [True, False, False]
    ]


def test_calibration_finds_the_probabilities_that_labels_were_drawn_with():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000) * 2
    labels = rng.random(4000) < 1 / (1 + np.exp(-(1.5 * logits - 1)))
    scale, offset = platt(torch.from_numpy(logits).float(), labels)
    assert scale == pytest.approx(1.5, abs=0.15) and offset == pytest.approx(-1, abs=0.15)
    assert 0.3 < best_threshold(1 / (1 + np.exp(-(1.5 * logits - 1))), labels) < 0.6
    rows, columns = half_and_half(np.eye(6, dtype=bool), rng)
    assert (rows == columns).sum() == 6 and len(rows) == 12
    # one fitting pair among nine weighs as much as the eight others
    wanted = torch.zeros(1, 9)
    wanted[0, 0] = 1
    assert balanced(torch.zeros(1, 9), wanted) == pytest.approx(2 * math.log(2))


# -- the pillar -----------------------------------------------------------------------------------------------------------


def test_the_pillar_pays_for_the_way_to_it(model, monkeypatch):
    """Looks are given: (seen, arrived, metres). A step of the model's goes 1.25 m at 2.5 m a second."""
    reward, frames = Beacon().bind(model), np.zeros((4, 32, 48, 3), np.uint8)
    step = model.config.camera.walk_speed * model.config.frames_per_block / model.config.fps
    readings = iter(
        [(0.1, 0, 9), (0.9, 0, 20), (0.9, 0, 20 - step / 2), (0.9, 0, 3), (0.2, 0, 3), (0.9, 1, 2.0), (1, 1, 2)]
    )
    monkeypatch.setattr(Beacon, "measure", lambda self, picture: next(readings))
    state, found = begin_reward(reward, frames), []
    assert math.isinf(state.distance)
    for _ in range(6):
        value, ended, state = step_reward(reward, state, frames, 0, frames)
        found.append((round(value, 6), ended))
    # it came into view; half a step nearer; no more than a step is believed; out of view; not sure to be one; there
    assert found == [(0, False), (0.5, False), (1, False), (0, False), (1, False), (11, True)]
    assert state.distance == pytest.approx(20 - 3.5 * step)


def test_a_world_with_the_pillar_starts_where_one_is_seen_alone_and_in_a_batch(model, folder):
    env, envs = YumeWorldEnv(model, reward="beacon"), YumeWorldVectorEnv(2, model=model, reward="beacon")
    starts = read_strip(folder, "beacon.png", model.config)
    first, _ = env.reset(seed=3)
    assert any((picture == first).all() for picture in starts)
    np.testing.assert_array_equal(envs.reset(seed=3)[0][0], first)
    assert any((picture == env.reset(options={"text": "a street"})[0]).all() for picture in starts) is False
    env.reset(seed=3)
    value, terminated = env.step(9)[1:3]
    assert math.isfinite(value) and isinstance(terminated, bool)
    state = env.get_state()
    envs.set_state(1, state)
    forged = dataclasses.replace(state, episode=dataclasses.replace(state.episode, reward_state=-1.0))
    with pytest.raises(ValueError, match="a distance of 0 or more"):
        env.set_state(forged)


def test_learned_and_true_rewards_are_compared(model):
    found = beacon_check.check(Beacon().bind(model), episodes=2, seed=2, preset="debug")
    assert found["steps"] >= 1 and found["arrivals"] <= 2


# -- texts ----------------------------------------------------------------------------------------------------------------


def test_a_text_pays_for_fitting_better_and_ends_where_it_fits(model, pictures, monkeypatch):
    reward = find_reward("text:a snowy night")
    assert isinstance(reward, TextGoal) and reward.needs_model
    bound = reward.bind(model)
    one, other = (np.repeat(picture[None], 4, axis=0) for picture in pictures[:2])
    state = begin_reward(bound, one)
    assert 0 < state.value < 1 and state.value == bound.fit(pictures[0])
    value, ended, after = step_reward(bound, state, one, 0, other)
    assert value == pytest.approx(after.value - state.value + (1.0 if ended else 0.0))
    sure = TextGoal("a snowy night", threshold=1e-6, bonus=2.0).bind(model)
    value, ended, _ = step_reward(sure, begin_reward(sure, one), one, 0, other)
    assert ended and value == pytest.approx(after.value - state.value + 2)
    with pytest.raises(ValueError, match="its own text"):
        TextGoal("a sunny day").bind(model).check(state)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TextGoal(""), ValueError, "empty"),
        (lambda: TextGoal(3), TypeError, "must be a str"),
        (lambda: TextGoal("snow", threshold=0), ValueError, "above 0 and at most 1"),
        (lambda: TextGoal("snow", bonus=math.nan), ValueError, "must be finite"),
        (lambda: TextGoal("snow").threshold, ValueError, "needs a model"),
        (lambda: find_reward("gold"), ValueError, "use None, one of beacon, goal:PATH, motion, novelty, text:WORDS"),
        (lambda: find_reward("goal:nowhere.png"), FileNotFoundError, "no such picture"),
    ],
)
def test_what_is_no_goal_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


# -- files ----------------------------------------------------------------------------------------------------------------


def test_weights_without_the_head_or_of_another_autoencoder_are_refused(world_model, folder, tmp_path):
    with pytest.raises(ValueError, match=r"no head 'beacon': train it with python -m train.picture_heads"):
        YumeWorldEnv(world_model, reward="beacon")
    shutil.copytree(folder, tmp_path / "other")
    head = load_picture_head(tmp_path / "other", BEACON)
    head.config = dataclasses.replace(head.config, autoencoder="0" * 64)
    save_picture_head(tmp_path / "other", BEACON, head)
    with pytest.raises(ValueError, match="another autoencoder"):
        load_picture_head(tmp_path / "other", BEACON)
    (tmp_path / "other" / "beacon.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        load_picture_head(tmp_path / "other", BEACON)


def test_the_shipped_heads_tell_pictures_of_other_towns_apart():
    """What the files say was measured on 1,600 views; here a few new ones."""
    shipped = WorldModel.load("street", device="cpu", dtype="float32")
    views = beacon_views(get_preset("street"), (3100,), 16, seed=9)
    reward = Beacon().bind(shipped)
    found = np.array([reward.measure(picture) for picture in views.pictures])
    assert (found[:, 0] >= 0.5)[views.seen].mean() > 0.85 and (found[:, 0] < 0.5)[~views.seen].mean() > 0.85
    assert found[views.arrived, 1].mean() > 0.7 > 0.3 > found[~views.arrived, 1].mean()
    night = TextGoal("at night").bind(shipped)
    told = told_views(get_preset("street"), (3100,), 24, seed=9)
    fit = np.array([night.fit(picture) for picture in told.pictures])
    dark = np.array([facts["light"] == "night" for facts in told.facts])
    assert fit[dark].min() > np.median(fit[~dark])


def test_the_command_line_reaches_the_reward(folder):
    worlds = Where(arguments={"model": str(folder), "reward": "beacon"}, longest=2).make(2, 0)
    assert worlds.reset().shape == (2, 32, 48, 12)
    worlds.close()
