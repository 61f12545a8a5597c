"""Trainings that are stopped on their way."""

from __future__ import annotations

from collections.abc import Iterator

from train.engine.loop import Run


def stopped_after(count: int) -> type[Run]:
    """A `Run` that is stopped after `count` steps of however many."""

    class Stopped(Run):
        def steps(self, last: int, minutes: float | None = None) -> Iterator[int]:
            for step in super().steps(last, minutes):
                yield step
                if step == count - 1:
                    return

    return Stopped
