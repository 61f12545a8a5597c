"""The loop that dreams ahead of its players: one thread, one model, any number of sessions.

A block is begun as late as still keeps up: when the frames a session has left to show last about as long as its next block
will take. Sessions that are due together are dreamt in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from world_model.model import WorldModel
from yume_gym.play.session import Session, Start


class SessionsFull(RuntimeError):
    """All places are taken. The message says how many there are."""


class Dreamer:
    """Owns the model and the thread that dreams. Use it as a context manager, or call `close`.

    model: shared by all sessions. max_sessions: `open` raises `SessionsFull` beyond. steps: sampler steps (None: the model's).
    clock: seconds, for tests.
    """

    def __init__(
        self, model: WorldModel, max_sessions: int = 1, steps: int | None = None, clock: Callable[[], float] = perf_counter
    ) -> None:
        raise NotImplementedError

    @property
    def model(self) -> WorldModel:
        raise NotImplementedError

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The open sessions, oldest first."""
        raise NotImplementedError

    def open(self, start: Start | None = None) -> Session:
        """A new session; its world begins at once. Raises SessionsFull, or what is wrong with the start."""
        raise NotImplementedError

    def replay(self, replay: Any) -> Session:
        """A session that plays a `replay.Replay`: keys and events come from it, the player's own are ignored."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Load the text encoder and dream a block of a throwaway world, so that the first event does not stutter. Waits."""
        raise NotImplementedError

    def close(self) -> None:
        """End all sessions and the thread."""
        raise NotImplementedError

    def __enter__(self) -> Dreamer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
