"""Camera poses as keys and angles: what was held between camera-to-world matrices [N, 4, 4] with x right, y down, z forward."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from world_model.actions import Action


@dataclass(frozen=True)
class Thresholds:
    """Least motion between two poses `stride` frames apart that counts as a key: strict, multiplied by the stride.

    The defaults are those of published clips, whose poses have no scale. Metric poses at low frame rates need larger
    ones: while turning, a walk straight on drifts sideways within each step.
    """

    translation: float = 1e-4
    rotation: float = 1e-3  # radians
    stride: int = 1


PUBLISHED = Thresholds()  # of published clips


def decode_steps(poses: np.ndarray, thresholds: Thresholds = PUBLISHED) -> list[Action]:
    """The keys held in each step between `poses` [N, 4, 4]: (N - 1) // stride actions.

    Of the relative pose inverse(current) @ next: z is W or S, x is D or A; of its extrinsic x-y-z Euler angles the
    second is right or left, the first up or down.
    """
    poses = np.asarray(poses, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"poses must have the shape [N, 4, 4], got {list(poses.shape)}")
    kept = poses[:: thresholds.stride]
    relative = np.linalg.inv(kept[:-1]) @ kept[1:]
    far, turned = thresholds.translation * thresholds.stride, thresholds.rotation * thresholds.stride
    vertical = np.arctan2(relative[:, 2, 1], relative[:, 2, 2])
    horizontal = np.arctan2(-relative[:, 2, 0], np.hypot(relative[:, 2, 1], relative[:, 2, 2]))
    actions = []
    for x, z, right, up in zip(relative[:, 0, 3], relative[:, 2, 3], horizontal, vertical, strict=True):
        keys = [key for key, held in zip("WSDA", (z > far, z < -far, x > far, x < -far), strict=True) if held]
        arrows = [a for a, held in zip("↑↓→←", (up > turned, up < -turned, right > turned, right < -turned)) if held]
        actions.append(Action.from_keys("+".join(keys), "".join(arrows)))
    return actions


def decode_action(poses: np.ndarray, thresholds: Thresholds = PUBLISHED) -> Action:
    """The keys and the arrows that most steps of `poses` [N, 4, 4] hold. Raises ValueError where there is no step."""
    steps = decode_steps(poses, thresholds)
    if not steps:
        raise ValueError(f"{len(poses)} poses hold no step of {thresholds.stride} frames")
    return most_held(steps)


def most_held(actions: list[Action]) -> Action:
    """Of move and look, what most of the actions hold."""
    move = Counter(action.move for action in actions).most_common(1)[0][0]
    look = Counter(action.look for action in actions).most_common(1)[0][0]
    return Action(move, look)


def pose_angles(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Yaw (without jumps) and pitch [N] of poses [N, 4, 4], radians as in `camera.pose_matrix`; roll is lost."""
    yaw = np.unwrap(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))
    return yaw, np.arcsin(np.clip(-poses[:, 1, 2], -1, 1))
