"""YumeWorldVectorEnv: equal to single environments and to Gymnasium's own vector environment, in every autoreset mode."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from recorded_worlds import SPACES, folders_fixture, models_fixture, sure_heads, with_heads  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.vector_env import YumeWorldVectorEnv
from yume_gym.world_batch import EpisodeBatch

WORLDS = 4
SEEDS = [7, 3, 11, 5]
MODES = list(AutoresetMode)


def vector(model: WorldModel, count: int = WORLDS, **arguments: Any) -> YumeWorldVectorEnv:
    return YumeWorldVectorEnv(count, model=model, **arguments)


def actions(space: gym.Space, steps: int, seed: int = 0) -> list:
    space.seed(seed)
    return [space.sample() for _ in range(steps)]


def grey_levels(some: np.ndarray, others: np.ndarray) -> int:
    """The largest difference of any pixel."""
    return int(np.abs(some.astype(int) - others.astype(int)).max())


def assert_equal(some: Any, others: Any) -> None:
    if isinstance(some, dict):
        assert some.keys() == others.keys()
        for key in some:
            assert_equal(some[key], others[key])
    elif isinstance(some, np.ndarray) and some.dtype == object:
        assert some.shape == others.shape
        for one, other in zip(some, others):
            assert_equal(one, other)
    elif isinstance(some, np.ndarray):
        assert some.dtype == others.dtype
        np.testing.assert_array_equal(some, others)
    else:
        assert type(some) is type(others)
        assert some == others


def each_of(options: list[dict[str, Any] | None]) -> dict[str, Any]:
    return {"each": options}


OPTIONS: list[dict[str, Any] | None] = [
    {"events": "snow falls"},
    None,
    {"text": "a park at night"},
    {"image": np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8), "events": {1: "night falls"}},
]


def test_make_vec_gives_it(weights_folder):
    envs = gym.make_vec("YumeWorld-v0", num_envs=3, model=str(weights_folder), max_episode_steps=2)
    assert isinstance(envs, YumeWorldVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, infos = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    assert infos["step"].tolist() == [0, 0, 0]
    assert infos["_step"].all()
    envs.step(envs.action_space.sample())
    assert envs.step(envs.action_space.sample())[3].all()
    assert gym.make_vec(envs.spec).num_envs == 3
    envs.close()


def test_batch_invariant_worlds_are_single_ones_bit_by_bit(world_model):
    envs = vector(world_model, batch_invariant=True)
    singles = [YumeWorldEnv(world_model) for _ in range(WORLDS)]
    observations, _ = envs.reset(seed=SEEDS, options=each_of(OPTIONS))
    alone = [env.reset(seed=seed, options=own)[0] for env, seed, own in zip(singles, SEEDS, OPTIONS)]
    np.testing.assert_array_equal(observations, alone)
    for number, held in enumerate(actions(envs.action_space, 5)):
        if number == 2:  # worlds of different ages
            envs.reset(seed=40, options={"reset_mask": np.array([False, True, False, True])})
            singles[1].reset(seed=41)
            singles[3].reset(seed=43)
        observations, rewards, _, _, infos = envs.step(held)
        for i, env in enumerate(singles):
            observation, reward, _, _, info = env.step(held[i])
            np.testing.assert_array_equal(observations[i], observation)
            np.testing.assert_array_equal(infos["frames"][i], info["frames"])
            assert (rewards[i], infos["step"][i], infos["event"][i]) == (reward, info["step"], info["event"])


def test_one_batch_is_within_a_grey_level_of_single_worlds(world_model):
    envs = vector(world_model)
    envs.reset(seed=SEEDS, options=each_of(OPTIONS))
    (held,) = actions(envs.action_space, 1)
    frames = envs.step(held)[4]["frames"]
    for i, (seed, own) in enumerate(zip(SEEDS, OPTIONS)):
        env = YumeWorldEnv(world_model)
        env.reset(seed=seed, options=own)
        assert grey_levels(frames[i], env.step(held[i])[4]["frames"]) <= 1


def test_street_in_one_batch_is_within_a_grey_level_of_single_worlds():
    """Rounding differs by processor and batch; where it moves a threshold of the scene prior, a few places differ by more."""
    model = WorldModel.load("street", device="cpu", dtype="float32")
    envs, seeds = vector(model, 3), [1, 2, 3]
    events = [{"events": "a UFO flies by"}, None, {"events": "a heavy rainstorm begins"}]
    envs.reset(seed=seeds, options=each_of(events))
    held = [10, 0, 37]
    frames = envs.step(held)[4]["frames"]
    for i in range(3):
        env = YumeWorldEnv(model)
        env.reset(seed=seeds[i], options=events[i])
        difference = np.abs(frames[i].astype(int) - env.step(held[i])[4]["frames"])
        assert (difference <= 1).mean() > 0.98 and difference.mean() < 0.2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", ["last", "block"])
def test_every_autoreset_mode_is_gymnasiums(folders, models, mode, frames):
    """Ends by reward and by length, beside Gymnasium's SyncVectorEnv: every array and every info is the same."""

    def reward(previous: np.ndarray, action: int, current: np.ndarray) -> tuple[float, bool]:
        return float(current.mean()), action == 3

    arguments = {"reward": reward, "frames": frames, "max_episode_steps": 3}
    mine = vector(models["discrete"], 3, autoreset_mode=mode, batch_invariant=True, **arguments)
    single = {"model": str(folders["discrete"]), "device": "cpu", "dtype": "float32", "disable_env_checker": True}
    sync = SyncVectorEnv([lambda: gym.make("YumeWorld-v0", **single, **arguments)] * 3, autoreset_mode=mode)
    for one, other in zip(mine.reset(seed=5), sync.reset(seed=5)):
        assert_equal(one, other)
    ended = np.zeros(3, bool)
    for held in actions(mine.action_space, 8, seed=2):
        if mode == AutoresetMode.DISABLED and ended.any():
            with pytest.raises(ResetNeeded, match="reset_mask"):
                mine.step(held)
            for one, other in zip(*[env.reset(options={"reset_mask": ended.copy()}) for env in (mine, sync)]):
                assert_equal(one, other)
        both = [env.step(held) for env in (mine, sync)]
        for one, other in zip(*both):
            assert_equal(one, other)
        ended = both[0][2] | both[0][3]
        assert ("final_obs" in both[0][4]) == (mode == AutoresetMode.SAME_STEP and ended.any())


