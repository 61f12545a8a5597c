"""Rewards that remember, in environments: one world and many, saved, forked and pickled."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from latent_rewards import Countdown, goal_fixture, scores  # noqa: F401  (fixtures, too)
from PIL import Image

import yume_gym  # noqa: F401
from yume_gym.env import YumeWorldEnv
from yume_gym.rewards import GoalPicture, Novelty
from yume_gym.street.env import YumeStreetEnv
from yume_gym.vector_env import YumeWorldVectorEnv

ACTIONS = [9, 1, 18, 40, 9]
SEEDS = [7, 3, 11]


@pytest.fixture(scope="module", params=["goal", "novelty"])
def make_reward(request, goal) -> Callable[[], Any]:
    return {"goal": lambda: GoalPicture(goal, threshold=1e-3), "novelty": lambda: Novelty(memory=3)}[request.param]


def test_an_environment_pays_what_the_reward_says(world_model, make_reward):
    env = YumeWorldEnv(world_model, reward=make_reward())
    _, info = env.reset(seed=5)
    blocks, paid = [info["frames"]], []
    for action in ACTIONS:
        _, reward, terminated, _, info = env.step(action)
        paid.append((reward, terminated))
        blocks.append(info["frames"])
    assert paid == scores(make_reward().bind(world_model), blocks)
    assert len({reward for reward, _ in paid}) == len(ACTIONS)
    if isinstance(env.reward_fn, GoalPicture):
        goal = env.reward_fn
        fall = goal.distance(blocks[0][-1]) - goal.distance(blocks[-1][-1])
        assert sum(reward for reward, _ in paid) == pytest.approx(fall, abs=1e-12)


def test_one_world_and_many_pay_the_same(world_model, make_reward):
    given = make_reward()
    envs = YumeWorldVectorEnv(3, model=world_model, reward=given, batch_invariant=True)
    singles = [YumeWorldEnv(world_model, reward=given) for _ in SEEDS]
    envs.reset(seed=SEEDS)
    for env, seed in zip(singles, SEEDS):
        env.reset(seed=seed)
    for number, action in enumerate(ACTIONS):
        if number == 2:  # worlds of different ages
            envs.reset(seed=40, options={"reset_mask": np.array([False, True, False])})
            singles[1].reset(seed=41)
        _, rewards, terminations, _, _ = envs.step([action] * 3)
        alone = [env.step(action)[1:3] for env in singles]
        assert list(zip(rewards, terminations)) == alone
    assert len(set(rewards)) == 3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_what_is_remembered_begins_anew_with_each_episode(world_model, mode):
    envs = YumeWorldVectorEnv(2, model=world_model, reward=Countdown(3), autoreset_mode=mode)
    envs.reset(seed=0)
    envs.step([0, 0])
    envs.reset(options={"reset_mask": np.array([False, True])})
    paid = [envs.step([0, 0])[1].tolist() for _ in range(5)]
    pause = [0] if mode == "NextStep" else []
    assert [one for one, _ in paid] == [1, 0, *pause, 2, 1, 0][:5]
    assert [other for _, other in paid] == [2, 1, 0, *pause, 2, 1][:5]


def test_saved_and_restored_it_pays_the_same_again(world_model, make_reward):
    env = YumeWorldEnv(world_model, reward=make_reward())
    env.reset(seed=2)
    for action in ACTIONS[:3]:
        env.step(action)
    saved = pickle.dumps(env.get_state())
    expected = [env.step(action)[1:3] for action in ACTIONS]
    other = YumeWorldEnv(world_model, reward=make_reward())
    for walker in (env, other):
        walker.set_state(pickle.loads(saved))
        assert [walker.step(action)[1:3] for action in ACTIONS] == expected
    envs = YumeWorldVectorEnv(2, model=world_model, reward=make_reward(), batch_invariant=True)
    envs.reset(seed=0)
    envs.set_state(1, pickle.loads(saved))
    again = pickle.loads(pickle.dumps(envs.get_state(1)))
    for _ in range(2):
        steps = [envs.step([0, action]) for action in ACTIONS]
        assert [(step[1][1], step[2][1]) for step in steps] == expected
        envs.set_state(1, again)


def test_forked_worlds_remember_what_the_first_saw(world_model, make_reward):
    envs = YumeWorldVectorEnv(3, model=world_model, reward=make_reward(), batch_invariant=True)
    envs.reset(seed=SEEDS)
    envs.step([9, 1, 18])
    envs.step([1, 18, 9])
    envs.fork(0, [2])
    rewards = envs.step([40, 40, 40])[1]
    assert rewards[0] == rewards[2] != rewards[1]
    envs.fork(0, [1, 2], seeds=[1, 2])
    assert len(set(envs.step([9, 9, 9])[1].tolist())) == 3


def test_a_state_taken_without_the_reward_begins_it_there(world_model, make_reward):
    plain = YumeWorldEnv(world_model)
    plain.reset(seed=1)
    _, _, _, _, info = plain.step(9)
    env = YumeWorldEnv(world_model, reward=make_reward())
    env.set_state(plain.get_state())
    after = env.step(1)
    assert [after[1:3]] == scores(make_reward().bind(world_model), [info["frames"], after[4]["frames"]])
    plain.set_state(env.get_state())
    assert plain.get_state().episode.reward_state is None


def test_states_of_another_reward_are_refused_and_change_nothing(world_model, pictures, goal):
    makers = [lambda: GoalPicture(goal), lambda: GoalPicture(pictures[0]), lambda: Novelty(2), lambda: Novelty(1)]
    envs = [YumeWorldEnv(world_model, reward=make()) for make in makers]
    for env in envs:
        env.reset(seed=0)
        env.step(9)
    states = [env.get_state() for env in envs]
    for taken, into in ((0, 1), (0, 2), (2, 0), (2, 3)):
        before = envs[into]._episode
        with pytest.raises(ValueError, match="another reward"):
            envs[into].set_state(states[taken])
        assert envs[into]._episode is before
    many = YumeWorldVectorEnv(1, model=world_model, reward=makers[0]())
    many.reset(seed=0)
    with pytest.raises(ValueError, match="another reward"):
        many.set_state(0, states[2])
    forged: list[tuple[int, Any]] = [
        (0, dataclasses.replace(states[0].episode.reward_state, value=float("nan"))),
        (0, dataclasses.replace(states[0].episode.reward_state, value=-1.0)),
        (0, 3),
        (2, ()),
        (2, (3,)),
        (2, [states[2].episode.reward_state[0]]),
        (2, (states[2].episode.reward_state[0] * np.float32("nan"),)),
        (2, (states[2].episode.reward_state[0][:1],)),
    ]
    for number, value in forged:
        moment = dataclasses.replace(states[number].episode, reward_state=value)
        with pytest.raises(ValueError, match="another reward"):
            envs[number].set_state(dataclasses.replace(states[number], episode=moment))


def test_pickled_and_copied_environments_go_on(weights_folder, make_reward):
    env = YumeWorldEnv(str(weights_folder), device="cpu", reward=make_reward())
    env.reset(seed=4)
    env.step(1)
    stored = pickle.dumps(env)
    assert len(stored) < len(pickle.dumps(env.model)) / 2  # a named model is loaded again
    others = [pickle.loads(stored), copy.deepcopy(env)]
    expected = [env.step(action)[1] for action in ACTIONS]
    for other in others:
        assert other.reward_fn.latents.model is other.model is not env.model
        assert [other.step(action)[1] for action in ACTIONS] == pytest.approx(expected, rel=1e-9)


def test_gymnasium_checker_finds_nothing(weights_folder, goal):
    for reward in ("novelty", GoalPicture(goal)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = gym.make("YumeWorld-v0", model=str(weights_folder), reward=reward, render_mode="rgb_array")
            check_env(made.unwrapped)


def test_one_instance_serves_many_environments_and_models(world_model, pictures, goal, tmp_path):
    given = GoalPicture(goal)
    small = YumeWorldEnv(world_model, reward=given)
    assert given.needs_model and not small.reward_fn.needs_model
    Image.fromarray(goal).save(tmp_path / "goal.png")
    kinds = [GoalPicture(kind).bind(world_model) for kind in (tmp_path / "goal.png", Image.fromarray(goal))]
    (tmp_path / "goal.png").unlink()
    assert [kind.distance(pictures[0]) for kind in kinds] == [small.reward_fn.distance(pictures[0])] * 2
    envs = gym.make_vec("YumeWorld-v0", num_envs=2, model=world_model, reward="novelty")
    envs.reset(seed=0)
    assert (envs.step([9, 9])[1] > 0).all()


def test_bound_to_a_model_it_judges_the_true_street(world_model, goal):
    with pytest.raises(ValueError, match="bind"):
        YumeStreetEnv(preset="debug", reward="novelty")
    with pytest.raises(ValueError, match="bind"):
        GoalPicture(goal).begin(goal[None])
    street = YumeStreetEnv(preset="debug", reward=Novelty().bind(world_model))
    street.reset(seed=0)
    assert street.step(0)[1] < street.step(9)[1]
