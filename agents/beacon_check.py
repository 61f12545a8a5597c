"""Does the learned reward of the beacon agree with the true one? `python -m agents.beacon_check [--model street] [--episodes 24]`

Episodes of `YumeStreetBeacon-v0` in towns that nothing was trained on. The scripted agent acts, and every fourth action is
random. The reward that a generated world would give (`yume_gym.learned_rewards.Beacon`) is computed from the same pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

import yume_gym  # noqa: F401  (registers the environments)
from agents.scripted import BeaconSeeker
from train.generator.measures import average_precision
from world_model.presets import preset_like
from yume_gym.rewards import Beacon, begin_reward, step_reward

FIRST_TOWN = 3000  # towns from here on are for published figures only
RANDOM = 0.25  # share of actions


def check(reward: Beacon, episodes: int, seed: int = 0, preset: str = "street") -> dict[str, float]:
    """What a bound reward says of so many true episodes.

    Of steps: average precision of the probability of arrival, arrivals found and false ones, and the correlation of true and
    learned progress while a pillar is seen. Of episodes: the correlation of returns.
    """
    rng = np.random.default_rng(seed)
    steps: dict[str, list[Any]] = {name: [] for name in ("arrived", "probability", "said", "true", "learned", "seen")}
    returns = []
    for number in range(episodes):
        env = gymnasium.make("YumeStreetBeacon-v0", town_seed=FIRST_TOWN + number, preset=preset)
        env.action_space.seed(seed + number)
        observation, info = env.reset(seed=seed + number)
        state, done, total = begin_reward(reward, info["frames"]), False, np.zeros(2)
        while not done:
            held = BeaconSeeker.act(observation).index if rng.random() > RANDOM else int(env.action_space.sample())
            before = info["frames"]
            observation, true, arrived, cut, info = env.step(held)
            learned, said, state = step_reward(reward, state, before, held, info["frames"])
            seen, probability, _ = reward.measure(info["frames"][-1])
            row = {"arrived": arrived, "probability": probability, "said": said, "seen": seen >= 0.5}
            for name, value in (row | {"true": float(true) - 10 * arrived, "learned": learned - 10 * said}).items():
                steps[name].append(value)
            total += (float(true), learned)
            done = arrived or cut
        env.close()
        returns.append((float(total[0]), float(total[1])))
    table = {name: np.array(values) for name, values in steps.items()}
    came, told, view = (table[name].astype(bool) for name in ("arrived", "said", "seen"))
    return {
        "episodes": episodes,
        "steps": len(came),
        "arrivals": int(came.sum()),
        "arrivals found": int((came & told).sum()),
        "false arrivals": int((~came & told).sum()),
        "average precision": average_precision(table["probability"], came),
        "share of steps with a pillar in view": float(view.mean()),
        "correlation of progress in view": float(np.corrcoef(table["true"][view], table["learned"][view])[0, 1]),
        "correlation of returns": float(
            np.corrcoef([one for one, _ in returns], [other for _, other in returns])[0, 1]
        ),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a name or a folder of weights")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    world: Any = gymnasium.make("YumeWorld-v0", model=given.model, reward="beacon").unwrapped
    print(json.dumps(check(world.reward_fn, given.episodes, given.seed, preset_like(world.model.config)), indent=1))


if __name__ == "__main__":
    main()
