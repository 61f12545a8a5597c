"""What evaluation measures: every figure must be good for what is good, and bad for what is bad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from train.evaluation import control, endurance, events, fidelity, memory, starts
from train.evaluation.walks import make_trial, measure_walk, psnr, sharpness, ssim
from train.evaluation.worlds import Decoded, Dream, Frozen, Scene, Street
from train.generator.measures import frechet
from train.judge.data import THINGS, street_of
from train.judge.network import Judge, Reading
from train.street.walks import LATER_EVENTS
from world_model.actions import Action
from yume_gym.street.events import EVENTS, match_event
from yume_gym.street.simulator import LIGHTS, WEATHERS

UNITS = np.array([1.25, 1.25, 22.5, 15.0])


@pytest.fixture(scope="module")
def street(config):
    return street_of(config, 0)


@pytest.fixture(scope="module")
def judge(config):
    torch.manual_seed(0)
    return Judge.of(config).eval()


def record(**arrays):
    """A record of a world that obeys perfectly, with some arrays replaced."""
    actions = np.random.default_rng(0).integers(0, 81, 400)
    motion = control.commanded_of(actions, UNITS)
    whole = {
        "action": actions, "switch": np.arange(400) % 2 == 0, "said": actions, "motion": motion, "turn": motion[:, 2],
        "tilt": motion[:, 3], "features": np.random.default_rng(1).normal(size=(400, 128)), "sharpness": np.ones(400),
        "colour": np.ones((400, 6)), "change": np.ones(400), "psnr": np.full(400, 30.0), "ssim": np.ones(400),
        "distance": np.zeros(400),
    }  # fmt: skip
    return {**whole, **arrays}


class TestControl:
    def test_obedience(self):
        figures = control.score([record()], UNITS)
        assert figures["joint"] == figures["joint_macro"] == figures["switch"] == figures["recall"]["turn"] == 1
        assert (figures["slope"]["turn"], figures["r2"]["turn"]) == pytest.approx((1, 1))
        assert figures["agreement"]["turn"] == 1
        assert figures["shuffled"] < 0.1

    def test_disobedience(self):
        """Standing still for ever, always turning the other way, and half the turn each show in their own figure."""
        still = control.score([record(said=np.zeros(400, int), motion=np.zeros((400, 4)))], UNITS)
        assert still["joint"] < 0.05 and still["recall"]["turn"] == pytest.approx(1 / 3)
        assert still["slope"]["turn"] == 0 and still["r2"]["turn"] == 0
        wrong = control.score([record(motion=-control.commanded_of(record()["action"], UNITS))], UNITS)
        assert wrong["slope"]["turn"] == pytest.approx(-1)
        assert wrong["agreement"]["turn"] < 0.5
        half = control.score([record(turn=record()["turn"] / 2)], UNITS)
        assert (half["flow_slope"]["turn"], half["slope"]["turn"]) == pytest.approx((0.5, 1))

    def test_switch_and_stay_apart(self):
        said = np.where(record()["switch"], 0, record()["action"])
        figures = control.score([record(said=said)], UNITS)
        assert figures["stay"] == 1 and figures["switch"] < 0.1

    def test_by_time(self):
        said = record()["action"].copy()
        said[20:] = 0
        parts = control.by_time([record(said=said)], UNITS, 0.5)
        assert list(parts) == ["0-5s", "5-10s", "10-30s", "30-60s", "60-120s", "120-180s", "all"]
        assert parts["0-5s"]["joint"] == parts["5-10s"]["joint"] == 1 and parts["10-30s"]["joint"] < 0.1
        assert parts["0-5s"]["blocks"] == 10

    def test_interval(self):
        low, high = control.wilson(45, 50)
        assert (low, high) == pytest.approx((0.786, 0.957), abs=0.002)


class TestEndurance:
    def test_frechet(self):
        """Equal Gaussians, a shifted one and a wider one, against the closed form."""
        points = np.random.default_rng(0).normal(size=(20000, 3))
        assert frechet(points, points) == pytest.approx(0, abs=1e-9)
        assert frechet(points, points + np.array([2, 0, 0])) == pytest.approx(4, abs=1e-6)
        assert frechet(points, 3 * points) == pytest.approx(3 * 4, rel=0.05)

    def test_marks_and_ageing(self):
        real = endurance.RealWalks({k: record()[k] for k in ("features", "sharpness", "colour", "change", "motion")})
        features = record()["features"].copy()
        features[100:] += 2
        marks = endurance.at_marks([record(features=features)], real, 0.5)
        assert list(marks) == ["10s", "60s", "180s"]
        assert endurance.ageing(marks) > 1.5
        assert marks["60s"]["sharpness"] == 1

    def test_a_feature_that_hardly_moves_does_not_outweigh_the_others(self):
        """In real walks one feature of ten has a deviation of 1e-3; a block where it is .5 is not five hundred deviations away."""
        features = np.random.default_rng(0).normal(size=(400, 10)) * np.where(np.arange(10) == 3, 1e-3, 1.0)
        rest = {k: np.repeat(record()[k], 2, axis=0) for k in ("sharpness", "colour", "change", "motion")}
        real = endurance.RealWalks({"features": features, **rest})
        np.testing.assert_allclose(real.spread[[0, 3]], [1, 0.09], rtol=0.1)
        assert real.distance(features) == pytest.approx(0, abs=1e-6)
        moved = features + np.where(np.arange(10) == 3, 0.5, 0.0)
        assert real.distance(moved) == pytest.approx((0.5 / real.spread[3]) ** 2, rel=1e-6)

    def test_a_frozen_picture_scores_badly(self, street, judge):
        """Many different sharp pictures that never move must be further from real walks than other real walks are."""
        trials = [make_trial(street, 5, n, 8, ("day", "clear")) for n in range(5)]
        real = endurance.RealWalks(endurance.real_walks(street, judge, 900, 6, 8, [("day", "clear")]))
        worlds = (Street(street), Frozen(street.frames_per_block))
        walked, frozen = (
            endurance.at_marks([measure_walk(w, street, judge, t, flow_every=8) for t in trials], real, 0.5)["4s"]
            for w in worlds
        )
        assert frozen["frechet"] > 1.3 * walked["frechet"]
        assert frozen["change"] == 0 and 0.5 < walked["change"] < 2
        assert frozen["sharpness"] > 0.7


class TestWalks:
    def test_street_is_its_own_truth(self, street, judge):
        trial = make_trial(street, 3, 0, 5)
        found = measure_walk(Street(street), street, judge, trial, flow_every=2, kept=(0, 4), film=2)
        assert (found["psnr"] == 60).all() and found["ssim"] == pytest.approx(np.ones(5))
        assert found["distance"] == pytest.approx(np.zeros(5), abs=1e-5)
        assert np.isfinite(found["turn"]).tolist() == [True, False, True, False, True]
        assert found["pictures"].shape[:2] == (2, 2) and found["film"].shape[:2] == (2, 2 * street.frames_per_block)
        assert (found["pictures"][:, 0] == found["pictures"][:, 1]).all()

    def test_flow_follows_the_street(self, street, judge):
        found = [measure_walk(Street(street), street, judge, make_trial(street, 3, n, 20)) for n in range(2)]
        slope, r2 = control.line(
            control.commanded_of(control.joined(found, "action"), UNITS)[:, 2], control.joined(found, "turn")
        )
        assert 0.7 < slope < 1.1 and r2 > 0.7  # at 32x48 flow is rougher than at the street's own size

    def test_judge_gets_each_block_with_the_picture_before_it(self, street, judge, monkeypatch):
        seen = []
        read = judge.read
        monkeypatch.setattr(judge, "read", lambda frames: (seen.append(frames), read(frames))[1])
        trial = make_trial(street, 3, 1, 3)
        measure_walk(Street(street), street, judge, trial, flow_every=9)
        blocks = np.concatenate(seen)
        assert (blocks[0, 0] == trial.scene.picture).all()
        assert (blocks[1:, 0] == blocks[:-1, -1]).all()

    def test_picture_figures(self, pictures):
        assert psnr(pictures, pictures) == 60
        assert psnr(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)) == pytest.approx(0)
        assert ssim(pictures[0], pictures[0]) == pytest.approx(1)
        assert ssim(pictures[0], pictures[1]) < 0.5
        assert sharpness(np.full((8, 8, 3), 9, np.uint8)) == 0
        ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None], (8, 8))[..., None].repeat(3, -1)
        assert sharpness(ramp) == pytest.approx(1)


class TestWorlds:
    def test_places_are_not_changed(self, street, world_model):
        trial = make_trial(street, 3, 2, 2)
        for world in (
            Street(street),
            Decoded(street, world_model),
            Frozen(street.frames_per_block),
            Dream(world_model),
        ):
            place = world.start(trial.scene)
            _, first = world.step(place, Action.from_keys("W"))
            world.step(place, Action.from_keys("", "→"), "a ghost appears")
            _, again = world.step(place, Action.from_keys("W"))
            assert (first == again).all(), world.name

    def test_street_ends_an_event(self, street):
        trial = make_trial(street, 3, 3, 2)
        world = Street(street)
        place, _ = world.step(world.start(trial.scene), Action(), "night falls")
        assert place.events and place.events[-1].end is None
        place, _ = world.step(place, Action())
        assert not any(event.end is None for event in place.events)


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
    """A world of flat pictures that shows what `Scripted` reads, `late` blocks after it is told; `deaf` to unseen phrasings."""

    name = "obedient"

    def __init__(self, late=0, deaf=(), stays=False):
        self.late, self.deaf, self.stays = late, deaf, stays

    def start(self, scene):
        return (0, (LIGHTS.index("overcast"), 0, 255))

    def step(self, place, action, event=None):
        told, code = place
        told = told + 1 if event else 0
        if not event and not self.stays:
            code = (LIGHTS.index("overcast"), 0, 255)
        if told > self.late and event not in self.deaf:
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
        return (told, code), np.broadcast_to(np.array(code, np.uint8), (4, 6, 8, 3))


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

    def test_deafness_to_unseen_phrasings_shows(self):
        deaf = tuple(phrase for kind in EVENTS.values() for phrase in kind.held_out)
        assert self.run(Obedient(deaf=deaf))["recall"] == {"seen": 1, "unseen": 0}

    def test_what_never_ends_shows(self):
        figures = self.run(Obedient(stays=True))
        assert figures["gone_after"] == 0 and figures["return_distance"] > 0

    def test_a_frozen_picture_hears_nothing(self, street, judge):
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

    def test_a_thing_is_tried_where_the_street_shows_it(self, street):
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


class TestFidelityAndStarts:
    def test_horizons(self):
        values = np.where(np.arange(400) < 2, 40.0, 10.0)
        parts = fidelity.by_horizon([record(psnr=values)], 0.5)
        assert parts["0-0.5s"]["psnr"] == parts["0.5-1s"]["psnr"] == 40 and parts["1-2s"]["psnr"] == 10

    def test_starts(self, street):
        scenes = starts.make_scenes(street, 3, 5)

        class Always:
            def start_from_text(self, scene):
                return scene.picture

        class Sees:
            def __init__(self, wrong=0):
                self.wrong = wrong

            def look_at(self, pictures):
                wanted = [attributes for _, attributes in scenes]
                values = {name: np.array([a[name] for a in wanted]) for name in starts.ATTRIBUTES}
                values["light"] = values["light"] + self.wrong
                return type("R", (), values)

        assert starts.run(Always(), Sees(), scenes)[0]["mean"] == 1
        figures = starts.run(Always(), Sees(1), scenes)[0]
        assert figures["light"] == 0 and figures["mean"] == pytest.approx(2 / 3)
        assert len({scene.text for scene, _ in scenes}) == 3
