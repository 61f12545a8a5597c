"""What evaluation measures: every figure must be good for what is good, and bad for what is bad."""

from __future__ import annotations

import numpy as np
import pytest
from street_judge import judge_fixture, street_fixture  # noqa: F401  (fixtures, too)

from train.evaluation import control, endurance, fidelity, starts
from train.evaluation.walks import make_trial, measure_walk, psnr, sharpness, ssim
from train.evaluation.worlds import Decoded, Dream, Frozen, Street
from train.generator.measures import frechet
from world_model.actions import Action

UNITS = np.array([1.25, 1.25, 22.5, 15.0])


def record(**arrays):
    """A record of a world that obeys perfectly, with some arrays replaced."""
    actions = np.random.default_rng(0).integers(0, 81, 400)
    motion = control.commanded_of(actions, UNITS)
    whole = {
        "action": actions,
        "switch": np.arange(400) % 2 == 0,
        "said": actions,
        "motion": motion,
        "turn": motion[:, 2],
        "tilt": motion[:, 3],
        "features": np.random.default_rng(1).normal(size=(400, 128)),
        "sharpness": np.ones(400),
        "colour": np.ones((400, 6)),
        "change": np.ones(400),
        "psnr": np.full(400, 30.0),
        "ssim": np.ones(400),
        "distance": np.zeros(400),
    }
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
