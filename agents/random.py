"""Acts at random: the baseline that every agent must beat.

python -m agents.random --env YumeWorld-v0 --steps 20
python -m agents.random --steps 200 --arguments '{"model": "runs/breakout"}'
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium

import yume_gym  # noqa: F401  (registers the environments)


@dataclass(frozen=True)
class Report:
    """What a run gave: the return of every finished episode, of the unfinished last one, and the speed."""

    returns: tuple[float, ...]
    unfinished: float
    steps_per_second: float


def run(env: gymnasium.Env, steps: int, seed: int) -> Report:
    """`steps` uniformly random actions, drawn with `seed`; a new episode begins where one ends."""
    env.action_space.seed(seed)
    env.reset(seed=seed)
    returns: list[float] = []
    total = 0.0
    started = time.perf_counter()
    for _ in range(steps):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total += float(reward)
        if terminated or truncated:
            returns.append(total)
            total = 0.0
            env.reset()
    return Report(tuple(returns), total, steps / (time.perf_counter() - started))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="YumeWorld-v0", help="id of an environment")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arguments", type=json.loads, default={}, help="""as JSON, such as '{"reward": "motion"}'""")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    env = gymnasium.make(args.env, **args.arguments)
    report = run(env, args.steps, args.seed)
    env.close()
    for number, value in enumerate(report.returns):
        print(f"episode {number}: return {value:.3f}")
    print(f"unfinished episode: return {report.unfinished:.3f}")
    print(f"{report.steps_per_second:.1f} steps/s over {args.steps} steps")


if __name__ == "__main__":
    main()
