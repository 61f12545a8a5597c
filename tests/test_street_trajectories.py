"""Trajectories through the ground-truth street: what is drawn, and what is shown of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from street_shards import BLOCKS, RECIPE, same, walks_fixture  # noqa: F401  (fixtures, too)

from train.street.walks import ATMOSPHERES, EVENT_WEIGHTS, LATER_EVENTS, WalkPlan, plan_walk, render_walk
from world_model.actions import Action
from world_model.camera import commanded_motion
from yume_gym.street.events import EVENTS
from yume_gym.street.simulator import EVENTS as DRAWN_EVENTS
from yume_gym.street.simulator import StreetSimulator


def test_a_trajectory_depends_on_seed_and_number_alone(walks: list) -> None:
    assert same(render_walk(RECIPE, 3), walks[3])
    assert not np.array_equal(walks[2].frames, walks[3].frames)
    other = dataclasses.replace(RECIPE, seed=6)
    assert not np.array_equal(render_walk(other, 3).frames, walks[3].frames)


def test_angles_and_positions_are_those_of_the_commanded_motion(walks: list) -> None:
    step = RECIPE.frames_per_block
    for walk in walks:
        for block in range(1, BLOCKS):
            last, now = block * step - 1, slice(block * step, (block + 1) * step)
            action = Action.from_index(int(walk.action[block]))
            yaw, pitch, moves = commanded_motion(
                action, float(walk.yaw[last]), float(walk.pitch[last]), step, RECIPE.fps, RECIPE.camera
            )
            np.testing.assert_allclose(walk.yaw[now], yaw, atol=1e-5)
            np.testing.assert_allclose(walk.pitch[now], pitch, atol=1e-5)
            way = walk.position[now] - walk.position[last]
            if not walk.blocked[block]:
                np.testing.assert_allclose(way, moves, atol=1e-4)
            assert np.all(np.hypot(*way.T) <= np.hypot(*moves.T) + 1e-4)


def test_frames_show_what_the_simulator_shows_there(walks: list) -> None:
    """The last frame of a walk in steady light, drawn again by a fresh simulator from position, angles and clock."""
    walk = next(walk for walk in walks if not walk.info.event)
    street = StreetSimulator(
        height=RECIPE.height, width=RECIPE.width, fps=RECIPE.fps, frames_per_block=RECIPE.frames_per_block
    )
    index = next(i for i, other in enumerate(walks) if other is walk)
    _, start, _, _ = np.random.default_rng([RECIPE.seed, index]).spawn(4)
    street.reset(start, light=walk.info.light, weather=walk.info.weather)
    x, z = (float(value) for value in walk.position[-1])
    state = street.get_state()
    street.set_state(
        dataclasses.replace(
            state, frame=state.frame + len(walk.frames), x=x, z=z, yaw=float(walk.yaw[-1]), pitch=float(walk.pitch[-1])
        )
    )
    difference = np.abs(street.render().astype(int) - walk.frames[-1])
    assert difference.mean() < 0.5


def test_the_mixture_of_light_weather_and_events() -> None:
    plans = [plan_walk(np.random.default_rng([1, k]), 32) for k in range(4000)]
    seen = Counter((plan.light, plan.weather) for plan in plans)
    for light, weather, share in ATMOSPHERES:
        assert seen[light, weather] / len(plans) == pytest.approx(share, abs=0.03)
    eventful = [plan for plan in plans if plan.events]
    assert len(eventful) / len(plans) == pytest.approx(0.7, abs=0.03)
    assert {kind for plan in eventful for kind in kinds_of(plan)} == EVENT_WEIGHTS.keys()
    for plan in eventful:
        # what is there cannot come; day alone is no weather: the sun comes out of rain by day
        for kind in kinds_of(plan):
            assert EVENT_WEIGHTS[kind][1] not in {plan.weather, plan.light} - {"day"}
    assert not any("sun" in kinds_of(plan) for plan in eventful if (plan.light, plan.weather) == ("day", "clear"))
    assert any("sun" in kinds_of(plan) for plan in eventful if (plan.light, plan.weather) == ("day", "snow"))
    assert sum(share for *_, share in ATMOSPHERES) == pytest.approx(1.0)


def kinds_of(plan: WalkPlan) -> list[str]:
    return [kind for kind, _, _ in plan.events]


def test_events_of_a_trajectory_come_one_after_another() -> None:
    """Each lasts 4 to 18 blocks, 0 to 10 blocks after the one before or the first block, and is another one; until the end."""
    eventful = [plan for plan in (plan_walk(np.random.default_rng([2, k]), 32) for k in range(1500)) if plan.events]
    firsts, lengths, gaps = (Counter[int]() for _ in range(3))
    for plan in eventful:
        firsts[plan.events[0][1]] += 1
        lengths.update(stop - first for _, first, stop in plan.events)
        for (kind, _, stop), (other, first, _) in pairwise(plan.events):
            gaps[first - stop] += 1
            assert kind != other
        assert plan.events[-1][1] < 32 <= plan.events[-1][2] + 10
    assert firsts.keys() == set(range(1, 12)) and lengths.keys() == set(range(4, 19)) and gaps.keys() == set(range(11))
    assert max(firsts.values()) < 1.6 * min(firsts.values()) and max(lengths.values()) < 1.6 * min(lengths.values())
    assert max(len(plan.events) for plan in eventful) > 3
    assert any(kind == again for plan in eventful for kind, again in zip(kinds_of(plan), kinds_of(plan)[2:]))
    assert not plan_walk(np.random.default_rng([2, 0]), 1).events  # the first block has none


def test_every_event_that_can_be_drawn_is_used() -> None:
    assert not EVENT_WEIGHTS.keys() & set(LATER_EVENTS)
    assert EVENT_WEIGHTS.keys() | set(LATER_EVENTS) == EVENTS.keys() == set(DRAWN_EVENTS)


def test_trajectories_are_what_they_were_before_later_kinds() -> None:
    """Drawn from a number alone: these have been trained on, and measured."""
    known = {
        8: ("golden", "rain", (("fireworks", 6, 10), ("snow", 17, 23), ("fog", 27, 40))),
        13: ("day", "clear", (("heavy_rain", 6, 12), ("ghost", 17, 28))),
        28: ("overcast", "clear", (("fire", 1, 13), ("ghost", 15, 20), ("snow", 28, 45))),
    }
    for number, plan in known.items():
        found = plan_walk(np.random.default_rng([7, number]), 32)
        assert (found.light, found.weather, found.events) == plan


def planned(index: int, blocks: int) -> WalkPlan:
    return plan_walk(np.random.default_rng([RECIPE.seed, index]).spawn(4)[0], blocks)


def test_an_event_shows_from_its_first_block_until_it_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk on which night falls, compared with the same walk without the event."""
    recipe = dataclasses.replace(RECIPE, blocks_per_walk=26)
    plans = ((k, planned(k, 26)) for k in range(10_000))
    index = next(
        k for k, plan in plans if plan.light == "day" and kinds_of(plan) == ["night"] and plan.events[0][2] < 21
    )
    walk = render_walk(recipe, index)
    (first, text, kind), (stop, ended, none) = walk.info.event
    assert kind == "night" and text in EVENTS["night"].phrases and ended is none is None
    assert [walk.info.event_at(block) for block in (first - 1, first, stop - 1, stop)] == [None, text, text, None]

    monkeypatch.setattr("train.street.walks.EVENT_SHARE", 0.0)
    plain = render_walk(recipe, index)
    assert plain.info == dataclasses.replace(walk.info, event=())
    np.testing.assert_array_equal(plain.position, walk.position)
    change = (walk.frames.astype(float) - plain.frames).reshape(26, -1).mean(axis=1)
    assert not change[:first].any()
    assert -40 < change[first] < -1 and np.all(change[first + 2 : stop] < -20)  # a second to fade in, then dark
    assert not change[stop + 3 :].any()


def test_an_event_that_follows_at_once_takes_the_place_of_the_one_before() -> None:
    """No block between them says that nothing happens; after a gap there is one that does."""
    plans = ((k, planned(k, 10)) for k in range(10_000))
    walks = {}
    for k, plan in plans:
        if len(plan.events) == 2 and (gap := plan.events[1][1] - plan.events[0][2]) in (0, 2):
            walks.setdefault(gap, (k, plan))
        if len(walks) == 2:
            break
    assert len(walks) == 2
    for gap, (k, plan) in walks.items():
        info = render_walk(dataclasses.replace(RECIPE, blocks_per_walk=10), k).info
        (kind, first, stop), (other, second, end) = plan.events
        told = {block: text for block, text, _ in info.event if text is not None}
        assert told.keys() == {first, second}
        assert told[first] in EVENTS[kind].phrases and told[second] in EVENTS[other].phrases
        expected = [None] * 10
        expected[first:stop] = [told[first]] * (stop - first)
        expected[second:end] = [told[second]] * (min(end, 10) - second)
        assert [info.event_at(block) for block in range(10)] == expected
        ends = {block for block, text, kind_ in info.event if text is kind_ is None}
        assert ends == ({stop} if gap else set()) | ({end} if end < 10 else set())
