"""Keys that a person holds -> one of the 81 actions. Short taps count: a block never misses a key pressed before it."""

from __future__ import annotations

from collections.abc import Iterable

from world_model.actions import Action

WALKING = ("W", "A", "S", "D")
ARROWS = ("↑", "←", "↓", "→")
KEYS = (*WALKING, *ARROWS)
_OPPOSITE = {"W": "S", "S": "W", "A": "D", "D": "A", "↑": "↓", "↓": "↑", "←": "→", "→": "←"}
_NAMES = {"UP": "↑", "LEFT": "←", "DOWN": "↓", "RIGHT": "→"}


class HeldKeys:
    """The keys held now, and those tapped since the last `sample`."""

    def __init__(self) -> None:
        self._held: frozenset[str] = frozenset()
        self._tapped: set[str] = set()

    @property
    def held(self) -> frozenset[str]:
        return self._held

    @property
    def action(self) -> Action:
        """What the next block would be dreamt under: held and tapped keys; opposite ones cancel."""
        keys = self._held | self._tapped
        return Action.from_keys("+".join(k for k in WALKING if k in keys), "".join(k for k in ARROWS if k in keys))

    def hold(self, keys: Iterable[str]) -> bool:
        """From now on exactly `keys` are held; True where that changes `action`. Raises ValueError for unknown names."""
        new = frozenset(key_name(key) for key in keys)
        before = self.action
        for key in new - self._held:
            self._tapped.add(key)
            self._tapped.discard(_OPPOSITE[key])  # the later of two opposite taps is meant
        self._held = new
        return self.action != before

    def sample(self) -> Action:
        """The action of a block that begins now. Taps are used up by it."""
        action = self.action
        self._tapped.clear()
        return action


def key_name(key: str) -> str:
    """One of `KEYS` for what people and browsers call it: "w", "up", "ArrowUp". Raises ValueError for others."""
    name = key.strip().upper().removeprefix("ARROW")
    name = _NAMES.get(name, name)
    if name not in KEYS:
        raise ValueError(f"unknown key {key!r}: use {', '.join(KEYS)} (or up, left, down, right)")
    return name
