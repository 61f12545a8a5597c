"""The guide: the last picture, moved as the command says, before the network repairs it.

Rotation is exact. Walking needs a depth: below the horizon the ground plane, capped by a sphere around the eye. Several spheres
give several guides, and the network chooses among them place by place. Used only by configs with `dit.guide`; it is a prior
on control, so the same model without it is the ablation.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.album import Recalled
from world_model.camera import CameraConfig
from world_model.vae import VideoVAE


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
    far: float,
) -> tuple[Tensor, Tensor]:
    """Moves pictures as commanded; what is not nearer ground is taken to be `far` metres away.

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
    distance = ground.clamp(max=far)
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
    camera: CameraConfig, depths: tuple[float, ...], recalled: Recalled | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The guides of a block, one for each of G depths (metres): latents [B, G*C, K, h, w], depth by depth, of the warped
    picture, and their validity [B, G, K, h, w] in 0..1. What only the `recalled` picture shows is filled in, at the middle depth
    and with validity 0.5."""
    latents, valid = [], []
    if recalled is not None:
        walked = recalled.walked[:, None] + displacement
        middle = depths[len(depths) // 2]
        old, old_seen = warp(recalled.picture, recalled.yaw, recalled.pitch, yaws, pitches, walked, camera, middle)
        old_seen = old_seen * recalled.present[:, None, None, None, None]
    for far in depths:
        video, seen = warp(picture, yaw, pitch, yaws, pitches, displacement, camera, far)
        if recalled is not None:
            filled = (1 - seen) * old_seen
            video, seen = torch.lerp(video, old, filled), seen + 0.5 * filled
        latents.append(vae.encode(video))
        valid.append(F.adaptive_avg_pool3d(seen, latents[-1].shape[2:]))  # type: ignore[arg-type]
    return torch.cat(latents, dim=1), torch.cat(valid, dim=1)
