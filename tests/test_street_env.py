"""YumeStreet-v0: Gymnasium's contract, determinism, events and options. Drawn small to be quick."""

from __future__ import annotations

import math
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from street_env import FORWARD, RIGHT, env_fixture, rollout  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.presets import get_preset
from yume_gym.clock import WallClock
from yume_gym.street.env import YumeStreetEnv
from yume_gym.street.events import EVENTS
from yume_gym.street.simulator import EVENTS as DRAWN_EVENTS


def test_every_phrased_event_is_one_that_is_drawn():
    assert set(EVENTS) == set(DRAWN_EVENTS)


@pytest.mark.parametrize("frames", ["last", "block"])
@pytest.mark.parametrize("env_id", ["YumeStreet-v0", "YumeStreetBeacon-v0"])
def test_gymnasium_checker_finds_nothing(env_id, frames):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, frames=frames, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("frames", ["last", "block"])
def test_stable_baselines_checker_finds_nothing(frames):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make("YumeStreet-v0", frames=frames).unwrapped, warn=True, skip_render_check=False)


def test_observations_and_info_say_the_same():
    last, block = (gym.make("YumeStreet-v0", frames=frames).unwrapped for frames in ("last", "block"))
    config = get_preset("street")
    for env in (last, block):
        env.reset(seed=3)
    observation, reward, terminated, truncated, info = last.step(FORWARD)
    stacked, *_ = block.step(FORWARD)
    shape = (config.frames_per_block, config.height, config.width, 3)
    assert info["frames"].shape == shape
    assert info["frames"].dtype == np.uint8
    assert np.array_equal(observation, info["frames"][-1])
    assert np.array_equal(np.stack(np.split(stacked, shape[0], axis=-1)), info["frames"])
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["pose"].shape == (shape[0], 4, 4)
    assert info["intrinsics"].shape == (3, 3)
    assert (info["keys"], info["look"], info["step"], info["event"]) == ("W", "", 1, None)
    assert info["caption"].endswith(".")
    assert info["latency_ms"] > 0
    assert last.metadata["render_fps"] == config.fps
    assert last.metadata["frames_per_step"] == shape[0]


def test_same_seed_and_actions_give_the_same_frames_whatever_else_runs(env):
    actions = [FORWARD, RIGHT, FORWARD, 80, 0]
    alone = rollout(env, 5, actions, events=["fireworks", "it starts snowing"])
    other = gym.make("YumeStreet-v0", preset="debug").unwrapped
    other.reset(seed=9)
    mixed = [env.reset(seed=5, options={"events": ["fireworks", "it starts snowing"]})[0]]
    for action in actions:
        other.step(other.action_space.sample())
        np.random.default_rng().random()
        mixed.append(env.step(action)[0])
    assert all(np.array_equal(a, b) for a, b in zip(alone, mixed, strict=True))
    assert not np.array_equal(alone[0], rollout(env, 6, [])[0])


def test_unseeded_resets_go_on_with_the_seeded_generator(env):
    def two_starts():
        first, _ = env.reset(seed=11)
        return first, env.reset()[0]

    (a, b), (c, d) = two_starts(), two_starts()
    assert np.array_equal(a, c)
    assert np.array_equal(b, d)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("town_seed", [0, None])
def test_restored_state_continues_bit_by_bit(town_seed):
    env, other = (YumeStreetEnv(preset="debug", town_seed=town_seed, reward="beacon") for _ in range(2))
    env.reset(seed=2, options={"events": {1: "a ghost appears"}})
    env.step(FORWARD)
    saved = pickle.dumps(env.get_state())

    def go_on(walker):
        results = [walker.step(action) for action in (FORWARD, 7, 33)]
        next_start = walker.reset()
        return [(r[0], r[1], r[4]["pose"], r[4]["caption"], r[4]["events"]) for r in results], next_start[0]

    expected, expected_start = go_on(env)
    other.set_state(pickle.loads(saved))
    for walker in (other, pickle.loads(pickle.dumps(other))):
        walker.set_state(pickle.loads(saved))
        got, got_start = go_on(walker)
        for mine, theirs in zip(got, expected, strict=True):
            assert np.array_equal(mine[0], theirs[0])
            assert np.array_equal(mine[2], theirs[2])
            assert (mine[1], *mine[3:]) == (theirs[1], *theirs[3:])
        assert np.array_equal(got_start, expected_start)


