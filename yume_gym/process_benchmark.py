"""Do worlds in two processes slow each other down? `python -m yume_gym.process_benchmark [--model street] [--processes 2]`

One process steps one world alone, then several do so at once; each with the number of threads that it gets by itself, and with
OMP_NUM_THREADS=1. Prints steps a second of all processes together, by the clock and by processor time (which other programs disturb
less), and how many times that is of one process alone. Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

WORK = """
import json, sys, time
import gymnasium, torch, yume_gym
env = gymnasium.make("YumeWorld-v0", model=sys.argv[1])
env.reset(seed=0)
env.step(0)
print("ready", flush=True)
sys.stdin.readline()
begun, busy = time.perf_counter(), time.process_time()
for _ in range(int(sys.argv[2])):
    env.step(env.action_space.sample())
print(json.dumps([time.perf_counter() - begun, time.process_time() - busy, torch.get_num_threads()]))
"""


@dataclass(frozen=True)
class Row:
    """Steps a second of all `processes` together by the clock, steps of one for a second of processor time (mean of all), and the
    threads that each may use."""

    processes: int
    told: bool  # OMP_NUM_THREADS=1
    by_clock: float
    by_processor: float
    threads: int


def measure(model: str, processes: int, steps: int, told: bool) -> Row:
    """Steps `processes` worlds at once, each in a process of its own. Raises RuntimeError where one fails."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": "1"} if told else {}
    command = [sys.executable, "-c", WORK, model, str(steps)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a process has failed before its first step: see its message above")
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(process.communicate()[0]) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    clock, busy, threads = zip(*found)
    return Row(
        processes, told, sum(steps / one for one in clock), sum(steps / one for one in busy) / processes, threads[0]
    )


def report(rows: Sequence[Row]) -> str:
    """The table; the row before one of several processes is that of one alone with the same setting."""
    lines = [
        "| processes | OMP_NUM_THREADS | threads of each | steps/s of all, by the clock | times one alone "
        "| steps/s of processor time, of one | times one alone |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    alone = {row.told: row for row in rows if row.processes == 1}
    for row in rows:
        first = alone[row.told]
        lines.append(
            f"| {row.processes} | {'1' if row.told else 'not set'} | {row.threads} | {row.by_clock:.2f} "
            f"| {row.by_clock / first.by_clock:.2f} | {row.by_processor:.2f} | {row.by_processor / first.by_processor:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a name or a folder of weights")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="of each process")
    given = parser.parse_args(argv)
    if given.processes < 2 or given.steps < 1:
        parser.error("--processes must be 2 or more, --steps 1 or more")
    settings = [(count, told) for told in (False, True) for count in (1, given.processes)]
    print(report([measure(given.model, count, given.steps, told) for count, told in settings]))


if __name__ == "__main__":
    main()
