"""From a run to a folder of weights that users load."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from train import foundation
from train.engine.loop import Networks, Run
from train.engine.optimization import Optimization
from train.engine.pool import PoolSettings
from train.export import load_ema
from train.foundation import Settings
from train.land import STARTS, Network, Parts, export_with_priors, starting_pictures
from world_model.actions import Action
from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.priors.config import scene_of
from world_model.priors.depth import DepthNet
from world_model.text import Conditioning
from world_model.vae import build_vae
from world_model.weights import load_dit
from yume_gym.street.simulator import StreetSimulator

SETTINGS = Settings(batch=2, noise_samples=1, pool=PoolSettings(3), optimization=Optimization(warmup=1), ema=0.6)


@pytest.fixture(scope="module")
def run_folder(config, data_folder, vae_folder, depth_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    foundation.train(config, data_folder, vae_folder, folder, SETTINGS, 4, None, foundation.Initial(depth=depth_folder))
    return folder


@pytest.fixture(scope="module")
def exported(config, run_folder, vae_folder, data_folder, tmp_path_factory):
    """(folder of weights, its evaluation)"""
    folder = tmp_path_factory.mktemp("exported") / "debug"
    return folder, export_with_priors(config, Network(run_folder, [run_folder]), vae_folder, data_folder, folder)


def test_the_average_of_a_run_is_found(config, run_folder):
    average, metadata = load_ema(config, run_folder)
    dit = DiT(config)
    networks = Networks({"dit": dit}, foundation.optimizers(dit, 1e-3, 0.0), {"dit": 0.6})
    run = Run("foundation", config, SETTINGS, run_folder, networks)
    own = run.ema["dit"].module.state_dict()
    assert own.keys() == average.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in average.state_dict().items())
    raw = dit.state_dict()
    assert any(not torch.equal(value, raw[name]) for name, value in own.items())  # it is not the last step's weights
    assert metadata["stage"] == "first" and metadata["steps"] == 4
    assert metadata["settings"]["pool"]["size"] == 3


def test_parts_that_are_replaced_need_not_be_in_a_run_as_they_are_now(config, run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    file = run / "checkpoint" / "custom_checkpoint_1.pkl"
    held = torch.load(file, weights_only=True)
    gone, changed = [name for name in held if name.startswith("module.priors.0.depth.")][:2]
    held.pop(gone)
    held[changed] = held[changed][:1]
    torch.save(held, file)
    with pytest.raises(RuntimeError, match=gone.removeprefix("module.")):
        load_ema(config, run)
    found, whole = (load_ema(config, *given)[0].state_dict() for given in ((run, ["priors.0.depth"]), (run_folder,)))
    assert found.keys() == whole.keys()
    assert all(
        torch.equal(found[name], value) for name, value in whole.items() if not name.startswith("priors.0.depth.")
    )


def test_weights_between_two_runs(config, run_folder, vae_folder, data_folder, depth_folder, tmp_path):
    other = tmp_path / "second"
    settings, initial = replace(SETTINGS, seed=1), foundation.Initial(depth=depth_folder)
    foundation.train(config, data_folder, vae_folder, other, settings, 4, None, initial)
    network = Network(other, [run_folder], interpolation=0.25)
    export_with_priors(config, network, vae_folder, data_folder, tmp_path / "out")
    found = load_file(tmp_path / "out" / "dit.safetensors")
    first, second = (load_ema(config, run)[0].state_dict() for run in (run_folder, other))
    name = "blocks.0.self_attn.q.weight"
    assert not torch.allclose(first[name], second[name], atol=1e-3)
    torch.testing.assert_close(found[name].float(), 0.75 * first[name] + 0.25 * second[name], rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["training"][-1]["share"] == 0.25
    for before, interpolation in (([], 0.5), ([run_folder], 1.5)):
        with pytest.raises(ValueError, match=f"--interpolation {interpolation} must be from 0 to 1"):
            network = Network(other, before, interpolation=interpolation)
            export_with_priors(config, network, vae_folder, data_folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_exported_weights_generate_what_the_average_generates(config, exported, run_folder, frozen_vae):
    """Within one grey level: kernels may round by how a file's tensors lie in memory. Weights are float16 on disk."""
    model = WorldModel.load(exported[0], device="cpu")
    average = load_ema(config, run_folder)[0].half().float()
    vae = build_vae(config.vae).eval()
    vae.load_state_dict({name: value.half().float() for name, value in frozen_vae.state_dict().items()})
    conditioning = Conditioning(config.text, Conditioning(config.text).actions.half().float())
    expected = WorldModel(config, average, vae, conditioning)

    def walk(world_model: WorldModel) -> np.ndarray:
        state = world_model.start([model.starting_image(0), None], ["", "a street at night"], [1, 2])
        frames = []
        for keys in ("W", "D"):
            actions = [Action.from_keys(keys, "→"), Action.from_keys("S")]
            state, shown = world_model.step(state, actions, ["heavy rain", None])
            frames.append(shown)
        return np.concatenate(frames, axis=1)

    difference = walk(model).astype(int) - walk(expected)
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 1e-3


