"""Recordings of play: the clip of the last seconds, kept ready, and videos with replays that are written while they happen."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import imageio
import numpy as np
from PIL import Image

from yume_gym.hud import Shot, draw_hud, enlarge
from yume_gym.play.keys import Played
from yume_gym.play.replay import Block, ReplayHeader, ReplaySegment, ReplayWriter
from yume_gym.play.world import Frame, PlayedWorld

FILM_HEIGHT = 256  # small pictures are enlarged by a whole factor to about this many rows
_WAITING = 64  # frames that a video may lag behind its player before the player has to wait
_QUALITY = 95


class ClipRing:
    """The last frames shown, as JPEG: bounded in number, and small for any size of picture."""

    def __init__(self, frames: int) -> None:
        self._kept: deque[tuple[bytes, bytes | None, Played, str | None]] = deque(maxlen=frames)

    def add(self, frame: Frame) -> None:
        twin = None if frame.twin is None else _packed(frame.twin)
        self._kept.append((_packed(frame.picture), twin, frame.action, frame.event))

    def last(self, frames: int) -> list[tuple[bytes, bytes | None, Played, str | None]]:
        """The newest `frames` in order, still packed."""
        return list(self._kept)[-frames:]

    def __len__(self) -> int:
        return len(self._kept)


def write_clip(
    path: Path, kept: Iterable[tuple[bytes, bytes | None, Played, str | None]], fps: float, hud: bool
) -> None:
    """Frames of a `ClipRing` as a video."""
    with ClipWriter(path, fps, hud) as video:
        for picture, twin, action, event in kept:
            video.add(_unpacked(picture), None if twin is None else _unpacked(twin), action, event)


class ClipWriter:
    """Writes a video in a thread of its own. It appears under its name when it is complete, with `close`.

    With `hud`, keys and event are drawn on. A twin stands beside the dream; a world without one leaves its place black.
    """

    def __init__(self, path: Path, fps: float, hud: bool = True) -> None:
        self._path, self._hud = path, hud
        self._part = path.with_name(f"{path.stem}.part{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = imageio.get_writer(self._part, fps=fps, macro_block_size=2, quality=8)
        self._shape: tuple[int, ...] | None = None
        self._frames: queue.Queue[tuple[Any, ...] | None] = queue.Queue(maxsize=_WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def add(self, picture: np.ndarray, twin: np.ndarray | None, action: Played, event: str | None) -> None:
        """One more frame, uint8 [H, W, 3]. Raises OSError if the video could not be written so far."""
        self._raise_error()
        self._frames.put((picture, twin, action, event))

    def close(self) -> None:
        """Complete the video. Raises OSError if it could not be written; nothing is left of it then."""
        if self._thread.is_alive():
            self._frames.put(None)
            self._thread.join()
        self._raise_error()

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            for picture, twin, action, event in iter(self._frames.get, None):
                self._writer.append_data(self._fitted(self._drawn(picture, twin, action, event)))
            self._writer.close()
            os.replace(self._part, self._path)
        except Exception as error:  # whatever the encoder says is handed to the player's thread
            self._error = error
            self._part.unlink(missing_ok=True)
            while self._frames.get() is not None:  # nobody must wait for a video that is given up
                pass

    def _drawn(self, picture: np.ndarray, twin: np.ndarray | None, action: Played, event: str | None) -> np.ndarray:
        zoom = max(1, round(FILM_HEIGHT / picture.shape[0]))
        pictures = [picture] if twin is None else [picture, twin]
        if not self._hud:
            return np.concatenate([enlarge(p, zoom) for p in pictures], axis=1)
        return np.concatenate([draw_hud(Shot(p, action.keys, action.arrows, event), zoom) for p in pictures], axis=1)

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        """All frames of a video are as large as its first."""
        self._shape = self._shape or picture.shape
        fitted = np.zeros(self._shape, np.uint8)
        width = min(self._shape[1], picture.shape[1])
        fitted[:, :width] = picture[:, :width]
        return fitted

    def _raise_error(self) -> None:
        if self._error is not None:
            raise OSError(f"the video {str(self._path)!r} cannot be written: {self._error}") from self._error


class Recording:
    """A video of all that a player sees, and its replay beside it, written while it happens."""

    def __init__(self, path: Path, header: ReplayHeader, segment: ReplaySegment | None) -> None:
        """`segment`: the current world so far, if anything of it was shown. Raises OSError where nothing can be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.replay_path = path.with_suffix(".replay")
        self._replay = ReplayWriter(self.replay_path, header)
        if segment is not None:
            self._replay.add_segment(segment)
        self._clip = ClipWriter(path, header.fps)

    def add_segment(self, segment: ReplaySegment) -> None:
        """Another world begins."""
        self._replay.add_segment(segment)

    def add_block(self, block: Block | None) -> None:
        """A block was shown (None: there is none to tell of)."""
        if block is not None:
            self._replay.add_block(block)

    def add_frame(self, frame: Frame) -> None:
        """Never raises: what goes wrong is told by `close`, and the game goes on."""
        with contextlib.suppress(OSError):
            self._clip.add(frame.picture, frame.twin, frame.action, frame.event)

    def close(self) -> None:
        """Complete both. Raises OSError if the video could not be written."""
        self._replay.close()
        self._clip.close()


class SessionRecorder:
    """The clip ring and the recording of a session. Not safe by itself: the session's lock is held around every call."""

    def __init__(self, header: ReplayHeader, frames: int) -> None:
        self._header = header
        self.ring = ClipRing(frames)
        self.recording: Recording | None = None

    def shown(self, frame: Frame, world: PlayedWorld) -> None:
        """`frame` of `world` is shown."""
        if self.recording is not None and not world.seen:
            self.recording.add_segment(world.segment)
        done = world.shown(frame, self._header.frames_per_block)
        self.ring.add(frame)
        if self.recording is not None:
            self.recording.add_block(done)
            self.recording.add_frame(frame)

    def leave(self, world: PlayedWorld) -> None:
        """Nothing more of `world` will be shown."""
        done = world.flush()
        if self.recording is not None:
            self.recording.add_block(done)

    def record(self, path: Path, world: PlayedWorld) -> Path:
        """Begin a recording; returns its replay's path. Raises ValueError if there is one."""
        if self.recording is not None:
            raise ValueError("this session is being recorded already: stop that recording first")
        self.recording = Recording(path, self._header, world.segment if world.seen else None)
        return self.recording.replay_path

    def stop(self, world: PlayedWorld) -> Recording | None:
        """The recording, still to be closed."""
        recording, self.recording = self.recording, None
        if recording is not None:
            recording.add_block(world.partial)
        return recording


def _packed(picture: np.ndarray) -> bytes:
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=_QUALITY, subsampling=0)
    return jpeg.getvalue()


def _unpacked(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.array(picture)
