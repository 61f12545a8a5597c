"""Rewards in a model's latents, and rewards that remember: closed forms, one world and many, saved, forked and pickled."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.reward_benchmark import WALKS, benchmark, main, report
from yume_gym.rewards import EpisodeReward, GoalPicture, Latents, Novelty, begin_reward, step_reward
from yume_gym.street.env import YumeStreetEnv
from yume_gym.vector_env import YumeWorldVectorEnv

ACTIONS = [9, 1, 18, 40, 9]
SEEDS = [7, 3, 11]


@pytest.fixture(scope="module")
def goal(pictures) -> np.ndarray:
    return pictures[3]


@pytest.fixture(scope="module", params=["goal", "novelty"])
def make_reward(request, goal) -> Callable[[], Any]:
    return {"goal": lambda: GoalPicture(goal, threshold=1e-3), "novelty": lambda: Novelty(memory=3)}[request.param]


def block(picture: np.ndarray, model: WorldModel) -> np.ndarray:
    """A block that stands still."""
    return np.repeat(picture[None], model.config.frames_per_block, axis=0)


def scores(reward: EpisodeReward, blocks: list[np.ndarray]) -> list[tuple[float, bool]]:
    """(reward, terminated) of an episode that shows these blocks."""
    state, found = begin_reward(reward, blocks[0]), []
    for previous, current in pairwise(blocks):
        value, ended, state = step_reward(reward, state, previous, 0, current)
        found.append((value, ended))
    return found


class Countdown(EpisodeReward):
    """Ends after `steps`; pays how many are left."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def begin(self, frames: np.ndarray) -> int:
        return self.steps

    def step(self, state: int, previous: Any, action: Any, current: Any) -> tuple[tuple[float, bool], int]:
        return (float(state - 1), state == 1), state - 1


# -- distances ----------------------------------------------------------------------------------------------------------


def test_a_picture_is_encoded_as_a_still_video_and_alike_in_any_batch(world_model, pictures):
    latents = world_model.encode(pictures)
    assert latents.shape == (4, world_model.config.dit.latent_channels, *world_model.config.latent_size)
    assert latents.dtype == np.float32
    for one, picture in zip(latents, pictures):
        np.testing.assert_array_equal(world_model.encode(picture[None])[0], one)
        world = world_model.start([picture], [""], [0]).worlds
        np.testing.assert_array_equal(world.history.latents[0, :, -1].numpy(), one)
    with pytest.raises(ValueError, match="uint8"):
        world_model.encode(pictures[:, :8])


def test_distances_are_in_units_of_unrelated_pictures(world_model, pictures):
    seen = Latents(world_model)
    one, other = (seen.of(picture) for picture in pictures[:2])
    assert seen.distance(one, one) == 0
    assert seen.distance(one, other) == seen.distance(other, one) > 0
    starts = [seen.of(picture) for picture in world_model.starts]
    apart = [seen.distance(a, b) for i, a in enumerate(starts) for b in starts[:i]]
    assert np.median([distance for distance in apart if distance]) == pytest.approx(1)
    bare = WorldModel(world_model.config, world_model.dit, world_model.vae, world_model.conditioning)
    difference = math.sqrt(float(np.mean((one.astype(float) - other) ** 2)))
    assert Latents(bare).distance(one, other) == pytest.approx(difference / math.sqrt(2))


# -- the two rewards ------------------------------------------------------------------------------------------------------


def test_goal_rewards_add_up_to_the_fall_of_the_distance(world_model, pictures, goal):
    reward = GoalPicture(goal, threshold=1e-3, bonus=2.5).bind(world_model)
    mixed = [(share * goal.astype(float) + (1 - share) * pictures[0]).astype(np.uint8) for share in (0, 0.7, 0.3, 0.3)]
    found = scores(reward, [block(picture, world_model) for picture in mixed])
    assert [ended for _, ended in found] == [False] * 3
    assert found[0][0] > 0 > found[1][0]
    assert found[2][0] == 0  # the same picture
    total = reward.distance(mixed[0]) - reward.distance(mixed[-1])
    assert sum(value for value, _ in found) == pytest.approx(total, abs=1e-12)
    (value, ended), *_ = scores(reward, [block(picture, world_model) for picture in (mixed[0], goal)])
    assert ended
    assert value == pytest.approx(reward.distance(mixed[0]) + 2.5)
    near = GoalPicture(goal, threshold=reward.distance(mixed[1]), bonus=0).bind(world_model)
    assert [ended for _, ended in scores(near, [block(mixed[i], world_model) for i in (0, 1, 0)])] == [True, False]


def test_only_the_last_frame_counts(world_model, pictures, goal):
    reward = GoalPicture(goal).bind(world_model)
    blocks = [block(pictures[0], world_model), block(pictures[1], world_model)]
    passed = blocks[1].copy()
    passed[0] = goal  # the goal was passed by within the block
    assert scores(reward, blocks) == scores(reward, [blocks[0], passed])


def test_novelty_is_the_distance_to_the_nearest_picture_remembered(world_model, pictures):
    seen = Latents(world_model)
    a, b, c, _ = (seen.of(picture) for picture in pictures)
    blocks = [block(pictures[i], world_model) for i in (0, 0, 1, 0, 2, 0, 1)]

    def rewards(memory: int) -> list[float]:
        found = scores(Novelty(memory).bind(world_model), blocks)
        assert not any(ended for _, ended in found)
        return [value for value, _ in found]

    new = min(seen.distance(c, a), seen.distance(c, b))
    assert rewards(64) == [0, seen.distance(a, b), 0, new, 0, 0]
    # with two: a a | a b | b a | a c | c a
    assert rewards(2) == [0, seen.distance(a, b), 0, new, 0, min(seen.distance(b, a), seen.distance(b, c))]
    assert rewards(1)[2] == seen.distance(a, b)  # forgotten at once
    state = begin_reward(Novelty(2).bind(world_model), blocks[0])
    with pytest.raises(ValueError, match="read-only"):
        state[0][:] = 0


