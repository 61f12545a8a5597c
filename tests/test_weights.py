"""Weights folders: every kind of damage is an error that names the file or the tensor; nothing is ever filled in."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configs import with_dit
from safetensors.torch import load_file

from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.presets import PRESETS
from world_model.weights import find_weights, load_dit, load_released, read_config, read_manifest, save_weights

FILES = ("dit.safetensors", "vae.safetensors", "text.safetensors", "starts.png", "config.json")


@pytest.fixture
def folder(weights_folder, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(weights_folder, tmp_path / "weights"))


def rewrite(folder: Path, name: str, change) -> None:
    """The folder again with other tensors in one file: a manifest that fits, and yet not this model's weights."""
    tensors = dict(load_file(folder / name))
    change(tensors)
    save_weights(folder, read_config(folder), {name: tensors}, {})


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)


# ---- whole folders ----------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(weights_folder, config, make_dit, make_vae):
    model = WorldModel.load(weights_folder, device="cpu")
    assert model.config == config
    for module, saved in ((model.dit, make_dit(config)), (model.vae, make_vae(config))):
        loaded = module.state_dict()
        assert loaded.keys() == saved.state_dict().keys()
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded[name], tensor.half().float()), name
    assert model.starts.shape == (3, config.height, config.width, 3)


def test_the_manifest_lists_every_file_and_the_metadata(weights_folder):
    manifest = read_manifest(weights_folder)
    assert manifest["made"] == "random weights for tests"
    assert set(manifest["files"]) == set(FILES) == {path.name for path in weights_folder.iterdir()} - {"manifest.json"}
    for name, metadata in manifest["files"].items():
        assert (weights_folder / name).stat().st_size == metadata["bytes"]


def test_loading_leaves_the_global_randomness_alone(weights_folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    WorldModel.load(weights_folder, device="cpu")
    assert torch.equal(torch.rand(1), expected)


# ---- finding ----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown model 'strete'.*debug, street, street-generator, yume-5b"):
        WorldModel.load("strete")


def test_weights_that_are_not_shipped_are_asked_for(monkeypatch):
    monkeypatch.delenv("YUME_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"'debug' are not shipped.*YUME_WEIGHTS"):
        WorldModel.load("debug")


def test_a_folder_without_weights_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        WorldModel.load(tmp_path)


def test_the_environment_variable_holds_folders_by_name(monkeypatch, folder):
    monkeypatch.setenv("YUME_WEIGHTS", str(folder.parent))
    folder.rename(folder.parent / "yume-5b")
    assert find_weights("yume-5b") == folder.parent / "yume-5b"


# ---- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES[:3], "manifest.json"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        WorldModel.load(folder, device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(name, folder):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        WorldModel.load(folder, device="cpu")


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed(name, where, folder):
    flip(folder / name, where)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        WorldModel.load(folder, device="cpu")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": 3}', '{"files": {"dit.safetensors": {"bytes": 1}}}'])
def test_a_damaged_manifest_is_named(text, folder):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        WorldModel.load(folder, device="cpu")


def test_a_config_of_another_version_is_named(folder, config):
    values = json.loads(config.to_json())
    values["dit"]["depth"] = 3
    text = json.dumps(values)
    (folder / "config.json").write_text(text)
    manifest = read_manifest(folder)
    manifest["files"]["config.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"config\.json is of another version.*'depth'"):
        WorldModel.load(folder, device="cpu")


# ---- unfitting tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update(stowaway=torch.zeros(2)), "stowaway"),
        (lambda t: t.pop("blocks.1.ffn.conv.bias"), "blocks.1.ffn.conv.bias"),
        (lambda t: t.update({"head.head.bias": torch.zeros(5)}), "head.head.bias"),
    ],
    ids=["unknown", "missing", "misshapen"],
)
def test_a_tensor_that_does_not_fit_is_named(change, named, folder, config):
    rewrite(folder, "dit.safetensors", change)
    with pytest.raises(ValueError, match=rf"(?s)dit\.safetensors does not fit.*{named}"):
        WorldModel.load(folder, device="cpu")
    with pytest.raises(ValueError, match=named):
        load_dit(DiT(config), folder)


def test_weights_of_another_size_do_not_fit(folder, config):
    tensors = {"dit.safetensors": DiT(replace(config, dit=replace(config.dit, layers=3))).state_dict()}
    save_weights(folder, config, tensors, {})
    with pytest.raises(ValueError, match=r"(?s)does not fit.*blocks\.2"):
        WorldModel.load(folder, device="cpu")


def test_an_action_table_under_another_name_is_refused(folder):
    rewrite(folder, "text.safetensors", lambda t: t.update(verbs=t.pop("actions")))
    with pytest.raises(ValueError, match=r"text\.safetensors.*'actions'"):
        WorldModel.load(folder, device="cpu")


# ---- released checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def released(config) -> tuple[DiT, dict[str, torch.Tensor]]:
    """A small DiT with the released choices, and its tensors without a channel path."""
    choices = replace(
        config, priors=(), dit=replace(PRESETS["yume-5b"].dit, latent_channels=8, text_dim=16, patch=(1, 2, 2))
    )
    dit = DiT(with_dit(choices, dim=32, ffn_dim=64, heads=2, layers=2, freq_dim=16))
    return dit, {name: t.clone() for name, t in dit.state_dict().items() if "channel" not in name}


def test_a_released_checkpoint_loads_with_a_fresh_channel_path(released):
    dit, state = released
    loaded = []
    for _ in range(2):
        with torch.device("meta"):
            fresh = DiT(dit.config)
        load_released(fresh, {name: value.bfloat16() for name, value in state.items()})
        loaded.append(fresh.state_dict())
    for name, value in loaded[0].items():
        assert not value.is_meta
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, loaded[1][name]), name  # drawn alike each time
        if name in state:
            assert torch.equal(value, state[name].bfloat16()), name
        elif ".up." in name or name.endswith("bias"):
            assert not value.any(), name
        else:
            assert value.any(), name


def test_a_checkpoint_with_a_channel_path_keeps_it(released):
    dit, state = released
    whole = {**dit.state_dict(), **state}
    whole["blocks.0.channel.up.weight"] = torch.ones_like(whole["blocks.0.channel.up.weight"])
    load_released(dit, whole)
    assert dit.get_parameter("blocks.0.channel.up.weight").eq(1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(mask_token=torch.zeros(1)), r"1 unknown \(mask_token\)"),
        (lambda s: s.pop("head.head.bias"), r"1 missing \(head\.head\.bias\)"),
        (
            lambda s: s.update({"head.head.bias": torch.zeros(3)}),
            r"1 misshapen \(head\.head\.bias \(3,\) instead of \(32,\)\)",
        ),
        (lambda s: s.update({"channel_embedding.bias": torch.zeros(96)}), r"missing \(blocks\.0\.channel\."),
    ],
    ids=["unknown", "missing", "misshapen", "half a channel path"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, released):
    dit, state = released
    before = {name: value.clone() for name, value in dit.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        load_released(dit, state)
    assert all(torch.equal(value, before[name]) for name, value in dit.state_dict().items())
