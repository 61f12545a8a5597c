"""Learns to act by PPO (Stable-Baselines3), in a generated world or in a real one:

    python -m agents.ppo --model runs/takecover --steps 200000 --out runs/agents/generated
    python -m agents.ppo --recording data/takecover --steps 200000 --out runs/agents/real
    python -m agents.ppo --env YumeWorld-v0 --reward beacon --actions W "W right" "W left" right left

A stopped run goes on with the same command. `--out` gets `agent.zip`, `settings.json` and TensorBoard's files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from tqdm import tqdm

from agents.choice import FewerActions, action_number
from agents.worlds import Where, add_options, chosen

AGENT, REWARDS, SETTINGS = "agent.zip", "rewards.pkl", "settings.json"


@dataclass(frozen=True)
class Settings:
    """Numbers of a run. Rewards are divided by the deviation of returns while learning; what is logged and evaluated is not.

    actions: those of the environment that the agent chooses among, all if there are none.
    """

    steps: int = 200_000  # of all worlds together
    worlds: int = 16
    rollout: int = 64  # steps of each world between updates
    batch: int = 256
    epochs: int = 4
    lr: float = 3e-4
    gamma: float = 0.99
    entropy: float = 0.01
    seed: int = 0
    actions: tuple[int, ...] = ()


NUMBERS = tuple(field for field in dataclasses.fields(Settings) if field.name != "actions")


class Progress(BaseCallback):
    """A bar, and a copy of the agent after every rollout."""

    def __init__(self, out: Path, total: int, done: int) -> None:
        super().__init__()
        self.out, self.bar = out, tqdm(total=total, initial=done, unit="step", desc=out.name, mininterval=5)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        finished = self.model.ep_info_buffer
        if finished:
            self.bar.set_postfix_str(f"return {sum(e['r'] for e in finished) / len(finished):.1f}")

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            save(self.model, self.out)

    def _on_training_end(self) -> None:
        self.bar.close()


def save(model: BaseAlgorithm, out: Path) -> None:
    """Writes agent and reward statistics beside the old ones, then replaces these."""
    model.save(out / "unfinished.zip")
    statistics = model.get_vec_normalize_env()
    assert statistics is not None
    statistics.save(str(out / "unfinished.pkl"))
    os.replace(out / "unfinished.pkl", out / REWARDS)
    os.replace(out / "unfinished.zip", out / AGENT)


def learn(where: Where, settings: Settings, out: Path) -> PPO:
    """Trains until `settings.steps`, beginning with what is in `out`.

    Raises ValueError where `out` holds an agent of other settings or worlds, or where the worlds have not these actions.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked = {"where": dataclasses.asdict(where), "settings": dataclasses.asdict(settings) | {"steps": None}}
    kept = out / SETTINGS
    if (out / AGENT).is_file() and _with_defaults(json.loads(kept.read_text())) != json.loads(json.dumps(asked)):
        raise ValueError(f"{out} holds an agent of other settings or worlds: use another folder, or delete that one")
    kept.write_text(json.dumps(asked, indent=1))
    worlds = where.make(settings.worlds, settings.seed)
    if settings.actions:
        worlds = FewerActions(worlds, settings.actions)
    if (out / AGENT).is_file():
        normalised = VecNormalize.load(str(out / REWARDS), worlds)
        model = PPO.load(out / AGENT, env=normalised)
    else:
        normalised = VecNormalize(worlds, norm_obs=False, gamma=settings.gamma)
        model = PPO(
            "CnnPolicy",
            normalised,
            learning_rate=settings.lr,
            n_steps=settings.rollout,
            batch_size=settings.batch,
            n_epochs=settings.epochs,
            gamma=settings.gamma,
            ent_coef=settings.entropy,
            seed=settings.seed,
            tensorboard_log=str(out),
        )
    left = settings.steps - model.num_timesteps
    if left > 0:
        model.learn(left, Progress(out, settings.steps, model.num_timesteps), reset_num_timesteps=False)
        save(model, out)
    worlds.close()
    return model


def _with_defaults(kept: dict[str, Any]) -> dict[str, Any]:
    """What `settings.json` says, and defaults for settings that were added since it was written."""
    added = json.loads(json.dumps(dataclasses.asdict(Settings())))
    return {**kept, "settings": added | kept["settings"]}


def actions_of(agent: Path) -> tuple[int, ...]:
    """The actions that the agent in a file learnt to choose among, as the `settings.json` beside it says; () for all."""
    kept = agent.parent / SETTINGS
    return tuple(json.loads(kept.read_text())["settings"].get("actions", ())) if kept.is_file() else ()


def add_actions(parser: argparse.ArgumentParser) -> None:
    """`--actions`."""
    parser.add_argument(
        "--actions",
        nargs="+",
        type=action_number,
        default=[],
        metavar="ACTION",
        help="choose among these only: numbers, or keys as in W right 'W right' (default: all; scripted has its own)",
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    add_actions(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/agent"), help="(default runs/agent)")
    for field in NUMBERS:
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"(default {field.default})")
    given = vars(parser.parse_args(argv))
    settings = Settings(**{field.name: given[field.name] for field in NUMBERS}, actions=tuple(given["actions"]))
    try:
        learn(chosen(given), settings, given["out"])
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"agent in {given['out'] / AGENT}")


if __name__ == "__main__":
    main()
