"""Action spaces for Gymnasium and for people: spaces, names of actions, and the keys that mean them.

| Actions        | Keys                                                                                              |
|----------------|---------------------------------------------------------------------------------------------------|
| first_person   | W A S D walk, arrows look                                                                         |
| discrete       | arrows and space for names such as UP, MOVE_RIGHT, FIRE or UPRIGHTFIRE; others: the action's number    |
| multi_discrete | 1, 2 ... 9, 0: the choices above 0 of the first component, then those of the next ...               |
| multi_binary   | 1, 2 ... 9, 0: the components                                                                     |
| box            | arrows: the ends of the first two components; then free arrows and numbers for those of the others |

Held together, keys of one component or direction cancel each other. What has no key left cannot be chosen by keys.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from world_model.action_spaces import ActionSpec
from world_model.actions import NUM_ACTIONS, Action

WALKING = ("W", "A", "S", "D")
ARROWS = ("↑", "←", "↓", "→")
SPACE = "space"
NUMBERS = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "0")

# SDL's key codes: what `pygame.K_w`, `pygame.K_RIGHT` ... are, without importing pygame
CODES = {
    "W": ord("w"),
    "S": ord("s"),
    "A": ord("a"),
    "D": ord("d"),
    "→": 0x4000004F,
    "←": 0x40000050,
    "↓": 0x40000051,
    "↑": 0x40000052,
    SPACE: ord(" "),
    **{number: ord(number) for number in NUMBERS},
}
_OPPOSITE = (("←", "→"), ("↑", "↓"))
_NAMED = re.compile(r"(UP|FORWARD|DOWN|BACKWARD)?(LEFT|RIGHT)?(FIRE)?")
_KEYS = {"UP": "↑", "FORWARD": "↑", "DOWN": "↓", "BACKWARD": "↓", "LEFT": "←", "RIGHT": "→", "FIRE": SPACE}


class Keyboard(Protocol):
    """What keys mean in one action space."""

    keys: tuple[str, ...]  # all that mean something, names of `CODES`

    def action(self, held: Collection[str]) -> Any:
        """What holding these keys means, as `ActionSpec.check` gives it. Keys that mean nothing are passed over."""
        ...

    def table(self) -> dict[tuple[int, ...], Any]:
        """Sorted key codes held -> action, for `gymnasium.utils.play`. Holding nothing is not in it."""
        ...


def keyboard(spec: ActionSpec) -> Keyboard:
    """The keys of an action space."""
    if spec.kind == "first_person":
        return FirstPersonKeys()
    return NamedKeys(spec) if spec.kind == "discrete" else ComponentKeys(spec)


def action_space(spec: ActionSpec) -> gym.Space:
    """The Gymnasium space of these actions; numbers of a discrete one count from 0."""
    if spec.kind == "first_person":
        return gym.spaces.Discrete(NUM_ACTIONS)
    if spec.kind == "discrete":
        return gym.spaces.Discrete(spec.sizes[0])
    if spec.kind == "multi_discrete":
        return gym.spaces.MultiDiscrete(list(spec.sizes))
    if spec.kind == "multi_binary":
        return gym.spaces.MultiBinary(len(spec.sizes))
    if spec.kind == "box":
        return gym.spaces.Box(np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32), dtype=np.float32)
    raise ValueError(f"no Gymnasium space is known for actions of kind {spec.kind!r}: add it to action_space")


def check_action(spec: ActionSpec, action: Any) -> Any:
    """`action` of an environment as `ActionSpec.check` gives it. Raises TypeError or ValueError for what is not in the space."""
    if spec.kind != "first_person":
        return spec.check(action)
    is_scalar = isinstance(action, int | np.integer) and not isinstance(action, bool)
    if not is_scalar and not (isinstance(action, np.ndarray) and action.shape == () and action.dtype.kind in "iu"):
        raise TypeError(
            f"action must be an integer in 0..{NUM_ACTIONS - 1}, got {type(action).__name__}; "
            "Action.from_keys('W+A', '→').index names one by its keys"
        )
    return Action.from_index(int(action))


def action_meanings(spec: ActionSpec) -> list[str]:
    """Names of the actions in order; of spaces that do not count them, the range of each component."""
    if spec.kind in ("first_person", "discrete"):
        return spec.names
    if spec.kind == "box":
        return [f"component {i}: {low:g} to {high:g}" for i, (low, high) in enumerate(zip(spec.low, spec.high))]
    return [f"component {i}: 0 to {size - 1}" for i, size in enumerate(spec.sizes)]


def plain(action: Any) -> Any:
    """An action that can be compared, hashed and written as JSON: arrays become tuples, others stay."""
    return tuple(action.tolist()) if isinstance(action, np.ndarray) else action


def drawn_keys(spec: ActionSpec, action: Any) -> tuple[str, str]:
    """(walking keys such as "W+A", arrows such as "↑→") that stand for an action on a picture; "" for none."""
    if spec.kind == "first_person":
        return action.keys, action.arrows
    keys = keyboard(spec)
    held = keys.held(action) if isinstance(keys, NamedKeys | ComponentKeys) else ()
    return "", "".join(arrow for arrow in ARROWS if arrow in held)


class FirstPersonKeys:
    """The 81 actions: every combination of WASD and arrows."""

    keys: tuple[str, ...] = (*WALKING, *ARROWS)

    def action(self, held: Collection[str]) -> Action:
        return Action.from_keys("+".join(k for k in WALKING if k in held), "".join(k for k in ARROWS if k in held))

    def table(self) -> dict[tuple[int, ...], int]:
        names = ("W", "S", "A", "D", "→", "←", "↓", "↑")
        chords = (held for count in range(1, len(names) + 1) for held in itertools.combinations(names, count))
        return {_codes(held): self.action(held).index for held in chords}


class NamedKeys:
    """Discrete actions, each by a chord of keys. The longest chord that is held counts, of equal ones the first action's."""

    def __init__(self, spec: ActionSpec) -> None:
        self._noop = spec.noop
        self._chords: dict[frozenset[str], int] = {}
        for index in range(spec.sizes[0]):
            chord = _named_chord(spec.meanings[index]) if spec.meanings else None
            if chord is None and index < len(NUMBERS) and index != self._noop:
                chord = frozenset({str(index)})
            if chord:
                self._chords.setdefault(chord, index)
        self.keys = tuple(key for key in CODES if any(key in chord for chord in self._chords))

    def action(self, held: Collection[str]) -> int:
        down = {key for key in held if not any(key in pair and set(pair) <= set(held) for pair in _OPPOSITE)}
        found = [(-len(chord), index) for chord, index in self._chords.items() if chord <= down]
        return min(found)[1] if found else self._noop

    def held(self, action: int) -> frozenset[str]:
        """The keys that mean an action; none where there are none."""
        return next((chord for chord, index in self._chords.items() if index == action), frozenset())

    def table(self) -> dict[tuple[int, ...], int]:
        return {_codes(chord): index for chord, index in self._chords.items()}


