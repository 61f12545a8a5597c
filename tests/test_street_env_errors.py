"""YumeStreet-v0: bad input is explained and changes nothing."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from street_env import FORWARD, RIGHT, env_fixture  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from yume_gym.street.env import YumeStreetEnv

BAD_CALLS = [
    (lambda env: env.reset(options={"image": "photo.jpg"}), ValueError, "ground truth"),
    (lambda env: env.reset(seed=1, options={"picture": 1}), ValueError, "text, events, pose"),
    (lambda env: env.reset(seed=1, options=["text"]), TypeError, "mapping"),
    (lambda env: env.reset(seed=1, options={"text": "  "}), ValueError, "empty"),
    (lambda env: env.reset(seed=1, options={"text": "x" * 10_000}), ValueError, "at most 500"),
    (lambda env: env.reset(seed=1, options={"text": 5}), TypeError, "str"),
    (lambda env: env.reset(seed=1, options={"text": "xylophone"}), ValueError, "light"),
    (lambda env: env.reset(seed=1, options={"events": "a zebra"}), ValueError, "zebra"),
    (lambda env: env.reset(seed=1, options={"events": {-2: "rain"}}), ValueError, "count from 0"),
    (lambda env: env.reset(seed=1, options={"pose": np.eye(3)}), ValueError, "camera-to-world"),
    (lambda env: env.reset(seed=1, options={"pose": np.zeros((4, 4))}), ValueError, "direction"),
    (lambda env: env.reset(seed=1, options={"pose": [["a"] * 4] * 4}), TypeError, "camera-to-world"),
    (lambda env: env.reset(seed=-1), gym.error.Error, "greater or equal"),
    (lambda env: env.step(81), ValueError, "0..80"),
    (lambda env: env.step(-1), ValueError, "0..80"),
    (lambda env: env.step(1.0), TypeError, "integer"),
    (lambda env: env.step(True), TypeError, "integer"),
    (lambda env: env.step("W"), TypeError, "from_keys"),
    (lambda env: env.step(np.array([1, 2])), TypeError, "integer"),
    (lambda env: env.trigger_event("a zebra"), ValueError, "fireworks"),
    (lambda env: env.trigger_event(7), TypeError, "str"),
    (lambda env: env.trigger_event("  "), ValueError, "empty"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS)
def test_bad_input_is_explained_and_changes_nothing(env, call, error, words):
    env.reset(seed=21)
    expected = [env.step(FORWARD)[0], env.step(RIGHT)[0], env.reset()[0]]
    env.reset(seed=21)
    got = [env.step(FORWARD)[0]]
    with pytest.raises(error, match=words):
        call(env)
    got += [env.step(RIGHT)[0]]
    with pytest.raises(error, match=words):
        call(env)
    got += [env.reset()[0]]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"blocks": 1}, ValueError, "blocks"),
        ({"blocks": 2.5}, TypeError, "blocks"),
        ({"town_seed": -1}, ValueError, "town_seed"),
        ({"light": "noon"}, ValueError, "golden"),
        ({"weather": "hail"}, ValueError, "snow"),
        ({"reward": "score"}, ValueError, "beacon"),
        ({"reward": 3}, TypeError, "callable"),
        ({"frames": "all"}, ValueError, "block"),
        ({"render_mode": "ansi"}, ValueError, "rgb_array"),
        ({"preset": "big"}, ValueError, "street"),
    ],
)
def test_bad_arguments_are_explained(arguments, error, words):
    with pytest.raises(error, match=words):
        YumeStreetEnv(**arguments)


def test_nothing_works_before_the_first_reset():
    env = YumeStreetEnv(preset="debug", render_mode="rgb_array")
    for call in (lambda: env.step(0), lambda: env.trigger_event("rain"), env.get_state, env.render):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
