"""Ablations: results are stored once and shown as stored."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopped import stopped_after

from train import ablate
from train import foundation as stage
from train.ablate import SAMPLED, SETTINGS, Ablation
from train.evaluation.ablations import COLUMNS, plot
from train.evaluation.held_out import HORIZONS, sharpness_share
from train.evaluation.store import StoreError
from world_model.dit import DiT
from world_model.weights import load_tensors

QUICK = replace(SETTINGS, batch=2, noise_samples=1, pool=replace(SETTINGS.pool, size=3))


@pytest.fixture(scope="module", autouse=True)
def few_timed() -> Iterator[None]:
    """What a block takes is stored and shown, not tested: two are enough, and one before them that is not counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "TIMED", 3)
        yield


@pytest.fixture(scope="module")
def make(config, data_folder, vae_folder, weights_folder):
    """make(out, steps, ...): ablations of the debug model."""

    def make(out: Path, steps: int = 2, distilled: Path | None = None, settings=QUICK) -> Ablation:
        return Ablation(config, data_folder, vae_folder, weights_folder, out, settings, steps, distilled)

    return make


@pytest.fixture(scope="module")
def finished(make, weights_folder, tmp_path_factory) -> Ablation:
    """Two variants with two seeds, two numbers of sampler steps; written."""
    ablation = make(tmp_path_factory.mktemp("ablations"), distilled=weights_folder)
    ablation.run(2, ["tscm", "spatial-only", "initial-1", "distilled-2"])
    ablation.write()
    return ablation


# ---- measures ---------------------------------------------------------------------------------------------------------


def test_sharpness_is_a_ratio_to_the_ground_truth_by_horizon(make_videos, config):
    truth = make_videos(config, 2, 20).clamp(-0.9, 0.9)
    size = truth.shape[2] // 10  # ten blocks
    dream = truth.clone()
    dream[:, :, size : 4 * size] *= 0.5  # half the contrast is half the gradient
    dream[:, :, 4 * size :] = 0
    shares = sharpness_share(dream, truth, size)
    assert shares["sharpness/block1"] == 1 and shares["sharpness/rest"] == 0
    assert shares["sharpness/blocks2-4"] == pytest.approx(0.5, abs=0.02)
    assert np.isnan(sharpness_share(dream[:, :, :size], truth[:, :, :size], size)["sharpness/rest"])


def test_given_weights_are_sampled_with_their_number_of_steps(make, weights_folder, tmp_path, monkeypatch):
    ablation = make(tmp_path, distilled=weights_folder)
    given, met = load_tensors(weights_folder, "dit.safetensors"), {}

    def measure(dit: DiT) -> dict[str, float]:
        assert all(torch.equal(value, given[name]) for name, value in dit.state_dict().items())
        return {"steps": dit.config.sampler.steps}

    monkeypatch.setattr(ablation, "measure", measure)
    for name in ablate.SAMPLED:
        met[name] = ablation.sample(name)["figures"]["steps"]
    assert met == {f"{weights}-{n}": n for weights in ("initial", "distilled") for n in (1, 2, 4, 50)}


# ---- results ----------------------------------------------------------------------------------------------------------


def stored(folder: Path) -> dict[str, dict]:
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("**/parts/*.json")}
    return {name: values["result"] for name, values in found.items() if name != "identity"}


def test_every_result_is_a_file(finished):
    results = stored(finished.out)
    names = {f"{name}_seed{seed}" for name in ("tscm", "spatial-only") for seed in (0, 1)}
    assert set(results) == names | {"initial-1", "distilled-2"}
    for name, result in results.items():
        assert set(COLUMNS.values()) <= result["figures"].keys() and None not in result["figures"].values()
        if name in names:
            run = finished.out / "runs" / name
            settings = json.loads((run / "settings.json").read_text())
            assert settings["seed"] == result["seed"] == int(name[-1])
            assert settings["self_forcing"]["dream_share"] == 0.7
            assert json.loads((run / "config.json").read_text())["dit"]["history"]["channel"] is None or "tscm" in name
    assert results["spatial-only_seed0"]["left_out"] and not results["tscm_seed0"]["left_out"]
    figures = {name: result["figures"]["psnr/rest"] for name, result in results.items()}
    assert len(set(figures.values())) == len(figures)  # no two were trained or sampled alike
    parameters = {name: result["figures"]["parameters"] for name, result in results.items()}
    assert parameters["spatial-only_seed0"] < parameters["tscm_seed0"] == parameters["initial-1"]


def test_finished_results_are_not_computed_again(finished, make, weights_folder, monkeypatch):
    page = (finished.out / "ablations.md").read_text()
    for name in ("train", "held_out_psnr", "cost", "take_over"):
        monkeypatch.setattr(ablate, name, None)
    again = make(finished.out, distilled=weights_folder)
    again.run(2, ["tscm", "spatial-only", "initial-1", "distilled-2"])
    without = make(finished.out)  # distilled results need not be there
    without.run(1, ["spatial-only"])
    again.write()
    assert (finished.out / "ablations.md").read_text() == page
    with pytest.raises(TypeError):  # but what is missing would be computed
        without.run(3, ["tscm"])