def test_manifest_has_the_metadata_of_all_stages(exported, config):
    folder, figures = exported
    metadata = json.loads((folder / "manifest.json").read_text())
    assert [stage["steps"] for stage in metadata["training"]] == [4, 4]  # what was continued, then the run itself
    assert metadata["training"][1]["settings"]["ema"] == 0.6
    assert metadata["autoencoder"] == {"steps": 0}
    assert set(metadata["files"]) == {
        "config.json",
        "dit.safetensors",
        "vae.safetensors",
        "text.safetensors",
        "starts.png",
    }
    assert set(figures) == {"psnr/block1", "psnr/blocks2-4", "psnr/rest", "psnr/still_block1"}
    assert all(np.isfinite(value) for value in figures.values())
    assert metadata["evaluation"]["psnr/still_block1"] == round(figures["psnr/still_block1"], 2)


def test_starting_pictures_are_many_and_different(exported, config):
    strip = np.asarray(Image.open(exported[0] / "starts.png"))
    pictures = strip.reshape(len(STARTS), config.height, config.width, 3).astype(int)
    assert all(abs(a - b).mean() > 5 for i, a in enumerate(pictures) for b in pictures[:i])
    middle = pictures[:, config.height // 4 : config.height // 2, config.width // 3 : -config.width // 3]
    assert middle.std(axis=(1, 2)).mean(axis=1).min() > 3  # nobody stares at a wall
    drawn, poses = starting_pictures(config)
    np.testing.assert_array_equal(drawn, strip)
    street = StreetSimulator(height=config.height, width=config.width, camera=config.camera)
    for number in (0, len(STARTS) - 1):  # each was taken where it is said to have been
        light, weather = STARTS[number]
        x, z, yaw = poses[number]
        found = street.reset(np.random.default_rng(0), light=light, weather=weather, position=(x, z), yaw=yaw)
        own = pictures[number][: config.height // 2]  # people and clouds move; towns do not
        assert abs(found[: config.height // 2].astype(int) - own).mean() < 8
    assert len(set(poses)) == len(STARTS)


def test_a_folder_without_a_checkpoint_is_refused(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        load_ema(config, tmp_path)


def test_a_later_depth_network_is_exported(config, run_folder, vae_folder, data_folder, tmp_path):
    later = DepthNet(scene_of(config).depth, config.camera)
    save_file(later.state_dict(), tmp_path / "depth.safetensors")
    (tmp_path / "depth.json").write_text('{"depth_training": {"steps": 7}}')
    parts = Parts(depth=tmp_path)
    export_with_priors(config, Network(run_folder), vae_folder, data_folder, tmp_path / "out", parts)
    exported = load_file(tmp_path / "out" / "dit.safetensors")
    for name, value in later.state_dict().items():
        torch.testing.assert_close(exported[f"priors.0.depth.{name}"].float(), value, atol=1e-3, rtol=1e-2)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["depth"] == {"steps": 7}


def test_metadata_of_earlier_weights_comes_first(config, exported, run_folder, vae_folder, data_folder, tmp_path):
    network = Network(run_folder, initial=exported[0])
    export_with_priors(config, network, vae_folder, data_folder, tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [stage["steps"] for stage in metadata["training"]] == [4, 4, 4]  # the two of the weights, then the run


def test_parts_of_a_dit_are_left_out_of_what_is_loaded(config, exported):
    dit, other = DiT(config), DiT(config)
    before = {name: value.clone() for name, value in dit.state_dict().items()}
    load_dit(dit, exported[0], ["priors.0.depth"])
    load_dit(other, exported[0])
    for name, value in dit.state_dict().items():
        assert torch.equal(value, (before if name.startswith("priors.0.depth.") else other.state_dict())[name])
    depths = [name for name in before if name.startswith("priors.0.depth.")]
    assert any(not torch.equal(before[name], other.state_dict()[name]) for name in depths)
    with pytest.raises(ValueError, match="does not fit"):
        load_dit(dit.blocks, exported[0])
