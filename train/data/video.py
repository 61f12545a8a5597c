"""Short videos as arrays: H.264 files written whole, and read at another size and rate."""

from __future__ import annotations

import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps


class VideoError(ValueError):
    """A file that cannot be decoded as a video."""


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 [T, H, W, 3] as H.264 in MP4; renamed when complete. Raises ValueError for odd sides."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"a video's sides must be even, got {height}x{width}")
    unfinished = path.with_suffix(".mp4.unfinished")
    stream = imageio_ffmpeg.write_frames(
        str(unfinished),
        (width, height),
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        quality=None,
        pix_fmt_out="yuv444p",  # halved colour planes cost small pictures 4 to 8 dB
        output_params=["-crf", "6", "-preset", "veryfast", "-f", "mp4"],
    )
    stream.send(None)
    for frame in frames:
        stream.send(np.ascontiguousarray(frame))
    stream.close()
    os.replace(unfinished, path)


def read_video(path: Path, height: int, width: int, fps: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The nearest source frame to every 1 / fps seconds.

    Returns uint8 [T, height, width, 3], their numbers [T] in the source, and how many frames the source has. The centre
    of the picture is cut to the aspect and resized by Lanczos' filter; the source is streamed. Raises VideoError.
    """
    frames: list[np.ndarray] = []
    indices: list[int] = []
    count = 0
    try:
        stream = imageio_ffmpeg.read_frames(str(path))
        meta = next(stream)
        for count, data in enumerate(stream, start=1):
            while round(len(indices) * meta["fps"] / fps) < count:
                picture = Image.frombuffer("RGB", meta["size"], data)
                frames.append(np.array(ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)))
                indices.append(count - 1)
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError, ZeroDivisionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise VideoError(f"{path}: no readable video ({lines[-1] if lines else type(error).__name__})") from error
    if not frames:
        raise VideoError(f"{path}: the video has no frames")
    return np.stack(frames), np.array(indices), count
