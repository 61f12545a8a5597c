"""The report of a recorded world: every measure on cases whose answer is known, and the whole on a toy recording."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from configs import with_video

from train import evaluate
from train.evaluation.store import Store
from train.generator import autoencoder, figures, outcomes, page, records, report, rollouts
from train.generator import judge as judging
from train.generator import measures as m
from train.generator.shapes import recorded_config
from train.recordings import Episode, EpisodeWriter, Provenance, Recording, RecordingError, open_episodes
from world_model.action_spaces import ActionSpec
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.text import build_conditioning
from world_model.vae import PatchVAE
from world_model.weights import save_weights

STEPS, EPISODES, SIDE = 40, 8, 32
TOY = Recording(
    "Square-v0",
    SIDE,
    SIDE,
    10.0,
    ActionSpec("discrete", (3,), meanings=("NOOP", "LEFT", "RIGHT")),
    provenance=Provenance(policy="random"),
)
TRAIN, HELD_OUT = (0, 1, 2, 3, 4, 5), (6, 7)
SETTINGS = report.Settings(
    starts=5, horizon=12, batch=3, long_worlds=2, marks=(4, 12),
    judge=judging.Settings(minutes=5.0, steps=150, batch=24), timed=2,
)  # fmt: skip


def square(rng: np.random.Generator) -> Episode:
    """A square that actions move by 3 pixels; touching the right wall is rewarded, and the episode then ends at its last step."""
    x, frames, reward = SIDE // 2, [], []
    action = rng.integers(0, 3, STEPS)
    row = int(rng.integers(4, SIDE - 10))

    def draw() -> np.ndarray:
        frame = np.full((SIDE, SIDE, 3), 30, np.uint8)
        frame[row : row + 6, x : x + 6] = (220, 180, 40)
        return frame

    frames.append(draw())
    for a in action:
        x = int(np.clip(x + (0, -3, 3)[a], 0, SIDE - 6))
        frames.append(draw())
        reward.append(float(x == SIDE - 6))
    ended = np.zeros(STEPS, np.uint8)
    ended[-1] = 1
    return Episode(np.stack(frames), action, np.array(reward, np.float32), ended, np.zeros(STEPS, np.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: a toy recording and a small model of it that learnt nothing but its autoencoder."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    with EpisodeWriter(data, TOY) as writer:
        for number in range(EPISODES):
            writer.add(square(np.random.default_rng(number)))
    files = open_episodes(data)
    config = recorded_config("toy", TOY, False, "tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, vae = DiT(config), PatchVAE(config.vae)
    clips = autoencoder.Clips(files, TRAIN, 2)
    autoencoder.fit_pca(vae, config, clips, autoencoder.Settings(clips=60))
    save_weights(
        folder, config, {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae.state_dict()}, {"training": {}}
    )
    metadata = {"data": str(data), "held_out": list(HELD_OUT), "train": list(TRAIN)}
    (folder / "recording.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture(scope="module")
def split(run):
    return rollouts.Split.read(run)


@pytest.fixture(scope="module")
def judge(run, split):
    return judging.train_judge(run, split.files, split.train, split.held_out, SETTINGS.judge)


@pytest.fixture(scope="module")
def world(run):
    return rollouts.RecordedWorld.load(run)


class Truth:
    """A world that knows the recording: along recorded actions it shows the truth through the autoencoder, or as it was; else it
    stands still."""

    def __init__(self, world: rollouts.RecordedWorld, split: rollouts.Split, exact: bool = False) -> None:
        self.world, self.config, self.files, self.exact = world, world.config, split.files, exact

    def rollout(self, trial):
        starts = np.stack([trial.episode, trial.step], axis=1)
        recorded = rollouts.recorded_trial(self.files, starts, trial.steps, trial.seeds)
        truth = recorded.pictures
        if trial.pictures.shape == truth.shape and (trial.actions != recorded.actions).any():
            truth = np.repeat(truth[:, :1], truth.shape[1], axis=1)
        shown = truth[:, 1:] if self.exact else self.through(truth)
        latents = self.encode(truth)
        for step in range(trial.steps):
            yield shown[:, step : step + 1], latents[:, :, step + 1 : step + 2]

    def encode(self, pictures):
        return self.world.encode(pictures)

    def through(self, pictures):
        return self.world.through(pictures)


# ---- measures ---------------------------------------------------------------------------------------------------------


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


# ---- starts and trials ------------------------------------------------------------------------------------------------


class TestTrials:
    def test_starts_differ_and_leave_room(self, split):
        starts = rollouts.draw_starts(split.files, HELD_OUT, 30, 12, 0)
        assert len({tuple(s) for s in starts.tolist()}) == 30 and set(starts[:, 0]) == set(HELD_OUT)
        assert starts[:, 1].max() <= STEPS - 12
        assert (rollouts.draw_starts(split.files, HELD_OUT, 30, 12, 0) == starts).all()
        assert rollouts.draw_starts(split.files, HELD_OUT, 500, 90, 0)[:, 1].max() == STEPS // 2 - 1

    def test_a_trial_follows_the_recording_and_then_stands_still(self, split):
        trial = rollouts.recorded_trial(split.files, np.array([[6, 35]]), 8, [3])
        whole = split.files.episode(6)
        assert (trial.pictures[0, :6] == whole.frames[35:]).all() and (trial.pictures[0, 6:] == whole.frames[-1]).all()
        assert trial.alive[0].tolist() == [True] * 5 + [False] * 3 and (trial.actions[0, 5:] == 0).all()
        assert (trial.actions[0, :5] == whole.action[35:]).all()
        assert np.flatnonzero(trial.terminated[0]).tolist() == [4]

    def test_long_trials_take_actions_of_training(self, split):
        trial = rollouts.long_trial(split, 2, 1, 100, 0)
        assert trial.actions.shape == (2, 100) and trial.pictures.shape == (2, 1, SIDE, SIDE, 3)
        assert trial.episode.tolist() == [7, 6]
        assert (trial.actions[1] == rollouts.long_trial(split, 1, 2, 100, 0).actions[0]).all()

    def test_a_damaged_or_contradicting_recording_is_refused(self, run, tmp_path):
        metadata = json.loads((run / "recording.json").read_text())
        for change, message in (
            ({"held_out": [99]}, "of the 8"),
            ({"held_out": [0]}, "none both"),
            ({"train": None}, "damaged"),
        ):
            (tmp_path / "recording.json").write_text(json.dumps(metadata | change))
            with pytest.raises(RecordingError, match=message):
                rollouts.Split.read(tmp_path)

    def test_a_world_does_not_depend_on_its_batch(self, world, split):
        starts = rollouts.draw_starts(split.files, HELD_OUT, 2, 4, 0)
        both = list(world.rollout(rollouts.recorded_trial(split.files, starts, 3, [5, 6])))
        alone = list(world.rollout(rollouts.recorded_trial(split.files, starts[1:], 3, [6])))
        for (_, latents), (_, one) in zip(both, alone):
            torch.testing.assert_close(latents[1:], one, atol=1e-4, rtol=1e-4)

    def test_rollouts_are_those_of_the_environment(self, world_model, pictures):
        """Bit for bit what `WorldModel.step` gives a world of the same seed."""
        actions, state = (14, 40, 71), world_model.start(pictures[:1], [""], [7])
        own = rollouts.RecordedWorld(world_model.config, world_model.dit, world_model.vae, world_model.conditioning)
        nothing = np.zeros((1, 3), np.float32)
        trial = rollouts.Trial(
            np.zeros(1, int), np.zeros(1, int), pictures[:1, None], nothing > 0, np.array([actions]), (("", "rain", "rain"),),
            nothing, nothing > 0, (7,),
        )  # fmt: skip
        for action, text, (frames, _) in zip(actions, trial.texts[0], own.rollout(trial)):
            state, wanted = world_model.step(state, [Action.from_index(action)], [text])
            assert (frames == wanted).all()

    @pytest.mark.parametrize("kind", ["multi_discrete", "multi_binary", "box"])
    def test_rollouts_under_every_kind_of_action(self, kind, world):
        bounds = {"low": (-1.0, 0.0), "high": (1.0, 2.0)} if kind == "box" else {"sizes": (2, 2)}
        spec = ActionSpec(kind, **bounds)
        config = recorded_config("toy", replace(TOY, action=spec), False, "tiny")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            own = rollouts.RecordedWorld(config, DiT(config), world.vae, build_conditioning(config))
        nothing, actions = np.zeros((2, 2), np.float32), np.broadcast_to(rollouts.neutral_action(spec), (2, 2, 2))
        trial = rollouts.Trial(
            np.zeros(2, int), np.zeros(2, int), np.zeros((2, 1, SIDE, SIDE, 3), np.uint8), nothing > 0, actions,
            ((None, None),) * 2, nothing, nothing > 0, (0, 1),
        )  # fmt: skip
        assert [frames.shape for frames, _ in own.rollout(trial)] == [(2, 1, SIDE, SIDE, 3)] * 2

    def test_decoding_at_once_equals_the_rollouts_stream(self, world, split):
        trial = rollouts.recorded_trial(split.files, np.array([[6, 3]]), 4, [0])
        latents = world.encode(trial.pictures)
        assert latents.shape == (1, world.config.dit.latent_channels, 5, SIDE // 8, SIDE // 8)
        assert world.through(trial.pictures).shape == (1, 4, SIDE, SIDE, 3)
        assert m.psnr(world.through(trial.pictures), trial.pictures[:, 1:]) > 25


# ---- the whole --------------------------------------------------------------------------------------------------------


def report_of(world, judge, split, out, settings=SETTINGS, reader=None):
    store = Store(out, {"settings": dataclasses.asdict(settings)})
    metadata = {"steps": 150, "held-out steps": 80, "held-out": {"action": 0.85}}
    return report.finish(report.WorldReport(world, judge, split, settings, store, reader), metadata)


def nothing_happens(latents, actions):
    """Heads that never predict a reward or an end."""
    return np.zeros(actions.shape[:2]), np.zeros(actions.shape[:2])


@pytest.fixture(scope="module")
def truthful(world, judge, split, tmp_path_factory):
    """The report of a world that knows the recording, with heads that predict nothing."""
    out = tmp_path_factory.mktemp("truthful")
    return out, report_of(Truth(world, split), judge, split, out, reader=nothing_happens)


class TestWhole:
    def test_the_judge_learns_the_toy(self, run, judge):
        metadata = judging.judge_metadata(run / judging.NAME)
        assert metadata["held-out"]["action"] > 0.75 and metadata["held-out steps"] == 2 * STEPS

    def test_the_truth_through_the_autoencoder_gets_the_ceilings(self, truthful):
        _, found = truthful
        for row in found["fidelity"].values():
            assert row["rollout"] == row["autoencoder"] and row["rollout"]["psnr"][0] > 25
        first = found["fidelity"]["1"]
        assert first["before"] == first["start"]  # one step in, the picture before is the start
        assert found["fidelity"]["5-12"]["before"]["psnr"][0] > found["fidelity"]["5-12"]["start"]["psnr"][0]
        for row in found["control"]["score"].values():
            assert row["rollout"] == row["autoencoder"] and row["rollout"][0] >= row["recorded"][0] - 0.15
            assert max(row["shuffled"][0], row["chance"][0]) < 0.7
        for row in found["distribution"].values():
            assert row["rollout"] == row["autoencoder"] and row["recorded"] < row["start"]

    def test_the_exact_truth_is_perfect(self, world, judge, split, truthful, tmp_path):
        found = report_of(Truth(world, split, exact=True), judge, split, tmp_path)
        for row in found["fidelity"].values():
            assert row["rollout"]["psnr"][0] == 60 and row["rollout"]["distance"][0] == 0 and row["worse"][0] == 0
        for row in found["control"]["score"].values():
            assert row["rollout"] == row["recorded"]
        for row in found["drift"].values():
            assert 0.7 < row["sharpness"][0] / row["recorded_sharpness"][0] < 1.4
        assert any("Not measured, reward" in line for line in found["misses"])

    def test_all_files_are_written(self, truthful):
        out, found = truthful
        assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(found))
        for name in ("plots/fidelity.png", "plots/control.png", "sheets/rollouts.png", "sheets/long.png"):
            assert (out / name).stat().st_size > 500
        text = (out / "report.md").read_text()
        parts = (
            "Misses",
            "Fidelity",
            "Fréchet distance",
            "Control",
            "Reward",
            "Termination",
            "Survival",
            "Drift",
            "Speed",
        )
        assert all(f"## {part}\n" in text for part in parts) and "not LPIPS" in text
        assert found["survival"]["rollout"]["ended"] == 0 and found["reward"]["positive"]["rollout"]["recall"][0] == 0
        assert "Control, action, 1-10" not in text.split("## Fidelity")[0]

    def test_parts_are_computed_once(self, truthful, world, judge, split):
        out, found = truthful

        class Broken(Truth):
            def rollout(self, trial):
                raise AssertionError("all is stored")

        again = report_of(Broken(world, split), judge, split, out, reader=nothing_happens)
        assert again["fidelity"] == found["fidelity"] and again["control"] == found["control"]

    def test_the_command_measures_a_random_model(self, run, judge, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(report, "QUICK", replace(SETTINGS, starts=2, horizon=4, long_worlds=1, marks=(3,)))
        evaluate.main([str(run), "--quick", "--out", str(tmp_path), "--device", "cpu"])
        found = json.loads((tmp_path / "report.json").read_text())
        for row in found["fidelity"].values():
            assert row["rollout"]["psnr"][0] < row["autoencoder"]["psnr"][0]
        assert "report.md" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="2"):
            evaluate.main([str(run), "--quick", "--out", str(tmp_path), "--device", "cpu", "--seed", "9"])
        assert "another settings" in capsys.readouterr().err
        evaluate.main([str(run), "--quick", "--out", str(tmp_path), "--device", "cpu", "--seed", "9", "--anew"])

    def test_a_model_of_other_pictures_is_refused(self, world, split):
        other = with_video(world.config, height=64)
        assert isinstance(other, ModelConfig)
        stranger = rollouts.RecordedWorld(other, world.dit, world.vae, build_conditioning(world.config))
        with pytest.raises(RecordingError, match="pictures of"):
            rollouts.fits(stranger, split)

    def test_names_of_models_still_get_the_street_report(self, run, tmp_path):
        assert report.is_recorded(run) and not report.is_recorded("street") and not report.is_recorded(tmp_path)


def test_tables_show_what_is_missing():
    assert page.within((None, None, None)) == "–" and page.within((0.5, 0.25, 1.0)) == "0.5 (0.25 to 1)"
    assert page.table(["a", "b"], [["x", "1"]]).splitlines()[1] == "|---|---:|"
