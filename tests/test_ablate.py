"""Ablations: variants are what they are called, weights that fit are taken over, results are stored once and shown as stored."""

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
from configs import with_video
from safetensors.torch import load_file
from stopped import stopped_after

from train import ablate
from train import foundation as stage
from train.ablate import BLOCKS, SAMPLED, SETTINGS, Ablation, cost, take_over, variants_of
from train.evaluation.ablations import COLUMNS, plot
from train.evaluation.held_out import HORIZONS, sharpness_share
from train.evaluation.store import StoreError
from train.street.scene import part_of
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.packing import append_tiers
from world_model.presets import get_preset
from world_model.priors.config import scene_of
from world_model.rollout import generator
from world_model.text import Conditioning
from world_model.tscm import History, static_history
from world_model.weights import load_tensors, save_weights

QUICK = replace(SETTINGS, batch=2, noise_samples=1, pool=replace(SETTINGS.pool, size=3))
FRAME = 24  # tokens of a latent frame of the debug model at the finest size


@pytest.fixture(scope="module", autouse=True)
def few_timed() -> Iterator[None]:
    """What a block takes is stored and shown, not tested: two are enough, and one before them that is not counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "TIMED", 3)
        yield


@pytest.fixture(scope="module")
def variants(town_config):
    return variants_of(town_config, QUICK)


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


# ---- variants ---------------------------------------------------------------------------------------------------------


def flat(config: ModelConfig) -> dict:
    """Fields of a model's DiT and of its memory, and of its scene prior if it has one."""
    own = {name: value for name, value in vars(config.dit).items() if name != "history"}
    return {**own, **vars(config.dit.history), **(vars(config.priors[0]) if config.priors else {})}


def test_variants_change_what_they_say_and_nothing_else(variants, town_config):
    assert variants["tscm"] == (town_config, QUICK)
    changed = {
        name: {k for k, v in flat(config).items() if v != flat(town_config).get(k)}
        | flat(town_config).keys() - flat(config).keys()
        for name, (config, _) in variants.items()
    }
    assert changed == {
        "tscm": set(), "spatial-only": {"channel"}, "sliding-window": {"packing", "channel"},
        "full-history": {"packing", "channel"}, "without-self-forcing": set(), "joint-history": {"attention"},
        "without-places": {"places"}, "without-guide-and-places": {"depth", "album", "places", "events", "kind"},
    }  # fmt: skip
    shares = {name: settings.self_forcing.dream_share for name, (_, settings) in variants.items()}
    assert shares.pop("without-self-forcing") == 0 and set(shares.values()) == {0.7}


def test_networks_have_the_paths_of_their_variant(variants, make_history):
    for name, (config, _) in variants.items():
        dit = DiT(config)
        assert (dit.channel_embedding is None) == (name in ("spatial-only", "sliding-window", "full-history"))
        remembered = dit.encode_memory(make_history(config, 1, 2))
        assert (remembered is None) == (dit.layers[0].channel is None) == (dit.channel_embedding is None)
        assert (not len(dit.priors)) == (name == "without-guide-and-places")
        assert part_of(dit, "places") is None or name not in ("without-guide-and-places", "without-places")


def held_after(config: ModelConfig, blocks: int) -> list[int]:
    """Frames (-1 and less: the start picture) that the history of a world of so many blocks holds."""
    tiers, size = config.dit.history.packing, config.block_latents
    length = 1 + tiers.old[0] + tiers.recent_frames
    zero, yes = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    history = static_history(torch.zeros(1, 1, config.start_latents, 1, 1), length, zero, zero, yes)
    for block in range(blocks):
        frame = torch.arange(block * size, (block + 1) * size)[None]
        row = frame.double()
        new = History(torch.zeros(1, 1, size, 1, 1), frame, row, row, torch.ones_like(frame, dtype=torch.bool))
        history = append_tiers(history, new, tiers, [generator("old", block)])
    return history.frame[0].tolist()


def test_histories_hold_what_their_variant_says(variants):
    """Before the last block that any world dreams."""
    past = list(range((BLOCKS - 1) * 2))
    held = {
        name: held_after(config, BLOCKS - 1)[1:] for name, (config, _) in variants.items()
    }  # besides the first frame
    assert [frame for frame in held["full-history"] if frame >= 0] == past
    assert sum(frame < 0 for frame in held["full-history"]) == 2  # and the start picture, a block long
    assert held["sliding-window"] == past[-2:]
    assert held["tscm"][2:] == past[-3:] and max(held["tscm"][:2]) < past[-3]


