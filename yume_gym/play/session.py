"""One player's world while it is played: keys in, frames out at the world's pace. `dreamer.Dreamer.open` makes them.

    with Dreamer(WorldModel.load("street")) as dreamer:
        session = dreamer.open(Start(seed=3))
        session.hold({"W", "→"})
        while True:
            frame = session.take()  # None until the next frame is due
            if frame is not None:
                show(frame.picture)
            time.sleep(session.wait_time())

Every method may be called from any thread; none waits for a block to be dreamt.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from world_model.actions import Action


@dataclass(frozen=True, eq=False)
class Start:
    """What a world starts from, as a player asks for it.

    seed: >= 0; with the same model the same seed, image, text and keys give the same frames, and the frames that `YumeWorld-v0`
    gives after ``reset(seed=seed, options={"image": image, "text": text})``.
    image: path, PIL image or uint8 array [H, W, 3]; text: at most 500 characters; twin: drive `YumeStreet-v0` beside the
    dream, which then starts from the street's first picture (no image then; a text has to name a light, weather or district).
    """

    seed: int = 0
    image: str | os.PathLike | Image.Image | np.ndarray | None = None
    text: str | None = None
    twin: bool = False


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture to show. `picture`, and with a twin `twin`: uint8 [H, W, 3], not to be written to.

    world: 0 for the session's first world, one more after every restart; block: -1 for the start picture, then 0, 1 ...;
    index: 0 .. frames_per_block - 1 within the block; action and event: what the block was dreamt under.
    delay: seconds from the key change that the block is the first to follow to this frame's display; only on a block's
    first frame, else None. street_event: whether the twin knows the event (True without one).
    """

    picture: np.ndarray
    twin: np.ndarray | None
    world: int
    block: int
    index: int
    action: Action
    event: str | None
    delay: float | None = None
    street_event: bool = True


@dataclass(frozen=True)
class Stats:
    """How the session runs now. Times in seconds; None where nothing was measured yet.

    fps: frames shown a second lately; smooth: share of all frames shown at most 1.5 of the world's frame periods after the
    one before (pauses and restarts left out); shown: frames counted in it; delay, delay_median, delay_p95: key to picture,
    the last and of the last 256; block_time: median of the latest blocks, for all sessions dreamt together;
    queued: frames dreamt and not yet shown; blocks: dreamt in this world.
    """

    fps: float | None
    smooth: float | None
    shown: int
    delay: float | None
    delay_median: float | None
    delay_p95: float | None
    block_time: float | None
    queued: int
    blocks: int
    seed: int
    keys: str
    look: str
    event: str | None
    paused: bool


class Session:
    """A player's world. Made by `Dreamer.open`, ended by `close`.

    Attributes: `config` (the model's ModelConfig: height, width, fps, frames_per_block), `number` (unique in its Dreamer).
    """

    config: Any
    number: int

    # -- what the player does ------------------------------------------------------------------------------------------

    def hold(self, keys: Iterable[str]) -> None:
        """From now on exactly these keys are held: of W A S D ↑ ← ↓ → (also "w", "up", "ArrowUp"). ValueError for others."""
        raise NotImplementedError

    def press(self, key: str) -> None:
        """Hold one more key."""
        raise NotImplementedError

    def release(self, key: str) -> None:
        """Let one key go; nothing happens if it was not held."""
        raise NotImplementedError

    def set_event(self, text: str | None) -> None:
        """The event from the next block on, until another; None or "" ends it. TypeError or ValueError for a bad text."""
        raise NotImplementedError

    def pause(self) -> None:
        """Freeze time: `take` gives nothing and nothing more is dreamt. What is dreamt already is kept."""
        raise NotImplementedError

    def resume(self) -> None:
        """Go on after `pause`."""
        raise NotImplementedError

    def restart(self, start: Start | None = None) -> None:
        """A new world from `start`; None is the same start again. The event ends, a pause too; held keys stay held.

        Raises what is wrong with the start (TypeError, ValueError, FileNotFoundError) at once; the old world then goes on.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the session and its recording, and free its place. Closing again does nothing."""
        raise NotImplementedError

    # -- what the front shows ------------------------------------------------------------------------------------------

    def take(self) -> Frame | None:
        """The next frame if it is due, else None. Raises RuntimeError if dreaming failed, or the session is closed."""
        raise NotImplementedError

    def wait_time(self) -> float:
        """Seconds until the next `take` may have something, 0 .. 0.05: how long a front may sleep."""
        raise NotImplementedError

    @property
    def paused(self) -> bool:
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether a replay was shown to its end."""
        raise NotImplementedError

    @property
    def start(self) -> Start:
        """What the current world was started from; its image, if any, as uint8 [H, W, 3] of the model's size."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """Measurements for a HUD."""
        raise NotImplementedError

    # -- keeping -------------------------------------------------------------------------------------------------------

    def save_clip(self, path: str | os.PathLike, seconds: float = 30, hud: bool = True) -> Path:
        """Write the last `seconds` (at most 30) of frames shown, twin beside, keys and event drawn on; returns the path.

        Takes about a second: call it in a thread. mp4 or what else imageio knows by the suffix. ValueError if no frame was shown.
        """
        raise NotImplementedError

    def record(self, path: str | os.PathLike) -> Path:
        """Film every frame shown from now on into `path` (mp4), and write the replay beside it; returns the replay's path.

        The replay tells of the current world from its beginning, and of all later ones. ValueError if already recording.
        """
        raise NotImplementedError

    def stop_recording(self) -> None:
        """Finish the film and the replay. Does nothing if not recording."""
        raise NotImplementedError

    @property
    def recording(self) -> bool:
        raise NotImplementedError

    def save_replay(self, path: str | os.PathLike) -> Path:
        """Write the current world's replay (start, actions, events) so far; `replay.read_replay` reads it."""
        raise NotImplementedError

    def snapshot(self) -> Any:
        """All of the current world, picklable, to go on with in `restore`, here or in another session or process."""
        raise NotImplementedError

    def restore(self, snapshot: Any) -> None:
        """Go on where `snapshot` was taken, frame by frame. ValueError for a snapshot of another model's size."""
        raise NotImplementedError
