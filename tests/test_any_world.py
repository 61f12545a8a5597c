"""YumeWorld-v0 with models of recorded environments: every kind of action space, learned rewards and ends."""

from __future__ import annotations

import dataclasses
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from recorded_worlds import (  # noqa: F401  (fixtures, too)
    GYMNASIUM,
    SIDE,
    SPACES,
    actions_of,
    folders_fixture,
    models_fixture,
    same,
    sure_heads,
    with_heads,
)

import yume_gym  # noqa: F401
from agents.evaluate import evaluate
from agents.worlds import Where
from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.rewards import call_reward


@pytest.mark.parametrize("kind", SPACES)
def test_gymnasium_checker_finds_nothing(folders, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("YumeWorld-v0", model=str(folders[kind]), render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("kind", SPACES)
def test_stable_baselines_checker_finds_nothing(folders, kind):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make("YumeWorld-v0", model=str(folders[kind])).unwrapped, warn=True)


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_and_pace_are_the_recordings(models, kind):
    env = YumeWorldEnv(models[kind])
    assert env.action_space == GYMNASIUM[kind]
    assert env.observation_space == gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    assert (env.metadata["render_fps"], env.metadata["frames_per_step"]) == (10, 2)
    _, info = env.reset(seed=0)
    assert not {"keys", "look", "reward_confidence"} & info.keys()
    info = env.step(actions_of(kind, 1)[0])[4]
    assert {"reward_confidence", "termination_probability", "out_of_distribution"} <= info.keys()
    assert len(env.get_action_meanings()) == {"discrete": 4, "multi_discrete": 2, "multi_binary": 3, "box": 2}[kind]


@pytest.mark.parametrize("kind", SPACES)
def test_steps_repeat_and_actions_matter(models, kind):
    env, actions = YumeWorldEnv(models[kind]), actions_of(kind, 3)

    def walk() -> list:
        return [env.reset(seed=5)[0], *[env.step(action) for action in actions]]

    first, second = walk(), walk()
    assert np.array_equal(first[0], second[0]) and all(map(same, first[1:], second[1:]))
    assert first[0].tobytes() in {picture.tobytes() for picture in models[kind].starts}
    different = {env.step(action)[0].tobytes() for action in actions if env.reset(seed=5)}
    assert len(different) == len({np.asarray(action).tobytes() for action in actions})


@pytest.mark.parametrize("kind", SPACES)
def test_states_and_environments_are_saved(folders, kind):
    env = gym.make("YumeWorld-v0", model=str(folders[kind]), device="cpu").unwrapped
    actions = actions_of(kind, 4)
    env.reset(seed=1)
    env.step(actions[0])
    state, stored = pickle.dumps(env.get_state()), pickle.dumps(env)
    after = [env.step(action) for action in actions[1:]]
    env.set_state(pickle.loads(state))
    assert all(map(same, after, [env.step(action) for action in actions[1:]]))
    other = pickle.loads(stored)
    assert all(map(same, after, [other.step(action) for action in actions[1:]]))


def test_the_camera_of_other_actions_stays(models):
    model = models["box"]
    state = model.start([model.starts[0]] * 2, ["", ""], [0, 1])
    state, _ = model.step(state, [np.float32([1, 1]), np.float32([-1, 0])])
    assert not state.worlds.yaw.any() and not state.worlds.pitch.any()


def test_batches_say_what_worlds_alone_say(models):
    model, actions = models["multi_discrete"], actions_of("multi_discrete", 2)
    state, _ = model.step(model.start(list(model.starts[:2]), ["", ""], [3, 4]), actions)
    for world in range(2):
        alone, _ = model.step(model.start([model.starts[world]], [""], [3 + world]), actions[world : world + 1])
        for field in dataclasses.fields(alone.outcomes[0]):
            assert torch.equal(getattr(alone.outcomes[0], field.name), getattr(state.outcomes[world], field.name))


def test_learned_reward_and_end(models):
    model = models["discrete"]
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 2, -4.0)))
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (1.0, False, False) and type(reward) is float
    assert info["reward_confidence"] == pytest.approx(np.exp(3) / (np.exp(3) + 2), rel=1e-4)
    assert info["termination_probability"] == pytest.approx(1 / (1 + np.exp(4)), rel=1e-4)
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 0, 4.0)), reward="learned")
    env.reset(seed=0)
    assert env.step(1)[1:4] == (-1.0, True, False)
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 0, 4.0)), reward=lambda *_: (7, False))
    env.reset(seed=0)
    assert env.step(1)[1:4] == (7.0, False, False)


