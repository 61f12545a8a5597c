"""Stable-Baselines3 on the batch of worlds: its algorithms, wrappers, evaluation and checkpoints, on tiny recorded models."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from recorded_worlds import SPACES, folders_fixture, models_fixture, sure_heads, with_heads  # noqa: F401  (fixtures, too)

sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import (  # noqa: E402
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecTransposeImage,
)

from yume_gym.sb3 import YumeVecEnv, make_vec_env  # noqa: E402
from yume_gym.vector_env import YumeWorldVectorEnv  # noqa: E402


def bright(previous: np.ndarray, action: Any, current: np.ndarray) -> tuple[float, bool]:
    """A reward of pictures; ends with bright ones."""
    return float(current.mean()) / 255, bool(current[-1, 0, 0, 0] > 128)


@pytest.fixture
def envs(models) -> VecEnv:
    return make_vec_env("YumeWorld-v0", 3, seed=0, model=models["discrete"], reward=bright, max_episode_steps=3)


def test_it_is_sb3s_dummy_vec_env_but_for_the_batch(models, folders):
    arguments = {"reward": bright, "max_episode_steps": 3}
    mine = make_vec_env(n_envs=3, model=models["discrete"], batch_invariant=True, **arguments)
    single = {"model": str(folders["discrete"]), "device": "cpu", "dtype": "float32", "disable_env_checker": True}
    dummy = VecMonitor(DummyVecEnv([lambda: gym.make("YumeWorld-v0", **single, **arguments)] * 3))
    mine.seed(4)
    dummy.seed(4)
    np.testing.assert_array_equal(mine.reset(), dummy.reset())
    mine.action_space.seed(0)
    ends = 0
    for _ in range(7):
        held = np.array([mine.action_space.sample() for _ in range(3)])
        (seen, rewards, dones, infos), (seen2, rewards2, dones2, infos2) = mine.step(held), dummy.step(held)
        for one, other in ((seen, seen2), (rewards, rewards2), (dones, dones2)):
            np.testing.assert_array_equal(one, other)
        for info, other in zip(infos, infos2):
            assert info.keys() == other.keys()
            assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            np.testing.assert_array_equal(info["frames"], other["frames"])
            if "episode" in info:
                ends += 1
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
                assert (info["episode"]["r"], info["episode"]["l"]) == (other["episode"]["r"], other["episode"]["l"])
    assert ends >= 6
    assert [info["step"] for info in mine.unwrapped.reset_infos] == [0, 0, 0]


@pytest.mark.parametrize(
    ("algorithm", "policy", "arguments"),
    [
        (sb3.PPO, "CnnPolicy", {"n_steps": 4, "batch_size": 4, "n_epochs": 1}),
        (sb3.A2C, "MlpPolicy", {"n_steps": 4}),
        (sb3.DQN, "MlpPolicy", {"buffer_size": 32, "learning_starts": 6, "batch_size": 4, "train_freq": 2}),
        (contrib.RecurrentPPO, "CnnLstmPolicy", {"n_steps": 4, "batch_size": 4, "n_epochs": 1}),
    ],
)
def test_algorithms_learn_and_are_saved(envs, algorithm, policy, arguments, tmp_path):
    agent = algorithm(policy, envs, seed=0, device="cpu", **arguments)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(24)
    assert agent.num_timesteps >= 24
    assert any((value != before[name]).any() for name, value in agent.policy.state_dict().items())
    assert agent.ep_info_buffer and all(np.isfinite(info["r"]) for info in agent.ep_info_buffer)
    agent.save(tmp_path / "agent")
    again = algorithm.load(tmp_path / "agent", env=envs, device="cpu")
    observations = envs.reset()
    expected, _ = agent.predict(observations, deterministic=True)
    np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)
    again.learn(12, reset_num_timesteps=False)
    assert again.num_timesteps >= 36


@pytest.mark.parametrize("kind", SPACES)
def test_every_action_space(models, kind):
    envs = make_vec_env(n_envs=2, seed=0, model=models[kind], max_episode_steps=2)
    agent = sb3.PPO("MlpPolicy", envs, n_steps=3, batch_size=6, n_epochs=1, device="cpu").learn(6)
    mean, _ = evaluate_policy(agent, envs, n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)


def test_wrappers_evaluation_and_checkpoints(envs, models, tmp_path):
    stacked = VecTransposeImage(VecFrameStack(envs, 2))
    assert stacked.observation_space.shape == (6, 64, 64)
    other = make_vec_env(n_envs=2, seed=9, model=models["discrete"], reward=bright, max_episode_steps=3)
    evaluation = EvalCallback(
        VecTransposeImage(VecFrameStack(other, 2)), n_eval_episodes=2, eval_freq=2, log_path=str(tmp_path)
    )
    checkpoints = CheckpointCallback(2, str(tmp_path / "checkpoints"))
    agent = sb3.PPO("CnnPolicy", stacked, n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    agent.learn(12, callback=[evaluation, checkpoints])
    assert np.isfinite(evaluation.last_mean_reward)
    saved = sorted((tmp_path / "checkpoints").glob("*.zip"))
    assert len(saved) == 2
    sb3.PPO.load(saved[0], env=stacked, device="cpu").learn(12)
    assert (tmp_path / "evaluations.npz").exists()


def test_ends_are_told_apart(models):
    model = models["discrete"]
    ending = with_heads(model, sure_heads(model.config, 2, 4.0))
    envs = make_vec_env(n_envs=2, model=ending)
    first = envs.reset()
    observations, rewards, dones, infos = envs.step(np.array([0, 1]))
    assert rewards.tolist() == [1.0, 1.0] and dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]
    assert infos[0]["terminal_observation"].shape == first[0].shape
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])
    cut = make_vec_env(n_envs=2, model=models["plain"], max_episode_steps=1)
    cut.reset()
    assert [info["TimeLimit.truncated"] for info in cut.step(np.array([0, 1]))[3]] == [True, True]


def test_seeds_options_and_methods(world_model):
    envs = make_vec_env(n_envs=2, seed=3, model=world_model, render_mode="rgb_array")
    first = envs.reset()
    envs.seed(3)
    np.testing.assert_array_equal(envs.reset(), first)
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    envs.set_options([{"image": picture}, {"events": "snow falls"}])
    np.testing.assert_array_equal(envs.reset()[0], picture)
    assert [info["event"] for info in envs.unwrapped.reset_infos] == [None, "snow falls"]
    assert envs.unwrapped.reset_infos[1]["events"] == {0: "snow falls"}
    (state,) = envs.env_method("get_state", indices=[0])
    later = envs.step(np.array([1, 2]))[0]
    envs.env_method("set_state", state, indices=[0])
    assert np.abs(envs.step(np.array([1, 5]))[0][0].astype(int) - later[0]).max() <= 1
    envs.env_method("trigger_event", "night falls", indices=1)
    assert [info["event"] for info in envs.step(np.array([0, 0]))[3]] == [None, "night falls"]
    assert envs.env_method("get_action_meanings")[1][0] == "noop"
    assert envs.get_attr("render_mode") == ["rgb_array"] * 2 and envs.has_attr("sampler_steps")
    assert not envs.has_attr("no_such_thing")
    assert envs.render().shape[2] == 3 and len(envs.env_method("render", indices=[1])) == 1
    envs.set_attr("note", "mine")
    assert envs.get_attr("note", [1]) == ["mine"]
    with pytest.raises(ValueError, match="share"):
        envs.set_attr("note", "mine", [0])
    with pytest.raises(AttributeError, match="get_state"):
        envs.env_method("step", 3)
    envs.close()


def test_only_the_mode_of_sb3_is_taken(world_model):
    with pytest.raises(ValueError, match="SameStep"):
        YumeVecEnv(YumeWorldVectorEnv(2, model=world_model))


def test_environments_without_a_batch_are_stepped_one_by_one():
    envs = make_vec_env("YumeStreetBeacon-v0", 2, seed=0)
    assert isinstance(envs.unwrapped, DummyVecEnv)
    envs.reset()
    assert envs.step(np.array([1, 0]))[1].shape == (2,)


def test_the_package_alone_loads_no_sb3():
    code = "import yume_gym, sys; print({'torch', 'stable_baselines3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
