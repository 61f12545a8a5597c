"""Back-pressure for a page: on a slow line frames are dropped, the oldest first, and what arrives is recent."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Outbox:
    """Frames on their way to one page: at most `capacity` waiting, and `window` sent but not acknowledged.

    The window shrinks by half when frames come more than `patience` seconds late, and grows again with each that is in time.
    """

    def __init__(self, capacity: int, patience: float) -> None:
        self._waiting: deque[Any] = deque(maxlen=capacity)
        self._capacity, self._patience = capacity, patience
        self._window = float(capacity)
        self._sent = self._acknowledged = self._shrunk_at = 0
        self._ready = asyncio.Event()
        self.dropped = 0

    @property
    def in_flight(self) -> int:
        """Frames sent and not acknowledged."""
        return self._sent - self._acknowledged

    @property
    def window(self) -> int:
        return int(self._window)

    def put(self, item: Any) -> None:
        """Send `item` when the line is free; the oldest that waits is dropped where there are too many."""
        self.dropped += len(self._waiting) == self._capacity
        self._waiting.append(item)
        self._ready.set()

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def acknowledge(self, number: int, late: float) -> None:
        """The page has frame `number`, the n-th that `get` gave, `late` seconds after it was due."""
        if not self._acknowledged < number <= self._sent:
            return
        self._acknowledged = number
        if late <= self._patience:
            self._window = min(self._capacity, self._window + 0.25)
        elif number > self._shrunk_at:  # once for all frames that were already on their way
            self._window = max(1.0, self._window / 2)
            self._shrunk_at = self._sent
        self._ready.set()

    async def get(self) -> tuple[int, Any]:
        """The number and the item to send next. On a line that does not keep up only the newest is left to send."""
        while not self._waiting or self.in_flight >= self.window:
            self._ready.clear()
            await self._ready.wait()
        while len(self._waiting) > self.window:
            self._waiting.popleft()
            self.dropped += 1
        self._sent += 1
        return self._sent, self._waiting.popleft()