def test_a_model_without_heads_has_no_learned_reward(models):
    env = YumeWorldEnv(models["plain"])
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(0)
    assert (reward, terminated) == (0.0, False) and "reward_confidence" not in info
    with pytest.raises(ValueError, match="no heads"):
        YumeWorldEnv(models["plain"], reward="learned")


def test_three_strange_blocks_in_a_row_truncate(models):
    model = models["discrete"]
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 1, -9.0, ood_threshold=0.0)))
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(2)]
    state = env.get_state()
    steps.append(env.step(0))
    assert [step[3] for step in steps] == [False, False, True] and all(step[4]["out_of_distribution"] for step in steps)
    env.set_state(state)
    assert env.step(0)[3]
    env.reset(seed=0)
    assert not env.step(0)[3]
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 1, -9.0, ood_threshold=1e9)))
    env.reset(seed=0)
    assert not any(env.step(0)[4]["out_of_distribution"] for _ in range(4))


@pytest.mark.parametrize(
    ("kind", "action", "error", "words"),
    [
        ("discrete", 4, ValueError, "outside"),
        ("discrete", 1.0, TypeError, "whole numbers"),
        ("discrete", None, TypeError, "whole numbers"),
        ("multi_discrete", [2, 2], ValueError, "outside"),
        ("multi_discrete", 1, ValueError, "shape"),
        ("multi_binary", [0, 1], ValueError, "shape"),
        ("box", [0.0, np.nan], ValueError, "outside"),
        ("box", "up", TypeError, "numbers"),
    ],
)
def test_bad_actions_are_explained(models, kind, action, error, words):
    env = YumeWorldEnv(models[kind])
    env.reset(seed=0)
    with pytest.raises(error, match=words):
        env.step(action)


def test_a_model_without_text_says_so(models):
    env = YumeWorldEnv(models["discrete"])
    env.reset(seed=0)
    for call in (
        lambda: env.trigger_event("rain begins"),
        lambda: env.reset(options={"text": "a wall of bricks"}),
        lambda: env.reset(options={"events": {2: "rain begins"}}),
        lambda: env.model.start([None], ["a wall"], [0]),
        lambda: env.model.step(env.get_state().episode.world, [0], ["rain begins"]),
    ):
        with pytest.raises(ValueError, match="trained without text"):
            call()
    env.trigger_event(None)
    env.step(0)


def test_a_world_can_start_from_any_picture_or_from_nothing(models):
    env = YumeWorldEnv(models["box"])
    picture = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert np.array_equal(env.reset(seed=0, options={"image": picture})[0], picture)
    model = models["box"]
    bare = YumeWorldEnv(WorldModel(model.config, model.dit, model.vae, model.conditioning, None, model.heads))
    bare.reset(seed=0)
    bare.step([0.5, -0.5])


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        ((float("nan"), False), ValueError, "finite"),
        ((float("inf"), False), ValueError, "finite"),
        ((1.0, 0.0), TypeError, "terminated: bool"),
        ((1.0, "no"), TypeError, "terminated: bool"),
        (("1", False), TypeError, "reward: float"),
        (1.0, TypeError, "reward: float"),
    ],
)
def test_what_reward_functions_return_is_checked(result, error, words):
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    with pytest.raises(error, match=words):
        call_reward(lambda *_: result, frames, 0, frames)
    assert call_reward(lambda *_: (np.float32(2), np.bool_(True)), frames, 0, frames) == (2.0, True)


@pytest.mark.parametrize("kind", SPACES)
def test_random_agent_plays_any_world(models, kind):
    found = evaluate("random", Where(arguments={"model": models[kind]}, longest=3), episodes=1, worlds=1, seed=0)
    assert found.lengths == (3,)
