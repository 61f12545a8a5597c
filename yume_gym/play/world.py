"""One world of a session, from its start picture on: what is dreamt, what waits to be shown, and what was done to it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from world_model.actions import Action
from world_model.model import WorldState
from yume_gym.first_person import EnvState
from yume_gym.play.keys import Played
from yume_gym.play.replay import Block, ReplaySegment
from yume_gym.play.start import Origin, Twin, knows_event

STILL = Action()


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
    action: Played
    event: str | None
    delay: float | None = None
    street_event: bool = True


@dataclass(frozen=True)
class Order:
    """What one block is dreamt under. `frames`: how many of its frames are shown; `changed_at`: when the oldest key change
    that it follows was made, in seconds of the session's clock, or None."""

    action: Played
    event: str | None
    frames: int
    changed_at: float | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A world as a value, picklable: what is dreamt, what is still to be shown, and how it came about."""

    size: tuple[int, int, int]  # frames of a block, height, width
    state: WorldState
    street: EnvState | None
    queue: tuple[Frame, ...]
    segment: ReplaySegment
    partial: Block | None
    blocks: int
    action: Played
    event: str | None
    score: float = 0.0


class PlayedWorld:
    """Not safe by itself: its session's lock is held around every call, and around reading `state` and `street` together.

    `state` is None until the world has started; then `origin` is of no more use.
    """

    def __init__(
        self, number: int, origin: Origin | None, segment: ReplaySegment, twin: Twin | None, noop: Played = STILL
    ) -> None:
        self.number, self.origin, self.twin = number, origin, twin
        self.segment = segment
        self.state: WorldState | None = None
        self.street: EnvState | None = None if origin is None else origin.street
        self.queue: deque[tuple[Frame, float | None]] = deque()
        self.seen = False  # whether any of it was shown
        self.blocks = 0  # dreamt
        self.action = noop  # of the last block dreamt
        self.score = 0.0  # sum of the rewards of all blocks, of a model with heads
        self.partial: Block | None = None  # the block that is being shown, as far as it was

    @classmethod
    def restored(cls, number: int, snapshot: Snapshot, twin: Twin | None) -> PlayedWorld:
        world = cls(number, None, ReplaySegment(snapshot.segment.start, list(snapshot.segment.blocks)), twin)
        world.state, world.street = snapshot.state, snapshot.street
        world.queue.extend((replace(frame, world=number), None) for frame in snapshot.queue)
        world.partial, world.blocks, world.action = snapshot.partial, snapshot.blocks, snapshot.action
        world.score = snapshot.score
        return world

    @property
    def over(self) -> str:
        """Why the episode is over, or "" if it is not."""
        if self.state is None or not self.state.outcomes:
            return ""
        (outcome,) = self.state.outcomes
        if not bool(outcome.terminated | outcome.truncated):
            return ""
        return "the episode ended" if bool(outcome.terminated) else "the dream left what it was trained on"

    def started(self, state: WorldState, picture: np.ndarray) -> None:
        """The world stands at `picture`."""
        self.state = state
        street = picture if self.street is not None else None
        self.queue.append((Frame(picture, street, self.number, -1, 0, self.action, None), None))

    def dreamt(
        self,
        order: Order,
        state: WorldState,
        frames: np.ndarray,
        street: EnvState | None,
        street_frames: np.ndarray | None,
    ) -> None:
        """One more block, with frames uint8 [T, H, W, 3] of the dream and of the street."""
        known = street is None or knows_event(order.event)
        for index in range(order.frames):
            twin = None if street_frames is None else street_frames[index]
            frame = Frame(
                frames[index], twin, self.number, self.blocks, index, order.action, order.event, street_event=known
            )
            self.queue.append((frame, order.changed_at if index == 0 else None))
        self.state, self.street, self.action = state, street, order.action
        self.score += sum(float(outcome.reward) for outcome in state.outcomes)
        self.blocks += 1

    def shown(self, frame: Frame, frames_per_block: int) -> Block | None:
        """Notes that `frame` is shown. Returns the block that is complete by that, if any."""
        done, self.seen = None, True
        if frame.block >= 0:
            if frame.index == 0:
                done = self.flush()  # of a block that a replay cuts short
            self.partial = Block(frame.action.index, frame.event, frame.index + 1)
            if frame.index + 1 == frames_per_block:
                done = self.flush()
        return done

    def flush(self) -> Block | None:
        """Ends the block that is being shown where it is now."""
        done, self.partial = self.partial, None
        if done is not None:
            self.segment.add(done)
        return done

    def whole_segment(self) -> ReplaySegment:
        """What was done up to the frame last shown; a copy."""
        last = [] if self.partial is None else [self.partial]
        return ReplaySegment(self.segment.start, [*self.segment.blocks, *last])

    def snapshot(self, size: tuple[int, int, int], event: str | None) -> Snapshot:
        """Raises ValueError before the world has started."""
        if self.state is None:
            raise ValueError("the world has not begun yet: take its first frame before its snapshot")
        return Snapshot(
            size,
            self.state,
            self.street,
            tuple(frame for frame, _ in self.queue),
            ReplaySegment(self.segment.start, list(self.segment.blocks)),
            self.partial,
            self.blocks,
            self.action,
            event,
            self.score,
        )
