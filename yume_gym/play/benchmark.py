"""Does play flow? `python -m yume_gym.play.benchmark [--model street] [--seconds 120] [--players 1 4]`

One player plays in the window (SDL's dummy driver stands in for a missing display), more play without one, all at random.
Prints Markdown (--json writes a file): how evenly frames came, how long from key to picture, and memory over time. The
first seconds are not counted. Every figure is measured in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from world_model.model import WorldModel
from yume_gym.benchmark import machine, memory_in_use
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.keys import KEYS
from yume_gym.play.pace import SMOOTH
from yume_gym.play.session import Session
from yume_gym.play.start import Start
from yume_gym.play.window import PlayWindow, has_display
from yume_gym.play.world import Frame

WARM_UP = 5.0  # seconds that are not counted
_CHANGES = (0.4, 2.0)  # seconds between two changes of the keys


@dataclass
class Seen:
    """What one player saw. times: seconds at which frames were on the screen; delays: seconds from key to picture."""

    times: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def frame(self, frame: Frame, since: float, drawing: float = 0.0) -> None:
        now = time.perf_counter()
        if now < since:
            return
        self.times.append(now)
        if frame.delay is not None:
            self.delays.append(frame.delay + drawing)


@dataclass(frozen=True)
class Display:
    """The display of frames to the player who fared worst, in each figure."""

    frames: int
    fps: float  # frames displayed a second
    world_fps: int  # frames of a second in the world's own time
    smooth: float  # share of intervals of at most `SMOOTH` frame periods, 0..1
    longest: float  # interval, seconds


@dataclass(frozen=True)
class InputLatency:
    """From a change of the keys to the first frame that follows it, seconds, over the changes of all players."""

    median: float
    p95: float  # 95th percentile
    longest: float


@dataclass(frozen=True)
class BlockTimes:
    """A block's length and what generating it takes, seconds."""

    duration: float  # in the world's own time
    generation: float  # median for all players' blocks together; nan if none was timed


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the process in memory; None where the system does not tell."""

    begin: int | None
    end: int | None


@dataclass(frozen=True)
class Flow:
    """One run."""

    players: int
    front: str  # "window" or "loop"
    seconds: float  # that were counted
    display: Display
    latency: InputLatency
    block: BlockTimes
    memory: MemoryUse


def play_in_window(dreamer: Dreamer, seconds: float) -> Flow:
    """One player at the window for `seconds` after the warm-up."""
    session = dreamer.open(Start(seed=0))
    seen, since = Seen(), time.perf_counter() + WARM_UP
    window = PlayWindow(session, on_frame=lambda frame: seen.frame(frame, since, window.drawing))
    stop = threading.Event()
    player = threading.Thread(target=_press_keys, args=(stop,), daemon=True)
    memory = _MemoryAt(since)
    player.start()
    window.run(WARM_UP + seconds)
    stop.set()
    player.join()
    return _flow(dreamer, "window", seconds, [seen], memory, session)


def play_together(dreamer: Dreamer, players: int, seconds: float) -> Flow:
    """`players` sessions without a window, shown by one loop, for `seconds` after the warm-up."""
    sessions = [dreamer.open(Start(seed=seed)) for seed in range(players)]
    since = time.perf_counter() + WARM_UP
    end, memory = since + seconds, _MemoryAt(since)
    seen = [Seen() for _ in sessions]
    hands = [_Hands(seed, session.hold) for seed, session in enumerate(sessions)]
    while time.perf_counter() < end:
        for session, one, hand in zip(sessions, seen, hands):
            hand.move()
            frame = session.take()
            if frame is not None:
                one.frame(frame, since)
        time.sleep(min(0.004, *(session.wait_time() for session in sessions)))
    return _flow(dreamer, "loop", seconds, seen, memory, *sessions)


def report(flows: Sequence[Flow], head: str) -> str:
    """The runs as a Markdown table, one column each."""
    rows: list[tuple[str, Callable[[Flow], str]]] = [
        ("frames shown (of the player who fared worst)", lambda f: f"{f.display.frames} in {f.seconds:.0f} s"),
        ("frames/s", lambda f: f"{f.display.fps:.2f} of {f.display.world_fps}"),
        (f"frames within {SMOOTH} periods of the one before", lambda f: f"{f.display.smooth:.2%}"),
        ("longest interval", lambda f: f"{1000 * f.display.longest:.0f} ms"),
        ("key to picture, median", lambda f: _delay(f, f.latency.median)),
        ("key to picture, 95th percentile", lambda f: _delay(f, f.latency.p95)),
        ("key to picture, longest", lambda f: _delay(f, f.latency.longest)),
        (
            "dreaming a block (of every player), median",
            lambda f: f"{1000 * f.block.generation:.0f} ms of {1000 * f.block.duration:.0f}",
        ),
        (
            "memory at the beginning and at the end",
            lambda f: f"{_mebibytes(f.memory.begin)}, {_mebibytes(f.memory.end)}",
        ),
    ]
    titles = [f"{flow.players} player{'s' * (flow.players > 1)}, {flow.front}" for flow in flows]
    lines = [head, "", f"| | {' | '.join(titles)} |", "|---" + "|---:" * len(flows) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cell(flow) for flow in flows)} |" for name, cell in rows)])


class _Hands:
    """Somebody who changes the keys now and then."""

    def __init__(self, seed: int, hold: Callable[[set[str]], None]) -> None:
        self._random, self._hold, self._next = np.random.default_rng(seed), hold, time.perf_counter()

    def move(self) -> float:
        """Change the keys if it is time to; returns the seconds until it is again."""
        if time.perf_counter() >= self._next:
            self._next += self._random.uniform(*_CHANGES)
            self._hold({str(key) for key in self._random.choice(KEYS, size=self._random.integers(3), replace=False)})
        return max(0.0, self._next - time.perf_counter())


class _MemoryAt:
    """The process's memory at a time to come, in seconds of `time.perf_counter`."""

    def __init__(self, when: float) -> None:
        self.bytes: int | None = None
        self._timer = threading.Timer(max(0.0, when - time.perf_counter()), self._measure)
        self._timer.daemon = True
        self._timer.start()

    def _measure(self) -> None:
        self.bytes = memory_in_use()


