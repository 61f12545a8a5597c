"""Measures of events and of memory: good for what is good, and bad for what is bad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from street_judge import judge_fixture, street_fixture  # noqa: F401  (fixtures, too)

from train.evaluation import events, memory
from train.evaluation.worlds import Frozen, Scene, Street
from train.judge.data import THINGS
from train.judge.network import Reading
from train.street.walks import LATER_EVENTS
from yume_gym.street.events import EVENTS, match_event
from yume_gym.street.simulator import LIGHTS, WEATHERS


class Scripted:
    """A judge that reads from the pictures' top left pixel: (light, weather, thing that is seen or 255)."""

    def read(self, blocks):
        codes = blocks[:, -1, 0, 0].astype(int)
        things = np.zeros((len(codes), len(THINGS)))
        for row, code in zip(things, codes[:, 2]):
            if code < len(THINGS):
                row[code] = 1
        zero = np.zeros(len(codes), int)
        return Reading(
            zero, zero, np.zeros((len(codes), 4)), codes[:, 0], codes[:, 1], zero, things, np.zeros((len(codes), 128))
        )

    def distance(self, a, b):
        return abs(a.astype(float) - b).mean(axis=(1, 2, 3))


class Obedient:
    """A world of flat pictures that shows what `Scripted` reads, `late` blocks after the prompt, but for `ignored` texts."""

    name = "obedient"

    def __init__(self, late=0, ignored=(), stays=False):
        self.late, self.ignored, self.stays = late, ignored, stays

    def start(self, scene):
        return (0, (LIGHTS.index("overcast"), 0, 255))

    def step(self, place, action, event=None):
        age, code = place
        age = age + 1 if event else 0
        if not event and not self.stays:
            code = (LIGHTS.index("overcast"), 0, 255)
        if age > self.late and event not in self.ignored:
            kind = match_event(event)
            code = list(code)
            if kind in THINGS:
                code[2] = THINGS.index(kind)
            wanted = events.KINDS[kind]
            if wanted.light:
                code[0] = LIGHTS.index(wanted.light)
            if wanted.weather:
                code[1] = WEATHERS.index(wanted.weather.removeprefix("heavy_"))
            code = tuple(code)
        return (age, code), np.broadcast_to(np.array(code, np.uint8), (4, 6, 8, 3))


