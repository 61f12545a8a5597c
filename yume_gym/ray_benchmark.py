"""How do workers of Ray scale? `python -m yume_gym.ray_benchmark [--model street] [--worlds 8] [--workers 1 2]`

The same number of worlds in this process and divided among the workers, who take turns, round after round. Workers start on this
machine, or on the cluster that RAY_ADDRESS names. Prints steps a second of all worlds by the clock, as Markdown: the median of
rounds, and how many times that is of this process alone. Needs `pip install 'yume-gym[ray]'`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from yume_gym.sb3 import make_vec_env


def benchmark(worlds: int, workers: Sequence[int], rounds: int = 2, steps: int = 64, **arguments: Any) -> np.ndarray:
    """Steps a second [rounds, 1 + workers] of all worlds, of this process first. A turn is about `steps` steps of all worlds.

    arguments: of the environment. Raises ValueError for no workers, rounds or worlds, and what `make_vec_env` raises.
    """
    if not workers or min(workers) < 1 or worlds < 1 or rounds < 1:
        raise ValueError(f"worlds, workers and rounds must be 1 or more, got {worlds}, {list(workers)} and {rounds}")
    calls, rates = max(1, round(steps / worlds)), np.zeros((rounds, 1 + len(workers)))
    for number in range(rounds):
        for column, count in enumerate((None, *workers)):
            how: dict[str, Any] = {} if count is None else {"workers": "ray", "num_workers": count}
            envs = make_vec_env("YumeWorld-v0", worlds, seed=0, **how, **arguments)
            try:
                rates[number, column] = worlds * calls / _seconds(envs, calls)
            finally:
                envs.close()
    return rates


def _seconds(envs: VecEnv, calls: int) -> float:
    """For so many steps of all worlds, after a first one that is not counted."""
    envs.reset()
    envs.action_space.seed(0)
    actions = [np.array([envs.action_space.sample() for _ in range(envs.num_envs)]) for _ in range(1 + calls)]
    envs.step(actions[0])
    started = time.perf_counter()
    for action in actions[1:]:
        envs.step(action)
    return time.perf_counter() - started


def report(worlds: int, workers: Sequence[int], rates: np.ndarray) -> str:
    """The table as Markdown."""
    lines = [f"| {worlds} worlds in | steps/s, all worlds | times this process |", "|---|---:|---:|"]
    names = ["this process", *(f"{count} worker{'s' * (count > 1)} of Ray" for count in workers)]
    for name, found in zip(names, rates.T):
        lines.append(f"| {name} | {np.median(found):.1f} | {np.median(found / rates[:, 0]):.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a name or a folder of weights")
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=64, help="steps of all worlds together in one turn")
    given = parser.parse_args(argv)
    try:
        rates = benchmark(given.worlds, given.workers, given.rounds, given.steps, model=given.model)
    except ValueError as error:
        parser.error(str(error))
    print(report(given.worlds, given.workers, rates))


if __name__ == "__main__":
    main()