# -- in environments --------------------------------------------------------------------------------------------------------


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
        (0, dataclasses.replace(states[0].episode.reward_state, distance=float("nan"))),
        (0, dataclasses.replace(states[0].episode.reward_state, distance=-1.0)),
        (0, 3), (2, ()), (2, (3,)), (2, [states[2].episode.reward_state[0]]),
        (2, (states[2].episode.reward_state[0] * np.float32("nan"),)), (2, (states[2].episode.reward_state[0][:1],)),
    ]  # fmt: skip
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


# -- the measurement ----------------------------------------------------------------------------------------------------


def test_the_benchmark_tells_what_walks_earn(world_model, weights_folder, capsys):
    rows = benchmark(world_model, goals=1, randoms=2)
    assert [row.walk for row in rows] == ["scripted", "still", "random", "random"]
    assert len({row.novelty_return for row in rows}) == 4
    env = YumeWorldEnv(world_model)
    start, _ = env.reset(seed=0)
    now = env.get_state()
    for other, row in enumerate(rows[:2]):  # once more through an environment
        frames = []
        for noise in (1000, 1001 + other):
            world = dataclasses.replace(now.episode.world, seeds=(noise,))
            env.set_state(dataclasses.replace(now, episode=dataclasses.replace(now.episode, world=world)))
            script = [Action.from_keys(*keys).index for keys in WALKS[0]]
            held = [0] * len(script) if noise > 1000 and row.walk == "still" else script
            frames.append([env.step(action)[0] for action in held][-1])
        goal = GoalPicture(frames[0]).bind(world_model)
        assert row.distance == goal.distance(frames[1])
        if not row.reached:
            assert row.goal_return == pytest.approx(goal.distance(start) - row.distance)
    assert not rows[1].reached
    main(["--model", str(weights_folder), "--goals", "1", "--randoms", "2"])
    assert capsys.readouterr().out.rstrip().endswith(report(rows))
    with pytest.raises(ValueError, match="goals"):
        benchmark(world_model, goals=0)


# -- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: GoalPicture("/no/such.png"), FileNotFoundError, "such.png"),
        (lambda: GoalPicture(Path(__file__)), ValueError, "PNG or JPEG"),
        (lambda: GoalPicture(3), TypeError, "PIL image"),
        (lambda: GoalPicture(np.zeros((32, 48, 3))), TypeError, "uint8"),
        (lambda: GoalPicture(np.zeros((8, 48, 3), np.uint8)), ValueError, "16x16"),
        (lambda: GoalPicture(np.zeros((32, 48, 3), np.uint8), threshold=0), ValueError, "above 0"),
        (lambda: GoalPicture(np.zeros((32, 48, 3), np.uint8), threshold=True), TypeError, "threshold"),
        (lambda: GoalPicture(np.zeros((32, 48, 3), np.uint8), threshold="near"), TypeError, "threshold"),
        (lambda: GoalPicture(np.zeros((32, 48, 3), np.uint8), bonus=math.inf), ValueError, "bonus"),
        (lambda: Novelty(0), ValueError, "memory"),
        (lambda: Novelty(2.5), TypeError, "memory"),
    ],
)
def test_wrong_arguments_are_explained(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_class_instead_of_an_instance_is_explained(world_model):
    with pytest.raises(TypeError, match=r"instance.*Novelty\("):
        YumeWorldEnv(world_model, reward=Novelty)
    with pytest.raises(ValueError, match="novelty"):
        YumeWorldEnv(world_model, reward="goal")


class Wrong(Countdown):
    """Gives what it is told to."""

    def __init__(self, result: Any) -> None:
        super().__init__(3)
        self.result = result

    def step(self, state: int, previous: Any, action: Any, current: Any) -> Any:
        return self.result(current) if callable(self.result) else self.result


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "state"),
        ((1.0, False, 2), "state"),
        ((1.0, 2), "terminated"),
        (((math.nan, False), 2), "finite"),
        (lambda current: current.fill(0), "read-only"),
    ],
)
def test_what_a_reward_of_ones_own_may_not_return_changes_nothing(world_model, result, words):
    env = YumeWorldEnv(world_model, reward=Wrong(result))
    envs = YumeWorldVectorEnv(2, model=world_model, reward=Wrong(result))
    for made, action in ((env, 0), (envs, [0, 0])):
        made.reset(seed=0)
        with pytest.raises((TypeError, ValueError), match=words):
            made.step(action)
    assert env.get_state().episode.step == envs.get_state(0).episode.step == 0


def test_a_failing_start_changes_nothing(world_model, monkeypatch):
    env = YumeWorldEnv(world_model, reward=Countdown(3))
    env.reset(seed=0)
    expected = [env.step(9)[0], env.reset()[0]]
    env.reset(seed=0)

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no start")

    with monkeypatch.context() as patched:
        patched.setattr(env.reward_fn, "begin", broken)
        with pytest.raises(RuntimeError, match="no start"):
            env.reset(seed=8)
    np.testing.assert_array_equal(env.step(9)[0], expected[0])
    np.testing.assert_array_equal(env.reset()[0], expected[1])
