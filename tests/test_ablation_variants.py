"""Ablations: variants are what they are called, and weights that fit are taken over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configs import with_video

from train import ablate
from train.ablate import BLOCKS, SETTINGS, Ablation, cost, take_over, variants_of
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


@pytest.fixture(scope="module")
def variants(town_config):
    return variants_of(town_config, QUICK)


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
        "tscm": set(),
        "spatial-only": {"channel"},
        "sliding-window": {"packing", "channel"},
        "full-history": {"packing", "channel"},
        "without-self-forcing": set(),
        "joint-history": {"attention"},
        "without-places": {"places"},
        "without-guide-and-places": {"depth", "album", "places", "events", "kind"},
    }
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


def history_after(config: ModelConfig, blocks: int) -> list[int]:
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
        name: history_after(config, BLOCKS - 1)[1:] for name, (config, _) in variants.items()
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
        "tscm": {"fresh": no, "left_out": no},
        "spatial-only": {"fresh": no, "left_out": channel},
        "sliding-window": {"fresh": no, "left_out": channel},
        "full-history": {"fresh": no, "left_out": [*channel, "patch_embedding_2x"]},
        "without-self-forcing": {"fresh": no, "left_out": no},
        "joint-history": {"fresh": no, "left_out": no},
        "without-guide-and-places": {
            "fresh": no,
            "left_out": ["prior_embeddings", "priors.*.depth", "priors.*.deviation"],
        },
    }


@pytest.fixture(scope="module")
def town_weights(town_config, make_dit, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("town")
    save_weights(folder, town_config, {"dit.safetensors": make_dit(town_config).state_dict()}, {})
    return folder


def test_the_std_of_another_prior_is_measured_anew(variants, corpus, town_corpus, frozen_vae, town_weights):
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