def test_tokens_are_counted_where_they_are_made(config, corpus, frozen_vae, make_dit):
    conditioning, spent = Conditioning(config.text), {}
    for name, (variant, _) in variants_of(config, QUICK).items():
        if name in ("tscm", "sliding-window", "full-history"):
            spent[name] = cost(make_dit(variant), frozen_vae, corpus, conditioning)
    tokens = {name: (s["history_tokens/first"], s["history_tokens/last"]) for name, s in spent.items()}
    tscm = FRAME // 4 + 2 * FRAME // 4 + FRAME + 2 * FRAME // 4  # first frame, sampled old frames, two tiers
    assert tokens["tscm"] == (tscm, tscm)
    assert tokens["sliding-window"] == (FRAME // 4 + 2 * FRAME,) * 2
    assert tokens["full-history"] == (FRAME * (1 + BLOCKS * 2),) * 2
    assert all(s["milliseconds"] > 0 for s in spent.values())


def test_joint_history_runs_along_with_the_block(config, corpus, frozen_vae, make_dit, monkeypatch):
    met, whole, conditioning = {}, DiT.encode_conditions, Conditioning(config.text)
    for name in ("tscm", "joint-history"):
        variant, _ = variants_of(config, QUICK)[name]

        def encode_conditions(self, *args, name=name):
            conditions = whole(self, *args)
            met[name] = conditions.history.tokens is not None, bool(conditions.history.pairs)
            return conditions

        monkeypatch.setattr(DiT, "encode_conditions", encode_conditions)
        cost(make_dit(variant), frozen_vae, corpus, conditioning)
    assert met == {"tscm": (False, True), "joint-history": (True, False)}


def test_variants_that_change_nothing_are_left_out(config, variants):
    assert scene_of(config).places is None
    assert set(variants) - set(variants_of(config, QUICK)) == {"without-places"}
    assert [v.name for v in ablate.TRAINED] == list(variants)


def test_models_without_tiers_are_refused():
    with pytest.raises(ValueError, match=r"yume-5b has no Tiers.*choose a model with them"):
        variants_of(get_preset("yume-5b"), QUICK)


# ---- weights ----------------------------------------------------------------------------------------------------------


def test_weights_that_fit_are_taken_over_and_the_rest_is_named(config, corpus, frozen_vae, weights_folder):
    given, named = load_tensors(weights_folder, "dit.safetensors"), {}
    for name, (variant, _) in variants_of(config, QUICK).items():
        dit, named[name] = take_over(variant, weights_folder, corpus, frozen_vae, 0)
        own = dit.state_dict()
        assert len(own.keys() & given.keys()) > 50
        assert all(torch.equal(own[key], given[key]) for key in own.keys() & given.keys())
    channel, no = ["blocks.*.channel", "channel_embedding"], []
    assert named == {
        "tscm": {"fresh": no, "left_out": no}, "spatial-only": {"fresh": no, "left_out": channel},
        "sliding-window": {"fresh": no, "left_out": channel},
        "full-history": {"fresh": no, "left_out": [*channel, "patch_embedding_2x"]},
        "without-self-forcing": {"fresh": no, "left_out": no}, "joint-history": {"fresh": no, "left_out": no},
        "without-guide-and-places": {"fresh": no, "left_out": ["prior_embeddings", "priors.*.depth", "priors.*.deviation"]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def town_weights(town_config, make_dit, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("town")
    save_weights(folder, town_config, {"dit.safetensors": make_dit(town_config).state_dict()}, {})
    return folder


def test_the_deviation_of_another_prior_is_measured_anew(variants, corpus, town_corpus, frozen_vae, town_weights):
    given = load_tensors(town_weights, "dit.safetensors")
    dit, named = take_over(variants["tscm"][0], town_weights, town_corpus, frozen_vae, 0)
    assert named == {"fresh": [], "left_out": []} and torch.equal(dit.priors[0].deviation, given["priors.0.deviation"])
    dit, named = take_over(variants["without-places"][0], town_weights, corpus, frozen_vae, 0)
    assert named["fresh"] == ["prior_embeddings", "priors.*.deviation"]  # this prior's kernel has fewer input channels
    assert named["left_out"] == ["prior_embeddings", "priors.*.deviation", "priors.*.places"]
    assert torch.equal(dit.priors[0].deviation, corpus.prior_deviation(dit.priors[0], frozen_vae))
    assert torch.equal(dit.prior_embeddings[0].bias, given["prior_embeddings.0.bias"])


def test_fresh_parts_depend_on_the_seed(variants, corpus, frozen_vae, town_weights):
    variant, _ = variants["without-places"]
    dits = [take_over(variant, town_weights, corpus, frozen_vae, seed)[0] for seed in (0, 0, 1)]
    first, same, other = (dit.prior_embeddings[0].weight for dit in dits)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_networks_that_are_not_trained_must_be_given(town_config, town_corpus, frozen_vae, weights_folder):
    with pytest.raises(
        ValueError, match=r"no fitting weights for priors\.\*\.places .such as priors\.0\.places.*with its priors"
    ):
        take_over(town_config, weights_folder, town_corpus, frozen_vae, 0)


def test_weights_of_other_pictures_are_refused(config, data_folder, vae_folder, make_dit, tmp_path):
    wide = with_video(config, width=64)
    save_weights(tmp_path / "wide", wide, {"dit.safetensors": make_dit(wide).state_dict()}, {})
    with pytest.raises(ValueError, match="another width than debug"):
        Ablation(config, data_folder, vae_folder, tmp_path / "wide", tmp_path / "out")


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
def words(data_folder, vae_folder, weights_folder, tmp_path) -> list[str]:
    line = f"debug --data {data_folder} --vae {vae_folder} --initial {weights_folder} --out {tmp_path}"
    return line.split()


def test_command_measures_and_writes(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "prepare_cpu", lambda: None)
    ablate.main([*words, "--only", "initial-1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "ablations.md")
    assert "| initial-1 | 1 |" in (tmp_path / "ablations.md").read_text()
    assert set(stored(tmp_path)) == {"initial-1"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--only", "tscm", "spacial"], r"unknown variant 'spacial': choose from initial-1, .*tscm, spatial-only"),
        (["--only", "distilled-4"], r"unknown variant 'distilled-4'.*need --distilled"),
        (["--distilled", "nowhere"], r"unknown model 'nowhere'"),
    ],
)
def test_command_says_what_is_wrong(words, more, said, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "prepare_cpu", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        ablate.main([*words, *more])
    assert stopped.value.code == 2
    assert re.search(said, capsys.readouterr().err)
