"""Time in play: when the next frame is due, how long the next block will take, and how well both went."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from yume_gym.play.keys import Played

RECENT = 64  # rounds that a forecast rests on
SURE = 0.9  # share of rounds that take no longer than the lead; the others are a little late, which is seldom a stutter
MARGIN = 0.01  # seconds from a block's completion to its display
SMOOTH = 1.5  # periods: a frame later than this after the one before is a stutter
LAG = 0.5  # periods by which a frame may be late without the clock moving


class Forecast:
    """How long dreaming one block of n worlds takes, from how long it took lately. Seconds."""

    def __init__(self) -> None:
        self._rounds: dict[int, deque[float]] = {}
        self._known: dict[tuple[int, float], float] = {}  # quantiles since the last round

    def add(self, worlds: int, seconds: float) -> None:
        self._known.clear()
        self._rounds.setdefault(worlds, deque(maxlen=RECENT)).append(seconds)

    def typical(self, worlds: int) -> float | None:
        """The median round; None before the first."""
        return self._quantile(worlds, 0.5)

    def lead(self, worlds: int) -> float | None:
        """How long before it is needed a block should be begun; None before the first."""
        time = self._quantile(worlds, SURE)
        return None if time is None else time + MARGIN

    def _quantile(self, worlds: int, share: float) -> float | None:
        if not self._rounds:
            return None
        if (worlds, share) not in self._known:
            nearest = min(self._rounds, key=lambda n: abs(n - worlds))
            self._known[worlds, share] = float(np.quantile(self._rounds[nearest], share)) * worlds / nearest
        return self._known[worlds, share]


class FrameClock:
    """When the next frame is due: one period after the last, unless the frame came too late for that.

    `period` (seconds) may be changed at any time: a world that is dreamt slower than it lives is shown slower, evenly.
    """

    def __init__(self, period: float, now: float) -> None:
        self.period = period
        self._next = now
        self._left: float | None = None  # while stopped: what is left of the period

    def is_due(self, now: float) -> bool:
        return self._left is None and now >= self._next

    def due_in(self, now: float) -> float:
        return max(0.0, self._next - now)

    def shown(self, now: float) -> None:
        """A frame is shown now."""
        late = now - self._next
        self._next = (now if late > LAG * self.period else self._next) + self.period

    def covered_until(self, frames: int) -> float:
        """When the screen runs out of news, with `frames` more in store."""
        return self._next + frames * self.period

    def stop(self, now: float) -> None:
        self._left = min(max(0.0, self._next - now), self.period)

    def go(self, now: float) -> None:
        if self._left is not None:
            self._next, self._left = now + self._left, None

    def reset(self, now: float) -> None:
        """The next frame is due at once."""
        self._next, self._left = now, None


class Meter:
    """What a player sees of timing: intervals between frames and delays from key to picture."""

    def __init__(self, period: float) -> None:
        self._period = period
        self.forget()

    def forget(self) -> None:
        """Count from now."""
        self._times: deque[float] = deque(maxlen=max(4, round(3 / self._period)))  # of three seconds
        self._delays: deque[float] = deque(maxlen=256)
        self._shown = self._on_time = 0

    def shown(self, now: float, delay: float | None) -> None:
        if self._times:
            self._shown += 1
            self._on_time += now - self._times[-1] <= SMOOTH * self._period
        self._times.append(now)
        if delay is not None:
            self._delays.append(delay)

    def interrupt(self) -> None:
        """The next interval is no display's fault: a pause or a restart."""
        self._times.clear()

    def frames(self, queued: int) -> FrameStats:
        """What was displayed, with `queued` frames to come."""
        times = self._times
        fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
        return FrameStats(fps, self._on_time / self._shown if self._shown else None, self._shown, queued)

    @property
    def latency(self) -> InputLatency:
        if not self._delays:
            return InputLatency(None, None, None)
        median, p95 = (float(np.quantile(self._delays, share)) for share in (0.5, 0.95))
        return InputLatency(self._delays[-1], median, p95)


@dataclass(frozen=True)
class FrameStats:
    """How evenly frames are displayed. None where nothing was measured yet."""

    fps: float | None  # displayed a second, over the last three seconds
    smooth: float | None  # share of intervals of at most `SMOOTH` frame periods, without pauses and restarts; 0..1
    shown: int  # frames that `smooth` counts
    queued: int  # generated and not yet displayed


@dataclass(frozen=True)
class InputLatency:
    """From a change of the keys to the first frame that follows it, seconds; None where no key was changed yet."""

    last: float | None
    median: float | None  # of the last 256, as is p95
    p95: float | None  # 95th percentile


@dataclass(frozen=True)
class Stats:
    """How a session runs now."""

    frames: FrameStats
    latency: InputLatency
    action: Played  # what the keys held now mean, in a replay the action of the latest block
    block_time: float | None  # median of the latest blocks, seconds for all sessions of a batch; None before the first
    blocks: int  # generated in this world
    seed: int
    event: str | None
    paused: bool
    score: float | None = None  # sum of this world's rewards; None for a model without heads
    over: str = ""  # why the episode is over
