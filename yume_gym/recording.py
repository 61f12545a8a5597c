"""Videos at full frame rate: a step is a block of frames, and all of them belong into the video."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class RecordEveryFrame(gym.wrappers.RecordVideo):
    """Gymnasium's `RecordVideo` with all frames of a step instead of its last one only.

    The environment must have been made with ``render_mode="rgb_array_list"`` (ValueError otherwise). Arguments are
    those of `RecordVideo`; `video_length` counts frames. Needs moviepy, as `RecordVideo` does: ``pip install moviepy``.
    """

    def __init__(self, env: gym.Env, video_folder: str, **arguments: Any) -> None:
        if env.render_mode != "rgb_array_list":
            raise ValueError(f"make the environment with render_mode='rgb_array_list', not {env.render_mode!r}")
        super().__init__(env, video_folder, **arguments)

    def _capture_frame(self) -> None:
        frames = self.env.render()
        assert isinstance(frames, list)
        self.recorded_frames.extend(frames)
        self.render_history.extend(frames)
