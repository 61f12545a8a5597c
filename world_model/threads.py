"""Small networks gain little from a second thread: on a CPU, independent work is faster side by side on its own threads.

Whatever thread has once computed with several keeps its helpers. When all helpers together outnumber the cores, OpenMP makes
every one of them sleep instead of spin between two layers, and a block of a small network takes up to twice as long. So only
the thread that dreams should compute with several; what others do on the way, they do in `one_thread`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")


def use_threads(number: int) -> None:
    """From now on the calling thread computes with `number` threads, whatever others set."""
    torch.get_num_threads()  # the first look of a thread takes the number set last anywhere: it must not come after the next line
    torch.set_num_threads(number)


def side_by_side(work: Callable[..., Result], each: Sequence[tuple], threads: int) -> list[Result]:
    """`work` of each on so many threads, as many at a time as torch may use threads."""
    if threads < 1:
        raise ValueError(f"threads must be 1 or more for each world, got {threads}")
    total = torch.get_num_threads()
    at_once = max(1, min(total // threads, len(each)))
    with ThreadPoolExecutor(at_once, initializer=use_threads, initargs=(threads,)) as pool:
        found = [future.result() for future in [pool.submit(work, *one) for one in each]]
    torch.set_num_threads(total)  # for threads that begin later
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """The calling thread computes alone; also as a decorator."""
    total = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(total)


@contextmanager
def beside(work: Callable[[], Result], device: torch.device) -> Iterator[Callable[[], Result]]:
    """Begins `work`, which takes no gradient, beside the body of a with statement; the body calls what it is given for the answer.

    On a CPU both get half of the threads that torch may use: small networks gain little from a second one. Elsewhere, and on one
    thread, work is done when it is asked for.
    """
    total = torch.get_num_threads()
    if device.type != "cpu" or total == 1:
        yield work
        return
    each = total // 2
    with ThreadPoolExecutor(1, initializer=use_threads, initargs=(each,)) as pool:
        doing = pool.submit(work)
        torch.set_num_threads(each)
        try:
            yield doing.result
        finally:
            wait([doing])
            torch.set_num_threads(total)
