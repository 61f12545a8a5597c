"""Which keys a video shows, by pose estimation: the essential matrix of tracked corners (OpenCV), nothing trained, any size.

A monocular pose has no scale: of a step only the direction is known, and whether there was one at all is told by parallax.
Shapes: T pictures uint8 [T, H, W, 3].
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from world_model.actions import Action
from world_model.camera import CameraConfig

CORNERS, FEWEST = 400, 12  # tracked at most; below the fewest a pair tells nothing
PARALLAX = 0.004  # share of the picture's width that corners move besides a turn, from which on the camera has moved
TURNED = 0.5  # share of what a held arrow turns, from which on one is held
ALONG = math.sin(math.radians(22.5))  # share of a unit step along an axis, from which on its key is held


def camera_step(before: np.ndarray, after: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation [3, 3] and the direction of the step [3] (unit, or zeros) from a picture's camera to the next one's, in the first
    one's axes (x right, y down, z forward); None where too few corners are tracked. `focal` in pixels."""
    import cv2

    grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY) for picture in (before, after)]
    height, width = grey[0].shape
    found = cv2.goodFeaturesToTrack(grey[0], CORNERS, 0.01, max(3, width // 60))
    if found is None:
        return None
    tracked, status, _ = cv2.calcOpticalFlowPyrLK(grey[0], grey[1], found, None)  # type: ignore[call-overload]
    kept = status[:, 0] == 1
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    first, second = ((points[kept][:, 0] - centre) / focal for points in (found, tracked))
    if len(first) < FEWEST:
        return None
    rotation, residual = turn_between(first, second)
    if residual * focal / width < PARALLAX:  # of a mere turn the essential matrix tells nothing
        return rotation.T, np.zeros(3)
    cv2.setRNGSeed(0)
    essential, inliers = cv2.findEssentialMat(first, second, np.eye(3), cv2.RANSAC, 0.999, 1.0 / focal)
    if essential is None or essential.shape != (3, 3) or inliers.sum() < FEWEST:
        return None
    _, rotation, step, _ = cv2.recoverPose(essential, first, second, np.eye(3), mask=inliers)
    # cv2 maps points of the first camera into the second: the camera itself moved the other way
    return rotation.T, -(rotation.T @ step)[:, 0]


def turn_between(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    """The rotation that takes the rays of points [n, 2] (in focal lengths) to those of others best, outliers left out, and the
    median distance that remains."""
    rays = [np.column_stack([points, np.ones(len(points))]) for points in (first, second)]
    a, b = (ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays)
    kept, rotation, errors = np.ones(len(a), bool), np.eye(3), np.zeros(len(a))
    for _ in range(5):
        u, _, v = np.linalg.svd(b[kept].T @ a[kept])
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        turned = a @ rotation.T
        errors = np.linalg.norm(turned[:, :2] / turned[:, 2:].clip(1e-6) - second, axis=1)
        kept = errors <= np.quantile(errors, 0.7)
    return rotation, float(np.median(errors))


def held_keys(pictures: np.ndarray, fps: float, camera: CameraConfig, stride: int = 1) -> Action | None:
    """The move and the look that most steps of `stride` pictures show, each by itself; None where no step could be estimated."""
    focal = camera.focal(pictures.shape[2])
    moves: list[str] = []
    looks: list[str] = []
    for before, after in zip(pictures[:-stride:stride], pictures[stride::stride]):
        step = camera_step(before, after, focal)
        if step is None:
            continue
        rotation, (x, _, z) = step
        right = math.degrees(math.atan2(rotation[0, 2], rotation[2, 2])) * fps / stride / camera.turn_speed
        up = math.degrees(math.asin(float(np.clip(-rotation[1, 2], -1, 1)))) * fps / stride / camera.tilt_speed
        moves.append("+".join(key for key, held in zip("WSDA", (z > ALONG, z < -ALONG, x > ALONG, x < -ALONG)) if held))
        looks.append(
            "".join(a for a, held in zip("↑↓→←", (up > TURNED, up < -TURNED, right > TURNED, right < -TURNED)) if held)
        )
    if not moves:
        return None
    return Action.from_keys(Counter(moves).most_common(1)[0][0], Counter(looks).most_common(1)[0][0])