class TestEvents:
    PLAN = events.Plan(before=1, during=4, after=2, scenes=(("overcast", "clear"),))

    def run(self, world):
        scene = Scene(None, np.zeros((6, 8, 3), np.uint8), 7)
        found = events.run_scene(world, Scripted(), scene, events.kinds_for(("overcast", "clear")), self.PLAN, 0)
        return events.score(found["rows"])

    def test_obedience(self):
        figures = self.run(Obedient())
        assert figures["trials"] == 26
        assert figures["recall"] == {"seen": 1, "unseen": 1}
        assert figures["false_triggers"] == 0 and figures["blocks_until_visible"] == 1 and figures["gone_after"] == 1
        assert figures["return_distance"] == 0 and figures["during_distance"] > 0

    def test_lateness_shows(self):
        figures = self.run(Obedient(late=2))
        assert (
            figures["blocks_until_visible"] == 3 and figures["visible_within_2"] == 0 and figures["recall"]["seen"] == 1
        )
        assert self.run(Obedient(late=4))["recall"]["seen"] == 0

    def test_ignored_unseen_phrasings_show(self):
        ignored = tuple(phrase for kind in EVENTS.values() for phrase in kind.held_out)
        assert self.run(Obedient(ignored=ignored))["recall"] == {"seen": 1, "unseen": 0}

    def test_what_never_ends_shows(self):
        figures = self.run(Obedient(stays=True))
        assert figures["gone_after"] == 0 and figures["return_distance"] > 0

    def test_a_frozen_picture_follows_no_event(self, street, judge):
        scene, kinds = events.make_scenes(street, replace(self.PLAN, scenes=(("day", "clear"),)), 3)[0]
        found = events.run_scene(Frozen(street.frames_per_block), judge, scene, kinds[:2], self.PLAN, 0)
        assert all(row["seen"] == row["imagined"] for row in found["rows"])

    def test_kinds_change_something(self):
        assert "sun" not in events.kinds_for(("day", "clear")) and "sun" in events.kinds_for(("day", "rain"))
        assert "night" not in events.kinds_for(("night", "clear")) and "heavy_rain" not in events.kinds_for(
            ("overcast", "rain")
        )

    def test_once(self, street):
        plan = replace(self.PLAN, scenes=(("day", "clear"), ("overcast", "rain")), once=True)
        scenes = [kinds for _, kinds in events.make_scenes(street, plan, 3)]
        tried = [kind for kinds in scenes for kind in kinds]
        assert ["sun"] in scenes and sorted(tried) == sorted(events.KINDS)

    def test_later_kinds_change_no_scene_of_the_others(self, street, monkeypatch):
        plan = replace(self.PLAN, scenes=(("day", "clear"),))
        made = events.make_scenes(street, plan, 6)
        monkeypatch.setattr(events, "LATER_EVENTS", ())
        without = events.make_scenes(street, plan, 6)
        for (scene, kinds), (other, others) in zip(made, without):
            assert (scene.state, scene.seed, kinds) == (other.state, other.seed, others)
        later = [kind for _, kinds in made[len(without) :] for kind in kinds]
        assert sorted(later) == sorted(LATER_EVENTS) and not set(later) & {k for _, kinds in without for k in kinds}
        assert events.THINGS[-len(LATER_EVENTS) :] == LATER_EVENTS

    def test_an_object_is_tried_where_the_street_shows_it(self, street):
        """And the street stands where it stood."""
        for scene, kinds in events.make_scenes(street, self.PLAN, 5):
            street.set_state(scene.state)
            begin = street.get_state()
            for kind in kinds:
                if kind in THINGS:
                    assert events.in_view(street, kind, self.PLAN)
                    assert street.get_state() == begin
        wall = replace(begin, pitch=1.4)  # looking at the sky one sees no crowd
        street.set_state(wall)
        assert not events.in_view(street, "crowd", self.PLAN)


class TestMemory:
    PLAN = memory.Plan(scenes=3, waits=(1,), out=(2,))

    def test_the_street_comes_back_and_a_frozen_picture_earns_nothing(self, street, judge):
        scenes = memory.make_scenes(street, 3, 8)
        others = memory.elsewhere(street, scenes, 8)

        def measure(world):
            trials = [memory.run_scene(world, scene, self.PLAN, 4, right=True) for scene in scenes]
            return memory.distances(judge, trials, others)

        found = measure(Street(street))
        for trial, figures in memory.score(found, found).items():
            assert figures["return"] < 0.5 * min(figures["away"], figures["unrelated"]), trial
            assert figures["score"] == pytest.approx(1)
        frozen = memory.score(measure(Frozen(street.frames_per_block)), found)
        assert frozen["turn_1"]["return"] == pytest.approx(0, abs=1e-5)
        assert frozen["turn_1"]["score"] == pytest.approx(0, abs=1e-3)

    def test_elsewhere_is_another_place_under_the_same_sky(self, street):
        scenes = memory.make_scenes(street, 3, 8)
        others = memory.elsewhere(street, scenes, 8)
        for scene, other in zip(scenes, others):
            assert abs(scene.picture.astype(float) - other).mean() > 10
            assert abs(scene.picture.mean() - other.mean()) < 50

    def test_another_place_is_no_memory(self):
        street = {"turn_1": {"return": 0.1, "away": 1.0, "unrelated": 1.1}}

        def score(**figures):
            return memory.score({"turn_1": {"unrelated": 1.0, **figures}}, street)["turn_1"]["score"]

        assert score(**{"return": 1.2, "away": 1.1}) < 0
        assert score(**{"return": 0.1, "away": 1.2}) == pytest.approx(1)
        assert score(**{"return": 0.6, "away": 1.0}) == pytest.approx(0.5)
        assert score(**{"return": 0.1, "away": 0.2}) == pytest.approx(0.2)

    def test_quarter_turn(self, config):
        assert memory.quarter_turn(config) * 45 * config.frames_per_block / config.fps == 90