def test_tables_show_the_stored_numbers(finished):
    results = stored(finished.out)
    rows = {}
    for line in (finished.out / "ablations.md").read_text().splitlines():
        if line.startswith("|"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name] = cells
    assert rows.keys() == {"variant", "---", "tscm", "spatial-only", "initial-1", "distilled-2"}
    heads = rows["variant"]
    assert heads == ["seeds", *COLUMNS]
    for name in ("tscm", "spatial-only", "initial-1", "distilled-2"):
        of = [result["figures"] for result in results.values() if result["variant"] == name]
        assert rows[name][0] == str(len(of)) == ("2" if name in ("tscm", "spatial-only") else "1")
        for head, cell in zip(heads[1:], rows[name][1:], strict=True):
            values = [figures[COLUMNS[head]] for figures in of]
            if head in ("parameters", "history tokens, first block", "last block"):
                assert cell == str(values[0]) and len(set(values)) == 1
            elif len(values) == 1:
                assert cell == f"{values[0]:.2f}"
            else:
                assert cell == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    page = (finished.out / "ablations.md").read_text()
    assert "no channel path. Starts afresh: nothing. Left out of the given weights: blocks.*.channel" in page


def test_json_and_plot_are_of_the_stored_results(finished):
    report = json.loads((finished.out / "ablations.json").read_text())
    found = [result for of in report["results"].values() for result in of]
    key = lambda result: (result["variant"], result["seed"])  # noqa: E731
    assert sorted(found, key=key) == sorted(stored(finished.out).values(), key=key)
    assert report["steps"] == 2 and report["settings"]["batch"] == QUICK.batch
    assert (finished.out / "ablations.png").stat().st_size > 0
    left, middle, right = plot(report["results"], SAMPLED).axes
    lines = {line.get_label() for line in right.lines}
    assert lines == {f"{weights}, {h}" for weights in ("initial", "distilled") for h in HORIZONS}
    for ax, kind in ((left, "psnr"), (middle, "sharpness")):
        shown = {c.get_label(): c.lines[0].get_ydata() for c in ax.containers}
        assert shown.keys() == {"tscm", "spatial-only"}
        mean = statistics.mean(r["figures"][f"{kind}/rest"] for r in report["results"]["tscm"])
        assert shown["tscm"][-1] == pytest.approx(mean)


def test_results_of_other_settings_are_refused(finished, make):
    with pytest.raises(StoreError, match="another steps"):
        make(finished.out, steps=3)
    with pytest.raises(StoreError, match="another settings"):
        make(finished.out, settings=replace(QUICK, batch=3))


def test_a_stopped_training_goes_on(make, tmp_path, monkeypatch):
    """It is not taken for a result; what was trained is kept, and the end is that of an unbroken training."""
    taken: list[int] = []
    whole = stage.Trainer.step
    monkeypatch.setattr(stage.Trainer, "step", lambda self, dit, n: (taken.append(n), whole(self, dit, n))[1])
    monkeypatch.setattr(Ablation, "measure", lambda self, dit: {"psnr": 1.0})
    unbroken, broken = make(tmp_path / "unbroken", 3), make(tmp_path / "broken", 3)
    unbroken.run(1, ["tscm"])
    with monkeypatch.context() as patch:
        patch.setattr(stage, "Run", stopped_after(1))
        with pytest.raises(RuntimeError, match="at step 1 of 3: run the same command again"):
            broken.run(1, ["tscm"])
    assert not stored(tmp_path / "broken")
    make(tmp_path / "broken", 3).run(1, ["tscm"])
    assert taken == [0, 1, 2, 0, 1, 2]
    ends = [load_file(a.out / "runs" / "tscm_seed0" / "checkpoint" / "model.safetensors") for a in (unbroken, broken)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert stored(tmp_path / "broken")["tscm_seed0"]["seed"] == 0


# ---- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(data_folder, vae_folder, weights_folder, tmp_path) -> list[str]:
    line = f"debug --data {data_folder} --vae {vae_folder} --initial {weights_folder} --out {tmp_path}"
    return line.split()


def test_command_measures_and_writes(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "prepare_cpu", lambda: None)
    ablate.main([*arguments, "--only", "initial-1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "ablations.md")
    assert "| initial-1 | 1 |" in (tmp_path / "ablations.md").read_text()
    assert set(stored(tmp_path)) == {"initial-1"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "tscm", "spacial"], r"unknown variant 'spacial': choose from initial-1, .*tscm, spatial-only"),
        (["--only", "distilled-4"], r"unknown variant 'distilled-4'.*need --distilled"),
        (["--distilled", "nowhere"], r"unknown model 'nowhere'"),
    ],
)
def test_command_says_what_is_wrong(arguments, more, message, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "prepare_cpu", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        ablate.main([*arguments, *more])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