def test_pickled_environment_is_where_it_was(env):
    env.reset(seed=4)
    env.step(RIGHT)
    copy = pickle.loads(pickle.dumps(env))
    assert np.array_equal(copy.step(FORWARD)[0], env.step(FORWARD)[0])


def test_state_of_another_environment_is_refused(env):
    env.reset(seed=0)
    big = YumeStreetEnv()
    big.reset(seed=0)
    with pytest.raises(ValueError, match="cannot continue"):
        env.set_state(big.get_state())
    with pytest.raises(ValueError, match="3 x 3 blocks"):
        YumeStreetEnv(preset="debug", blocks=3).set_state(env.get_state())
    with pytest.raises(TypeError, match="get_state"):
        env.set_state({"step": 3})


def test_poses_follow_the_commanded_motion(env):
    config = get_preset("debug")
    _, info = env.reset(seed=1, options={"text": "a clear day"})
    start = info["pose"][-1]
    yaw = math.atan2(start[0, 2], start[2, 2])
    info = env.step(RIGHT)[4]
    yaws, _, _ = commanded_motion(
        Action.from_index(RIGHT), yaw, 0.0, config.frames_per_block, config.fps, config.camera
    )
    assert np.allclose(np.arctan2(info["pose"][:, 0, 2], info["pose"][:, 2, 2]), np.angle(np.exp(1j * yaws)))
    assert np.allclose(info["pose"][:, :3, 3], start[:3, 3])
    assert not info["blocked"]


def test_pose_option_starts_exactly_there(env):
    _, info = env.reset(seed=8)
    env.step(FORWARD)
    pose = env.step(Action.from_keys("W", "↑→").index)[4]["pose"][-1]
    _, again = env.reset(seed=0, options={"pose": pose.tolist()})
    assert np.allclose(again["pose"][0], pose)
    assert not np.allclose(again["pose"][0], info["pose"][0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a snowy night in the old town", ("night", "snow", "pastel old town")),
        ("a foggy park", (None, "fog", "park")),
        ("at golden hour", ("golden", None, None)),
    ],
)
def test_text_start_looks_like_its_text(env, text, words):
    env.reset(seed=13, options={"text": text})
    street = env._simulator(0)
    assert words[0] in (None, street.base_light)
    assert words[1] in (None, street.base_weather)
    assert words[2] in (None, street.surroundings()["district"])


def test_triggered_event_is_seen_and_ends(env):
    options = {"text": "a clear day"}
    quiet = rollout(env, 3, [0] * 8, **options)
    env.reset(seed=3, options=options)
    env.trigger_event("darkness falls, it is night")
    frames, events = [], []
    for k in range(8):
        if k == 4:
            env.trigger_event("")
        observation, *_, info = env.step(0)
        frames.append(observation)
        events.append(info["event"])
    assert events == ["darkness falls, it is night"] * 4 + [None] * 4
    assert info["events"] == {0: "darkness falls, it is night", 4: None}
    assert frames[3].mean() < 0.6 * quiet[4].mean()
    assert abs(frames[7].mean() - quiet[8].mean()) < 3


def test_schedule_is_obeyed_and_reported(env):
    _, info = env.reset(seed=0, options={"events": {"1": "heavy rain", 3: None}})
    assert info["event"] is None
    assert [env.step(0)[4]["event"] for _ in range(4)] == [None, "heavy rain", "heavy rain", None]
    info["events"].clear()
    assert env.step(0)[4]["events"] == {1: "heavy rain", 3: None}


def test_spec_survives_json():
    env = gym.make("YumeStreetBeacon-v0", preset="debug", light="night")
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert np.array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_wall_clock_readings_are_numbers_that_compare_equal():
    fast, slow = WallClock(1.5), WallClock(20.0)
    assert fast == slow
    assert fast < slow
    assert fast == 1.5
    assert fast != 1.6
    assert f"{fast:.1f}" == "1.5"
    assert pickle.loads(pickle.dumps(slow)) + 1 == 21.0
