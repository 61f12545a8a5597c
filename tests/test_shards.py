"""Shards and latents: what is on disk is what was recorded, and damage is found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import with_video
from safetensors import safe_open
from safetensors.torch import save_file
from street_shards import BLOCKS, DEBUG, HEADER, damage, same, walks_fixture  # noqa: F401  (fixtures, too)

from train.data import latents
from train.data.shards import (
    Shard,
    ShardError,
    find_shards,
    is_whole,
    latents_path,
    shard_path,
    write_shard,
    write_shards,
)
from world_model.vae import build_vae

# ---------------------------------------------------------------- shards


def test_shards_read_back_exactly(tmp_path: Path, walks: list) -> None:
    assert write_shards(tmp_path, HEADER, iter(walks), 2) == 5
    shards = [Shard(path) for path in find_shards(tmp_path)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    found = [shard.trajectory(index) for shard in shards for index in range(len(shard))]
    assert all(same(a, b) for a, b in zip(found, walks, strict=True))
    np.testing.assert_array_equal(shards[1].frames(1, 5, 9), walks[3].frames[5:9])
    assert shards[0].header == HEADER
    with pytest.raises(IndexError, match=r"0\.\.1"):
        shards[0].frames(2)


def test_the_layout_on_disk_is_the_documented_one(tmp_path: Path, walks: list) -> None:
    path = shard_path(tmp_path, 0)
    write_shard(path, HEADER, walks)
    frames = BLOCKS * DEBUG.frames_per_block
    with safe_open(path, framework="np") as file:
        shapes = {name: (file.get_slice(name).get_dtype(), *file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "frames": ("U8", 5, frames, 32, 48, 3),
        "action": ("U8", 5, BLOCKS),
        "yaw": ("F32", 5, frames),
        "pitch": ("F32", 5, frames),
        "position": ("F32", 5, frames, 2),
        "blocked": ("U8", 5, BLOCKS),
    }
    info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (info["preset"], info["seed"]) == ("debug", 5)
    assert [walk["caption"] for walk in info["walks"]] == [walk.info.caption for walk in walks]
    assert not list(tmp_path.glob("*.unfinished"))


def test_arrays_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path: Path, walks: list) -> None:
    for change in ({"yaw": walks[0].yaw.astype(np.float64)}, {"action": walks[0].action[:-1]}):
        with pytest.raises(ShardError, match=next(iter(change))):
            write_shard(shard_path(tmp_path, 0), HEADER, [walks[1], dataclasses.replace(walks[0], **change)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["truncated", "no tensors", "no json", "half a json", "other shape"])
def test_damaged_shards_are_told_apart(tmp_path: Path, walks: list, how: str) -> None:
    path = shard_path(tmp_path, 0)
    write_shard(path, HEADER, walks)
    assert is_whole(path, HEADER, 5) and is_whole(path, HEADER, 4) and not is_whole(path, HEADER, 6)
    damage(path, how)
    assert not is_whole(path, HEADER, 5)
    with pytest.raises((ShardError, FileNotFoundError), match="shard_00000"):
        Shard(path)


def test_a_folder_without_shards_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.data street render"):
        find_shards(tmp_path)


# ---------------------------------------------------------------- latents


@pytest.fixture
def autoencoder(tmp_path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    vae = build_vae(DEBUG.vae).eval()
    (tmp_path / "vae").mkdir()
    save_file(vae.state_dict(), tmp_path / "vae" / latents.WEIGHTS)
    return vae


def test_latents_are_the_autoencoders(tmp_path: Path, walks: list, autoencoder: torch.nn.Module) -> None:
    path = shard_path(tmp_path / "data", 0)
    write_shard(path, HEADER, walks[:2])
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae", device="cpu") == 1
    with safe_open(latents_path(path), framework="pt") as file:
        assert set(file.keys()) == {"latent"}
        found = file.get_tensor("latent")
    channels, (rows, columns), step = DEBUG.vae.latent_channels, DEBUG.latent_size, DEBUG.block_latents
    assert found.shape == (2, channels, BLOCKS * step, rows, columns) and found.dtype == torch.float16
    block = torch.from_numpy(walks[1].frames[12:16].copy()).permute(3, 0, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        alone = autoencoder.encode(block[None])[0]
    start = 3 * step
    torch.testing.assert_close(found[1][:, start : start + step].float(), alone, atol=5e-3, rtol=5e-3)


def test_the_warped_frame_of_a_block_is_the_frame_before_it(walks: list, autoencoder: torch.nn.Module) -> None:
    """With a warp that only repeats the picture it is given, the prior must be the still frame's latents."""
    walk = walks[0]
    video = torch.from_numpy(walk.frames.copy()).permute(3, 0, 1, 2).float() / 127.5 - 1
    told = {}

    def still(last, motion):
        told.update(yaw=last.yaw, yaws=motion.yaw)
        picture = last.picture
        shown = picture[:, :, None].expand(-1, -1, DEBUG.frames_per_block, -1, -1)
        return autoencoder.encode(shown), torch.ones(len(picture), 1, DEBUG.block_latents, *DEBUG.latent_size)

    with torch.no_grad():
        guide, valid = latents.block_guides(DEBUG, still, video, walk)
        frame = video[:, 4 * DEBUG.frames_per_block - 1]
        expected = autoencoder.encode(frame[None, :, None].expand(-1, -1, DEBUG.frames_per_block, -1, -1))[0]
    torch.testing.assert_close(guide[3], expected, atol=1e-5, rtol=1e-5)
    assert len(guide) == len(valid) == BLOCKS - 1
    np.testing.assert_allclose(told["yaws"].flatten(), walk.yaw[DEBUG.frames_per_block :], atol=1e-6)
    assert told["yaw"][2] == walk.yaw[3 * DEBUG.frames_per_block - 1]


def test_encoding_again_only_where_something_changed(tmp_path: Path, walks: list, autoencoder: torch.nn.Module) -> None:
    write_shards(tmp_path / "data", HEADER, walks[:2], 1)
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 2
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 0
    write_shard(shard_path(tmp_path / "data", 1), HEADER, walks[2:3])
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 1
    latents_path(shard_path(tmp_path / "data", 0)).write_bytes(b"")
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 1
    changed = {name: tensor + 1e-3 for name, tensor in autoencoder.state_dict().items()}
    save_file(changed, tmp_path / "vae" / latents.WEIGHTS)
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 2


def test_encode_refuses_what_does_not_fit(tmp_path: Path, walks: list, autoencoder: torch.nn.Module) -> None:
    write_shard(shard_path(tmp_path / "data", 0), HEADER, walks[:1])
    with pytest.raises(ShardError, match="has height 32, 'wide' needs 64"):
        latents.encode(
            dataclasses.replace(with_video(DEBUG, height=64), name="wide"), tmp_path / "data", tmp_path / "vae"
        )
    (tmp_path / "vae" / latents.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="does not hold the autoencoder of 'debug'"):
        latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae")
