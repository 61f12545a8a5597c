"""Rays and rotations of the commanded camera as tensors; conventions are camera.py's."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.camera import CameraConfig


@lru_cache(maxsize=8)
def camera_rays(height: int, width: int, camera: CameraConfig, device: torch.device) -> Tensor:
    """[H, W, 3] float32 unit directions through pixel centres, camera axes (x right, y down, z forward). Do not change it."""
    focal = camera.focal(width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    return F.normalize(torch.stack([x / focal, y / focal, torch.ones_like(x)], dim=-1), dim=-1).to(device)


def camera_to_world(yaw: Tensor, pitch: Tensor) -> Tensor:
    """[..., 3, 3] rotations; the tensor form of camera.rotation."""
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    rows = [cy, sp * sy, cp * sy, torch.zeros_like(cy), cp, -sp, -sy, cy * sp, cp * cy]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
