"""Frames on a slow line: bounded, recent, and never piled up."""

from __future__ import annotations

import asyncio

import pytest

from yume_gym.play.web_outbox import Outbox


def test_outbox_drops_the_oldest_and_narrows_on_a_slow_line():
    async def play() -> None:
        box = Outbox(capacity=4, patience=0.2)
        for item in range(10):
            box.put(item)
        assert [await box.get() for _ in range(4)] == [(1, 6), (2, 7), (3, 8), (4, 9)] and box.dropped == 6
        box.put(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(box.get(), 0.01)  # four are on their way
        box.acknowledge(1, late=1.0)
        assert box.window == 2
        box.acknowledge(4, late=1.0)  # sent before the window shrank
        assert box.window == 2 and box.in_flight == 0
        for item in (11, 12, 13):
            box.put(item)
        assert await box.get() == (5, 12), "only what fits the window is still worth sending"
        for _ in range(40):
            box.put(0)
            number, _ = await box.get()
            box.acknowledge(number, late=0.0)
        assert box.window == 4
        box.acknowledge(10**6, late=9.0)  # never sent
        assert box.window == 4

    asyncio.run(play())
