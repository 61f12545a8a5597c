"""Ablations of a generator: its variants, what is measured of rollouts, and that results are stored once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from train.generator import ablate, foundation
from train.generator.ablate import BEFORE, Budgets, GeneratorAblation, take_over
from train.generator.ablation_variants import BLOCKS, TRAINED, everything, settings_on, tokens_of, variants_of, window
from train.generator.autoencoder import Clips, fit_pca
from train.generator.autoencoder import Settings as AutoencoderSettings
from train.generator.shapes import recorded_config
from train.generator.street_figures import MINUTE, TOGETHER, Plan, StreetMeasurement
from train.judge.network import Judge
from train.recordings import Episode, EpisodeFiles, EpisodeWriter, Recording, RecordingError, open_episodes
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig, Tiers
from world_model.packing import tier_packing
from world_model.presets import get_preset
from world_model.text import build_conditioning
from world_model.vae import PatchVAE
from world_model.weights import save_weights

LENGTHS = (7, 4, 8, 3)  # steps of the episodes
PLAN = Plan(worlds=2, long_worlds=1, blocks=3, long_blocks=7, batch=1, timed=3)
RECORDING = Recording("YumeStreet", 64, 96, 8.0, ActionSpec(), frames_per_step=4)


@pytest.fixture(name="street_config", scope="module")
def street_config_fixture() -> ModelConfig:
    config = recorded_config("toy-street", RECORDING, True, "tiny")
    return replace(config, text=replace(config.text, kind="hashed"), sampler=replace(config.sampler, steps=1))


@pytest.fixture(name="judge", scope="module")
def judge_fixture(street_config) -> Judge:
    return Judge.load(street_config)


@pytest.fixture(name="files", scope="module")
def files_fixture(judge, tmp_path_factory) -> EpisodeFiles:
    """Patterns that flicker. The recorded actions are those that the judge sees."""
    folder = tmp_path_factory.mktemp("episodes")
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder, RECORDING) as writer:
        for steps in LENGTHS:
            coarse = rng.integers(255, size=(1 + 4 * steps, 8, 12, 3), dtype=np.uint8)
            frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
            blocks = np.stack([frames[4 * s : 4 * s + 5] for s in range(steps)])
            nothing = np.zeros(steps, np.uint8)
            actions = judge.read(blocks).action.astype(RECORDING.action.dtype)
            texts = ((1, "rain falls"),)
            writer.add(Episode(frames, actions, nothing.astype(np.float32), nothing, nothing, "a street", texts))
    return open_episodes(folder)


@pytest.fixture(name="vae", scope="module")
def vae_fixture(street_config, files) -> PatchVAE:
    vae = PatchVAE(street_config.vae)
    fit_pca(vae, street_config, Clips(files, range(4), 2), AutoencoderSettings(clips=8))
    return vae.eval().requires_grad_(False)


@pytest.fixture(name="run", scope="module")
def run_fixture(street_config, vae, make_dit, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    actions = build_conditioning(street_config).actions
    states = {"dit.safetensors": make_dit(street_config).state_dict(), "vae.safetensors": vae.state_dict()}
    save_weights(folder, street_config, {**states, "text.safetensors": {"actions": actions}}, {})
    return folder


@pytest.fixture(name="budgets", scope="module")
def budgets_fixture() -> Budgets:
    return Budgets(replace(settings_on(torch.device("cpu")), batch=2), steps=2, plan=PLAN)


def tokens(config: ModelConfig) -> int:
    packing = config.dit.history.packing
    assert isinstance(packing, Tiers)
    return sum((g.stop - g.start) * tokens_of(config, g.ratio) for g in tier_packing(packing))


# ---- variants ---------------------------------------------------------------------------------------------------------


def test_histories_of_the_variants(street_config, budgets):
    made, same = variants_of(street_config, budgets.settings)
    assert [v.name for v in TRAINED if v.name not in made] == list(same)
    count = {name: tokens(config) for name, (config, _) in made.items()}
    assert count["tscm"] == count["spatial-only"] == 96
    assert 0.9 < count["sliding-window"] / count["tscm"] <= 1
    assert count["full-history"] == 24 * (1 + 4 * BLOCKS)
    assert all(
        (config.dit.history.channel is None) == (n not in ("tscm", "with-self-forcing"))
        for n, (config, _) in made.items()
    )
    newest = window(street_config)
    assert newest.recent[0][1] == 1 and newest.recent_frames == 13 and newest.old[0] == 0
    assert everything(street_config).recent == ((4 * BLOCKS, 1),)


def test_variants_that_change_nothing_are_named(street_config, budgets):
    made, same = variants_of(street_config, budgets.settings)
    assert same == {"without-self-forcing": "tscm"}  # on a CPU the street's generator never lives on its own histories
    assert made["with-self-forcing"][1].self_generated.share == 0.5
    half = replace(budgets.settings, self_generated=foundation.SelfGenerated(begin=0.5))
    assert not variants_of(street_config, half)[1]


def test_models_without_tiers_are_refused(street_config):
    with pytest.raises(ValueError, match=r"toy-street has no Tiers.*train\.street_world"):
        window(street_config.with_history(packing="full"))


def test_weights_that_do_not_fit_are_named(street_config, run, budgets):
    made, _ = variants_of(street_config, budgets.settings)
    _, parts = take_over(made["full-history"][0], run, 0)
    assert (
        parts["fresh"] == [] and "blocks.*.channel" in parts["left_out"] and "patch_embedding_4x" in parts["left_out"]
    )
    assert take_over(made["tscm"][0], run, 0)[1] == {"fresh": [], "left_out": []}


# ---- figures ----------------------------------------------------------------------------------------------------------


def test_the_recording_itself_is_worth_all_of_the_street(street_config, vae, files, judge, make_dit, monkeypatch):
    measurement = StreetMeasurement(vae, build_conditioning(street_config), files, judge, PLAN)
    monkeypatch.setattr(measurement, "_roll_out", lambda world, trial: trial.pictures)
    figures = measurement.figures(make_dit(street_config))
    assert np.isnan(figures["psnr/5-12"]), "not reached"
    assert np.isnan(figures["frechet/1"]), "two blocks have no covariance"
    for span in ("2-4", TOGETHER, MINUTE):
        shares = [figures[f"{kind}/{span}"] for kind in ("sharpness", "control", "frechet")]
        assert shares == pytest.approx([1, 1, 1]) and figures[f"psnr/{span}"] == pytest.approx(60)
    assert figures["history_tokens"] == 96 and figures["milliseconds"] > 0


def test_episodes_that_are_too_short_are_refused(street_config, vae, files, judge):
    with pytest.raises(RecordingError, match="no episode of 9 steps, the longest has 8"):
        StreetMeasurement(vae, build_conditioning(street_config), files, judge, replace(PLAN, blocks=9))
    with pytest.raises(RecordingError, match="hardly a step after the 7"):
        StreetMeasurement(vae, build_conditioning(street_config), files, judge, replace(PLAN, blocks=7))


# ---- results ----------------------------------------------------------------------------------------------------------


def test_results_are_stored_once_and_a_stopped_variant_goes_on(run, files, budgets, tmp_path, monkeypatch):
    def make() -> GeneratorAblation:
        return GeneratorAblation(run, files.folder, files.folder, tmp_path, budgets)

    def stop(dit):
        raise KeyboardInterrupt

    ablation = make()
    with monkeypatch.context() as patch:
        patch.setattr(ablation.measurement, "figures", stop)
        with pytest.raises(KeyboardInterrupt):
            ablation.run(1, ["with-self-forcing"])
    assert (ablation.run_folder("with-self-forcing", 0) / "checkpoint.pt").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(foundation.Foundation, "loss", stop)  # its steps are done
        ablation.run(1, ["with-self-forcing"])
    assert not ablation.run_folder("with-self-forcing", 0).exists()
    ablation.run(1, [BEFORE, "without-self-forcing", "sliding-window", "full-history"])

    again = make()
    monkeypatch.setattr(again, "train", stop)
    again.run(1, ["tscm", "full-history"], [3])
    again.write()
    written = json.loads((tmp_path / "ablations.json").read_text())
    three = f"{BEFORE}, sampler steps: 3"
    assert list(written["results"]) == [BEFORE, three, "tscm", "sliding-window", "full-history", "with-self-forcing"]
    one, more = (written["results"][name][0]["figures"]["psnr/1"] for name in (BEFORE, three))
    assert one != more  # the toy's own sampler has one step
    rows = (tmp_path / "ablations.md").read_text()
    assert all(f"| {name} | 1 |" in rows for name in written["results"])
    assert f"control {MINUTE}" in rows and "without-self-forcing: the same as tscm here" in rows
    assert (tmp_path / "ablations.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="unknown variant 'rope': choose from before, tscm"):
        again.run(1, ["rope"])


def test_models_with_priors_are_refused(run, files, budgets, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "read_config", lambda folder: get_preset("street"))
    with pytest.raises(ValueError, match="has priors"):
        GeneratorAblation(run, files.folder, files.folder, tmp_path, budgets)


def test_bad_numbers_are_refused(run, capsys):
    for words in (["--steps", "0"], ["--batch", "1"], ["--sampler-steps", "2", "0"]):
        with pytest.raises(SystemExit):
            ablate.main([str(run), "--data", "d", "--validation", "v", "--out", "o", *words])
        assert re.search("or more|1 to 100", capsys.readouterr().err)