@pytest.mark.parametrize("kind", [*SPACES, "plain"])
def test_every_recorded_model_runs_in_a_batch(models, kind):
    model = models[kind]
    envs = vector(model, 3)
    assert envs.single_action_space == YumeWorldEnv(model).action_space
    envs.reset(seed=0)
    (held,) = actions(envs.action_space, 1)
    observations, rewards, *_, infos = envs.step(held)
    assert envs.observation_space.contains(observations)
    assert ("reward_confidence" in infos) == (kind != "plain")
    for i in range(3):
        env = YumeWorldEnv(model)
        env.reset(seed=i)
        observation, reward, *_, info = env.step(np.asarray(held)[i])
        assert grey_levels(observations[i], observation) <= 1
        assert rewards[i] == pytest.approx(reward, abs=1e-3)
        if kind != "plain":
            assert infos["reward_confidence"][i] == pytest.approx(info["reward_confidence"], abs=1e-3)


def test_learned_ends_and_strange_blocks(models):
    model = models["discrete"]
    ending = with_heads(model, sure_heads(model.config, 2, 4.0))
    envs = vector(ending, 2, autoreset_mode="SameStep")
    envs.reset(seed=0)
    _, rewards, terminations, truncations, infos = envs.step([0, 1])
    assert (rewards.tolist(), terminations.tolist(), truncations.tolist()) == ([1, 1], [True, True], [False, False])
    assert infos["final_info"]["step"].tolist() == [1, 1]
    assert infos["step"].tolist() == [0, 0]
    strange = with_heads(model, sure_heads(model.config, 1, -9.0, ood_threshold=0.0))
    envs = vector(strange, 2)
    envs.reset(seed=0)
    envs.step([0, 0])
    envs.reset(options={"reset_mask": np.array([False, True])})
    steps = [envs.step([0, 0])[3].tolist() for _ in range(3)]
    assert steps == [[False, False], [True, False], [False, True]]  # the second slot 1 is a reset


def test_models_that_hold_all_history_run_at_different_ages(original_release):
    model = WorldModel.load(original_release, device="cpu", dtype="float32", size=(64, 64))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    envs = vector(model, 3, steps=1)
    envs.reset(seed=0, options={"image": picture})
    envs.step([0, 0, 0])
    envs.reset(seed=5, options={"image": picture, "reset_mask": np.array([False, True, False])})
    frames = envs.step([0, 1, 2])[4]["frames"]
    env = YumeWorldEnv(model, steps=1)
    env.reset(seed=6, options={"image": picture})
    assert grey_levels(frames[1], env.step(1)[4]["frames"]) <= 1
    env.reset(seed=2, options={"image": picture})
    env.step(0)
    assert grey_levels(frames[2], env.step(2)[4]["frames"]) <= 2


def test_states_of_slots_and_single_environments_are_exchanged(world_model):
    envs, env = vector(world_model, batch_invariant=True), YumeWorldEnv(world_model)
    envs.reset(seed=SEEDS, options=each_of(OPTIONS))
    envs.step([1, 2, 3, 4])
    saved = pickle.dumps(envs.get_state(2))
    assert len(saved) < 2 * len(pickle.dumps(envs.get_state(0)))
    later = [envs.step([9, 9, held, 9])[0][2] for held in (5, 6)]
    env.set_state(pickle.loads(saved))
    np.testing.assert_array_equal([env.step(held)[0] for held in (5, 6)], later)
    envs.set_state(0, pickle.loads(saved))
    np.testing.assert_array_equal([envs.step([held, 9, 9, 9])[0][0] for held in (5, 6)], later)
    env.reset(seed=20)
    envs.set_state(3, env.get_state())
    np.testing.assert_array_equal(envs.step([0, 0, 0, 8])[0][3], env.step(8)[0])


