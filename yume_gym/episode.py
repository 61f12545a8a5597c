"""Where an episode stands, as a value: what single and vector environments hold of each world between two calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from einops import rearrange, repeat

from world_model.actions import Action
from world_model.checks import check_whole, short
from yume_gym.clock import WallClock
from yume_gym.street.events import EventSchedule


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a world makes of one step. `frames` uint8 [T, H, W, 3]; `info` adds the world's own keys (fresh objects)."""

    world: Any
    frames: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True, eq=False)
class EpisodeState:
    """Where an episode stands: the world, the latest block of frames, the number of steps taken, the events, and what an
    `EpisodeReward` remembers of it (None without one)."""

    world: Any
    frames: np.ndarray
    step: int
    schedule: EventSchedule
    reward_state: Any = None

    @classmethod
    def begin(cls, world: Any, picture: np.ndarray, length: int, schedule: EventSchedule) -> EpisodeState:
        """The start of an episode: its first block is the picture uint8 [1, H, W, 3], `length` times."""
        return cls(world, repeat(picture, "1 h w c -> t h w c", t=length), 0, schedule)

    def after(self, world: Any, frames: np.ndarray, reward_state: Any = None) -> EpisodeState:
        """One step later."""
        return replace(self, world=world, frames=frames, step=self.step + 1, reward_state=reward_state)

    def observation(self, block: bool) -> np.ndarray:
        """A fresh array: the last frame [H, W, 3], or with `block` all T of them [H, W, 3 T], the oldest first."""
        return stacked(self.frames).copy() if block else self.frames[-1].copy()

    def info(self, action: Any, event: str | None, started: float, more: Mapping[str, Any]) -> dict[str, Any]:
        """`info` of a call that began at `started` (`time.perf_counter`) and held `action`; every object is fresh."""
        held = {"keys": action.keys, "look": action.arrows} if isinstance(action, Action) else {}
        return {
            "frames": self.frames.copy(),
            **held,
            "event": event,
            "events": self.schedule.as_dict(),
            "step": self.step,
            "latency_ms": WallClock(1000 * (time.perf_counter() - started)),
            **more,
        }


@dataclass(frozen=True, eq=False)
class EnvState:
    """All that `get_state` saves. `kind` and `shape` tell which environments can take it back."""

    kind: str
    shape: tuple[int, ...]
    episode: EpisodeState
    random: np.random.Generator
    seed: int | None


def stacked(frames: np.ndarray) -> np.ndarray:
    """Frames [..., T, H, W, 3] along the channels, the oldest first: [..., H, W, 3 T]."""
    return rearrange(frames, "... t h w c -> ... h w (t c)")


def check_state(state: object, kind: str, shape: tuple[int, ...]) -> EnvState:
    """`state` if an environment of this kind and block shape may continue it; what its world is made of is not looked at.

    Raises TypeError for what `get_state` did not return, ValueError for a state of another kind or size of environment, or
    one that lacks a field or has one that cannot be.
    """
    if not isinstance(state, EnvState):
        raise TypeError(f"set_state takes what get_state returned, got {type(state).__name__}")
    for holder in (state, getattr(state, "episode", None)):
        lacking = (
            [own.name for own in fields(holder) if not hasattr(holder, own.name)]
            if isinstance(holder, EnvState | EpisodeState)
            else ["episode"]
        )
        if lacking:
            raise ValueError(f"this state lacks its {lacking[0]}: take it again with get_state()")
    if (state.kind, state.shape) != (kind, shape):
        raise ValueError(
            f"this is the state of a {state.kind} with blocks of shape {state.shape}; a {kind} with {shape} cannot continue it"
        )
    now = state.episode
    _require(isinstance(state.random, np.random.Generator), "random", "a NumPy Generator", state.random)
    frames_fit = isinstance(now.frames, np.ndarray) and now.frames.dtype == np.uint8 and now.frames.shape == shape
    _require(frames_fit, "frames", f"uint8 of shape {shape}", now.frames)
    try:
        check_whole("its step", now.step)
        if state.seed is not None:
            check_whole("its seed", state.seed)
        EventSchedule.check(now.schedule)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a state that get_state() gives: {error}; take it again with get_state()") from error
    return state


def _require(fits: bool, name: str, wanted: str, got: object) -> None:
    if not fits:
        seen = f"{got.dtype} of shape {got.shape}" if isinstance(got, np.ndarray) else short(got)
        raise ValueError(f"not a state that get_state() gives: its {name} must be {wanted}, got {seen}")


def read_options(options: Mapping[str, Any] | None, accepted: tuple[str, ...], what: str = "options") -> dict[str, Any]:
    """`options` of a reset as a new dict without entries that are None; `what` names them in messages.

    Raises TypeError for what is no mapping, ValueError for a key that is not `accepted`.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"{what} must be a mapping such as {{'text': '...'}}, got {type(options).__name__}")
    unknown = sorted(str(key) for key in options if key not in accepted)
    if unknown:
        where = "" if what == "options" else f" in {what}"
        raise ValueError(f"unknown option {unknown[0]!r}{where}: accepted are {', '.join(accepted)}")
    return {key: value for key, value in options.items() if value is not None}
