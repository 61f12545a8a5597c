"""Worlds in two processes of Ray: the same worlds as in one process, and a worker that is killed is replaced."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'yume-gym[ray]'")
pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO  # noqa: E402

from yume_gym import ray_benchmark  # noqa: E402
from yume_gym.sb3 import make_vec_env  # noqa: E402


def test_two_workers_are_one_batch_and_a_killed_one_is_replaced(weights_folder):
    arguments = {"model": str(weights_folder), "reward": "motion", "max_episode_steps": 4}
    envs = make_vec_env(n_envs=3, seed=5, workers="ray", num_workers=2, **arguments)
    here = make_vec_env(n_envs=3, seed=5, **arguments)
    try:
        far = envs.unwrapped
        assert far.numbers == [[0, 1], [2]] and envs.observation_space == here.observation_space
        np.testing.assert_array_equal(envs.reset(), here.reset())
        steps = [env.step(np.array([1, 2, 9])) for env in (envs, here)]
        assert np.abs(steps[0][0].astype(int) - steps[1][0]).max() <= 1
        np.testing.assert_allclose(steps[0][1], steps[1][1], atol=0.01)
        assert envs.get_attr("render_mode") == [None] * 3 and len(envs.env_method("get_state", indices=[2])) == 1

        going_on = here.step(np.array([3, 4, 5]))
        os.kill(ray.get(far.workers[1].process.remote()), signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="worker 1 has died .* worlds 2 to 2 begin anew"):
            observations, rewards, dones, infos = envs.step(np.array([3, 4, 5]))
        assert dones.tolist() == [False, False, True] and rewards[2] == 0
        assert infos[2]["worker_died"] and infos[2]["TimeLimit.truncated"] and infos[2]["episode"]["l"] == 2
        np.testing.assert_array_equal(infos[2]["terminal_observation"], steps[0][0][2])
        assert np.abs(observations[:2].astype(int) - going_on[0][:2]).max() <= 2  # nothing of the others is lost
        assert far.reset_infos[2]["step"] == 0

        agent = PPO("MlpPolicy", envs, n_steps=4, batch_size=4, n_epochs=1, device="cpu").learn(12)
        assert agent.num_timesteps == 12 and agent.ep_info_buffer
    finally:
        envs.close()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_workers must be 1 to the number of worlds, which is 2"):
        make_vec_env(n_envs=2, workers="ray", num_workers=3)
    with pytest.raises(ValueError, match="give workers='ray'"):
        make_vec_env(n_envs=2, num_workers=2)
    with pytest.raises(ValueError, match="workers must be None or 'ray'"):
        make_vec_env(n_envs=2, workers="dask")


def test_workers_are_timed_beside_one_process(weights_folder, capsys):
    ray_benchmark.main(
        ["--model", str(weights_folder), "--worlds", "2", "--workers", "2", "--rounds", "1", "--steps", "4"]
    )
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2].startswith("| this process | ") and lines[-2].endswith("| 1.00 |")
    assert lines[-1].startswith("| 2 workers of Ray | ")
    with pytest.raises(ValueError, match="1 or more"):
        ray_benchmark.benchmark(2, [])
