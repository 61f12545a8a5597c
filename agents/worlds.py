"""Where agents act: generated worlds, the environments behind recordings, or any registered environment, N at once for SB3."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor

import yume_gym  # registers the environments
import yume_gym.sb3
from train.recordings import read_recording
from train.recordings.environment import RecordedEnv, RecordSettings

GENERATED = "YumeWorld-v0"
FRAMES = 4  # newest pictures that every agent sees
LONGEST, BEACON_LONGEST = 500, 60  # steps of an episode in a generated world, where nothing else is said


@dataclass(frozen=True)
class Where:
    """One kind of world. `recording`: folder of train.record, whose real environment it is; else `env`, an id, and `arguments`.
    `longest`: steps after which an episode is truncated, None for the environment's own limit."""

    env: str = GENERATED
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recording: str | None = None
    longest: int | None = None

    def make(self, count: int, seed: int) -> VecEnv:
        """`count` worlds; observations are the newest `FRAMES` pictures along the channels, uint8 [H, W, 3 * FRAMES]."""
        if self.recording is not None:
            settings = RecordSettings.of(read_recording(Path(self.recording)))
            settings = replace(settings, max_episode_steps=self.longest or settings.max_episode_steps)
            worlds: VecEnv = VecMonitor(DummyVecEnv([lambda: RecordedEnv(settings) for _ in range(count)]))
            worlds.seed(seed)
        else:
            limit = {} if self.longest is None else {"max_episode_steps": self.longest}
            worlds = yume_gym.sb3.make_vec_env(self.env, count, seed, **{**self.arguments, **limit})
        return VecFrameStack(worlds, FRAMES)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--recording`, `--env`, `--reward`, `--ray`, `--longest` and `--arguments`; see `chosen`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model", metavar="RUN", help="act in the world that this model generates")
    where.add_argument("--recording", metavar="FOLDER", help="act in the real environment behind this recording")
    where.add_argument("--env", help=f"act in this environment, such as {GENERATED}")
    parser.add_argument("--reward", help="of generated worlds: beacon, novelty, motion, learned, goal:PATH, text:WORDS")
    parser.add_argument("--ray", type=int, metavar="WORKERS", help="divide the worlds among so many workers of Ray")
    parser.add_argument(
        "--longest",
        type=int,
        metavar="STEPS",
        help=f"truncate episodes after so many steps (generated worlds: {LONGEST}, for the beacon {BEACON_LONGEST})",
    )
    parser.add_argument(
        "--arguments", type=json.loads, default={}, help="""of the environment, '{"reward": "motion"}'"""
    )


def chosen(given: Mapping[str, Any]) -> Where:
    """What the options of `add_options` ask for. Raises FileNotFoundError for a folder that is not there, ValueError for
    options that exclude each other."""
    for name in ("model", "recording"):
        if given[name] is not None and not Path(given[name]).is_dir():
            raise FileNotFoundError(f"--{name} {given[name]}: no such folder; train.record and train.world make them")
    arguments = dict(given["arguments"]) | {name: given[name] for name in ("model", "reward") if given[name]}
    if given["recording"] and (arguments or given["ray"]):
        raise ValueError(
            "--recording is a real environment as it was recorded: leave out --reward, --ray and --arguments"
        )
    if given["ray"] is not None:
        arguments |= {"workers": "ray", "num_workers": given["ray"]}
    env, longest = given["env"] or GENERATED, given["longest"]
    if longest is None and env == GENERATED and not given["recording"]:
        longest = BEACON_LONGEST if arguments.get("reward") == "beacon" else LONGEST
    return Where(env, arguments, given["recording"], longest)
