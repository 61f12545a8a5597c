"""Keys that a person holds -> an action of the model. Short taps count: a block never misses a key pressed before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from world_model.action_spaces import ActionSpec
from world_model.actions import Action
from yume_gym.keyboard import CODES, FirstPersonKeys, drawn_keys, keyboard, plain

KEYS = FirstPersonKeys.keys
FIRST_PERSON = ActionSpec()
_OPPOSITE = {"W": "S", "S": "W", "A": "D", "D": "A", "↑": "↓", "↓": "↑", "←": "→", "→": "←"}
_NAMES = {"UP": "↑", "LEFT": "←", "DOWN": "↓", "RIGHT": "→", "SPACE": "space", "": "space"}


@dataclass(frozen=True)
class Held:
    """An action of a space other than the first-person one, as it is shown and stored: what an `Action` says of itself.

    index: the number of a discrete action, else a tuple of its components. keys: None, such worlds have no walking keys.
    """

    index: Any
    meaning: str
    arrows: str = ""
    keys: None = None


Played = Action | Held


def played(spec: ActionSpec, action: Any) -> Played:
    """An action of a space as it is played. Raises TypeError or ValueError for what is not in the space."""
    checked = spec.check(action)
    if isinstance(checked, Action):
        return checked
    index = plain(checked)
    meaning = spec.names[index] if spec.kind == "discrete" else " ".join(f"{value:g}" for value in index)
    return Held(index, meaning, drawn_keys(spec, checked)[1])


class HeldKeys:
    """The keys held now, and those tapped since the last `sample`, for actions of one space."""

    def __init__(self, spec: ActionSpec = FIRST_PERSON) -> None:
        self._spec, self._keyboard = spec, keyboard(spec)
        self._held: frozenset[str] = frozenset()
        self._tapped: set[str] = set()

    @property
    def held(self) -> frozenset[str]:
        return self._held

    @property
    def action(self) -> Played:
        """What the next block would be dreamt under: held and tapped keys; opposite ones cancel."""
        return played(self._spec, self._keyboard.action(self._held | self._tapped))

    def hold(self, keys: Iterable[str]) -> bool:
        """From now on exactly `keys` are held; True where that changes `action`. Raises ValueError for unknown names."""
        new = frozenset(key_name(key) for key in keys)
        before = self.action
        for key in new - self._held:
            self._tapped.add(key)
            self._tapped.discard(_OPPOSITE.get(key, ""))  # the later of two opposite taps is meant
        self._held = new
        return self.action != before

    def sample(self) -> Played:
        """The action of a block that begins now. Taps are used up by it."""
        action = self.action
        self._tapped.clear()
        return action


def key_name(key: str) -> str:
    """A name of `keyboard.CODES` for what people and browsers call a key: "w", "up", "ArrowUp". Raises ValueError for others."""
    name = key.strip().upper().removeprefix("ARROW")
    name = _NAMES.get(name, name)
    if name not in CODES:
        raise ValueError(f"unknown key {key!r}: use {', '.join(KEYS)} (or up, left, down, right)")
    return name
