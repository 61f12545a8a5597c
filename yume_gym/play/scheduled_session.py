"""A session as the Dreamer sees it: when its next block is due, what that block is generated from, and what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from world_model.model import WorldModel, WorldState
from yume_gym.first_person import EnvState
from yume_gym.play.keys import HeldKeys, played
from yume_gym.play.pace import FrameClock, Meter
from yume_gym.play.recorder import SessionRecorder
from yume_gym.play.replay import Replay, ReplayHeader, ReplaySegment, Script
from yume_gym.play.start import Origin, prepare
from yume_gym.play.world import Order, PlayedWorld

CLIP_SECONDS = 30
_NEVER = float("inf")


@dataclass(frozen=True, eq=False)
class Job:
    """What a session asks of the Dreamer: the world's next block, or its start where there is no order."""

    session: ScheduledSession
    world: PlayedWorld
    state: WorldState | None
    street: EnvState | None
    order: Order | None


class ScheduledSession:
    """What the Dreamer schedules; `session.Session` adds what a player does and sees.

    The Dreamer holds the lock `changed` around every call.
    """

    def __init__(
        self,
        number: int,
        model: WorldModel,
        header: ReplayHeader,
        origin: Origin,
        changed: threading.Condition,
        clock: Callable[[], float],
        replay: Replay | None = None,
    ) -> None:
        self.number, self.config = number, model.config
        self._model, self._header, self._changed, self._clock = model, header, changed, clock
        self._replay = replay
        self._script = None if replay is None else Script(replay)
        if self._script is not None:
            self._script.next_start()  # which is the origin
        self._keys = HeldKeys(self.config.action)
        self._changed_at: float | None = None  # the oldest key change that no block follows yet
        self._event: str | None = None
        self._frame_clock = FrameClock(1 / self.config.fps, clock())
        self._meter = Meter(1 / self.config.fps)
        self._recorder = SessionRecorder(header, CLIP_SECONDS * self.config.fps)
        self._paused = self._closed = self._ended = self._busy = False
        self._error: Exception | None = None
        self._block_time: float | None = None
        self._world = self._new_world(0, origin)

    @property
    def active(self) -> bool:
        """Whether blocks will be wanted."""
        return not (self._closed or self._paused or self._ended or self._error)

    def due_at(self, lead: float) -> float:
        """When the next job should be begun, if a block takes `lead` seconds."""
        world = self._world
        room = self.config.frames_per_block if self._script is None or self._script.upcoming else 0
        if self._busy or not self.active or len(world.queue) > room:
            return _NEVER
        if world.over and self._script is None:
            return _NEVER
        return -_NEVER if world.state is None else self._frame_clock.covered_until(len(world.queue)) - lead

    def begin(self) -> Job | None:
        """The next job, under the keys held now; None at a replay's end."""
        if self._script is not None and self._world.state is not None and not self._script.upcoming:
            start = self._script.next_start()
            if start is None:
                self._ended = True
                return None
            origin = prepare(self._model, start, self._world.twin)
            self._go_to(self._new_world(self._world.number + 1, origin), event=None)
        self._busy = True
        order = None if self._world.state is None else self._next_order()
        return Job(self, self._world, self._world.state, self._world.street, order)

    def finish(self, period: float, block_time: float | None) -> None:
        """The job is done. period: seconds to show a frame for, if the Dreamer cannot keep up with the world's own."""
        self._busy = False
        self._frame_clock.period, self._block_time = max(period, 1 / self.config.fps), block_time

    def fail(self, error: Exception) -> None:
        """The session cannot go on: `take` will say so."""
        self._busy, self._error = False, error

    # -- within --------------------------------------------------------------------------------------------------------

    @property
    def _size(self) -> tuple[int, int, int]:
        return self.config.frames_per_block, self.config.height, self.config.width

    def _new_world(self, number: int, origin: Origin) -> PlayedWorld:
        noop = played(self.config.action, self.config.action.noop)
        return PlayedWorld(number, origin, ReplaySegment(origin.start), origin.twin, noop)

    def _next_order(self) -> Order:
        if self._script is not None:
            block = self._script.next_block()
            self._event = block.event
            return Order(played(self.config.action, block.action), block.event, block.frames)
        action = self._keys.sample()
        changed_at, self._changed_at = self._changed_at, None
        follows = changed_at if action != self._world.action else None
        return Order(action, self._event, self.config.frames_per_block, follows)

    def _go_to(self, world: PlayedWorld, event: str | None) -> None:
        """Leave the current world for another."""
        self._recorder.leave(self._world)
        self._world, self._event, self._changed_at = world, event, None
        self._paused = self._ended = False
        self._frame_clock.reset(self._clock())
        self._meter.interrupt()
        self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the dream stopped: {self._error}") from self._error
        if self._closed:
            raise RuntimeError("this session is closed: open another one")
