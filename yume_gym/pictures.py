"""Any picture a person has -> the picture a world starts from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 16  # pixels
ACCEPTED = "a path, a PIL image or a uint8 array (H, W, 3)"


def load_picture(image: str | os.PathLike | Image.Image | np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` as uint8 [height, width, 3]: its centre, cut to the aspect asked for, resized by Lanczos' filter.

    A photograph's orientation tag is obeyed; grey, palette and transparent pictures become RGB (transparent on black).

    Raises:
        FileNotFoundError: the path names no file.
        TypeError: `image` is not of an accepted kind, or an array of another dtype.
        ValueError: the file is no readable picture, the array has another shape, or a side is under 16 pixels.
    """
    fitted = ImageOps.fit(open_picture(image), (width, height), method=Image.Resampling.LANCZOS)
    return np.array(fitted, dtype=np.uint8)


def open_picture(image: str | os.PathLike | Image.Image | np.ndarray) -> Image.Image:
    """`image` as an upright RGB picture of its own size. Raises what `load_picture` raises."""
    picture = _opened(image)
    if min(picture.size) < MIN_SIDE:
        columns, rows = picture.size
        raise ValueError(f"the picture is {rows}x{columns} pixels, at least {MIN_SIDE}x{MIN_SIDE} are needed")
    return picture


def _opened(image: object) -> Image.Image:
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _rgb(image)
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(f"image must be {ACCEPTED}, got {type(image).__name__}")
    path = Path(image)
    try:
        there = path.is_file()
    except OSError:  # no file can have such a name
        there = False
    if not there:
        raise FileNotFoundError(f"no such picture: {str(path)!r}; image must be {ACCEPTED}")
    try:
        with Image.open(path) as picture:
            return _rgb(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{str(path)!r} is not a readable picture ({error}): use a PNG or JPEG file") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise TypeError(
            f"an image array must be uint8 with values 0..255, got {array.dtype}: scale and convert it first"
        )
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"an image array must have the shape (H, W, 3), got {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _rgb(picture: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return upright.convert("RGB")
