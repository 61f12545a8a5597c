"""Which old frames show what a camera is about to see: retrieval by estimated poses, as WorldMem does (arXiv:2504.12369).

Points spread over the view to come are tested against the field of view of every frame held. Poses are those that the held keys
command, so they drift where the picture does; nothing is known of walls, so a point behind one counts as seen.
Shapes: B worlds, F frames, P points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from world_model.camera import CameraConfig

DEPTHS = (1.0, 3.0, 6.0, 12.0)  # metres at which points are spread
NEAR = 0.1  # metres; nearer points are not seen


@dataclass(frozen=True)
class View:
    """Cameras: yaw, pitch [B, F] float64 radians, position [B, F, 2] float64 metres (world x, z)."""

    yaw: Tensor
    pitch: Tensor
    position: Tensor


def view_points(view: View, camera: CameraConfig, aspect: float) -> Tensor:
    """Points [B, P, 3] in the world (x, y down, z) spread over what one camera a world (F = 1) sees; aspect: height / width."""
    device, half = view.yaw.device, math.tan(math.radians(camera.horizontal_fov) / 2)
    across = torch.tensor([-0.9, -0.45, 0.0, 0.45, 0.9], dtype=torch.float64, device=device) * half
    down = torch.tensor([-0.8, 0.0, 0.8], dtype=torch.float64, device=device) * half * aspect
    depth = torch.tensor(DEPTHS, dtype=torch.float64, device=device)
    z, y, x = torch.meshgrid(depth, down, across, indexing="ij")
    x, y, z = (x * z).flatten(), (y * z).flatten(), z.flatten()
    y, z = y * view.pitch.cos() - z * view.pitch.sin(), y * view.pitch.sin() + z * view.pitch.cos()
    x, z = x * view.yaw.cos() + z * view.yaw.sin(), z * view.yaw.cos() - x * view.yaw.sin()
    return torch.stack([x + view.position[..., 0], y, z + view.position[..., 1]], dim=-1)


def seen(points: Tensor, view: View, camera: CameraConfig, aspect: float) -> Tensor:
    """Whether each camera has each point [B, P, 3] in its field of view: bool [B, F, P]."""
    half = math.tan(math.radians(camera.horizontal_fov) / 2)
    x, y, z = points[:, None].unbind(dim=-1)
    x, z = x - view.position[..., 0, None], z - view.position[..., 1, None]
    yaw, pitch = view.yaw[..., None], view.pitch[..., None]
    x, z = x * yaw.cos() - z * yaw.sin(), x * yaw.sin() + z * yaw.cos()
    y, z = y * pitch.cos() + z * pitch.sin(), z * pitch.cos() - y * pitch.sin()
    return (z > NEAR) & (x.abs() <= half * z) & (y.abs() <= half * aspect * z)


def retrieve(shown: Tensor, count: int) -> Tensor:
    """Indices int64 [B, count], ascending, of frames that together show most points; `shown` bool [B, F, P], count <= F.

    One after another the frame is taken that shows most points which none taken before shows, of equal ones the newest.
    """
    worlds, frames, _ = shown.shape
    newest = torch.arange(frames, device=shown.device) / (2 * frames)  # less than one point
    open_points = torch.ones_like(shown[:, 0])
    free = torch.ones(worlds, frames, dtype=torch.bool, device=shown.device)
    taken = []
    for _ in range(count):
        gain = (shown & open_points[:, None]).sum(dim=2) + newest
        best = torch.where(free, gain, torch.full_like(gain, -1)).argmax(dim=1, keepdim=True)
        free = free.scatter(1, best, False)
        open_points = open_points & ~shown.gather(1, best[..., None].expand(-1, -1, shown.shape[2]))[:, 0]
        taken.append(best)
    return torch.cat(taken, dim=1).sort(dim=1).values if taken else torch.zeros(worlds, 0, dtype=torch.int64)
