"""Rewards that compare pictures in the latents of a model's autoencoder: a goal picture, and novelty."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from world_model.checks import check_finite, check_whole, short
from yume_gym.episode_reward import EpisodeReward, GoalReward, GoalState
from yume_gym.pictures import load_picture, open_picture

if TYPE_CHECKING:
    from world_model.model import WorldModel

MOST_STARTS = 32  # starting pictures that the unit of distance is measured on


class Latents:
    """Pictures of one model as latents, and how unlike two of them are.

    The distance of two pictures is the root mean square difference of their latents in units of `unit`, the median of that
    difference over pairs of the model's starting pictures. So 0 is the same picture and 1 is as unlike as two unrelated
    pictures of this model usually are; there is no upper bound. A model with fewer than two different starting pictures has
    the unit sqrt(2), the difference of independent latents of variance 1.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model
        starts = [] if model.starts is None else [self.of(picture) for picture in model.starts[:MOST_STARTS]]
        apart = [apart for one, other in combinations(starts, 2) if (apart := _difference(one, other)) > 0]
        self.unit = float(np.median(apart)) if apart else math.sqrt(2)

    def of(self, picture: np.ndarray) -> np.ndarray:
        """Latents float32 [C, h, w], read-only, of a picture uint8 [H, W, 3]. Raises ValueError for one of another size."""
        from world_model.threads import fair_threads  # torch is there already: a model is

        with fair_threads(self.model.device):
            latents = self.model.encode(picture[None])[0]
        latents.flags.writeable = False
        return latents

    def distance(self, one: np.ndarray, other: np.ndarray) -> float:
        """Of two latents: 0 the same, 1 as unlike as unrelated pictures."""
        return _difference(one, other) / self.unit


class _LatentReward(EpisodeReward):
    """What rewards in latents share: they need a model."""

    _bound: Latents | None = None

    @property
    def needs_model(self) -> bool:
        return self._bound is None

    @property
    def latents(self) -> Latents:
        """How it sees pictures. Raises ValueError before `bind`."""
        if self._bound is None:
            raise ValueError(f"{self!r} needs a model: call bind(model), or give it to YumeWorld-v0, which does")
        return self._bound

    def bind(self, model: WorldModel) -> _LatentReward:
        """The same reward in the latents of `model`; this one stays as it is."""
        bound = copy.copy(self)
        bound._bound = Latents(model)
        return bound


class GoalPicture(GoalReward, _LatentReward):
    """Come to where the world looks like a picture.

    The reward of a step is by how much the distance to the goal picture fell (`Latents.distance` of the block's last frame: 1
    is as far as unrelated pictures are), so it is negative on the way off and 0 while the picture stays the same. Rewards of
    an episode add up to the distance at its start less that at its end. A step that ends within `threshold` of the goal earns
    `bonus` besides and terminates the episode.

    Pictures are compared place by place: of the same spot seen a little to the side, the distance is already large, so there
    is little to follow from afar. Light and weather count, too.

    image: a path, a PIL image or a uint8 array (H, W, 3), at least 16 x 16; cut to the model's aspect and resized.
    threshold: distance, above 0. With the `street` model the same walk dreamt with other noise ends within .2 of itself, and a
    step aside is mostly farther; `python -m yume_gym.reward_benchmark` measures that for any first-person model.
    bonus: any finite number.
    Raises TypeError or ValueError for what is none of these, FileNotFoundError where a path names no file.
    """

    _towards = -1.0

    def __init__(
        self, image: str | os.PathLike | Image.Image | np.ndarray, threshold: float = 0.2, bonus: float = 1.0
    ) -> None:
        self.image = np.array(open_picture(image), dtype=np.uint8)
        self.threshold, self.bonus = check_finite("threshold", threshold), check_finite("bonus", bonus)
        if self.threshold <= 0:
            raise ValueError(
                f"threshold must be above 0 (0 is the goal picture itself, 1 an unrelated one); got {threshold}"
            )
        self._goal: np.ndarray | None = None  # its latents
        self._digest = ""

    def bind(self, model: WorldModel) -> GoalPicture:
        bound = super().bind(model)
        assert isinstance(bound, GoalPicture)
        picture = load_picture(self.image, model.config.height, model.config.width)
        bound._goal = bound.latents.of(picture)
        bound._digest = hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest()
        return bound

    def distance(self, picture: np.ndarray) -> float:
        """How far a picture uint8 [H, W, 3] of the model's size is from the goal: 0 the same, 1 unrelated."""
        seen = self.latents.of(picture)
        assert self._goal is not None
        return self.latents.distance(seen, self._goal)

    @property
    def _goal_name(self) -> str:
        return self._digest

    def _measure(self, picture: np.ndarray) -> float:
        return self.distance(picture)

    def _reached(self, value: float) -> bool:
        return value <= self.threshold

    def check(self, state: Any) -> None:
        fits = isinstance(state, GoalState) and isinstance(state.value, float)
        if not fits or not math.isfinite(state.value) or state.value < 0 or state.goal != self._digest:
            raise ValueError(f"a state of {self!r} is a distance of 0 or more to its own goal picture")

    def __repr__(self) -> str:
        rows, columns = self.image.shape[:2]
        return f"GoalPicture(a picture of {rows}x{columns}, threshold={self.threshold}, bonus={self.bonus})"


class Novelty(_LatentReward):
    """See what was not seen yet in this episode.

    The reward of a step is the distance (`Latents.distance`) of its last frame to the nearest of the pictures remembered: the
    starting picture and the last frames of the steps since. It is 0 for a picture seen before, about 1 for one unrelated to
    all of them, and never ends an episode. Only the latest `memory` pictures are remembered, so a longer episode may earn
    again from what it has forgotten.

    Noise counts as new: a generated picture that flickers earns a little even where nothing moves.

    memory: pictures, 1 or more; each takes the bytes of its latents (12 KiB of the `street` model's) in a saved state.
    Raises TypeError or ValueError for another memory.
    """

    def __init__(self, memory: int = 64) -> None:
        self.memory = check_whole("memory", memory, least=1)

    def begin(self, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        return (self.latents.of(frames[-1]),)

    def step(
        self, state: tuple[np.ndarray, ...], previous: np.ndarray, action: Any, current: np.ndarray
    ) -> tuple[tuple[float, bool], tuple[np.ndarray, ...]]:
        seen = self.latents.of(current[-1])
        nearest = min(self.latents.distance(seen, one) for one in state)
        return (nearest, False), (*state, seen)[-self.memory :]

    def check(self, state: Any) -> None:
        if not isinstance(state, tuple) or not 1 <= len(state) <= self.memory:
            raise ValueError(f"a state of {self!r} is a tuple of 1 to {self.memory} latents; got {short(state)}")
        config = self.latents.model.config
        shape = (config.dit.latent_channels, *config.latent_size)
        for one in state:
            if not isinstance(one, np.ndarray) or one.shape != shape or one.dtype != np.float32:
                raise ValueError(f"each picture in a state of {self!r} must be float32 {shape}; got {short(one)}")
            if not np.isfinite(one).all():
                raise ValueError(f"each picture in a state of {self!r} must be finite")

    def __repr__(self) -> str:
        return f"Novelty(memory={self.memory})"


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(one - other, dtype=np.float64))))
