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
from dataclasses import replace
from pathlib import Path

from yume_gym.env import check_told
from yume_gym.play.keys import key_name
from yume_gym.play.pace import Stats
from yume_gym.play.recorder import write_clip
from yume_gym.play.replay import Replay, Script, write_replay
from yume_gym.play.scheduled_session import CLIP_SECONDS, ScheduledSession
from yume_gym.play.start import Start, Twin, prepare
from yume_gym.play.world import Frame, PlayedWorld, Snapshot
from yume_gym.street.events import check_event

NAP = 0.05  # seconds: the longest a front sleeps without looking


class Session(ScheduledSession):
    """A player's world. Made by `Dreamer.open`, ended by `close`.

    Attributes: `config` (the model's ModelConfig: height, width, fps, frames_per_block), `number` (unique in its Dreamer).
    """

    # -- what the player does ------------------------------------------------------------------------------------------

    def hold(self, keys: Iterable[str]) -> None:
        """From now on exactly these keys are held: of `yume_gym.keyboard.CODES` (also "w", "up", "ArrowUp"). ValueError for
        others; keys that mean nothing in this model's action space do nothing."""
        with self._changed:
            if self._keys.hold(keys) and self._changed_at is None:
                self._changed_at = self._clock()

    def press(self, key: str) -> None:
        """Hold one more key."""
        with self._changed:
            self.hold(self._keys.held | {key_name(key)})

    def release(self, key: str) -> None:
        """Let one key go; nothing happens if it was not held."""
        with self._changed:
            self.hold(self._keys.held - {key_name(key)})

    def set_event(self, text: str | None) -> None:
        """The event from the next block on, until another; None or "" ends it. TypeError or ValueError for a bad text."""
        event = check_event(text)
        if event is not None:
            check_told(self.config)
        with self._changed:
            self._event = event

    def pause(self) -> None:
        """Freeze time: `take` gives nothing and nothing more is dreamt. What is dreamt already is kept."""
        with self._changed:
            if not self._paused:
                self._paused, self._changed_at = True, None
                self._frame_clock.stop(self._clock())
                self._meter.interrupt()

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._changed:
            self._paused = False
            self._frame_clock.go(self._clock())
            self._changed.notify_all()

    def restart(self, start: Start | None = None) -> None:
        """A new world from `start`; None is the same start again. The event ends, a pause too; held keys stay held.

        A replay begins again, and takes no other start (ValueError). Raises what is wrong with the start (TypeError,
        ValueError, FileNotFoundError) at once; the old world then goes on.
        """
        script = None
        if self._replay is not None:
            if start is not None:
                raise ValueError("this session shows a replay, which has its own starts: open another session")
            script = Script(self._replay)
            start = script.next_start()
        origin = prepare(self._model, self.start if start is None else start, self._world.twin)
        with self._changed:
            self._check()
            self._script = script
            self._go_to(self._new_world(self._world.number + 1, origin), event=None)

    def close(self) -> None:
        """End the session and its recording, and free its place. Closing again does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self.stop_recording()

    # -- what the front shows ------------------------------------------------------------------------------------------

    def take(self) -> Frame | None:
        """The next frame if it is due, else None. Raises RuntimeError if dreaming failed, or the session is closed."""
        with self._changed:
            self._check()
            now = self._clock()
            if not self._world.queue or not self._frame_clock.is_due(now):
                return None
            frame, changed_at = self._world.queue.popleft()
            self._frame_clock.shown(now)
            if changed_at is not None:
                frame = replace(frame, delay=now - changed_at)
            if frame.block < 0:
                self._meter.interrupt()
            else:
                self._meter.shown(now, frame.delay)
            self._recorder.shown(frame, self._world)
            self._changed.notify_all()
            return frame

    def wait_time(self) -> float:
        """Seconds until the next `take` may have something, 0 .. 0.05: how long a front may sleep."""
        with self._changed:
            if self._paused or self._ended:
                return NAP
            return min(NAP, self._frame_clock.due_in(self._clock()) if self._world.queue else NAP / 5)

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def finished(self) -> bool:
        """Whether a replay was shown to its end."""
        return self._ended

    @property
    def over(self) -> str:
        """Why the episode is over, once its last frame was shown; "" before. `restart` begins another."""
        with self._changed:
            return "" if self._world.queue else self._world.over

    @property
    def start(self) -> Start:
        """What the current world was started from; its image, if any, as uint8 [H, W, 3] of the model's size."""
        return self._world.segment.start

    def stats(self) -> Stats:
        """Measurements for a HUD."""
        with self._changed:
            world = self._world
            return Stats(
                frames=self._meter.frames(queued=len(world.queue)),
                latency=self._meter.latency,
                action=self._keys.action if self._script is None else world.action,
                block_time=self._block_time,
                blocks=world.blocks,
                seed=world.segment.start.seed,
                event=self._event,
                paused=self._paused,
                score=world.score if self._model.heads is not None else None,
                over=self.over,
            )

    # -- keeping -------------------------------------------------------------------------------------------------------

    def save_clip(self, path: str | os.PathLike, seconds: float = CLIP_SECONDS, hud: bool = True) -> Path:
        """Write the last `seconds` (at most 30) of frames shown, twin beside, keys and event drawn on; returns the path.

        Takes about a second: call it in a thread. mp4 or what else imageio knows by the suffix. Raises ValueError if no frame
        was shown, OSError where it cannot be written.
        """
        with self._changed:
            kept = self._recorder.ring.last(max(1, round(seconds * self.config.fps)))
        if not kept:
            raise ValueError("nothing was shown yet: there is no clip to save")
        write_clip(Path(path), kept, self.config.fps, hud)
        return Path(path)

    def record(self, path: str | os.PathLike) -> Path:
        """Record every frame shown from now on into `path` (mp4), and write the replay beside it; returns the replay's path.

        The replay tells of the current world from its beginning, and of all later ones. Raises ValueError if already
        recording, OSError where it cannot be written.
        """
        with self._changed:
            self._check()
            return self._recorder.record(Path(path), self._world)

    def stop_recording(self) -> None:
        """Finish the video and the replay. Does nothing if not recording. OSError if the video could not be written."""
        with self._changed:
            recording = self._recorder.stop(self._world)
        if recording is not None:
            recording.close()

    @property
    def recording(self) -> bool:
        return self._recorder.recording is not None

    def save_replay(self, path: str | os.PathLike) -> Path:
        """Write the current world's replay (start, actions, events) so far; `replay.read_replay` reads it."""
        with self._changed:
            segment = self._world.whole_segment()
        return write_replay(path, Replay(self._header, (segment,)))

    def snapshot(self) -> Snapshot:
        """All of the current world, picklable, to go on with in `restore`, here or in another session or process.

        Raises ValueError before the world has begun.
        """
        with self._changed:
            return self._world.snapshot(self._size, self._event)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken, frame by frame. ValueError for a snapshot of another model's size."""
        if snapshot.size != self._size:
            raise ValueError(
                f"this is a world of size {snapshot.size}; a model of size {self._size} cannot continue it"
            )
        if self._replay is not None:
            raise ValueError("this session shows a replay: restore into another session")
        twin = self._world.twin
        if snapshot.street is not None and twin is None:
            twin = Twin(self.config)
        with self._changed:
            self._check()
            self._go_to(PlayedWorld.restored(self._world.number + 1, snapshot, twin), snapshot.event)
