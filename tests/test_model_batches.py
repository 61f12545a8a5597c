"""Worlds of a batch and worlds in parallel threads equal each world alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from model_worlds import BACK, RAIN, TURN, WALK, tensors, walk, world_fixture  # noqa: F401  (fixtures, too)

from world_model.model import WorldState
from world_model.priors.warp import guide_block
from world_model.rollout import dream_block
from world_model.threads import in_parallel
from world_model.worlds import WorldBatch, collate_worlds, split_worlds


def test_worlds_of_different_ages_in_a_batch_equal_themselves_alone_bitwise(world_model, pictures):
    """Three worlds, started one after the other and from pictures and text, stepped together and each by itself."""
    plans = [[WALK, TURN, BACK, TURN], [TURN, WALK, WALK], [BACK, BACK]]
    events = [[None, RAIN, RAIN, None], [None, None, "fog"], [RAIN, None]]
    starts = [(pictures[:1], [""], [3]), (None, ["a park"], [4]), (pictures[2:3], [""], [5])]
    alone = [walk(world_model, world_model.start(*start), *ways) for start, *ways in zip(starts, plans, events)]

    def ahead(world: int, steps: int) -> WorldState:
        state = world_model.start(*starts[world])
        return walk(world_model, state, plans[world][:steps], events[world])[0] if steps else state

    mixed = [ahead(0, 2), ahead(1, 1), ahead(2, 0)]
    together = join(mixed)
    assert together.steps == (2, 1, 0)
    frames = []
    for number in range(2):
        now = [plan[len(plan) - 2 + number] for plan in plans], [event[len(event) - 2 + number] for event in events]
        together, block = world_model.step(together, *now)
        frames.append(block)
    for world, (state, seen) in enumerate(alone):
        np.testing.assert_array_equal(np.concatenate([block[world] for block in frames]), seen[-len(frames) * 4 :])
        assert all(map(torch.equal, tensors(split_of(together, world)), tensors(state.worlds)))
        assert together.steps[world] == state.steps[0]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch may use; afterwards it may use as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_worlds_in_parallel_equal_each_alone_bitwise(world_model, pictures, threads, monkeypatch):
    """Three worlds, two at a time on a thread each, against each by itself on one: from pictures and a text, and told
    of something in between."""
    blocks = [([WALK, TURN, BACK], [None, RAIN, None]), ([TURN, WALK, TURN], ["fog", RAIN, None])]
    start = world_model.start([pictures[0], None, pictures[2]], ["", "a park", ""], [3, 4, 5])
    ran: list[tuple[int, int]] = []

    def noted(*given):
        ran.append((threading.get_ident(), torch.get_num_threads()))
        return dream_block(*given)

    def dreamt(state: WorldState, worlds: slice, all_of_them: int, each: int | None) -> tuple[WorldState, np.ndarray]:
        threads(all_of_them)
        frames = []
        for actions, events in blocks:
            state, block = world_model.step(state, actions[worlds], events[worlds], threads=each)
            frames.append(block)
        assert torch.get_num_threads() == all_of_them
        return state, np.stack(frames)

    monkeypatch.setattr("world_model.model.dream_block", noted)
    together, shown = dreamt(start, slice(0, 3), 2, 1)
    assert len(ran) == 6 and len({ident for ident, _ in ran} - {threading.get_ident()}) > 1
    assert {number for _, number in ran} == {1} and threading.get_ident() not in {ident for ident, _ in ran}
    ran.clear()
    for world in range(3):
        one = replace(
            start, worlds=split_of(start, world), seeds=(start.seeds[world],), steps=(0,), texts=(start.texts[world],)
        )
        alone, frames = dreamt(one, slice(world, world + 1), 1, None)
        np.testing.assert_array_equal(frames[:, 0], shown[:, world])
        assert all(map(torch.equal, tensors(split_of(together, world)), tensors(alone.worlds)))
    assert set(ran) == {(threading.get_ident(), 1)}


def test_parallel_rollouts_leave_later_threads_as_many_as_before(world_model, pictures, threads):
    threads(2)
    world_model.step(world_model.start(pictures[:2], ["", ""], [1, 2]), [WALK, TURN], threads=1)
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2] == [torch.get_num_threads()]


def test_the_warped_frame_prior_is_computed_in_parallel_on_half_of_the_threads_each(
    world_model, pictures, threads, monkeypatch
):
    """On two threads the guide has one of its own; on one it is made where it is asked for. The pictures are the same, to a grey
    level: other numbers of threads add in another order."""
    ran: list[tuple[int, int]] = []

    def noted(*given, **named):
        ran.append((threading.get_ident(), torch.get_num_threads()))
        return guide_block(*given, **named)

    monkeypatch.setattr("world_model.priors.scene.guide_block", noted)
    shown = []
    for count in (1, 2):
        threads(count)
        state = world_model.start(pictures[:1], [""], [3])
        for action, event in ((WALK, None), (TURN, RAIN), (TURN, RAIN)):
            state, frames = world_model.step(state, [action], [event])
            shown.append(frames)
        assert torch.get_num_threads() == count
    here = threading.get_ident()
    assert ran[:3] == 3 * [(here, 1)] and here not in {ident for ident, _ in ran[3:]} and len(ran) == 6
    assert {number for _, number in ran} == {1}
    np.testing.assert_allclose(np.array(shown[:3], float), np.array(shown[3:], float), rtol=0, atol=1)


def test_an_error_in_parallel_is_raised_and_threads_are_as_before(threads):
    def fails() -> None:
        raise ValueError("no guide")

    threads(2)
    with pytest.raises(ValueError, match="no guide"), in_parallel(fails, torch.device("cpu")) as answer:
        answer()
    done: list[int] = []
    with pytest.raises(KeyError), in_parallel(lambda: done.append(1), torch.device("cpu")):
        raise KeyError("the body fails")
    assert done == [1] and torch.get_num_threads() == 2  # nothing is left running
    with in_parallel(lambda: torch.get_num_threads(), torch.device("meta")) as answer:
        assert answer() == 2


def join(states: list[WorldState]) -> WorldState:
    """One state of several; all but the worlds are tuples of a value a world."""
    names = [field.name for field in fields(WorldState) if field.name != "worlds"]
    joined = {name: tuple(value for state in states for value in getattr(state, name)) for name in names}
    return WorldState(collate_worlds([state.worlds for state in states]), **joined)


def split_of(state: WorldState, world: int) -> WorldBatch:
    return split_worlds(state.worlds)[world]


def test_starting_together_is_starting_alone(world_model, pictures):
    together = world_model.start([pictures[0], None, pictures[1]], ["", "a park", ""], [3, 4, 5])
    for world, start in enumerate([(pictures[:1], [""], [3]), (None, ["a park"], [4]), (pictures[1:2], [""], [5])]):
        assert all(map(torch.equal, tensors(split_of(together, world)), tensors(world_model.start(*start).worlds)))
