"""Rewards that small trained heads read from pictures: the pillar of light, and a text. `train.picture_heads` trains the heads."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from world_model.checks import check_finite, short
from yume_gym.episode_reward import EpisodeReward, GoalReward, GoalState
from yume_gym.street.beacon import ARRIVAL_BONUS
from yume_gym.street.events import check_text

if TYPE_CHECKING:
    from world_model.model import WorldModel
    from world_model.picture_heads import PictureHead

Self = TypeVar("Self", bound="_HeadReward")
SURE = 0.95  # probability that a pillar is in view, for it to be reached


class _HeadReward(EpisodeReward):
    """What rewards of a head share: they need a model whose weights have it."""

    head_name: str
    _model: WorldModel | None = None
    _head: PictureHead

    @property
    def needs_model(self) -> bool:
        return self._model is None

    def bind(self: Self, model: WorldModel) -> Self:
        """The same reward for pictures of `model`. Raises ValueError for weights without the head."""
        from world_model.picture_heads import load_picture_head  # torch is there already: a model is

        bound = copy.copy(self)
        bound._model, bound._head = model, load_picture_head(model.folder, self.head_name)
        return bound

    @property
    def threshold(self) -> float:
        """Probability from which the goal counts as reached. Raises ValueError before `bind`."""
        self._latents_model()
        return self._head.config.threshold

    def _latents_model(self) -> WorldModel:
        if self._model is None:
            raise ValueError(f"{self!r} needs a model: call bind(model), or give it to YumeWorld-v0, which does")
        return self._model

    def _encoded(self, picture: np.ndarray) -> Any:
        """Latents [1, C, h, w], a tensor, of a picture uint8 [H, W, 3] of the model's size."""
        import torch

        from world_model.threads import fair_threads

        model = self._latents_model()
        with fair_threads(model.device):
            return torch.from_numpy(model.encode(picture[None]))


@dataclass(frozen=True)
class BeaconState:
    """Metres to the pillar as far as they were seen, inf before it came into view."""

    distance: float


class Beacon(_HeadReward):
    """Walk to the pillar of light: the reward of `YumeStreetBeacon-v0`, read from pictures by the head `beacon`.

    The reward of a step is by how much the distance to the pillar fell, in units of the farthest a step can go, so -1..1; it is
    0 while no pillar is seen. The distance that is remembered changes by no more than a step can go, so that one wrong look
    costs little and rewards of an episode add up. A step after which the pillar is reached (within 3 m) earns 10 besides and
    terminates: the head's probability of it is at its threshold or above, and that of a pillar in view at 0.95 or above, since
    yellow walls close by look a little like one.
    Starting pictures show a pillar 8 to 22 m ahead, where reset is given neither picture nor text.
    """

    head_name = "beacon"
    _starts: np.ndarray | None = None
    _step = 1.0  # metres that a held walking key means

    def bind(self, model: WorldModel) -> Beacon:
        from world_model.weights import read_strip

        bound, config = super().bind(model), model.config
        assert model.folder is not None
        bound._starts = read_strip(model.folder, "beacon.png", config)
        bound._step = config.camera.walk_speed * config.frames_per_block / config.fps
        return bound

    def starting_image(self, number: int) -> np.ndarray | None:
        return None if self._starts is None else self._starts[number % len(self._starts)].copy()

    def measure(self, picture: np.ndarray) -> tuple[float, float, float]:
        """(probability that a pillar is in view, probability that it is reached, metres to it) of a picture uint8 [H, W, 3]."""
        from world_model.picture_heads import ARRIVED, DISTANCE, SEEN

        latents = self._encoded(picture)
        found = self._head(latents)[0]
        seen, arrived = (float(self._head.probability(found[number], number)) for number in (SEEN, ARRIVED))
        return seen, arrived, max(0.0, float(found[DISTANCE].expm1()))

    def begin(self, frames: np.ndarray) -> BeaconState:
        seen, _, distance = self.measure(frames[-1])
        return BeaconState(distance if seen >= 0.5 else math.inf)

    def step(
        self, state: BeaconState, previous: np.ndarray, action: Any, current: np.ndarray
    ) -> tuple[tuple[float, bool], BeaconState]:
        seen, arrived, distance = self.measure(current[-1])
        if seen < 0.5:
            return (0.0, False), state
        if math.isinf(state.distance):
            return (0.0, False), BeaconState(distance)
        now = min(max(distance, state.distance - self._step), state.distance + self._step)
        there = arrived >= self.threshold and seen >= SURE
        return ((state.distance - now) / self._step + ARRIVAL_BONUS * there, there), BeaconState(now)

    def check(self, state: Any) -> None:
        if not isinstance(state, BeaconState) or not isinstance(state.distance, float) or not state.distance >= 0:
            raise ValueError(f"a state of {self!r} is a distance of 0 or more; got {short(state)}")

    def __repr__(self) -> str:
        return "Beacon()"


class TextGoal(GoalReward, _HeadReward):
    """Come to where a text fits what is seen, or wait until it does: "a snowy night in the old town", "a dinosaur".

    The reward of a step is by how much the probability rose that the text fits the block's last frame, so -1..1. A step after
    which that is at the threshold or above earns `bonus` besides and terminates the episode. The probability is that of the head
    `text_goal`, which compares the frozen text encoder's reading of the text with the picture's latents; it was calibrated on
    as many fitting as unfitting texts.

    text: at most 500 characters. threshold: probability above 0 and to 1, None for the head's own. bonus: any finite number.
    Raises TypeError or ValueError for what is none of these.
    """

    head_name = "text_goal"
    _embedding: Any = None  # of the text, a tensor [E]

    def __init__(self, text: str, threshold: float | None = None, bonus: float = 1.0) -> None:
        self.text, self.bonus = check_text(text, "the text of a goal"), check_finite("bonus", bonus)
        self._threshold = None if threshold is None else check_finite("threshold", threshold)
        if self._threshold is not None and not 0 < self._threshold <= 1:
            raise ValueError(f"threshold is a probability above 0 and at most 1; got {threshold}")

    def bind(self, model: WorldModel) -> TextGoal:
        from world_model.picture_heads import encode_text

        bound = super().bind(model)
        bound._embedding = encode_text(model.config, self.text)
        return bound

    @property
    def threshold(self) -> float:
        return super().threshold if self._threshold is None else self._threshold

    def fit(self, picture: np.ndarray) -> float:
        """Probability that the text fits a picture uint8 [H, W, 3] of the model's size."""
        likeness = self._head.likeness(self._encoded(picture), self._embedding[None])
        return float(self._head.probability(likeness))

    @property
    def _goal_name(self) -> str:
        return self.text

    def _measure(self, picture: np.ndarray) -> float:
        return self.fit(picture)

    def _reached(self, value: float) -> bool:
        return value >= self.threshold

    def check(self, state: Any) -> None:
        fits = isinstance(state, GoalState) and state.goal == self.text and isinstance(state.value, float)
        if not fits or not 0 <= state.value <= 1:
            raise ValueError(f"a state of {self!r} is a probability that its own text fits; got {short(state)}")

    def __repr__(self) -> str:
        return f"TextGoal({self.text!r}, threshold={self._threshold}, bonus={self.bonus})"
