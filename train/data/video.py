"""Short videos as arrays: H.264 files written whole, and read at another size and rate."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


class VideoFrames:
    """The nearest source frame to every 1 / fps seconds, one after another: pairs of a picture uint8 [height, width, 3] and its
    number in the source.

    The centre of the picture is cut to the aspect and resized by Lanczos' filter; the source is streamed, so that memory does not
    grow with its length. `count` is how many source frames were read so far. Iterating raises VideoError.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        self.path, self.size, self.fps, self.count = path, (width, height), fps, 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        given = 0
        try:
            stream = imageio_ffmpeg.read_frames(str(self.path))
            meta = next(stream)
            for data in stream:
                self.count += 1
                if round(given * meta["fps"] / self.fps) >= self.count:
                    continue
                picture = Image.frombuffer("RGB", meta["size"], data)
                fitted = np.array(ImageOps.fit(picture, self.size, method=Image.Resampling.LANCZOS))
                while round(given * meta["fps"] / self.fps) < self.count:
                    given += 1
                    yield fitted, self.count - 1
        except (OSError, RuntimeError, StopIteration, KeyError, ValueError, ZeroDivisionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise VideoError(
                f"{self.path}: no readable video ({lines[-1] if lines else type(error).__name__})"
            ) from error
        if not given:
            raise VideoError(f"{self.path}: the video has no frames")


def read_video(path: Path, height: int, width: int, fps: float) -> tuple[np.ndarray, np.ndarray, int]:
    """All of `VideoFrames` at once: uint8 [T, height, width, 3], their numbers [T] in the source, and how many frames that has.
    Raises VideoError."""
    stream = VideoFrames(path, height, width, fps)
    frames, indices = zip(*stream)
    return np.stack(frames), np.array(indices), stream.count
