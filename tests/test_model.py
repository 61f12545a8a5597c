"""What a user holds: worlds that depend on their own seed, actions and events, and on nothing else."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_worlds import BACK, RAIN, TURN, WALK, same, walk, world_fixture  # noqa: F401  (fixtures, too)

from world_model.model import WorldModel
from world_model.rollout import generator

# ---- shapes and contents ----------------------------------------------------------------------------------------------


def test_a_step_is_a_block_of_pictures(world_model, world, config, pictures):
    after, frames = world_model.step(world, [WALK])
    assert frames.dtype == np.uint8
    assert frames.shape == (1, config.frames_per_block, config.height, config.width, 3)
    assert frames.std() > 5
    np.testing.assert_array_equal(world_model.preview(world)[0], pictures[0])
    np.testing.assert_array_equal(world_model.preview(after)[0], frames[0, -1])
    assert (len(after), after.steps) == (1, (1,))


def test_actions_events_and_pictures_change_what_is_seen(world_model, world, pictures):
    frames = {
        "walk": world_model.step(world, [WALK])[1],
        "turn": world_model.step(world, [TURN])[1],
        "rain": world_model.step(world, [WALK], [RAIN])[1],
        "elsewhere": world_model.step(world_model.start(pictures[1:2], [""], [11]), [WALK])[1],
        "fewer steps": world_model.step(world, [WALK], steps=1)[1],
    }
    seen = [block.tobytes() for block in frames.values()]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("nothing", [None, [None], [""]])
def test_no_event_in_any_spelling(nothing, world_model, world):
    np.testing.assert_array_equal(world_model.step(world, [WALK], nothing)[1], world_model.step(world, [WALK])[1])


def test_a_text_start_looks_like_its_text_and_seed(world_model):
    def picture(text: str, seed: int) -> bytes:
        return world_model.preview(world_model.start(None, [text], [seed])).tobytes()

    assert picture("a street in snow", 1) == picture("a street in snow", 1)
    assert (
        len({picture(*key) for key in (("a street in snow", 1), ("a street in snow", 2), ("a park at night", 1))}) == 3
    )


def test_starting_pictures_are_drawn_by_seed(world_model):
    drawn = [world_model.starting_image(seed).tobytes() for seed in range(20)]
    assert set(drawn) == {picture.tobytes() for picture in world_model.starts}
    assert world_model.starting_image(np.int64(7)).tobytes() == drawn[7]
    world_model.starting_image(0)[:] = 0  # a copy: the shipped ones stay as they are
    assert world_model.starting_image(0).tobytes() == drawn[0]


# ---- reproducibility --------------------------------------------------------------------------------------------------


def test_a_seed_decides_everything_and_another_seed_differs(world_model, pictures):
    def frames(seed) -> bytes:
        return walk(world_model, world_model.start(pictures[:1], [""], [seed]), [WALK, TURN, WALK])[1].tobytes()

    assert frames(1) == frames(1) == frames(np.int64(1))
    assert frames(2) != frames(1)


def test_no_two_blocks_share_a_random_stream(world_model, pictures, monkeypatch):
    """Noise and the draws of old frames have a stream of their own in every world and every step."""
    keys = []

    def recorded(*key):
        keys.append(key)
        return generator(*key)

    for module in ("model", "rollout"):
        monkeypatch.setattr(f"world_model.{module}.generator", recorded)
    state = world_model.start([pictures[0], None], ["", "a park"], [1, 2])
    for _ in range(2):
        state, _ = world_model.step(state, [WALK, TURN])
    assert (
        len(keys) == len(set(keys)) == 3 + 2 * 2 * 2
    )  # the text start and its place, then two streams a world and step


def test_whatever_else_runs_in_the_process_changes_nothing(world_model, world, pictures):
    plan = [WALK, TURN, WALK]
    expected = walk(world_model, world, plan)[1]
    other, state, frames = world_model.start(pictures[1:2], [""], [99]), world, []
    for number, action in enumerate(plan):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        other, _ = world_model.step(other, [BACK], ["fog"])
        state, block = world_model.step(state, [action])
        frames.append(block[0])
    np.testing.assert_array_equal(np.concatenate(frames), expected)


def test_steps_leave_the_global_randomness_alone(world_model, world):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    world_model.step(world_model.start(None, ["a park"], [1]), [WALK], [RAIN])
    assert torch.equal(torch.get_rng_state(), before)


# ---- states -----------------------------------------------------------------------------------------------------------


def test_a_stored_state_continues_bit_identically(world_model, world, tmp_path):
    middle, _ = walk(world_model, world, [WALK, TURN, WALK, WALK])
    path = tmp_path / "world.pickle"
    path.write_bytes(pickle.dumps(middle))
    restored = pickle.loads(path.read_bytes())
    assert same(restored, middle)
    for again in (restored, copy.deepcopy(middle)):
        ours, right = (walk(world_model, state, [TURN, WALK, BACK], [None, RAIN, None]) for state in (again, middle))
        np.testing.assert_array_equal(ours[1], right[1])
        assert same(ours[0], right[0])


def test_a_state_is_never_changed_so_that_it_can_be_forked(world_model, world):
    middle, _ = walk(world_model, world, [WALK, TURN])
    kept = copy.deepcopy(middle)
    first = walk(world_model, middle, [WALK, WALK])[1]
    walk(world_model, middle, [BACK, TURN], [RAIN, None])
    assert same(middle, kept)
    np.testing.assert_array_equal(walk(world_model, middle, [WALK, WALK])[1], first)


def test_a_fork_under_another_seed_goes_on_differently(world_model, world):
    middle, _ = walk(world_model, world, [WALK])
    fork = replace(middle, seeds=(12,))
    assert fork.worlds is middle.worlds
    assert not np.array_equal(world_model.step(fork, [WALK])[1], world_model.step(middle, [WALK])[1])


def test_frames_are_the_callers_to_change(world_model, world):
    after, frames = world_model.step(world, [WALK])
    kept = world_model.preview(after)
    frames[:] = 0
    world_model.preview(after)[:] = 0
    np.testing.assert_array_equal(world_model.preview(after), kept)


# ---- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((48, 32, 3), np.uint8), r"uint8 \(48, 32, 3\)"),
        (np.zeros((32, 48, 3), np.float32), "float32"),
        (np.zeros((32, 48), np.uint8), r"\(32, 48\)"),
        ("photo.jpg", "str"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(picture, got, world_model):
    with pytest.raises(ValueError, match=rf"uint8 array of shape \(32, 48, 3\), got .*{got}"):
        world_model.start([picture], [""], [0])


def test_as_many_of_everything_as_worlds(world_model, world, pictures):
    with pytest.raises(ValueError, match="equally many, got 2, 1 and 1"):
        world_model.start(pictures[:2], [""], [0])
    with pytest.raises(ValueError, match="1 worlds need as many"):
        world_model.step(world, [WALK, WALK])
    with pytest.raises(ValueError, match="1 worlds need as many"):
        world_model.step(world, [WALK], [None, RAIN])


def test_no_sampler_steps_are_refused(world_model, world):
    with pytest.raises(ValueError, match="1 or more"):
        world_model.step(world, [WALK], steps=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"device": "tpu9"}, "unknown device 'tpu9'"), ({"device": "cpu", "dtype": "float8"}, "unknown dtype 'float8'")],
)
def test_an_unknown_device_or_dtype_is_named(arguments, message, weights_folder):
    with pytest.raises(ValueError, match=message):
        WorldModel.load(weights_folder, **arguments)


def test_half_precision_gives_nearly_the_same_frames(weights_folder, world_model, world, pictures):
    half = WorldModel.load(weights_folder, device="cpu", dtype="bfloat16")
    _, ours = half.step(half.start(pictures[:1], [""], [11]), [WALK], [RAIN])
    _, right = world_model.step(world, [WALK], [RAIN])
    difference = np.abs(ours.astype(int) - right.astype(int))
    assert difference.mean() < 6
    assert difference.any()
