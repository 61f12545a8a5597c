"""How many steps a second do N worlds give? `python -m yume_gym.vector_benchmark [--model street] [--worlds 1 2 4 8 16]`

The batch of worlds (`YumeWorldVectorEnv`) beside Gymnasium's own vector environments: one after another (Sync) and a process
for each world (Async). All take turns, round after round, so that whatever else the machine does hits all alike; ratios are
those of one round, and what is printed is their median. Prints Markdown (--json and --plot write files).
--processor counts the processor time of this process and its workers instead of the clock: other programs disturb it less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from world_model.model import WorldModel
from yume_gym.benchmark import check_plot, machine, write
from yume_gym.env import YumeWorldEnv
from yume_gym.vector_env import YumeWorldVectorEnv

BATCH, INVARIANT, SYNC, ASYNC = "batch", "batch_invariant=True", "SyncVectorEnv", "AsyncVectorEnv"


@dataclass(frozen=True)
class Row:
    """One kind of vector environment with `worlds` worlds: median steps a second of all worlds together, and how many times
    that is of one world alone (`YumeWorldEnv`) in the same round."""

    kind: str
    worlds: int
    steps_per_second: float
    ratio: float


@dataclass(frozen=True)
class Result:
    """Everything that was measured; `alone` is the median steps a second of one `YumeWorldEnv`."""

    machine: str
    model: str
    rounds: int
    alone: float
    rows: tuple[Row, ...]


def benchmark(
    model: WorldModel,
    worlds: Sequence[int],
    rounds: int = 3,
    turn: int = 16,
    others_up_to: int = 16,
    clock: Callable[[], float] = time.perf_counter,
    **arguments: Any,
) -> Result:
    """Measures the batch with each number of `worlds`, and the other kinds with up to `others_up_to`, processes on a CPU only. A
    turn is about `turn` steps of all worlds together. clock: seconds. arguments: of `YumeWorldEnv`.

    Raises ValueError for no worlds or rounds.
    """
    if not worlds or min(worlds) < 1 or rounds < 1:
        raise ValueError(f"worlds and rounds must be 1 or more, got {list(worlds)} and {rounds}")
    made: dict[tuple[str, int], VectorEnv] = {}

    def single() -> gym.Env:
        return YumeWorldEnv(model=model, **arguments)

    try:
        for count in worlds:
            made[BATCH, count] = YumeWorldVectorEnv(count, model=model, **arguments)
            if count > others_up_to:
                continue
            made[INVARIANT, count] = YumeWorldVectorEnv(count, model=model, batch_invariant=True, **arguments)
            made[SYNC, count] = SyncVectorEnv([single] * count)
            if model.device.type == "cpu":
                made[ASYNC, count] = AsyncVectorEnv([single] * count)
        alone = single()
        alone.reset(seed=0)
        for env in made.values():
            env.reset(seed=0)
            env.step(env.action_space.sample())
        alone.step(0)
        rates, lone = _turns(alone, made, rounds, turn, clock)
    finally:
        for env in made.values():
            env.close()
    rows = [
        Row(kind, count, float(np.median(found)), float(np.median(np.array(found) / lone)))
        for (kind, count), found in rates.items()
    ]
    return Result(machine(model), model.config.name, rounds, float(np.median(lone)), tuple(rows))


def _act(env: VectorEnv) -> None:
    env.step(env.action_space.sample())


def _turns(
    alone: gym.Env, made: dict[tuple[str, int], VectorEnv], rounds: int, steps: int, clock: Callable[[], float]
) -> tuple[dict[tuple[str, int], list[float]], np.ndarray]:
    """Steps a second of each environment in every round, and those of one world, timed before and after each round's others."""
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in made}
    lone = []
    alone.action_space.seed(0)
    for _ in range(rounds):
        before = _rate(lambda: alone.step(alone.action_space.sample()), 1, steps, clock)
        for (kind, count), env in made.items():
            rates[kind, count].append(_rate(partial(_act, env), count, steps, clock))
        lone.append((before + _rate(lambda: alone.step(alone.action_space.sample()), 1, steps, clock)) / 2)
    return rates, np.array(lone)


def _rate(step: Callable[[], Any], worlds: int, steps: int, clock: Callable[[], float]) -> float:
    calls = max(1, round(steps / worlds))
    started = clock()
    for _ in range(calls):
        step()
    return calls * worlds / (clock() - started)


def processor_time() -> float:
    """Seconds of processor time of this process and the workers that it started (Linux, from /proc)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def report(result: Result) -> str:
    """The result as Markdown: steps a second of all worlds together, and in brackets times one world alone."""
    kinds = list(dict.fromkeys(row.kind for row in result.rows))
    cells = {(row.kind, row.worlds): f"{row.steps_per_second:.1f} ({row.ratio:.2f})" for row in result.rows}
    lines = [
        f"Model {result.model}, {result.rounds} rounds; one world alone {result.alone:.1f} steps/s. {result.machine}",
        "",
        f"| worlds | {' | '.join(kinds)} |",
        f"|---:|{'---:|' * len(kinds)}",
    ]
    for count in dict.fromkeys(row.worlds for row in result.rows):
        lines.append(f"| {count} | {' | '.join(cells.get((kind, count), '') for kind in kinds)} |")
    return "\n".join(lines)


def plot(result: Result, path: Path) -> None:
    """Steps a second over the number of worlds, as a picture. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(row.kind for row in result.rows):
        rows = [row for row in result.rows if row.kind == kind]
        axes.plot([row.worlds for row in rows], [row.steps_per_second for row in rows], "o-", label=kind)
    axes.axhline(result.alone, color="grey", linestyle="--", label="one world alone")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="worlds", ylabel="steps/s of all worlds", ylim=(0, None), title=f"{result.model}: steps a second")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="steps of all worlds together in one turn")
    parser.add_argument("--others-up-to", type=int, default=16, help="only the batch for more worlds")
    parser.add_argument("--processor", action="store_true", help="count processor time instead of the clock (Linux)")
    parser.add_argument("--sampler-steps", type=int, help="denoising steps a block; the model's own if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw them into this picture (needs matplotlib)")
    args = parser.parse_args(argv)
    check_plot(parser, args.plot)
    model = WorldModel.load(args.model, device=args.device, dtype=args.dtype)
    clock = processor_time if args.processor else time.perf_counter
    try:
        result = benchmark(
            model, args.worlds, args.rounds, args.steps, args.others_up_to, clock, steps=args.sampler_steps
        )
    except ValueError as error:
        parser.error(str(error))
    write(report(result), result, args.json, lambda path: plot(result, path), args.plot)


if __name__ == "__main__":
    main()
