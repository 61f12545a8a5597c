"""The evaluation as a whole: it reports, goes on when stopped, and refuses to mix."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from train import evaluate as evaluation
from train.evaluation import endurance, events, memory, parts, starts
from train.evaluation.parts import Settings
from train.evaluation.report import table
from train.evaluation.store import Store, StoreError
from train.evaluation.targets import Target, check, headline
from train.evaluation.walks import Plan
from train.judge.network import Judge
from world_model.actions import Action
from world_model.model import WorldModel
from world_model.rollout import commanded_motions, encode_conditions

TINY = Settings(
    Plan(count=2, horizon=1.0, side_horizon=1.0, real=2, natural=1, far=1, flow_every=2, film=1.0),
    starts=1,
    events=events.Plan(before=1, during=1, after=0, scenes=(("overcast", "clear"),)),
    memory=memory.Plan(scenes=2, waits=(1,), out=(1,)),
)


@pytest.fixture(scope="module")
def judge_weights(config, tmp_path_factory):
    torch.manual_seed(0)
    judge = Judge.of(config).eval()
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    accuracy = dict.fromkeys(("joint", "move", "look", "light", "weather", "district"), 0.0)
    judge.save(path, {"training": [], "tested_on": {"blocks": 0}, "accuracy": accuracy})
    return path


def test_without_its_transformer_a_model_shows_what_its_priors_predict(weights_folder, config):
    model = WorldModel.load(weights_folder)
    state = model.start([model.starting_image(0)], [""], [0])
    worlds, action = state.worlds, [Action.from_keys("W", "→")]
    context, pooled = model.conditioning.context(action, [None])
    motion = commanded_motions(config, action, worlds.yaw, worlds.pitch)
    with torch.inference_mode():
        conditions, _ = encode_conditions(model.dit, model.vae, worlds, motion, context, pooled)
        noise = torch.randn(conditions.mean.shape, generator=torch.Generator().manual_seed(0))
        assert (model.dit(noise, torch.ones(1), conditions) - conditions.mean).abs().max() > 0.01
        parts.remove_transformer(model)
        torch.testing.assert_close(model.dit(noise, torch.ones(1), conditions), conditions.mean)
    model.config = replace(config, priors=())
    with pytest.raises(ValueError, match="nothing is left to measure"):
        parts.remove_transformer(model)


class TestStore:
    def test_nothing_is_computed_twice(self, tmp_path):
        calls = []

        def make():
            calls.append(1)
            return {"a": np.float32(1.5), "b": float("nan"), "c": {"d": np.arange(2)}}

        store = Store(tmp_path, {"model": "x"})
        assert store.result("part", make) == {"a": 1.5, "b": None, "c": {"d": [0, 1]}}
        assert Store(tmp_path, {"model": "x"}).result("part", make)["a"] == 1.5
        assert len(calls) == 1
        arrays = store.arrays("walk", lambda: {"x": np.arange(3)})
        assert (store.arrays("walk", lambda: {"x": np.zeros(3)})["x"] == arrays["x"]).all()

    def test_results_of_something_else_are_refused(self, tmp_path):
        Store(tmp_path, {"model": "x", "seed": 1})
        with pytest.raises(StoreError, match=r"another model.*use another folder"):
            Store(tmp_path, {"model": "y", "seed": 1})

    def test_a_failed_part_leaves_nothing(self, tmp_path):
        store = Store(tmp_path, {})

        def fail():
            raise RuntimeError("stopped")

        for method in (store.result, store.arrays):
            with pytest.raises(RuntimeError):
                method("part", fail)
        assert store.result("part", lambda: {"a": 1}) == {"a": 1}


class TestTargets:
    def test_met_and_missed(self):
        report = {"headline": {"a": 0.9, "b": None, "c": 1.3}}
        targets = (
            Target("a", "headline/a", at_least=0.95),
            Target("a2", "headline/a", at_least=0.9),
            Target("b", "headline/b", at_least=1),
            Target("c", "headline/c", 0.9, 1.1),
            Target("d", "headline/nothing/there", at_least=1),
        )
        rows = check(report, targets)
        assert [row["met"] for row in rows] == [False, True, None, False, None]
        assert [row["missed"] for row in rows] == pytest.approx([0.05, 0, None, 0.2, None])

    def test_table(self):
        page = table({"x": {"b": None}, "y": {"a": {"c": 0.12345}, "b": 1.0}}, (("A", "a/c", True), ("B", "b", False)))
        assert page.splitlines() == ["| | A | B |", "|---|---:|---:|", "| x | – | – |", "| y | 12.3% | 1 |"]


@pytest.fixture(scope="module")
def tiny_report(world_model, judge_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    metadata = {"files": {"dit.safetensors": {"sha256": "0"}}}
    return out, metadata, evaluation.evaluate(world_model, metadata, out, TINY, judge_weights=judge_weights)


class TestWhole:
    def test_report(self, tiny_report):
        out, _, report = tiny_report
        assert json.loads((out / "report.json").read_text()) == report
        page = (out / "report.md").read_text()
        for word in (
            "Targets",
            "Control",
            "Events",
            "Endurance",
            "Memory",
            "Fidelity",
            "never trained on",
            "YumeStreet",
        ):
            assert word in page
        assert len(list((out / "plots").glob("*.png"))) == 7
        assert (out / "side_by_side.mp4").stat().st_size > 0
        assert {"walks.png", "events_dream_0.png", "memory_dream.png", "starts_dream.png"} <= {
            p.name for p in (out / "sheets").iterdir()
        }
        assert report["headline"]["control_share_10min"] is None  # the horizon was one second
        rows = {row["figure"]: row for row in report["targets"]}
        assert rows["headline/control_share_10min"]["met"] is None
        assert rows["headline/autoencoder_psnr"]["met"] is False
        assert report["fidelity"]["frozen"]["0-0.5s"]["psnr"] < 60

    def test_resumed_without_computing(self, tiny_report, world_model, judge_weights, monkeypatch):
        out, metadata, report = tiny_report

        def never(*_args, **_kwargs):
            raise AssertionError("what was kept is computed again")

        for name in ("measure_walk", "save_sheet"):
            monkeypatch.setattr(parts, name, never)
        for module, name in ((events, "run_scene"), (memory, "run_scene"), (starts, "run"), (endurance, "real_walks")):
            monkeypatch.setattr(module, name, never)
        again = evaluation.evaluate(world_model, metadata, out, TINY, judge_weights=judge_weights)
        assert again == report

    def test_other_settings_are_refused(self, tiny_report, world_model, judge_weights):
        out, metadata, _ = tiny_report
        with pytest.raises(StoreError, match="settings"):
            evaluation.evaluate(
                world_model,
                metadata,
                out,
                replace(TINY, walks=replace(TINY.walks, count=3)),
                judge_weights=judge_weights,
            )
        with pytest.raises(StoreError, match="model"):
            evaluation.evaluate(world_model, {"files": {}}, out, TINY, judge_weights=judge_weights)

    def test_teacher(self, tiny_report):
        _, _, report = tiny_report
        teacher = {"headline": {"control_share_all": 0.5, "frechet_10s": 10.0}}
        own = {**report, "endurance": {"dream": {"10s": {"frechet": 12.0}}}}
        figures = headline(own, teacher)
        assert figures["frechet_over_teacher"] == pytest.approx(1.2)
        assert headline(report)["control_over_teacher"] is None

    def test_command_names_what_is_wrong(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stopped:
            evaluation.main(["nothing", "--out", str(tmp_path)])
        assert stopped.value.code == 2 and "unknown model" in capsys.readouterr().err
