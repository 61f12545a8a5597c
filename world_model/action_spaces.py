"""Action spaces as data: what a recording says of an environment's actions, and what the generator is given of one action.

"first_person" is the 81-way space of `actions.py`, told in captions as in Yume1.5 (section 3.3). The others are Gymnasium's
fundamental spaces; the generator learns a linear embedding of `encode`.

Importing this module imports neither torch nor gymnasium.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from world_model.actions import ALL_ACTIONS, NUM_ACTIONS, Action

Kind = Literal["first_person", "discrete", "multi_discrete", "multi_binary", "box"]


@dataclass(frozen=True)
class ActionSpec:
    """The actions of one world.

    Raises ValueError where the fields contradict each other.
    """

    kind: Kind = "first_person"
    sizes: tuple[
        int, ...
    ] = ()  # choices of each component: (n,) if discrete, nvec, or all 2 if multi_binary; () for a box
    low: tuple[float, ...] = ()  # least value of each component of a box, finite
    high: tuple[float, ...] = ()  # largest value of each component of a box, finite
    meanings: tuple[str, ...] = ()  # name of each action of a discrete space, in order; () where nobody named them

    def __post_init__(self) -> None:
        if self.kind == "box":
            bounds = np.array([self.low, self.high], dtype=np.float64) if len(self.low) == len(self.high) else None
            if bounds is None or not self.low or not np.isfinite(bounds).all() or (bounds[0] >= bounds[1]).any():
                raise ValueError(f"a box needs equally many finite low < high, got low {self.low} and high {self.high}")
        elif self.kind != "first_person" and (not self.sizes or min(self.sizes) < 1):
            raise ValueError(f"a {self.kind} action space needs sizes of 1 or more, got {self.sizes}")
        if self.kind == "discrete" and len(self.sizes) != 1:
            raise ValueError(f"a discrete action space has one size, got {self.sizes}")
        if self.meanings and self.kind != "discrete":
            raise ValueError(f"meanings are for discrete actions, this space is {self.kind}")
        if self.meanings and len(self.meanings) != self.sizes[0]:
            raise ValueError(f"{self.sizes[0]} actions need as many meanings, got {len(self.meanings)}")

    @property
    def width(self) -> int:
        """Numbers that `encode` gives for an action."""
        if self.kind == "first_person":
            return NUM_ACTIONS
        return len(self.low) if self.kind == "box" else sum(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action as an array: () for one number."""
        if self.kind in ("first_person", "discrete"):
            return ()
        return (len(self.low) if self.kind == "box" else len(self.sizes),)

    @property
    def dtype(self) -> type:
        """NumPy type of an action on disk."""
        return np.float32 if self.kind == "box" else np.int64

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest action of the space, each of `shape`; float32 of a box, int64 of others."""
        if self.kind == "box":
            return np.array(self.low, np.float32), np.array(self.high, np.float32)
        sizes = np.array((NUM_ACTIONS,) if self.kind == "first_person" else self.sizes).reshape(self.shape)
        return np.zeros_like(sizes), sizes - 1

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ActionSpec:
        """The inverse of `dataclasses.asdict`, of values that went through JSON. Raises ValueError for what is no such thing."""
        try:
            fields: dict[str, Any] = {name: v if isinstance(v, str) else tuple(v) for name, v in values.items()}
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"no description of an action space: {error}") from error

    @property
    def noop(self) -> Any:
        """The action that stands for doing nothing, as `check` gives it.

        First-person: standing still. Discrete: the one named NOOP, else the first. Others: zeros, brought within a box.
        """
        if self.kind == "first_person":
            return Action()
        if self.kind == "discrete":
            return next((i for i, name in enumerate(self.meanings) if name.upper() == "NOOP"), 0)
        zeros: np.ndarray = np.zeros(self.shape, self.dtype)
        return (
            np.clip(zeros, np.asarray(self.low, np.float32), np.asarray(self.high, np.float32))
            if self.kind == "box"
            else zeros
        )

    @property
    def names(self) -> list[str]:
        """A name for each action of a space that counts them; "action 3" where nobody named it. Raises ValueError for others."""
        if self.kind == "first_person":
            return [action.meaning for action in ALL_ACTIONS]
        if self.kind != "discrete":
            raise ValueError(f"actions of a {self.kind} space are not counted, so they have no names")
        return list(self.meanings) or [f"action {i}" for i in range(self.sizes[0])]

    def check(self, action: Any) -> Any:
        """`action` as this space holds it: an `Action` if first-person, an int if discrete, else an array of `shape`.

        Raises TypeError for another kind of thing, ValueError for a value outside the space.
        """
        if self.kind == "first_person" and isinstance(action, Action):
            return action
        value = np.asarray(action)
        if value.dtype.kind not in ("iuf" if self.kind == "box" else "iu"):
            wanted = "numbers" if self.kind == "box" else "whole numbers"
            raise TypeError(f"an action of this {self.kind} space is made of {wanted}, got {action!r}")
        if value.shape != self.shape:
            raise ValueError(
                f"an action of this {self.kind} space has shape {self.shape}, got {value.shape}: {action!r}"
            )
        if self.kind == "first_person":
            return Action.from_index(int(value))
        low, high = self.bounds
        if not (np.isfinite(value).all() and (value >= low).all() and (value <= high).all()):
            raise ValueError(f"action {action!r} is outside of this {self.kind} space: accepted is {low} to {high}")
        return int(value) if self.kind == "discrete" else value.astype(self.dtype)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """[B, *shape] -> [B, width] float32: one-hot for each component, or a box scaled to -1..1."""
        if self.kind == "box":
            low, high = self.bounds
            return (2 * (np.asarray(actions, np.float32) - low) / (high - low) - 1).astype(np.float32)
        sizes = (NUM_ACTIONS,) if self.kind == "first_person" else self.sizes
        columns = np.asarray(actions, np.int64).reshape(len(actions), len(sizes))
        starts = np.array(list(itertools.accumulate(sizes, initial=0))[:-1])
        encoded = np.zeros((len(actions), sum(sizes)), np.float32)
        np.put_along_axis(encoded, columns + starts, 1.0, axis=1)
        return encoded
