"""Episodes of an agent as a Minari dataset, for other people's tools of offline reinforcement learning:

    python examples/record_minari.py me/dream-v0 --env YumeWorld-v0 --reward beacon --longest 30 --episodes 20
    python examples/record_minari.py me/real-v0 --recording data/grid --agent runs/agent --episodes 100
    python examples/record_minari.py --read me/dream-v0

Works for generated and real worlds alike; `--ray 4` divides the worlds among four workers. `--read` says what a dataset holds.
Observations are single pictures, uint8 [H, W, 3]; `agents.*` see the newest four. Needs `pip install 'yume-gym[agents,worlds]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from agents.evaluate import load_agent
from agents.worlds import Where, add_options, chosen


def episodes_of(
    where: Where, agent: str, count: int, worlds: int, seed: int
) -> tuple[list[EpisodeBuffer], spaces.Space]:
    """The first `count` whole episodes of an agent in `worlds` worlds at once, and their space of actions."""
    made = where.make(min(worlds, count), seed)
    player: Any = load_agent(agent, made.action_space, seed)
    seen, state, begins = made.reset(), None, np.ones(made.num_envs, bool)
    going = [EpisodeBuffer(observations=[picture], actions=[]) for picture in newest(seen)]
    finished: list[EpisodeBuffer] = []
    with tqdm(total=count, unit="episode") as bar:
        while len(finished) < count:
            actions, state = player.predict(seen, state, begins)
            seen, rewards, begins, infos = made.step(actions)
            for number, buffer in enumerate(going):
                ended, info = bool(begins[number]), infos[number]
                cut = ended and info.get("TimeLimit.truncated", False)
                after = newest(info["terminal_observation"]) if ended else newest(seen[number])
                buffer.observations.append(after)
                buffer.actions.append(actions[number])
                buffer.rewards.append(float(rewards[number]))
                buffer.terminations.append(ended and not cut)
                buffer.truncations.append(cut)
                if ended:
                    finished.append(buffer)
                    bar.update()
                    going[number] = EpisodeBuffer(observations=[newest(seen[number])], actions=[])
    made.close()
    return finished[:count], made.action_space


def newest(stacked: np.ndarray) -> np.ndarray:
    """The last picture of observations uint8 [..., H, W, 3 * frames]."""
    return np.ascontiguousarray(stacked[..., -3:])


def write(name: str, episodes: Sequence[EpisodeBuffer], action_space: spaces.Space, agent: str) -> None:
    """Makes the dataset. Raises ValueError where one of this name exists."""
    shape = episodes[0].observations[0].shape
    minari.create_dataset_from_buffers(
        name,
        list(episodes),
        observation_space=spaces.Box(0, 255, shape, np.uint8),
        action_space=action_space,
        algorithm_name=agent,
        jpeg_encoding=False,
    )


def said(name: str) -> str:
    """One line about a dataset that is here."""
    dataset = minari.load_dataset(name)
    returns = [float(np.sum(episode.rewards)) for episode in dataset.iterate_episodes()]
    return (
        f"{name}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, return {np.mean(returns):.3g}, "
        f"observations {dataset.observation_space}, actions {dataset.action_space}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="its name, such as me/dream-v0")
    parser.add_argument("--read", action="store_true", help="only say what the dataset holds")
    add_options(parser)
    parser.add_argument("--agent", default="random", help="as of agents.evaluate")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--worlds", type=int, default=8, help="at once")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(argv))
    try:
        if not given["read"]:
            where = chosen(given)
            episodes, space = episodes_of(where, given["agent"], given["episodes"], given["worlds"], given["seed"])
            write(given["dataset"], episodes, space, given["agent"])
        print(said(given["dataset"]))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
