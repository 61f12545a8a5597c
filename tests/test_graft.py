"""Moved frames of one run with the parts of another that see the noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from configs import RECORDING
from expert_world import SMALL, toy
from safetensors.torch import load_file

from train.generator.graft import graft
from train.generator.shapes import recorded_config
from world_model.config import DenoiserConfig
from world_model.dit import DiT
from world_model.vae import PatchVAE
from world_model.weights import dit_tensors, read_config, read_manifest, save_weights


def written(folder: Path, seed: int, size: str = "tiny", eye: int = 0, flow: bool = True) -> Path:
    """A run's folder of random weights: the network's of `seed`, the autoencoder's of `eye`."""
    config = recorded_config("toy", RECORDING, False, size, flow)
    torch.manual_seed(eye)
    vae = PatchVAE(config.vae)
    torch.manual_seed(seed)
    dit = DiT(config)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter)
    tensors = {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae.state_dict()}
    save_weights(folder, config, tensors, {"training": [{"stages": {"seed": seed}}]})
    return folder


def test_what_sees_the_noise_is_the_students_and_nothing_else(tmp_path):
    run, student = written(tmp_path / "run", 1), written(tmp_path / "student", 2)
    manifest = graft(run, tmp_path / "new", student)
    made, own, other = (dit_tensors(folder) for folder in (tmp_path / "new", run, student))
    assert made.keys() == own.keys()
    parts = {".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0] for name in made}
    seeing = {"patch_embedding", "flow_embedding", "blocks.1", "head", "detail", "variances"}
    assert {"flow", "blocks.0", "recent_embedding", *seeing} <= parts
    for name, value in made.items():
        part = next((p for p in seeing if name.startswith(f"{p}.")), None)
        assert torch.equal(value, (own if part is None else other)[name]), name
    assert manifest["training"] == [{"stages": {"seed": 1}}, {"seeing_noise": [{"stages": {"seed": 2}}]}]
    assert manifest["files"]["vae.safetensors"] == read_manifest(run)["files"]["vae.safetensors"]


def test_an_expert_comes_with_its_student(tmp_path):
    torch.manual_seed(0)
    vae = PatchVAE(toy(None).vae).state_dict()
    for name, expert in (("run", None), ("student", SMALL)):
        tensors = {"dit.safetensors": DiT(toy(expert)).state_dict(), "vae.safetensors": vae}
        save_weights(tmp_path / name, toy(expert), tensors, {"training": []})
    graft(tmp_path / "run", tmp_path / "new", tmp_path / "student")
    made, other = (dit_tensors(tmp_path / name) for name in ("new", "student"))
    assert read_config(tmp_path / "new").dit.expert == SMALL and made.keys() == other.keys()
    assert all(torch.equal(made[name], value) for name, value in other.items() if name.startswith("expert."))


@pytest.fixture(name="folders")
def folders_fixture(tmp_path) -> dict[str, Path]:
    """Models of random weights: without an expert, and two with one."""
    torch.manual_seed(0)
    vae, folders = PatchVAE(toy(None).vae).state_dict(), {}
    for name, expert in (("plain", None), ("one", SMALL), ("two", SMALL)):
        dit = DiT(toy(expert))
        for parameter in dit.parameters():
            torch.nn.init.normal_(parameter)
        tensors = {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae}
        save_weights(tmp_path / name, toy(expert), tensors, {"training": [{"stages": {name: 1}}]})
        folders[name] = tmp_path / name
    return folders


def test_an_expert_may_be_anothers(folders, tmp_path):
    manifest = graft(folders["one"], tmp_path / "new", expert=folders["two"])
    made, own, other = (dit_tensors(folder) for folder in (tmp_path / "new", folders["one"], folders["two"]))
    for name, value in made.items():
        assert torch.equal(value, (other if name.startswith("expert.") else own)[name]), name
    assert manifest["training"] == [{"stages": {"one": 1}}, {"expert": [{"stages": {"two": 1}}]}]
    with pytest.raises(ValueError, match="has no expert"):
        graft(folders["one"], tmp_path / "none", expert=folders["plain"])
    assert not (tmp_path / "none").exists()


def test_a_copy_of_the_expert_takes_the_place_of_what_sees_the_noise(folders, tmp_path):
    graft(folders["one"], tmp_path / "new", denoiser=3, coarse_size=7)
    config, made = read_config(tmp_path / "new"), dit_tensors(tmp_path / "new")
    assert config.dit.denoiser == DenoiserConfig(SMALL.dim, SMALL.heads, SMALL.layers, SMALL.ffn_dim, SMALL.blocks, 7)
    assert config.dit.layers == config.dit.output.flow_layer and config.dit.expert == SMALL
    assert (config.sampler.steps, config.sampler.shift) == (3, SMALL.shift)
    expert = {name: value for name, value in made.items() if name.startswith("expert.")}
    for name, value in expert.items():
        assert torch.equal(value, made[f"denoiser.{name.removeprefix('expert.')}"])
    # what both have is stored once
    stored = load_file(tmp_path / "new" / "dit.safetensors")
    assert not any(name.startswith("denoiser.") for name in stored) and len(made) == len(stored) + len(expert)
    assert not made["found.weight"].any() and "head.head.weight" not in made
    with pytest.raises(ValueError, match="has no expert"):
        graft(folders["plain"], tmp_path / "none", denoiser=1)
    # a denoiser goes with its student, the moved frames stay
    graft(folders["two"], tmp_path / "third", student=tmp_path / "new", expert=folders["two"])
    third, two = (dit_tensors(folder) for folder in (tmp_path / "third", folders["two"]))
    for name, value in third.items():
        source = made if name.startswith(("denoiser.", "found.")) else two
        assert torch.equal(value, source[name]), name


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    run, out = written(tmp_path / "run", 1), tmp_path / "new"
    with pytest.raises(ValueError, match="choose weights of the same size"):
        graft(run, out, written(tmp_path / "small", 2, "small"))
    with pytest.raises(ValueError, match="another autoencoder"):
        graft(run, out, written(tmp_path / "other", 2, eye=3))
    with pytest.raises(ValueError, match="moves no frames"):
        graft(written(tmp_path / "still", 1, flow=False), out, run)
    assert not out.exists()
    out.mkdir()
    (out / "notes").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        graft(run, out, run)
    assert (out / "notes").read_text() == "mine"
