"""How far away things in a picture are: a small U-Net, so that the guide (warp.py) can move the picture as the keys command.

Trained by train.depth on the town's true distances, frozen in all other stages. Shapes: B pictures, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.camera import CameraConfig
from world_model.priors.geometry import camera_rays, camera_to_world

NEAREST, FARTHEST = 0.3, 1000.0  # metres
STRIDE = 8  # pictures are padded to whole multiples


class Stage(nn.Module):
    """Two 3x3 convolutions; the first may halve the picture."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return F.relu(x + self.second(x))


class DepthNet(nn.Module):
    """pictures [B, 3, H, W] in -1..1 and pitch [B] (radians) -> inverse distance along each pixel's ray [B, H, W], 1 / metres.

    Nothing is farther than the ground: the answer is the ground's inverse distance (0 above the horizon) plus something positive.
    """

    def __init__(self, width: int, camera: CameraConfig) -> None:
        super().__init__()
        self.camera = camera
        self.stem = nn.Conv2d(5, width, 3, padding=1)
        self.down = nn.ModuleList(
            [Stage(width, 2 * width, 2), Stage(2 * width, 4 * width, 2), Stage(4 * width, 6 * width, 2)]
        )
        self.middle = nn.Sequential(*(Stage(6 * width, 6 * width) for _ in range(3)))  # sees the whole picture
        self.up = nn.ModuleList([Stage(10 * width, 4 * width), Stage(6 * width, 2 * width), Stage(3 * width, width)])
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, -4.0)

    def forward(self, pictures: Tensor, pitch: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        down = self.downwards(pitch, height, width)
        ground = down.clamp(min=0) / self.camera.eye_height
        x = torch.cat([pictures, down[:, None], 4 * ground[:, None]], dim=1)
        x = F.pad(x.to(self.stem.weight.dtype), (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        x = F.relu(self.stem(x))
        skips = []
        for shrink in self.down:
            skips.append(x)
            x = shrink(x)
        x = self.middle(x)
        for up, skip in zip(self.up, reversed(skips)):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        above = self.head(x).float()[:, 0, :height, :width].clamp(max=1.2).exp()
        return (ground + above).clamp(1 / FARTHEST, 1 / NEAREST)

    def downwards(self, pitch: Tensor, height: int, width: int) -> Tensor:
        """How much each pixel's ray points down, [B, H, W] in -1..1: the ground below is eye height / that away."""
        rays = camera_rays(height, width, self.camera, pitch.device)
        down = camera_to_world(torch.zeros_like(pitch), pitch)[:, 1].to(rays.dtype)  # world's down in camera axes
        return torch.einsum("hwi,bi->bhw", rays, down)
