"""Latents beside the shards: what an autoencoder makes of the frames, computed once for all training of the DiT.

Legend: N walks, B blocks of a walk, F latent frames of a walk, k of a block, C channels, h x w latent size.

    latents_00000.safetensors   latent float16 [N, C, F, h, w]

Metadata holds hashes of the weights and the shard a file was made from; others are encoded anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from train.data.shards import Shard, ShardError, Trajectory, find_shards, latents_path, write_tensors
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.conditions import Motion
from world_model.config import ModelConfig
from world_model.priors.warp import Guide, PosedPicture
from world_model.released.files import is_released, open_release, read_vae
from world_model.released.placement import LoadOptions
from world_model.vae import Autoencoder, DecoderCache, VideoVAE, build_vae

WEIGHTS = "vae.safetensors"
GuideFn = Callable[..., Guide]


def encode(config: ModelConfig, data: Path, vae: Path, *, device: str = "auto") -> int:
    """Encodes all shards in `data` with the autoencoder in the folder `vae`; returns how many were encoded now.

    Files made by the same weights from the same shard are kept. Raises FileNotFoundError without shards or weights,
    ShardError where a shard is of another picture size or block length than `config`, ValueError for unfitting weights.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    autoencoder, fingerprint = load_vae(config, vae, place)
    encoded = 0
    for path in tqdm(find_shards(data), desc="encode", unit="shard"):
        origin = {"vae": fingerprint, "shard": _sha256(path)}
        if origin_of(latents_path(path)) == origin:
            continue
        shard = Shard(path)
        check_fits(shard, config)
        walks = [encode_walk(autoencoder, shard.trajectory(index), place) for index in range(len(shard))]
        write_tensors(latents_path(path), {"latent": np.stack(walks)}, origin)
        encoded += 1
    return encoded


def load_vae(config: ModelConfig, folder: Path, device: str = "cpu") -> tuple[Autoencoder, str]:
    """The trained autoencoder of `folder`, frozen, float32, and a hash of its weights: `WEIGHTS` of a run or of exported weights,
    or the one of a release. Raises FileNotFoundError without one, ValueError for another model's."""
    path = folder / WEIGHTS
    if is_released(folder):
        release = open_release(folder)
        if release.config.vae != config.vae:
            raise ValueError(f"{release.vae.path} does not hold the autoencoder of {config.name!r}")
        released = read_vae(release, LoadOptions(device=device, vae_dtype="float32"))
        return released.eval().requires_grad_(False), _sha256(release.vae.files[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"no autoencoder in {str(folder)!r}: expected {WEIGHTS} as `python -m train.vae` writes it, or released weights"
        )
    autoencoder = build_vae(config.vae)
    try:
        autoencoder.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold the autoencoder of {config.name!r}: {error}") from error
    frozen = autoencoder.eval().requires_grad_(False).to(device)
    return frozen, _sha256(path)


class LatentsOnly:
    """Stands for an autoencoder where nobody looks at the pictures: encodes as it does, decodes to grey without computing."""

    def __init__(self, vae: VideoVAE) -> None:
        self.config, self.encode, self.encode_stream = vae.config, vae.encode, vae.encode_stream

    def decode(self, latents: Tensor, cache: DecoderCache | None = None) -> tuple[Tensor, DecoderCache]:
        batch, _, frames, rows, columns = latents.shape
        stride = self.config.spatial_stride
        size = (batch, 3, frames * self.config.temporal_stride, rows * stride, columns * stride)
        return latents.new_zeros(()).expand(size), ()


def origin_of(path: Path) -> dict[str, str]:
    """What a latents file was made from: hashes of weights and shard; empty if unreadable."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def check_fits(shard: Shard, config: ModelConfig) -> None:
    """Raises ShardError where a shard's pictures or blocks are not those of `config`."""
    for name in ("height", "width", "fps", "frames_per_block"):
        found, needed = getattr(shard.header, name), getattr(config, name)
        if found != needed:
            raise ShardError(
                f"{shard.path} has {name} {found}, {config.name!r} needs {needed}: "
                f"render with `python -m train.data {config.name} render`"
            )


@torch.inference_mode()
def encode_walk(vae: VideoVAE, walk: Trajectory, device: str = "cpu") -> np.ndarray:
    """Latents of one walk, float16 [C, F, h, w]."""
    return vae.encode(walk_video(walk, device)[None])[0].cpu().numpy().astype(np.float16)


def walk_video(walk: Trajectory, device: str = "cpu") -> Tensor:
    """[3, T, H, W] in -1..1."""
    frames = torch.from_numpy(np.ascontiguousarray(walk.frames)).to(device)
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def block_guides(config: ModelConfig, guide: GuideFn, video: Tensor, walk: Trajectory) -> Guide:
    """The guides of all blocks of a walk but the first; `video` is [3, T, H, W] in -1..1.

    The guide of a block is the frame before it, moved as commanded; `guide` is `warp.guide_block` of given networks.
    """
    step = config.frames_per_block
    last = np.arange(step - 1, video.shape[1] - 1, step)  # the frame before each block but the first
    motions = [
        commanded_motion(
            Action.from_index(int(index)), float(walk.yaw[k]), float(walk.pitch[k]), step, config.fps, config.camera
        )
        for index, k in zip(walk.action[1:], last, strict=True)
    ]
    yaws, pitches, moves = (torch.from_numpy(np.stack(part)) for part in zip(*motions))
    yaw, pitch = (torch.from_numpy(angles[last]) for angles in (walk.yaw, walk.pitch))
    return guide(PosedPicture(video[:, last].transpose(0, 1), yaw, pitch), Motion(yaws, pitches, moves))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
