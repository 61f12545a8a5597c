"""The commanded camera: what a held key means in metres and degrees, and where every pixel looks.

One place for the geometry that three parts share: the ground-truth street moves by it, the DiT's view-sphere positions
come from it, and the judge compares against it. Axes are OpenCV's: x right, y down, z forward.
Yaw grows to the right, pitch grows upwards, both in radians; (0, 0) looks along world z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from world_model.actions import Action


@dataclass(frozen=True)
class CameraConfig:
    """Field of view and speeds of the commanded motion."""

    horizontal_fov: float = 90.0  # degrees
    walk_speed: float = 2.5  # metres/s, both walking and strafing
    turn_speed: float = 45.0  # degrees/s
    tilt_speed: float = 30.0  # degrees/s
    max_tilt: float = 35.0  # degrees
    eye_height: float = 1.65  # metres

    def focal(self, width: int) -> float:
        """Focal length in pixels (square pixels) for a picture `width` pixels wide."""
        return width / 2 / math.tan(math.radians(self.horizontal_fov) / 2)

    def intrinsics(self, height: int, width: int) -> np.ndarray:
        """[3, 3] float64 pinhole matrix in pixels; the optical axis meets the picture's centre."""
        f = self.focal(width)
        return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])


def commanded_motion(
    action: Action, yaw: float, pitch: float, frames: int, fps: float, camera: CameraConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Constant-velocity motion of one block: yaw [T], pitch [T] (radians) and displacement [T, 2] (world x, z; metres).

    Entry k is frame k+1 after the block's start: the start itself is not in it. Displacement follows the heading of the moment,
    integrated by the midpoint rule; diagonal walking is not faster. Pitch stops at the camera's limits.
    """
    right, up = action.turn
    forward, sideways = action.walk
    k = np.arange(1, frames + 1)
    turn = math.radians(camera.turn_speed) / fps * right
    yaws = yaw + turn * k
    limit = math.radians(camera.max_tilt)
    pitches = np.clip(pitch + math.radians(camera.tilt_speed) / fps * up * k, -limit, limit)
    step = camera.walk_speed / fps / max(1.0, math.hypot(forward, sideways))
    heading = yaws - turn / 2
    dx = step * (forward * np.sin(heading) + sideways * np.cos(heading))
    dz = step * (forward * np.cos(heading) - sideways * np.sin(heading))
    return yaws, pitches, np.stack([np.cumsum(dx), np.cumsum(dz)], axis=-1)


def rotation(yaw: float, pitch: float) -> np.ndarray:
    """[3, 3] camera-to-world rotation of a camera turned right by `yaw`, then tilted up by `pitch` (radians)."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    tilt = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return turn @ tilt


def pose_matrix(x: float, z: float, yaw: float, pitch: float, height: float) -> np.ndarray:
    """[4, 4] camera-to-world matrix; `height` metres above ground is y = -height."""
    pose = np.eye(4)
    pose[:3, :3] = rotation(yaw, pitch)
    pose[:3, 3] = (x, -height, z)
    return pose
