"""The report of a recorded world: what a trial and the whole report say of a toy recording."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from configs import with_video
from toy_recording import HELD_OUT, SETTINGS, SIDE, STEPS, TOY, run_fixture, split_fixture  # noqa: F401  (fixtures, too)

from train import evaluate
from train.evaluation.store import Store
from train.generator import judge as judging
from train.generator import measures as m
from train.generator import page, report, rollouts
from train.generator.shapes import recorded_config
from train.recordings import RecordingError
from world_model.action_spaces import ActionSpec
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.text import build_conditioning


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
            np.zeros(1, int),
            np.zeros(1, int),
            pictures[:1, None],
            nothing > 0,
            np.array([actions]),
            (("", "rain", "rain"),),
            nothing,
            nothing > 0,
            (7,),
        )
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
            np.zeros(2, int),
            np.zeros(2, int),
            np.zeros((2, 1, SIDE, SIDE, 3), np.uint8),
            nothing > 0,
            actions,
            ((None, None),) * 2,
            nothing,
            nothing > 0,
            (0, 1),
        )
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
