"""Weights with large tensors in int8: what is rounded, what stays, and what the manifest says of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from train.compress import BLOCKS, compress, rollouts
from world_model.weights import find_weights, load_tensors, model_names, read_manifest


@pytest.fixture
def folder(weights_folder, tmp_path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(weights_folder, tmp_path / "weights"))


def test_large_tensors_are_rounded_and_small_ones_stay(folder):
    before = load_file(folder / "dit.safetensors")
    found = compress(folder, over=500)
    after, loaded = load_file(folder / "dit.safetensors"), load_tensors(folder, "dit.safetensors")
    large = {name for name, value in before.items() if value.is_floating_point() and value.numel() > 500}
    large = {name for name in large if before[name].dim() > 1}
    assert 0 < len(large) < len(before) and loaded.keys() == before.keys()
    for name, value in before.items():
        if name in large:
            assert after[name].dtype == torch.int8 and loaded[name].dtype == torch.float32
            error = (loaded[name] - value.float()).abs().flatten(1)
            most = value.float().flatten(1).abs().amax(dim=1, keepdim=True)
            assert (error <= most * (0.5 / 127 + 2**-10) + 2**-15).all(), name  # half a step
        else:
            assert torch.equal(after[name], value), name
    assert found["bytes"] < 0.75 * found["bytes_before"] and found["psnr_1"] > 25
    assert read_manifest(folder)["int8"] == found and read_manifest(folder)["made"] == "random weights for tests"
    assert rollouts(folder).shape[:2] == (BLOCKS, 4)


def test_nothing_changes_where_no_tensor_is_large(folder):
    before = rollouts(folder)
    found = compress(folder, over=10**9)
    assert found["bytes"] == found["bytes_before"] and found["psnr_1"] == 60
    np.testing.assert_array_equal(rollouts(folder), before)


def test_files_can_be_chosen(folder):
    before = (folder / "dit.safetensors").read_bytes()
    found = compress(folder, over=500, files=["text.safetensors"])
    assert (folder / "dit.safetensors").read_bytes() == before and found["files"] == ["text.safetensors"]
    assert load_file(folder / "text.safetensors")["actions"].dtype == torch.int8
    with pytest.raises(ValueError, match=r"--files are some of dit\.safetensors.*got starts\.png"):
        compress(folder, files=["starts.png"])


def test_a_count_below_one_is_refused_and_nothing_is_written(folder):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="--over is a count of numbers, 1 or more; got 0"):
        compress(folder, over=0)
    assert (folder / "manifest.json").read_bytes() == before


def test_shipped_weights_are_found_by_their_folder_and_are_at_most_40_mb():
    names = [name for name in model_names() if name not in ("yume-5b", "debug")]
    assert "street" in names
    files = [path for name in names for path in find_weights(name).glob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 40e6
