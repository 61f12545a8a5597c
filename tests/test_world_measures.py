"""Measures of a recorded world, on cases whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_recording import EPISODES, SIDE, STEPS, TOY, run_fixture, split_fixture  # noqa: F401  (fixtures, too)

from train.generator import figures, outcomes, records, rollouts
from train.generator import judge as judging
from train.generator import measures as m
from world_model.action_spaces import ActionSpec


class TestPictures:
    def test_psnr_keeps_leading_axes(self):
        truth = np.zeros((2, 3, 4, 4, 3), np.uint8)
        other = truth.copy()
        other[1, 2] = 255
        assert m.psnr(truth, truth) == 60
        found = m.psnr(other, truth, kept=2)
        assert found.shape == (2, 3) and found[1, 2] == pytest.approx(0) and found[0, 0] == 60
        assert m.psnr(truth + np.uint8(10), truth) == pytest.approx(20 * np.log10(25.5))

    def test_sharpness_and_brightness(self):
        ramp = np.tile(np.arange(8, dtype=np.uint8)[:, None], (1, 3))[None].repeat(8, 0)
        assert m.sharpness(np.stack([ramp, ramp * 2])) == pytest.approx([1, 2])
        assert m.brightness(np.full((2, 4, 4, 3), 9, np.uint8)) == pytest.approx([9, 9])

    def test_look_measures_steps(self):
        video = np.zeros((1, 5, 4, 4, 3), np.uint8)
        video[0, 3:] = 10  # two steps of two pictures; the change is within the second
        found = records.look(video, 2)
        assert found["change"][0] == pytest.approx([0, 5]) and found["brightness"][0] == pytest.approx([0, 10])

    def test_the_picture_before_a_step(self):
        video = np.arange(5, dtype=np.uint8)[None, :, None, None, None]
        assert records.before(video, 2).ravel().tolist() == [0, 0, 0, 2, 2]


class TestIntervals:
    def test_mean_leaves_out_what_is_missing(self):
        value, low, high = m.mean_interval(np.array([[1.0, np.nan], [3.0, 5.0]]))
        assert value == 3 and low <= value <= high

    def test_interval_of_a_mean_is_as_wide_as_theory_says(self):
        values = np.random.default_rng(0).normal(size=(400, 1))
        value, low, high = m.mean_interval(values)
        assert (high - low) / 2 == pytest.approx(1.96 / 20, rel=0.15) and low < value < high

    def test_general_bootstrap_agrees_with_that_of_means(self):
        values = np.random.default_rng(1).normal(size=50)
        found = m.bootstrap(lambda at: float(values[at].mean()), 50)
        assert found == pytest.approx(m.mean_interval(values[:, None]), abs=0.03)

    def test_few_rows(self):
        assert (
            np.isnan(m.mean_interval(np.full((3, 2), np.nan))).all() and np.isnan(m.bootstrap(lambda at: 1.0, 0)).all()
        )
        assert m.mean_interval(np.array([[2.0]]))[0] == 2 and np.isnan(m.mean_interval(np.array([[2.0]]))[1])


class TestActions:
    def test_accuracy_asks_for_all_components(self):
        assert m.accuracy(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [1, 0]])) == 0.5
        assert np.isnan(m.accuracy(np.empty(0), np.empty(0)))

    def test_r_squared(self):
        held = np.array([0.0, 1.0, 2.0])
        assert m.r_squared(held, held) == 1 and m.r_squared(held, np.full(3, 1.0)) == 0
        assert m.r_squared(held, -held) < 0 and np.isnan(m.r_squared(np.ones(3), held))


class TestDistributions:
    def test_frechet_of_shifted_points(self):
        points = np.random.default_rng(0).normal(size=(500, 3))
        assert m.frechet(points, points) == pytest.approx(0, abs=1e-9)
        assert m.frechet(points, points + np.array([2, 0, 0])) == pytest.approx(4)

    def test_space_puts_the_real_near_and_others_far(self):
        rng = np.random.default_rng(0)
        space = m.FeatureSpace(rng.normal(size=(300, 8)), 4)
        assert space.points.shape == (300, 4)
        near, far = (space.distance(rng.normal(size=(300, 8)) + shift) for shift in (0, 1))
        assert near < 0.2 and far > 10 * near and np.isnan(space.distance(np.zeros((2, 8))))


class TestOutcomes:
    @pytest.mark.parametrize(
        ("predicted", "true", "matched"),
        [
            ([1, 0, 0, 0], [0, 0, 1, 0], 1),
            ([1, 0, 0, 0], [0, 0, 0, 1], 0),
            ([1, 1, 1, 0], [0, 1, 0, 0], 1),
            ([0, 1, 0, 1], [1, 0, 1, 0], 2),
        ],
    )
    def test_each_event_is_matched_once(self, predicted, true, matched):
        assert m.match_events(np.array(predicted), np.array(true), 2) == (matched, sum(predicted), sum(true))

    def test_average_precision(self):
        assert m.average_precision(np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0])) == 1
        assert m.average_precision(np.array([0.9, 0.8, 0.1]), np.array([0, 1, 0])) == 0.5
        assert m.average_precision(np.zeros(4), np.array([1, 0, 0, 0])) == 0.25
        assert np.isnan(m.average_precision(np.zeros(4), np.zeros(4)))

    def test_calibration(self):
        assert m.calibration_error(np.full(4, 0.25), np.array([1, 0, 0, 0])) == pytest.approx(0)
        assert m.calibration_error(np.ones(4), np.array([1, 0, 0, 0])) == pytest.approx(0.75)
        assert m.calibration_error(np.array([0.0, 1.0]), np.array([1, 0])) == 1

    def test_survival(self):
        assert m.first_event(np.array([[0, 1, 1], [0, 0, 0]], bool)).tolist() == [2, 3]
        steps, ended = np.array([2, 4]), np.array([True, True])
        assert m.mean_survival(steps, ended, 10) == 3 and m.mean_survival(steps, ended, 3) == 2.5
        # watched for 2 steps only: lives as long as the other, of which all is known
        assert m.mean_survival(steps, np.array([False, True]), 10) == 4

    def test_perfect_rewards(self):
        recorded = np.zeros((4, 9), np.float32)
        recorded[:2, 3] = 2
        alive, typical = np.ones((4, 9), bool), np.r_[np.zeros(20), 2.0]
        late = np.roll(recorded, 3, axis=1)
        found = outcomes.reward_figures({"rollout": recorded, "late": late}, recorded, alive, typical, 0)
        assert found["kind"] == "events" and found["threshold"] == 1 and "negative" not in found
        positive = found["positive"]
        assert positive["rollout"]["recall"][0] == positive["rollout"]["precision"][0] == 1 and positive["events"] == 2
        assert (positive["late"]["missed"], positive["late"]["false"]) == (2, 2)
        assert found["false_success"]["rollout"][0] == 0
        wrong = outcomes.false_success(np.ones((4, 9), bool), recorded > 1, alive)
        assert wrong[0] == 1

    def test_dense_and_missing_rewards(self):
        recorded = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
        found = outcomes.reward_figures({"rollout": recorded}, recorded, np.ones((6, 9), bool), recorded.ravel(), 0)
        assert found["dense"]["rollout"][0] == 1 and found["dense"]["shuffled"][0] < 0
        assert outcomes.reward_figures({"rollout": recorded}, recorded, np.ones((6, 9), bool), np.zeros(9), 0) == {
            "kind": "none"
        }

    def test_rewards_after_the_end_do_not_count(self):
        alive = np.ones((2, 6), bool)
        alive[:, 3:] = False
        predicted, true = np.zeros((2, 6), bool), np.zeros((2, 6), bool)
        predicted[:, 5], true[0, 1] = True, True
        found = outcomes.event_figures(predicted, true, alive)
        assert found["missed"] == 1 and found["false"] == 0

    def test_termination_stands_beside_a_constant(self):
        ended = np.array([0, 0, 0, 1])
        found = outcomes.termination_figures(np.array([0.1, 0.2, 0.1, 0.9]), ended)
        assert found["average_precision"] == 1 and found["average_precision_constant"] == 0.25
        assert found["calibration_error_constant_0"] == 0.25

    def test_survival_of_rollouts_and_recordings(self, split):
        probability = np.zeros((3, 60))
        probability[:, 19] = 1
        found = outcomes.survival(probability, split.files, range(EPISODES))
        assert found["rollout"]["mean"][0] == 20 and found["recorded"]["mean"][0] == STEPS
        assert found["recorded"]["ended"] == EPISODES and found["rollout"]["quartiles"] == [20, 20, 20]


class TestComponents:
    @pytest.mark.parametrize(
        ("spec", "action", "wanted", "neutral"),
        [
            (TOY.action, [2], [2], 0),
            (ActionSpec("discrete", (2,), meanings=("GO", "NoOp")), [0], [0], 1),
            (ActionSpec(), [11], [1, 2], 40),
            (ActionSpec("multi_discrete", (3, 4)), [[2, 1]], [2, 1], [0, 0]),
            (ActionSpec("multi_binary", (2, 2)), [[0, 1]], [0, 1], [0, 0]),
            (ActionSpec("box", low=(-1.0, 1.0), high=(1.0, 3.0)), [[0.5, 2.0]], [0.5, 0.0], [0, 1]),
        ],
    )
    def test_every_kind_of_action(self, spec, action, wanted, neutral):
        found = judging.components(spec, np.array(action))
        assert found[0].tolist() == wanted and len(judging.component_names(spec)) == found.shape[1]
        least = rollouts.neutral_action(spec)
        assert spec.kind == "first_person" or least.tolist() == neutral
        assert least.shape == spec.shape and least.dtype == spec.dtype
        network = judging.Judge(replace(TOY, action=spec))
        pictures = torch.rand(2, 2, 3, SIDE, SIDE)
        assert network.loss(pictures, torch.from_numpy(np.repeat(found, 2, axis=0))) > 0
        said, features = network.eval().read(np.zeros((2, 2, SIDE, SIDE, 3), np.uint8))
        assert said.shape == (2, found.shape[1]) and features.shape == (2, judging.FEATURES)

    def test_a_judge_of_several_pictures_a_step(self):
        network = judging.Judge(replace(TOY, frames_per_step=4, height=40)).eval()
        assert network.read(np.zeros((3, 5, 40, SIDE, 3), np.uint8))[0].shape == (3, 1)
        with pytest.raises(ValueError, match=r"uint8 \[B, 5, 40, 32, 3\], got uint8 \[3, 2"):
            network.read(np.zeros((3, 2, 40, SIDE, 3), np.uint8))

    def test_control_of_a_box_is_r_squared(self):
        held = np.random.default_rng(0).uniform(-1, 1, (4, 12, 1)).astype(np.float32)
        found = {"held": held, "alive": np.ones((4, 12), bool)} | {
            f"{row}.said": held if row != "neutral" else np.zeros_like(held) for row in records.ROWS
        }
        table = figures.control(found, held.reshape(-1, 1), ["component 0"], False, 12, 0)
        row = table["score"]["component 0, 1-10"]
        assert (
            table["kind"] == "R2" and row["rollout"][0] == 1 and abs(row["chance"][0]) < 0.1 and row["shuffled"][0] < 0
        )
