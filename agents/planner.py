"""Plans in a generated world, acts anywhere: the cross-entropy method over sequences of actions, replanned every few steps.

    python -m agents.evaluate --agent planner:runs/grid --recording data/grid --episodes 20

Each plan begins at the picture that is seen now. All candidates are worlds of one batch; what a candidate earns is the learned
reward up to the learned end. The rest of the plan before is one of the first candidates. Nothing is trained. (Cross-entropy
method in a learned model: PETS, arXiv 1805.12114, algorithm 1.) A plan costs candidates x horizon x rounds steps of a world.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

import yume_gym  # noqa: F401  (registers the environments)
from agents.choice import check_actions


@dataclass(frozen=True)
class Settings:
    """Numbers of a plan."""

    candidates: int = 32
    horizon: int = 12  # steps
    rounds: int = 2  # of drawing candidates
    elite: int = 6  # candidates that the next round is fitted to
    smoothing: float = 0.2  # share of the first distribution that stays
    discount: float = 0.97
    commit: int = 4  # steps of a plan that are taken before the next one
    sampler_steps: int | None = None  # of each block of a plan; None: the model's own
    seed: int = 0


COUNTS = ("candidates", "horizon", "rounds", "elite", "commit")
OPTIONS = (*COUNTS, "sampler_steps")  # settings that are options of commands


def add_planner(parser: argparse.ArgumentParser) -> None:
    """`--planner-candidates` and the other `OPTIONS`."""
    for name in OPTIONS:
        default = getattr(Settings(), name)
        said = "the model's own" if default is None else default
        parser.add_argument(f"--planner-{name.replace('_', '-')}", type=int, default=default, help=f"(default {said})")


def planner_settings(given: dict[str, Any]) -> Settings:
    """Takes what `add_planner` added out of `given`. Raises ValueError for numbers that make no plan."""
    found = Settings(**{name: given.pop(f"planner_{name}") for name in OPTIONS})
    if min(getattr(found, name) for name in COUNTS) < 1:
        raise ValueError("numbers of a plan are 1 or more")
    return found


class Choices:
    """Independent distributions of the action of each step of a plan, for Discrete and Box spaces.

    Raises ValueError for other spaces.
    """

    def __init__(self, space: gymnasium.Space, settings: Settings) -> None:
        self._space, self._settings = space, settings
        if isinstance(space, gymnasium.spaces.Discrete):
            self._shares = np.full((settings.horizon, int(space.n)), 1 / int(space.n))
        elif isinstance(space, gymnasium.spaces.Box):
            middle, spread = (space.high + space.low) / 2, (space.high - space.low) / 2
            self._mean = np.repeat(middle[None], settings.horizon, 0)
            self._spread = np.repeat(spread[None], settings.horizon, 0)
        else:
            raise ValueError(f"the planner chooses actions of Discrete and Box spaces, this one is {space}")
        self._discrete = isinstance(space, gymnasium.spaces.Discrete)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """[candidates, horizon, ...] actions."""
        s = self._settings
        if self._discrete:
            edges = self._shares.cumsum(axis=1)[None]
            return (rng.random((s.candidates, s.horizon, 1)) > edges[..., :-1]).sum(axis=-1)
        box: Any = self._space
        noise = rng.normal(size=(s.candidates, *self._mean.shape))
        return np.clip(self._mean + self._spread * noise, box.low, box.high).astype(np.float32)

    def fit(self, elite: np.ndarray) -> None:
        """Moves the distributions towards the best candidates [elite, horizon, ...]."""
        keep = self._settings.smoothing
        if self._discrete:
            counts = np.eye(self._shares.shape[1])[elite].mean(axis=0)
            self._shares = keep * self._shares + (1 - keep) * counts
            return
        self._mean = keep * self._mean + (1 - keep) * elite.mean(axis=0)
        self._spread = keep * self._spread + (1 - keep) * elite.std(axis=0)


_NONE: tuple[Any, int] = (None, 0)  # no plan, and no step of it taken


class Planner:
    """An agent for `agents.evaluate`: `predict` plans for every world that it is shown, one after another."""

    def __init__(
        self, model: str, settings: Settings = Settings(), reward: str | None = None, actions: Sequence[int] = ()
    ) -> None:
        """model: the world to plan in, a run folder or a name. reward: a name of `YumeWorld-v0`; None is the model's own. actions:
        those to choose among, all if there are none."""
        self.settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self._worlds = gymnasium.make_vec(
            "YumeWorld-v0",
            num_envs=settings.candidates,
            vectorization_mode="vector_entry_point",
            model=model,
            autoreset_mode=AutoresetMode.SAME_STEP,
            reward=reward,
            steps=settings.sampler_steps,
        )
        self._space = self._worlds.single_action_space
        self._actions = check_actions(actions, self._space) if actions else None
        if self._actions is not None:
            self._space = gymnasium.spaces.Discrete(len(self._actions))

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Pictures uint8 [N, H, W, 3 * frames], the newest last -> actions [N, ...], and the plan of each world as the state.

        Worlds of which `episode_start` [N] is true, or all without a state, begin a new plan.
        """
        count = len(observation)
        plans = [_NONE] * count if state is None else list(state)
        if episode_start is not None:
            plans = [_NONE if begins else plan for plan, begins in zip(plans, episode_start)]
        for number, (plan, taken) in enumerate(plans):
            if plan is None or taken == min(self.settings.commit, self.settings.horizon):
                rest = None if plan is None else plan[taken:]
                plans[number] = self.plan(np.ascontiguousarray(observation[number, ..., -3:]), rest), 0
        actions = np.stack([np.asarray(plan[taken]) for plan, taken in plans])
        return actions if self._actions is None else self._actions[actions], tuple(
            (plan, taken + 1) for plan, taken in plans
        )

    def plan(self, picture: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """The best plan [horizon, ...] from a picture uint8 [H, W, 3], in numbers of `actions` where there are any; `before`
        [steps, ...] begins one of the first candidates."""
        choices = Choices(self._space, self.settings)
        best, highest = np.zeros(0), -np.inf
        for number in range(self.settings.rounds):
            drawn = choices.draw(self._rng)
            if before is not None and number == 0:
                drawn[0, : len(before)] = before
            earned = self.earned(picture, drawn)
            order = np.argsort(-earned, kind="stable")
            if earned[order[0]] > highest:
                best, highest = drawn[order[0]], earned[order[0]]
            choices.fit(drawn[order[: self.settings.elite]])
        return best

    def earned(self, picture: np.ndarray, plans: np.ndarray) -> np.ndarray:
        """Discounted learned rewards [candidates] of plans [candidates, horizon, ...] from a picture, up to the learned ends."""
        self._worlds.reset(seed=int(self._rng.integers(2**31)), options={"image": picture})
        total, alive = np.zeros(len(plans)), np.ones(len(plans), bool)
        plans = plans if self._actions is None else self._actions[plans]
        for step in range(plans.shape[1]):
            _, reward, terminated, truncated, _ = self._worlds.step(plans[:, step])
            total += alive * self.settings.discount**step * reward
            alive &= ~(terminated | truncated)
            if not alive.any():
                break
        return total