def _press_keys(stop: threading.Event) -> None:
    """Random hands on the window's keyboard."""
    import pygame

    codes = dict(
        zip(
            KEYS,
            (pygame.K_w, pygame.K_a, pygame.K_s, pygame.K_d, pygame.K_UP, pygame.K_LEFT, pygame.K_DOWN, pygame.K_RIGHT),
        )
    )
    held: set[str] = set()

    def hold(keys: set[str]) -> None:
        for kind, changed in ((pygame.KEYUP, held - keys), (pygame.KEYDOWN, keys - held)):
            for key in changed:
                pygame.event.post(pygame.event.Event(kind, key=codes[key], unicode="", mod=0))
        held.clear()
        held.update(keys)

    while not pygame.display.get_init() and not stop.wait(0.01):
        pass
    hands, rest = _Hands(0, hold), 0.0
    while not stop.wait(rest):
        rest = hands.move()


def _flow(
    dreamer: Dreamer, front: str, seconds: float, seen: Sequence[Seen], memory: _MemoryAt, *sessions: Session
) -> Flow:
    config, end = dreamer.model.config, memory_in_use()
    block_times = [stats.block_time for session in sessions if (stats := session.stats()).block_time is not None]
    for session in sessions:
        session.close()
    period = 1 / config.fps
    intervals = [np.diff(one.times) for one in seen]
    if min(len(one) for one in intervals) < 2 or not any(one.delays for one in seen):
        raise ValueError(f"too little was shown in {seconds:.0f} s to measure anything: give it more --seconds")
    delays = [delay for one in seen for delay in one.delays]
    display = Display(
        frames=min(len(one.times) for one in seen),
        fps=min((len(one.times) - 1) / (one.times[-1] - one.times[0]) for one in seen),
        world_fps=config.fps,
        smooth=min(float((one <= SMOOTH * period).mean()) for one in intervals),
        longest=max(float(one.max()) for one in intervals),
    )
    latency = InputLatency(float(np.median(delays)), float(np.quantile(delays, 0.95)), max(delays))
    block = BlockTimes(config.frames_per_block * period, max(block_times, default=float("nan")))
    return Flow(len(sessions), front, seconds, display, latency, block, MemoryUse(memory.bytes, end))


def _delay(flow: Flow, seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms, {seconds / flow.block.duration:.2f} blocks"


def _mebibytes(count: int | None) -> str:
    return "not known here" if count is None else f"{count / 2**20:.1f} MiB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=120, help="of every run (default 120)")
    parser.add_argument(
        "--players", type=int, nargs="+", default=[1, 4], help="players at once, a run each (default 1 4)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if min(args.players) < 1 or args.seconds <= 0:
        parser.error("--players and --seconds must be positive")
    if not has_display():
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    model = WorldModel.load(args.model, device=args.device)
    flows = []
    for players in args.players:
        with Dreamer(model, max_sessions=players) as dreamer:
            dreamer.warm_up()
            try:
                if players == 1:
                    flows.append(play_in_window(dreamer, args.seconds))
                else:
                    flows.append(play_together(dreamer, players, args.seconds))
            except ValueError as error:
                parser.error(str(error))
    print(report(flows, f"Model {model.config.name}. {machine(model)}"))
    if args.json:
        args.json.write_text(json.dumps([asdict(flow) for flow in flows], indent=1))


if __name__ == "__main__":
    main()
