"""Small networks gain little from a second thread: on a CPU, independent work is faster side by side on its own threads.

Whatever thread has once computed with several keeps its helpers. When all helpers together outnumber the cores, OpenMP makes
every one of them sleep instead of spin between two layers, and a block of a small network takes up to twice as long. So only
the thread that dreams should compute with several; what others do on the way, they do in `single_thread`.

Processes that compute with more threads than there are cores slow each other down many times over, for the same reason. So a
worker process computes with one, and so does whoever finds the cores taken (`fair_threads`).
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")


def set_threads(number: int) -> None:
    """From now on the calling thread computes with `number` threads, whatever others set."""
    torch.get_num_threads()  # the first look of a thread takes the number set last anywhere: it must not come after the next line
    torch.set_num_threads(number)


def parallel_map(work: Callable[..., Result], each: Sequence[tuple], threads: int) -> list[Result]:
    """`work` of each on so many threads, as many at a time as torch may use threads."""
    if threads < 1:
        raise ValueError(f"threads must be 1 or more for each world, got {threads}")
    total = torch.get_num_threads()
    at_once = max(1, min(total // threads, len(each)))
    with ThreadPoolExecutor(at_once, initializer=set_threads, initargs=(threads,)) as pool:
        found = [future.result() for future in [pool.submit(work, *one) for one in each]]
    torch.set_num_threads(total)  # for threads that begin later
    return found


@contextmanager
def single_thread() -> Iterator[None]:
    """The calling thread computes alone; also as a decorator."""
    total = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(total)


@contextmanager
def in_parallel(work: Callable[[], Result], device: torch.device) -> Iterator[Callable[[], Result]]:
    """Begins `work`, which takes no gradient, beside the body of a with statement; the body calls what it is given for the answer.

    On a CPU both get half of the threads that torch may use: small networks gain little from a second one. Elsewhere, and on one
    thread, work is done when it is asked for.
    """
    total = torch.get_num_threads()
    if device.type != "cpu" or total == 1:
        yield work
        return
    each = total // 2
    with ThreadPoolExecutor(1, initializer=set_threads, initargs=(each,)) as pool:
        doing = pool.submit(work)
        torch.set_num_threads(each)
        try:
            yield doing.result
        finally:
            wait([doing])
            torch.set_num_threads(total)


# ---- processes ----------------------------------------------------------------------------------------------------------


def _alone_after_fork() -> None:
    """OpenMP's helpers do not survive a fork: a child that computes with several threads waits for them for ever."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone_after_fork)


def is_worker() -> bool:
    """Whether this is a worker process (of `multiprocessing`) that nobody told its number of threads in OMP_NUM_THREADS."""
    return multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ


class CoreMonitor:
    """How many cores other processes keep busy: the larger of the last two looks, of which there are at most `rate` a second."""

    def __init__(self, look: Callable[[], int], cores: int, rate: float = 4.0) -> None:
        self._look, self.cores, self._pause = look, cores, 1 / rate
        self._seen: deque[int] = deque(maxlen=2)
        self._next = 0.0

    def threads(self, wanted: int) -> int:
        """So many threads have a core of their own: 1 to `wanted`."""
        now = time.monotonic()
        if now >= self._next:
            self._seen.append(self._look())
            self._next = now + self._pause
        return max(1, min(wanted, self.cores - max(self._seen)))


def count_other_running_threads() -> int:
    """Threads of other processes that run or wait for a core just now; 0 where Linux's /proc does not tell."""
    try:
        everybody = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path("/proc/self/task").glob("*/stat")]
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, everybody - states.count("R"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CORE_MONITOR = CoreMonitor(count_other_running_threads, _cores())


@contextmanager
def fair_threads(device: torch.device, monitor: CoreMonitor = CORE_MONITOR) -> Iterator[int]:
    """Computes with as many threads as torch may use, less the cores that other processes keep busy; at least one. A worker
    (`is_worker`) computes with one: workers are as many as somebody wants to keep the cores busy with.

    What is computed does not depend on it. Elsewhere than on a CPU nothing changes.
    """
    total = fair = torch.get_num_threads()
    if device.type == "cpu" and total > 1:
        fair = 1 if is_worker() else monitor.threads(total)
    torch.set_num_threads(fair)
    try:
        yield fair
    finally:
        torch.set_num_threads(total)
