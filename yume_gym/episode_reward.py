"""The form of rewards that remember an episode or look at a model's latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from world_model.model import WorldModel


class EpisodeReward(ABC):
    """A reward with a state for each episode. Subclass it where a function of two blocks of frames is not enough.

    The object itself holds what all episodes share and never changes: one may serve many environments and all worlds of a
    batch. What it remembers of one episode is a value that `begin` and `step` return. The environment keeps it with the
    world, so saving, restoring and forking a world does the same to it. `step` must return a new value and leave the one it
    was given as it is; values must be picklable.

    Frames are one block, uint8 [T, H, W, 3], read-only; that of `begin` is the starting picture T times.
    """

    @property
    def needs_model(self) -> bool:
        """Whether it has to be bound to a model before it can be used."""
        return False

    def bind(self, model: WorldModel) -> EpisodeReward:
        """This reward for pictures of `model`: a copy, or itself where it uses no model. `YumeWorldEnv` calls it once."""
        return self

    def starting_image(self, number: int) -> np.ndarray | None:
        """A picture uint8 [H, W, 3] to start from where reset is given neither picture nor text, drawn with `number` (0 or more);
        None for one of the model's own."""
        return None

    @abstractmethod
    def begin(self, frames: np.ndarray) -> Any:
        """The state of an episode that begins with these frames."""

    @abstractmethod
    def step(
        self, state: Any, previous: np.ndarray, action: Any, current: np.ndarray
    ) -> tuple[tuple[float, bool], Any]:
        """((reward, terminated), the state afterwards) of one step; arguments beside the state as `RewardFn` has them."""

    def check(self, state: Any) -> None:  # noqa: B027  (a reward of one's own may accept every state)
        """Raises ValueError for what neither `begin` nor `step` of this reward gives: a state may come from elsewhere."""


@dataclass(frozen=True)
class GoalState:
    """Which goal, and what was measured of the last frame."""

    goal: str  # its text, or a digest of its picture
    value: float  # distance to the picture, or probability that the text fits


class GoalReward(EpisodeReward):
    """A goal whose distance or fit is measured on the last frame of every block.

    The reward of a step is by how much that improved. A step after which the goal is reached earns `bonus` besides and terminates
    the episode.
    """

    bonus: float
    _towards = 1.0  # 1: the measure rises on the way to the goal; -1: it falls

    @property
    @abstractmethod
    def _goal_name(self) -> str:
        """`GoalState.goal` of this goal."""

    @abstractmethod
    def _measure(self, picture: np.ndarray) -> float:
        """Of a picture uint8 [H, W, 3] of the model's size."""

    @abstractmethod
    def _reached(self, value: float) -> bool:
        """Whether the goal is reached where `value` is measured."""

    def begin(self, frames: np.ndarray) -> GoalState:
        return GoalState(self._goal_name, self._measure(frames[-1]))

    def step(
        self, state: GoalState, previous: np.ndarray, action: Any, current: np.ndarray
    ) -> tuple[tuple[float, bool], GoalState]:
        now = self._measure(current[-1])
        reached = self._reached(now)
        return (self._towards * (now - state.value) + self.bonus * reached, reached), GoalState(self._goal_name, now)
