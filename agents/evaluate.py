"""How good is an agent? Returns and goals of whole episodes, with 95% intervals:

    python -m agents.evaluate --agent runs/agents/generated --recording data/takecover --episodes 50
    python -m agents.evaluate --agent runs/agent --env YumeStreetBeacon-v0
    python -m agents.evaluate --agent random --model runs/takecover

`--agent` is a folder of agents.ppo, a .zip of Stable-Baselines3, "random", "planner:RUN" or
"planner:RUN@REWARD" (agents/planner.py), or "scripted" (agents/scripted.py, for the beacon task).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium import Space
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy

from agents.choice import Translated, check_actions
from agents.planner import Planner, add_planner, planner_settings
from agents.planner import Settings as PlannerSettings
from agents.ppo import actions_of, add_actions
from agents.scripted import BeaconSeeker
from agents.worlds import Where, add_options, chosen
from train.generator.measures import mean_interval

RESAMPLES = 10_000
PLANNER = PlannerSettings()


class Agent(Protocol):
    """What Stable-Baselines3 calls a policy: observations of N worlds, states, which of them begin -> actions, states."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]: ...


class RandomAgent:
    """All actions equally likely, or some of them if `actions` names any."""

    def __init__(self, space: Space, seed: int, actions: Sequence[int] = ()) -> None:
        self._space = space
        self._actions = check_actions(actions, space) if actions else None
        self._rng = np.random.default_rng(seed)
        space.seed(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        if self._actions is not None:
            return self._rng.choice(self._actions, len(observation)), state
        return np.stack([np.asarray(self._space.sample()) for _ in range(len(observation))]), state


@dataclass(frozen=True)
class Result:
    """Of whole episodes: every return, every length, and whether each reached its goal: it ended with a positive reward, and not
    by its limit."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    goals: tuple[bool, ...]

    def __str__(self) -> str:
        mean, low, high = mean_interval(np.array(self.returns), RESAMPLES)
        share, least, most = mean_interval(np.array(self.goals, float), RESAMPLES)
        return (
            f"return {mean:.3g} (95% {low:.3g} to {high:.3g}), goal in {share:.0%} of episodes (95% {least:.0%} to {most:.0%}), "
            f"length {np.mean(self.lengths):.1f} steps, {len(self.returns)} episodes"
        )


def load_agent(
    name: str, space: Space, seed: int, actions: Sequence[int] = (), planner: PlannerSettings = PLANNER
) -> Agent:
    """An agent by name or path. `actions` are those that a random one and a planner choose among, all if there are none; an agent
    that has learnt knows its own. `planner`: how one plans, but for its seed. Raises ValueError for what is no agent, and for
    actions that the space has not."""
    if name == "random":
        return RandomAgent(space, seed, actions)
    if name == "scripted":
        return BeaconSeeker()
    if name.startswith("planner:"):
        model, _, reward = name.removeprefix("planner:").partition("@")
        return Planner(model, replace(planner, seed=seed), reward or None, actions)
    path = Path(name)
    path = path / "agent.zip" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"no agent {name!r}: give a folder of agents.ppo, a .zip of Stable-Baselines3, 'random' or 'planner:RUN'"
        )
    for algorithm in (PPO, A2C, DQN):
        try:
            agent = algorithm.load(path, device="cpu")
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        return Translated(agent, own, space) if (own := actions_of(path)) else agent
    raise ValueError(f"{path} is not an agent of PPO, A2C or DQN")


def evaluate(
    agent: str,
    where: Where,
    episodes: int,
    worlds: int,
    seed: int,
    actions: Sequence[int] = (),
    planner: PlannerSettings = PLANNER,
) -> Result:
    """Plays `episodes` whole episodes in `worlds` worlds at once; actions are drawn from the policy, not its most likely ones."""
    made, goals = where.make(min(worlds, episodes), seed), []

    def note(now: dict[str, Any], _: dict[str, Any]) -> None:
        if now["done"]:
            goals.append(bool(now["reward"] > 0 and not now["info"].get("TimeLimit.truncated", False)))

    try:
        player: Any = load_agent(agent, made.action_space, seed, actions, planner)
        returns, lengths = evaluate_policy(
            player, made, n_eval_episodes=episodes, deterministic=False, return_episode_rewards=True, callback=note
        )
    finally:
        made.close()
    assert isinstance(returns, list) and isinstance(lengths, list)
    return Result(tuple(map(float, returns)), tuple(map(int, lengths)), tuple(goals))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    add_actions(parser)
    add_planner(parser)
    parser.add_argument("--agent", required=True)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--worlds", type=int, default=8, help="at once")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    given = vars(parser.parse_args(argv))
    try:
        planner, where = planner_settings(given), chosen(given)
        counts = given["episodes"], given["worlds"], given["seed"]
        result = evaluate(given["agent"], where, *counts, given["actions"], planner)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(result)
    if given["out"]:
        given["out"].write_text(json.dumps(asdict(result), indent=1))


if __name__ == "__main__":
    main()
