"""One event that happens: since when, until when, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FADE_SECONDS = 1.0
Rows = list[list[float]]


@dataclass(frozen=True)
class EventState:
    """One event that happens: `place` (x, z; metres) and `heading` (radians) are fixed at its onset.

    `wall` is a facade the viewer saw when it began: (building, x, z, direction that it faces in radians), or None.
    """

    kind: str
    begin: float  # seconds
    place: tuple[float, float]
    heading: float
    wall: tuple[int, float, float, float] | None = None
    end: float | None = None  # seconds; None: goes on

    def weight(self, time: float) -> float:
        """How present it is at a time (s), 0..1: fades in and out over a second."""
        rise = (time - self.begin) / FADE_SECONDS
        fall = 1.0 if self.end is None else 1.0 - (time - self.end) / FADE_SECONDS
        return max(0.0, min(1.0, rise, fall))

    def over(self, time: float) -> bool:
        """Whether nothing is left of it."""
        return self.end is not None and time - self.end >= FADE_SECONDS

    def ended(self, time: float) -> EventState:
        """The same event, ending now."""
        return self if self.end is not None else replace(self, end=time)

    def beyond(self, forward: float, right: float) -> tuple[float, float]:
        """The place (x, z; metres) so far beyond its own and to the right, as the viewer looked at its onset."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        return self.place[0] + forward * sin + right * cos, self.place[1] + forward * cos - right * sin

    def in_lane(self, gone: float) -> tuple[float, float, bool, float]:
        """Where somebody is who has gone so many metres past its place, down the street towards the viewer.

        (x, z; metres), whether the street runs along z, and the direction of driving along that axis (1 or -1).
        """
        along_z = abs(math.cos(self.heading)) > abs(math.sin(self.heading))
        toward = math.cos(self.heading) if along_z else math.sin(self.heading)
        direction = -1.0 if toward > 0 else 1.0
        x, z = self.place
        lane = 40.0 * round((x if along_z else z) / 40.0) + 1.2 * direction * (-1.0 if along_z else 1.0)
        way = direction * gone
        return (lane, z + way, along_z, direction) if along_z else (x + way, lane, along_z, direction)
