"""The guide: the last picture, moved as the command says, before the network repairs it.

Rotation is exact. Walking needs a depth: below the horizon the ground plane, capped by a sphere around the eye. Used only by
configs with `dit.guide`; it is a prior on control, so the same model without it is the ablation.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.camera import CameraConfig
from world_model.vae import VideoVAE

FAR = 14.0  # metres: radius of the sphere that stands for everything that is not ground


@lru_cache(maxsize=8)
def _rays(height: int, width: int, camera: CameraConfig) -> Tensor:
    """[H, W, 3] float32 directions through pixel centres, camera axes (x right, y down, z forward), z = 1."""
    focal = camera.focal(width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    return torch.stack([x / focal, y / focal, torch.ones_like(x)], dim=-1)


def _rotation(yaw: Tensor, pitch: Tensor) -> Tensor:
    """[..., 3, 3] camera-to-world; the tensor form of camera.rotation."""
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    rows = [cy, sp * sy, cp * sy, torch.zeros_like(cy), cp, -sp, -sy, cy * sp, cp * cy]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def warp(
    picture: Tensor,
    yaw: Tensor,
    pitch: Tensor,
    yaws: Tensor,
    pitches: Tensor,
    displacement: Tensor,
    camera: CameraConfig,
) -> tuple[Tensor, Tensor]:
    """Moves pictures as commanded.

    picture [B, 3, H, W] seen at yaw, pitch [B]; the T new views at yaws, pitches [B, T] (radians) after walking
    displacement [B, T, 2] (world x, z; metres). Returns video [B, 3, T, H, W] (edges repeated where nothing was seen) and
    validity [B, 1, T, H, W]: 1 where the old picture shows that place.
    """
    height, width = picture.shape[2:]
    frames = yaws.shape[1]
    rays = F.normalize(_rays(height, width, camera).to(picture.device), dim=-1)
    view = _rotation(yaws.float(), pitches.float())
    world = torch.einsum("btij,hwj->bthwi", view, rays)
    ground = camera.eye_height / world[..., 1].clamp(min=1e-6)
    distance = ground.clamp(max=FAR)
    point = world * distance[..., None]
    point[..., 0] += displacement[..., 0, None, None]
    point[..., 2] += displacement[..., 1, None, None]
    seen = torch.einsum("bij,bthwi->bthwj", _rotation(yaw.float(), pitch.float()), point)
    depth = seen[..., 2].clamp(min=0.05)
    focal = camera.focal(width)
    grid = torch.stack(
        [seen[..., 0] / depth * focal / (width / 2), seen[..., 1] / depth * focal / (height / 2)], dim=-1
    )
    valid = ((grid.abs() <= 1).all(dim=-1) & (seen[..., 2] > 0.05)).float()[:, None]
    flat = F.grid_sample(
        picture, grid.flatten(1, 2), mode="bicubic", padding_mode="border", align_corners=False
    ).clamp(-1, 1)  # fmt: skip
    return flat.unflatten(2, (frames, height)), valid


def guide_block(
    vae: VideoVAE, picture: Tensor, yaw: Tensor, pitch: Tensor, yaws: Tensor, pitches: Tensor, displacement: Tensor,
    camera: CameraConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The guide of a block: latents [B, C, K, h, w] of the warped picture and its validity [B, 1, K, h, w] in 0..1."""
    video, valid = warp(picture, yaw, pitch, yaws, pitches, displacement, camera)
    latents = vae.encode(video)
    return latents, F.adaptive_avg_pool3d(valid, latents.shape[2:])
