"""YumeWorld-v0: bad input, failures and missing weights are explained and change nothing."""

from __future__ import annotations

import pytest
from gymnasium.error import ResetNeeded
from world_env import FORWARD, RIGHT, env_fixture, equal, model_fixture, picture, weights_fixture  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from yume_gym.env import YumeWorldEnv

BAD_CALLS = [
    (lambda env: env.reset(options={"image": "/no/such.png"}), FileNotFoundError, "such.png"),
    (lambda env: env.reset(seed=1, options={"image": __file__}), ValueError, "PNG or JPEG"),
    (lambda env: env.reset(seed=1, options={"image": picture().astype(float)}), TypeError, "uint8"),
    (lambda env: env.reset(seed=1, options={"image": picture()[..., 0]}), ValueError, r"\(H, W, 3\)"),
    (lambda env: env.reset(seed=1, options={"image": picture()[:10]}), ValueError, "16x16"),
    (lambda env: env.reset(seed=1, options={"image": 3}), TypeError, "PIL image"),
    (lambda env: env.reset(seed=1, options={"text": ""}), ValueError, "empty"),
    (lambda env: env.reset(seed=1, options={"text": "x" * 10_000}), ValueError, "10000"),
    (lambda env: env.reset(seed=1, options={"text": b"park"}), TypeError, "bytes"),
    (lambda env: env.reset(seed=1, options={"events": [3]}), TypeError, "str"),
    (lambda env: env.reset(seed=1, options={"pose": 1}), ValueError, "image, text, events"),
    (lambda env: env.reset(seed="x"), Exception, "(?i)int"),
    (lambda env: env.step(81), ValueError, "0..80"),
    (lambda env: env.step(None), TypeError, "integer"),
    (lambda env: env.trigger_event("x" * 501), ValueError, "at most 500"),
    (lambda env: env.trigger_event(["rain"]), TypeError, "list"),
    (lambda env: env.set_state("state"), TypeError, "get_state"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS)
def test_bad_input_is_explained_and_changes_nothing(env, call, error, words):
    env.reset(seed=21)
    expected = [env.step(FORWARD)[0], env.reset()[0]]
    env.reset(seed=21)
    with pytest.raises(error, match=words):
        call(env)
    got = [env.step(FORWARD)[0]]
    with pytest.raises(error, match=words):
        call(env)
    assert equal([*got, env.reset()[0]], expected)


def test_failure_within_the_model_changes_nothing(env, monkeypatch):
    env.reset(seed=21)
    expected = [env.step(FORWARD)[0], env.reset()[0]]
    env.reset(seed=21)

    def broken(*arguments, **named):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(env.model, "step", broken)
        patched.setattr(env.model, "start", broken)
        with pytest.raises(RuntimeError, match="memory"):
            env.step(RIGHT)
        with pytest.raises(RuntimeError, match="memory"):
            env.reset(seed=4)
    assert equal([env.step(FORWARD)[0], env.reset()[0]], expected)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "no-such-model"}, ValueError, "street"),
        ({"device": "abacus"}, ValueError, "abacus"),
        ({"dtype": "int4"}, ValueError, "bfloat16"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 2.0}, TypeError, "steps"),
        ({"reward": "score"}, ValueError, "motion"),
        ({"frames": "first"}, ValueError, "block"),
        ({"render_mode": "ascii"}, ValueError, "rgb_array"),
    ],
)
def test_bad_arguments_are_explained(weights, arguments, error, words):
    with pytest.raises(error, match=words):
        YumeWorldEnv(**{"model": str(weights), **arguments})


def test_missing_and_damaged_weights_are_named(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        YumeWorldEnv(model=tmp_path)
    for path in weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "dit.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "dit.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"dit\.safetensors.*damaged"):
        YumeWorldEnv(model=tmp_path)
    (tmp_path / "dit.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"dit\.safetensors"):
        YumeWorldEnv(model=tmp_path)


def test_nothing_works_before_the_first_reset(model):
    env = YumeWorldEnv(model=model, render_mode="rgb_array")
    for call in (lambda: env.step(0), lambda: env.trigger_event("rain"), env.get_state, env.render):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