def test_forks_go_on_alike_or_with_seeds_of_their_own(world_model):
    envs = vector(world_model, batch_invariant=True)
    envs.reset(seed=SEEDS)
    envs.step([1, 2, 3, 4])
    envs.trigger_event("snow falls", [1])
    envs.fork(1, [0, 3])
    observations, *_, infos = envs.step([5, 5, 5, 5])
    assert infos["event"].tolist() == ["snow falls", "snow falls", None, "snow falls"]
    assert [np.array_equal(observations[1], observations[i]) for i in (0, 2, 3)] == [True, False, True]
    envs.fork(1, [0, 3], seeds=[100, 101])
    observations = envs.step([5, 5, 5, 5])[0]
    assert len({observations[i].tobytes() for i in (0, 1, 3)}) == 3
    envs.fork(2, [])
    drawn = [random.bit_generator.state["state"]["state"] for random in envs.np_random]
    assert len(set(drawn)) == 2 and drawn[0] == drawn[1] == drawn[3]


def test_what_fails_changes_nothing(world_model, monkeypatch):
    envs = vector(world_model, autoreset_mode="SameStep", max_episode_steps=2)

    def go_on() -> list[np.ndarray]:
        return [envs.step([1, 2, 3, 4])[0] for _ in range(3)]

    envs.reset(seed=SEEDS)
    expected = go_on()
    envs.reset(seed=SEEDS)
    for call in (
        lambda: envs.step([1, 2, 3, 81]),
        lambda: envs.step([1, 2]),
        lambda: envs.reset(seed=1, options=each_of([{}, {}, {}, {"text": ""}])),
        lambda: envs.reset(seed=[1, 2]),
        lambda: envs.set_state(1, "state"),
        lambda: envs.fork(0, [1, 9]),
        lambda: envs.trigger_event("snow falls", [0, 9]),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
    original = world_model.start
    with monkeypatch.context() as patched:  # in the middle of an automatic reset
        envs.step([0, 0, 0, 0])
        patched.setattr(world_model, "start", lambda *arguments: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="memory"):
            envs.step([0, 0, 0, 0])
    assert world_model.start == original
    envs.reset(seed=SEEDS)
    for one, other in zip(go_on(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_works_before_the_first_reset(world_model):
    envs = vector(world_model, render_mode="rgb_array")
    for call in (
        lambda: envs.step([0] * WORLDS),
        lambda: envs.get_state(0),
        lambda: envs.fork(0, [1]),
        lambda: envs.trigger_event("rain"),
        lambda: envs.reset(options={"reset_mask": np.array([True, False, False, False])}),
        envs.render,
    ):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
    assert YumeWorldVectorEnv(1, model=world_model).reset()[0].shape[0] == 1


def test_threads_compute_parts_of_the_batch(world_model):
    one, two = vector(world_model), vector(world_model)
    before = torch.get_num_threads()
    frames = []
    try:
        for threads, envs in ((1, one), (2, two)):
            torch.set_num_threads(threads)
            envs.reset(seed=0)
            frames.append(envs.step([1, 2, 3, 4])[4]["frames"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert grey_levels(*frames) <= 1


@pytest.mark.parametrize(
    ("priors", "threads", "cores", "expected"),
    [
        ([], None, 2, (None, 8)),  # one batch, all threads
        ([], 1, 2, (1, 8)),
        ([], 4, 2, (None, 8)),
        (["scene"], None, 2, (1, 4)),  # batches side by side
        (["scene"], 3, 4, (1, 3)),
        (["scene"], None, 16, (1, 1)),
        (["scene"], None, 1, (None, 8)),
    ],
)
def test_a_network_without_priors_takes_the_batch_as_one(priors, threads, cores, expected):
    model = SimpleNamespace(device=torch.device("cpu"), dit=SimpleNamespace(priors=priors))
    assert EpisodeBatch(SimpleNamespace(model=model), 8, False, threads)._share(8, cores) == expected
    assert EpisodeBatch(SimpleNamespace(model=model), 8, True, threads)._share(8, cores) == (None, 1)


def test_pickled_it_is_where_it_was(weights_folder):
    envs = YumeWorldVectorEnv(2, model=str(weights_folder), device="cpu", batch_invariant=True, render_mode="rgb_array")
    envs.reset(seed=1)
    envs.step([1, 2])
    stored = pickle.dumps(envs)
    observations = envs.step([3, 4])[0]
    np.testing.assert_array_equal(pickle.loads(stored).step([3, 4])[0], observations)
    np.testing.assert_array_equal(envs.render(), observations)


def test_gymnasiums_vector_wrappers_work(world_model):
    envs = gym.wrappers.vector.RecordEpisodeStatistics(vector(world_model, 2, max_episode_steps=2, reward="motion"))
    envs.reset(seed=0)
    envs.step([1, 2])
    infos = envs.step([1, 2])[4]
    assert infos["episode"]["l"].tolist() == [2, 2]
    listed = gym.wrappers.vector.DictInfoToList(vector(world_model, 2))
    assert [info["step"] for info in listed.reset(seed=0)[1]] == [0, 0]
