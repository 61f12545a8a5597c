"""YumeWorld-v0 on a tiny world with random weights: Gymnasium's contract, starts, events, states, bad input."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from PIL import Image
from world_env import CONFIG, FORWARD, RIGHT, env_fixture, equal, model_fixture, picture, rollout, weights_fixture  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.presets import get_preset
from yume_gym.env import YumeWorldEnv
from yume_gym.pictures import load_picture


def test_importing_the_package_is_light():
    code = "import yume_gym, sys; print(sorted({'torch', 'numba', 'pygame', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("frames", ["last", "block"])
def test_gymnasium_checker_finds_nothing(weights, frames):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("YumeWorld-v0", model=str(weights), frames=frames, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("frames", ["last", "block"])
def test_stable_baselines_checker_finds_nothing(weights, frames):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make("YumeWorld-v0", model=str(weights), frames=frames).unwrapped, warn=True)


def test_code_for_one_environment_runs_on_the_other(env):
    street = gym.make("YumeStreet-v0").unwrapped
    _, dreamt = env.reset(seed=0)
    _, true = street.reset(seed=0)
    assert dreamt.keys() <= true.keys()
    dreamt, true = env.step(FORWARD)[4], street.step(FORWARD)[4]
    assert dreamt.keys() <= true.keys()
    assert {key: type(dreamt[key]) for key in dreamt} == {key: type(true[key]) for key in dreamt}
    assert env.action_space == street.action_space
    assert env.get_action_meanings() == street.get_action_meanings()
    default = get_preset("street")
    assert street.observation_space == gym.spaces.Box(0, 255, (default.height, default.width, 3), np.uint8)


def test_a_step_is_the_models_step(env, model):
    first, info = env.reset(seed=3, options={"image": picture(1), "events": "snow falls"})
    state = env.get_state().episode.world
    assert np.array_equal(first, picture(1))
    assert equal(info["frames"], [first] * CONFIG.frames_per_block)
    observation, reward, terminated, truncated, info = env.step(FORWARD)
    _, frames = model.step(state, [Action.from_index(FORWARD)], ["snow falls"])
    assert np.array_equal(info["frames"], frames[0])
    assert np.array_equal(observation, frames[0, -1])
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["keys"], info["look"], info["event"], info["step"]) == ("W", "", "snow falls", 1)
    assert env.metadata["render_fps"] == CONFIG.fps
    assert env.metadata["frames_per_step"] == CONFIG.frames_per_block


def test_every_kind_of_start_differs_and_repeats(env):
    starts = {
        "shipped": {},
        "image": {"image": picture(1)},
        "text": {"text": "a park at night"},
        "other text": {"text": "a street in the snow"},
        "both": {"image": picture(2), "text": "a park at night"},
    }
    seen = {name: rollout(env, 5, [FORWARD], **options) for name, options in starts.items()}
    for name, options in starts.items():
        assert equal(seen[name], rollout(env, 5, [FORWARD], **options)), name
    firsts = {frames[0].tobytes() for frames in seen.values()}
    assert len(firsts) == len(starts)


def test_shipped_start_is_drawn_with_the_seed(env, model):
    shipped = {picture.tobytes() for picture in model.starts}
    drawn = {env.reset(seed=seed)[0].tobytes() for seed in range(30)}
    assert drawn == shipped


def test_image_kinds_give_the_same_start(env, tmp_path):
    array = picture(7, (90, 100))
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    starts = [
        env.reset(seed=0, options={"image": kind})[0] for kind in (array, Image.fromarray(array), path, str(path))
    ]
    assert equal(starts, [starts[0]] * 4)
    assert starts[0].shape == (CONFIG.height, CONFIG.width, 3)


def test_pictures_are_cut_in_the_middle():
    colour = np.array((10, 200, 30))
    wide, tall = np.zeros((64, 192, 3), np.uint8), np.zeros((192, 96, 3), np.uint8)
    wide[:, 48 - 7 : 144 + 7] = colour  # a 2:3 picture keeps columns 48..143; the filter reaches a little farther
    tall[64 - 7 : 128 + 7] = colour
    for drawn in (wide, tall):
        assert np.abs(load_picture(drawn, 32, 48) - colour).max() <= 2
    assert load_picture(wide, 32, 48).shape == (32, 48, 3)
    grey = load_picture(Image.fromarray(wide).convert("L"), 32, 48)
    assert (grey[..., 0] == grey[..., 2]).all()
    clear = load_picture(Image.new("RGBA", (48, 32), (255, 255, 255, 0)), 32, 48)
    assert not clear.any()


def test_photographs_are_turned_upright(tmp_path):
    photo = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, 1).repeat(3, 2))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    photo.save(tmp_path / "photo.png", exif=exif)
    upright, stored = load_picture(tmp_path / "photo.png", 32, 32), load_picture(photo, 32, 32)
    assert np.array_equal(upright, stored[::-1, ::-1])


def test_same_seed_and_actions_give_the_same_frames_whatever_else_runs(env, model):
    actions = [FORWARD, RIGHT, 80, 0, FORWARD]
    alone = rollout(env, 5, actions)
    other = YumeWorldEnv(model=model)
    other.reset(seed=9)
    mixed = [env.reset(seed=5)[0]]
    for action in actions:
        other.step(other.action_space.sample())
        torch.randn(3)
        np.random.default_rng().random()
        mixed.append(env.step(action)[0])
    assert equal(alone, mixed)
    assert not equal(alone, rollout(env, 6, actions))


def test_restored_state_continues_bit_by_bit(env, model, tmp_path):
    env.reset(seed=2, options={"events": {3: "night falls"}})
    for action in (FORWARD, RIGHT):
        env.step(action)
    path = tmp_path / "state.pickle"
    path.write_bytes(pickle.dumps(env.get_state()))

    def go_on(walker):
        steps = [walker.step(action) for action in (FORWARD, 44, 7)]
        return [s[0] for s in steps] + [walker.reset()[0]], [(s[4]["event"], s[4]["step"]) for s in steps]

    frames, facts = go_on(env)
    other = YumeWorldEnv(model=model)
    for walker in (other, env):
        walker.set_state(pickle.loads(path.read_bytes()))
        again, facts_again = go_on(walker)
        assert equal(again, frames)
        assert facts_again == facts == [(None, 3), ("night falls", 4), ("night falls", 5)]
    with pytest.raises(ValueError, match="cannot continue"):
        gym.make("YumeStreet-v0", preset="debug").unwrapped.set_state(env.get_state())


def test_pickled_environment_is_where_it_was(weights):
    env = gym.make("YumeWorld-v0", model=str(weights), device="cpu").unwrapped
    env.reset(seed=4)
    env.step(RIGHT)
    stored = pickle.dumps(env)
    assert np.array_equal(pickle.loads(stored).step(FORWARD)[0], env.step(FORWARD)[0])


def test_spec_survives_json(weights):
    env = gym.make("YumeWorld-v0", model=str(weights), reward="motion", steps=2, max_episode_steps=2)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    for made in (env, again):
        made.reset(seed=1)
    mine, theirs = ([made.step(FORWARD), made.step(RIGHT)] for made in (env, again))
    assert equal([step[0] for step in mine], [step[0] for step in theirs])
    assert [step[1:4] for step in mine] == [step[1:4] for step in theirs]
    assert mine[1][3]


def test_triggered_events_reach_the_model(env):
    plain = rollout(env, 3, [0, 0, 0])
    env.reset(seed=3)
    env.step(0)
    env.trigger_event("  a heavy rainstorm begins ")
    observation, *_, info = env.step(0)
    assert info["event"] == "a heavy rainstorm begins"
    assert info["events"] == {1: "a heavy rainstorm begins"}
    assert not np.array_equal(observation, plain[2])
    env.trigger_event(None)
    assert env.step(0)[4]["event"] is None


def test_sampler_steps_are_the_callers_choice(model):
    two, default, same = (YumeWorldEnv(model=model, steps=n) for n in (2, None, CONFIG.sampler.steps))
    frames = [rollout(env, 0, [FORWARD])[1] for env in (two, default, same)]
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[1], frames[2])


def test_a_loaded_model_is_shared_and_keeps_its_device(model):
    assert YumeWorldEnv(model=model).model is YumeWorldEnv(model=model).model is model
    with pytest.raises(ValueError, match="auto"):
        YumeWorldEnv(model=model, device="cpu")


def test_rendering_shows_every_frame_once(model):
    env = YumeWorldEnv(model=model, render_mode="rgb_array_list")
    first, _ = env.reset(seed=0)
    blocks = [env.step(action)[4]["frames"] for action in (FORWARD, RIGHT)]
    assert equal(env.render(), [first, *np.concatenate(blocks)])
    assert env.render() == []
    env = YumeWorldEnv(model=model, render_mode="rgb_array")
    env.reset(seed=0)
    observation, *_ = env.step(FORWARD)
    assert np.array_equal(env.render(), observation)
