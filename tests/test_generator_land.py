"""Landing a generator: what is copied, what its manifest says, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from train.generator import land
from world_model.weights import list_files, read_config, read_manifest

FIGURES = {"PSNR, block 1, dB": {"dream": [20.0, 19.0, 21.0]}}


@pytest.fixture
def run(weights_folder, tmp_path) -> Path:
    """A run's folder: weights without priors, and what else a run leaves."""
    folder = Path(shutil.copytree(weights_folder, tmp_path / "run"))
    config = dataclasses.replace(read_config(folder), priors=())
    (folder / "config.json").write_text(config.to_json())
    list_files(folder)
    (folder / "stages").mkdir()
    return folder


@pytest.fixture
def evaluation(run, tmp_path) -> Path:
    folder = tmp_path / "evaluation"
    for town in (3001, 3000):
        parts = folder / f"town_{town}" / "parts"
        parts.mkdir(parents=True)
        (parts / "identity.json").write_text(json.dumps({"model": read_manifest(run)["files"]}))
    (folder / "towns.json").write_text(json.dumps(FIGURES))
    return folder


def test_a_landed_folder_holds_the_weights_their_training_and_what_was_measured(run, evaluation, tmp_path):
    out = tmp_path / "dream-town"
    manifest = land.land(run, evaluation, out)
    assert {path.name for path in out.iterdir()} == {*read_manifest(run)["files"], "manifest.json"}
    assert read_config(out) == dataclasses.replace(read_config(run), name="dream-town")
    assert (out / "dit.safetensors").read_bytes() == (run / "dit.safetensors").read_bytes()
    assert manifest["evaluation"] == {"towns": [3000, 3001], "figures": FIGURES}
    assert manifest["made"] == read_manifest(run)["made"]


def test_weights_that_were_not_measured_are_refused(run, evaluation, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"towns\.json is missing: run python"):
        land.land(run, tmp_path / "nowhere", tmp_path / "out")
    path = evaluation / "town_3001" / "parts" / "identity.json"
    path.write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match="town_3001 was measured with other weights"):
        land.land(run, evaluation, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_with_priors_and_folders_in_use_are_refused(run, evaluation, weights_folder, tmp_path):
    with pytest.raises(ValueError, match="has priors, which"):
        land.land(weights_folder, evaluation, tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty"):
        land.land(run, evaluation, evaluation)


def test_the_command_says_what_is_wrong_in_one_line(run, tmp_path, monkeypatch, capsys):
    given = ["land", str(run), "--evaluation", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit, match="2"):
        land.main()
    assert "towns.json is missing" in capsys.readouterr().err