class ComponentKeys:
    """Actions of several components: each key sets one of them, the others stay as they are in doing nothing."""

    def __init__(self, spec: ActionSpec) -> None:
        self._noop = spec.noop
        self._meanings: dict[str, tuple[int, float]] = {}  # key -> component, value
        box = spec.kind == "box"
        choices = list(zip(spec.low, spec.high)) if box else [range(1, size) for size in spec.sizes]
        wanted = [(i, v) for i, values in enumerate(choices) for v in values if v != self._noop[i]]
        pairs = {0: ("←", "→"), 1: ("↓", "↑")}
        if box:
            for i, value in wanted:
                if i in pairs:
                    self._meanings[pairs[i][value == spec.high[i]]] = (i, value)
            wanted = [(i, value) for i, value in wanted if i not in pairs]
        spare = [arrow for arrow in ("↓", "↑") if box and len(choices) > 2 and arrow not in self._meanings]
        self._meanings |= dict(zip([*spare, *NUMBERS], wanted))
        self.keys = tuple(self._meanings)

    def action(self, held: Collection[str]) -> np.ndarray:
        action = self._noop.copy()
        down = [self._meanings[key] for key in self.keys if key in held]
        for component, value in down:
            if sum(component == other for other, _ in down) == 1:
                action[component] = value
        return action

    def held(self, action: Collection[float]) -> frozenset[str]:
        """The keys that mean an action's components, as far as there are any."""
        values = list(action)
        return frozenset(key for key, (i, value) in self._meanings.items() if values[i] == np.float32(value))

    def table(self) -> dict[tuple[int, ...], np.ndarray]:
        of_component: dict[int, list[str | None]] = {}
        for key, (component, _) in self._meanings.items():
            of_component.setdefault(component, [None]).append(key)
        chords = ([key for key in chord if key] for chord in itertools.product(*of_component.values()))
        return {_codes(chord): self.action(chord) for chord in chords if chord}


def _named_chord(name: str) -> frozenset[str] | None:
    """Keys of a name such as UPRIGHTFIRE, MOVE_LEFT or ATTACK; None for another name."""
    word = name.upper().removeprefix("MOVE_").removeprefix("TURN_").replace("ATTACK", "FIRE")
    if word in ("NOOP", "NONE"):
        return frozenset()
    match = _NAMED.fullmatch(word)
    return frozenset(_KEYS[part] for part in match.groups() if part) if match and name else None


def _codes(held: Collection[str]) -> tuple[int, ...]:
    return tuple(sorted(CODES[key] for key in held))
