"""Does a goal picture tell the way from other ways? `python -m yume_gym.reward_benchmark [--model street] [--goals 5]`

From each start one scripted walk is dreamt, and its last picture is the goal. Then the same keys are held again with other
noise, beside random walks of the same length and standing still, all from that start. What each earns from `GoalPicture` and
from `Novelty` is printed as Markdown. First-person models only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from world_model.actions import Action
from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.episode import EnvState
from yume_gym.rewards import EpisodeReward, GoalPicture, Novelty, begin_reward, step_reward

STILL = ("", "")
# six blocks each: (walking keys, arrow keys)
WALKS = (
    (("W", ""), ("W", ""), ("", "→"), ("W", ""), ("W", ""), STILL),
    (("", "←"), ("W", ""), ("W", ""), ("W", "→"), ("W", ""), STILL),
    (("", "→"), ("", "→"), ("W", ""), ("W", ""), ("W", ""), STILL),
    (("W", ""), ("W+D", ""), ("W", ""), ("", "←"), ("W", ""), STILL),
    (("S", ""), ("S", ""), ("", "←"), ("", "←"), ("W", ""), STILL),
)


@dataclass(frozen=True)
class Row:
    """One walk from one start: what was done ("scripted", "random" or "still"), its return from the goal picture, the distance
    to the goal after its last step, whether it came within the threshold, and its return from novelty."""

    goal: int
    walk: str
    goal_return: float
    distance: float
    reached: bool
    novelty_return: float


def benchmark(model: WorldModel, goals: int = 5, randoms: int = 3, seed: int = 0) -> list[Row]:
    """Dreams all walks, with `randoms` random ones for each goal. Raises ValueError for less than one of either."""
    if goals < 1 or randoms < 1:
        raise ValueError(f"goals and randoms must be 1 or more, got {goals} and {randoms}")
    env, novelty, rows = YumeWorldEnv(model), Novelty().bind(model), []
    env.action_space.seed(seed)
    for number in range(goals):
        script = [Action.from_keys(*keys).index for keys in WALKS[number % len(WALKS)]]
        env.reset(seed=seed + number)
        start, noise = env.get_state(), 1000 * (seed + number + 1)
        goal = GoalPicture(_dreamt(env, start, script, noise)[-1][-1]).bind(model)
        assert isinstance(goal, GoalPicture)
        walks = [("scripted", script), ("still", [0] * len(script))]
        walks += [("random", [int(env.action_space.sample()) for _ in script]) for _ in range(randoms)]
        for other, (walk, actions) in enumerate(walks, start=1):
            blocks = _dreamt(env, start, actions, noise + other)
            earned, reached = returns(goal, blocks)
            last = goal.distance(blocks[-1][-1])
            rows.append(Row(number, walk, earned, last, reached, returns(novelty, blocks)[0]))
    return rows


def returns(reward: EpisodeReward, blocks: Sequence[np.ndarray]) -> tuple[float, bool]:
    """The return of an episode that shows these blocks, the starting one first, and whether the reward ended it."""
    state, total = begin_reward(reward, blocks[0]), 0.0
    for previous, current in pairwise(blocks):
        value, ended, state = step_reward(reward, state, previous, None, current)
        total += value
        if ended:
            return total, True
    return total, False


def report(rows: Sequence[Row]) -> str:
    """The table: means over all walks of a kind, and the range of goal returns."""
    lines = [
        "| Walk | Walks | Return, goal picture | Lowest to highest | Distance at the end | Reached | Return, novelty |",
        "|---|---|---|---|---|---|---|",
    ]
    for walk in dict.fromkeys(row.walk for row in rows):
        own = [row for row in rows if row.walk == walk]
        goal = [row.goal_return for row in own]
        distance, novelty = (np.mean([getattr(row, name) for row in own]) for name in ("distance", "novelty_return"))
        lines.append(
            f"| {walk} | {len(own)} | {np.mean(goal):.2f} | {min(goal):.2f} to {max(goal):.2f} | {distance:.2f} "
            f"| {sum(row.reached for row in own)} | {novelty:.2f} |"
        )
    return "\n".join(lines)


def _dreamt(env: YumeWorldEnv, start: EnvState, actions: Sequence[int], noise: int) -> list[np.ndarray]:
    """The starting block and one for each action, from `start` with noise of another seed."""
    world = replace(start.episode.world, seeds=(noise,))
    env.set_state(replace(start, episode=replace(start.episode, world=world)))
    return [start.episode.frames, *(env.step(action)[4]["frames"] for action in actions)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="street", help="a name or a folder of weights")
    parser.add_argument("--goals", type=int, default=5)
    parser.add_argument("--randoms", type=int, default=3, help="random walks for each goal")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rows = benchmark(WorldModel.load(arguments.model), arguments.goals, arguments.randoms, arguments.seed)
    for number in dict.fromkeys(row.goal for row in rows):
        own = [f"{row.walk} {row.goal_return:.2f} at {row.distance:.2f}" for row in rows if row.goal == number]
        print(f"goal {number}: {', '.join(own)}")
    print(report(rows))


if __name__ == "__main__":
    main()
