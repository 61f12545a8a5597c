"""Released files that do not fit: each is named, by tensor where it can be, before a single value is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")

from shrunken import SHRUNKEN

from world_model.checkpoint import Checkpoint
from world_model.model import WorldModel
from world_model.presets import PRESETS
from world_model.released.files import open_release
from world_model.text import build_text_encoder

DIT, VAE, TEXT = "diffusion_pytorch_model.safetensors", "Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture
def folder(original_release, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(original_release, tmp_path / "weights"))


@pytest.fixture
def nothing_is_read(monkeypatch) -> None:
    """Whatever is wrong has to be told before a tensor's values are asked for."""

    def refuse(self, *args):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Checkpoint, "__getitem__", refuse)


@pytest.mark.parametrize("name", ["config.json", VAE, TEXT, "google"])
def test_a_missing_part_is_named_with_its_places(name, folder, nothing_is_read):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}"):
        WorldModel.load(folder, device="cpu")


def test_a_truncated_transformer_is_named_by_tensor(folder, nothing_is_read):
    data = (folder / DIT).read_bytes()
    (folder / DIT).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{DIT} is truncated.*ends within 'patch_embedding_16x\.weight'"):
        WorldModel.load(folder, device="cpu")


@pytest.mark.parametrize("name", [VAE, TEXT])
def test_a_truncated_pth_is_named(name, folder, nothing_is_read):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{name} is truncated"):
        WorldModel.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.ffn.0.bias"), r"1 missing \(blocks\.1\.ffn\.0\.bias\)"),
        (
            lambda s: s.update({"head.head.bias": torch.zeros(7)}),
            r"1 misshapen \(head\.head\.bias \(7,\) instead of \(192,\)",
        ),
        (lambda s: s.update(lora=torch.zeros(2)), r"1 unknown \(lora\)"),
        (lambda s: s.pop("patch_embedding_2x_f.weight"), r"missing \(patch_embedding_2x_f\.weight\)"),
    ],
    ids=["missing", "misshapen", "unknown", "not Yume's"],
)
def test_a_wrong_transformer_is_named_by_tensor(change, message, folder, nothing_is_read):
    state = load_file(folder / DIT)
    change(state)
    save_file(state, folder / DIT)
    with pytest.raises(ValueError, match=rf"{DIT} does not fit .*config\.json.*{message}"):
        WorldModel.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [(VAE, "decoder.middle.0.residual.2.bias"), (TEXT, "blocks.1.ffn.fc2.weight")],
    ids=["autoencoder", "text encoder"],
)
def test_a_wrong_pth_is_named_by_tensor(name, tensor, folder, nothing_is_read):
    state = torch.load(folder / name, weights_only=True)
    state[tensor] = torch.zeros(3)
    torch.save(state, folder / name)
    with pytest.raises(ValueError, match=rf"{name} does not fit.*1 misshapen"):
        WorldModel.load(folder, device="cpu")


def test_full_size_weights_need_every_layer_of_the_text_encoder(folder, monkeypatch):
    """Sizes come from the preset where the transformer is the preset's: a text encoder that lacks its last layer is noticed."""
    monkeypatch.setitem(PRESETS, "yume-5b", SHRUNKEN)
    assert open_release(folder).config.name == "shrunken"
    state = torch.load(folder / TEXT, weights_only=True)
    torch.save({name: value for name, value in state.items() if "blocks.1." not in name}, folder / TEXT)
    with pytest.raises(ValueError, match=r"missing \(encoder\.block\.1\."):
        open_release(folder)


class Stowaway:
    def __reduce__(self):
        return print, ("run while loading",)


def test_a_pth_that_would_run_code_is_not_opened(folder, capsys):
    torch.save({"conv1.bias": Stowaway()}, folder / VAE)
    with pytest.raises(ValueError, match=r"holds more than tensors"):
        WorldModel.load(folder, device="cpu")
    assert "run while" not in capsys.readouterr().out


def test_a_missing_or_emptied_shard_is_named(sharded_release, tmp_path, nothing_is_read):
    place = Path(shutil.copytree(sharded_release, tmp_path / "weights"))
    index = json.loads((place / f"{DIT}.index.json").read_text())["weight_map"]
    shard = place / index["head.head.bias"]
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name} lacks '.*', which {DIT}\.index\.json says it holds"):
        WorldModel.load(place, device="cpu")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name} is missing"):
        WorldModel.load(place, device="cpu")


def test_an_autoencoder_with_other_statistics_is_refused(sharded_release, tmp_path):
    place = Path(shutil.copytree(sharded_release, tmp_path / "weights"))
    values = json.loads((place / "vae" / "config.json").read_text())
    (place / "vae" / "config.json").write_text(json.dumps({**values, "latents_std": 48 * [1.0]}))
    with pytest.raises(ValueError, match=r"latents_std are not those of Wan2\.2"):
        open_release(place)


def test_what_only_training_used_is_left_out_and_told(folder, caplog):
    state = load_file(folder / DIT)
    save_file({**state, "mask_token": torch.zeros(1, 1, 48), "sideblock.norm3.bias": torch.zeros(48)}, folder / DIT)
    with caplog.at_level("INFO"):
        release = open_release(folder)
    assert release.config.dit.history.channel is None
    assert "mask_token, sideblock.norm3.bias" in caplog.text


def test_a_text_encoder_without_a_checkpoint_is_refused():
    with pytest.raises(NotImplementedError, match="comes with a checkpoint"):
        build_text_encoder(PRESETS["yume-5b"].text)
