"""Rewards in a model's latents, and rewards that remember: closed forms, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latent_rewards import Countdown, goal_fixture, scores  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.reward_benchmark import WALKS, benchmark, main, report
from yume_gym.rewards import GoalPicture, Latents, Novelty, begin_reward
from yume_gym.vector_env import YumeWorldVectorEnv


def block(picture: np.ndarray, model: WorldModel) -> np.ndarray:
    """A block that stands still."""
    return np.repeat(picture[None], model.config.frames_per_block, axis=0)


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
