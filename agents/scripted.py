"""Walks to the pillar of light by its colour: what a task asks for without learning. For `YumeStreetBeacon-v0`, or a dream of it.

python -m agents.evaluate --agent scripted --env YumeStreetBeacon-v0 --episodes 20
"""

from __future__ import annotations

from typing import Any

import numpy as np

from world_model.actions import Action

YELLOW = 0.35  # least difference of yellow and blue, as a share of the brightest pixel
LEAST_HEIGHT = 0.15  # of the rows of the upper half that a pillar fills
AHEAD = 0.12  # of the picture's width to either side of the middle that counts as ahead


def pillar(picture: np.ndarray) -> float | None:
    """Where the pillar stands in a picture uint8 [H, W, 3]: -1 (left edge) to 1 (right edge), None where there is none."""
    upper = picture[: len(picture) // 2].astype(np.float32)
    red, green, blue = upper[..., 0], upper[..., 1], upper[..., 2]
    yellow = (np.minimum(red, green) - blue > YELLOW * upper.max()) & (np.abs(red - green) < 0.35 * np.maximum(red, 1))
    height = yellow.mean(axis=0)
    column = int(height.argmax())
    if height[column] < LEAST_HEIGHT:
        return None
    return 2 * (column + 0.5) / picture.shape[1] - 1


class BeaconSeeker:
    """An agent for `agents.evaluate`: turns to the pillar and walks on; turns right where it sees none."""

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Pictures uint8 [N, H, W, 3 * frames], the newest last -> actions [N]."""
        return np.array([self.act(picture[..., -3:]).index for picture in observation]), state

    @staticmethod
    def act(picture: np.ndarray) -> Action:
        """The action for one picture uint8 [H, W, 3]."""
        side = pillar(picture)
        if side is None:
            return Action.from_keys("", "→")
        if abs(side) > 2 * AHEAD:
            return Action.from_keys("W", "→" if side > 0 else "←")
        return Action.from_keys("W", "")
