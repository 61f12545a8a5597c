"""Where the pictures of an environment come from, and how they get their size."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from train.recordings.format import RecordingError

RESIZES = ("stretch", "crop", "pad")
_LEAST_SIDE = 24  # pixels; a smaller array of bytes, as of a grid world, is not a picture
_USUAL_NAMES = ("screen", "rgb", "image", "pixels", "camera")  # entries of observations, those to be preferred first
_RESIZED = {"stretch": "stretched", "crop": "cropped in the middle", "pad": "with black edges"}


def is_picture(space: spaces.Space | None) -> bool:
    """Whether observations of a space are pictures: bytes [H, W], [H, W, 1] or [H, W, 3] of 24 pixels or more each way."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    return min(space.shape[:2]) >= _LEAST_SIDE and (len(space.shape) == 2 or space.shape[2] in (1, 3))


def find_pictures(space: spaces.Space, wanted: str = "auto") -> str:
    """Where the pictures are: "observation", "render", or the name of an entry of a Dict observation.

    `wanted` is one of these, or "auto": the observation where that is a picture, else an entry of it that is, else what is
    rendered. Raises RecordingError for an entry that is not there, or not a picture.
    """
    entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {}
    able = [name for name, entry in entries.items() if is_picture(entry)]
    if wanted == "auto":
        if is_picture(space):
            return "observation"
        return next((name for name in (*_USUAL_NAMES, *able) if name in able), "render")
    if wanted == "render" or wanted in able or (wanted == "observation" and is_picture(space)):
        return wanted
    raise RecordingError(
        f"{wanted!r} of this environment is not a picture, its observations are {space}: "
        f"use --pictures with one of {['render', *able]}"
    )


class Pictures:
    """Takes pictures of one environment from `source` (see `find_pictures`)."""

    def __init__(self, env: gymnasium.Env, source: str) -> None:
        self.source, self._env = source, env

    def take(self, observation: Any) -> np.ndarray:
        """The current picture, uint8 [h, w, 3], in the environment's own size. Raises RecordingError where there is none."""
        if self.source == "render":
            picture = self._env.render()
        else:
            picture = observation if self.source == "observation" else observation[self.source]
        if isinstance(picture, list) and picture:
            picture = picture[-1]
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            found = getattr(picture, "shape", type(picture).__name__)
            raise RecordingError(
                f"no pictures: {self.source} of this environment gave {found}, expected uint8 [H, W, 3]. "
                "It needs pictures as observations, or render_mode='rgb_array'"
            )
        return as_rgb(picture)


def as_rgb(picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w], [h, w, 1] or [h, w, 3] -> [h, w, 3]. Raises RecordingError for another number of channels."""
    picture = picture[..., None] if picture.ndim == 2 else picture
    if picture.shape[-1] == 1:
        return np.repeat(picture, 3, axis=-1)
    if picture.shape[-1] != 3:
        raise RecordingError(f"a picture has 1 or 3 channels, got {picture.shape}")
    return picture


def resized(picture: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    """uint8 [h, w, 3] -> [H, W, 3] for `size` (H, W): stretched, cropped in the middle, or with black edges.

    Makes smaller by a filter that averages, larger by linear interpolation.
    """
    (height, width), (h, w) = size, picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    if resize == "stretch":
        return _scaled(picture, height, width)
    both = (height / h, width / w)
    scale = max(both) if resize == "crop" else min(both)
    scaled = _scaled(picture, max(1, round(h * scale)), max(1, round(w * scale)))
    if resize == "crop":
        top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
        return np.ascontiguousarray(scaled[top : top + height, left : left + width])
    edged = np.zeros((height, width, 3), np.uint8)
    top, left = (height - scaled.shape[0]) // 2, (width - scaled.shape[1]) // 2
    edged[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return edged


def said(source: str, original: tuple[int, int], size: tuple[int, int], resize: str) -> str:
    """One line for people: where pictures come from and what is done to them."""
    come = {"observation": "the observation", "render": "render()"}.get(source, f"the observation's {source!r}")
    done = "as they are" if original == size else f"{_RESIZED[resize]} to {size[0]}x{size[1]}"
    return f"pictures: {original[0]}x{original[1]} from {come}, {done}"


def _scaled(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    smaller = height <= picture.shape[0] and width <= picture.shape[1]
    method = Image.Resampling.HAMMING if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((width, height), method))
