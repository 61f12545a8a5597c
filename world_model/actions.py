"""Keyboard actions of a first-person world: 9 moves x 9 looks = 81, and the ONE table of their captions.

A world model is told what the player does in words (Yume1.5 encodes action captions apart from event captions), so this
table is what the released 5B weights and our own were trained on. Captions are read by models; edit nothing here lightly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Move(IntEnum):
    """Walking keys held during a block."""

    STILL = 0
    FORWARD = 1
    BACKWARD = 2
    LEFT = 3
    RIGHT = 4
    FORWARD_LEFT = 5
    FORWARD_RIGHT = 6
    BACKWARD_LEFT = 7
    BACKWARD_RIGHT = 8


class Look(IntEnum):
    """Arrow keys held during a block."""

    STILL = 0
    RIGHT = 1
    LEFT = 2
    UP = 3
    DOWN = 4
    UP_RIGHT = 5
    UP_LEFT = 6
    DOWN_RIGHT = 7
    DOWN_LEFT = 8


# keys, words and direction of each move: (forward, right), each -1, 0 or 1
MOVES: dict[Move, tuple[str, str, tuple[int, int]]] = {
    Move.STILL: ("", "The camera's movement direction remains stationary (·).", (0, 0)),
    Move.FORWARD: ("W", "The camera pushes forward (W).", (1, 0)),
    Move.BACKWARD: ("S", "The camera pulls back (S).", (-1, 0)),
    Move.LEFT: ("A", "The camera moves to the left (A).", (0, -1)),
    Move.RIGHT: ("D", "The camera moves to the right (D).", (0, 1)),
    Move.FORWARD_LEFT: ("W+A", "The camera pushes forward and moves to the left (W+A).", (1, -1)),
    Move.FORWARD_RIGHT: ("W+D", "The camera pushes forward and moves to the right (W+D).", (1, 1)),
    Move.BACKWARD_LEFT: ("S+A", "The camera pulls back and moves to the left (S+A).", (-1, -1)),
    Move.BACKWARD_RIGHT: ("S+D", "The camera pulls back and moves to the right (S+D).", (-1, 1)),
}

# arrows, words and direction of each look: (right, up), each -1, 0 or 1
LOOKS: dict[Look, tuple[str, str, tuple[int, int]]] = {
    Look.STILL: ("", "The rotation direction of the camera remains stationary (·).", (0, 0)),
    Look.RIGHT: ("→", "The camera pans to the right (→).", (1, 0)),
    Look.LEFT: ("←", "The camera pans to the left (←).", (-1, 0)),
    Look.UP: ("↑", "The camera tilts up (↑).", (0, 1)),
    Look.DOWN: ("↓", "The camera tilts down (↓).", (0, -1)),
    Look.UP_RIGHT: ("↑→", "The camera tilts up and pans to the right (↑→).", (1, 1)),
    Look.UP_LEFT: ("↑←", "The camera tilts up and pans to the left (↑←).", (-1, 1)),
    Look.DOWN_RIGHT: ("↓→", "The camera tilts down and pans to the right (↓→).", (1, -1)),
    Look.DOWN_LEFT: ("↓←", "The camera tilts down and pans to the left (↓←).", (-1, -1)),
}

NUM_ACTIONS = len(Move) * len(Look)

_MOVE_OF = {direction: move for move, (_, _, direction) in MOVES.items()}
_LOOK_OF = {direction: look for look, (_, _, direction) in LOOKS.items()}
# a key held -> its part of a direction; names of `pygame.key.name` and plain arrows are both understood
_MOVE_KEYS = {"w": (1, 0), "s": (-1, 0), "a": (0, -1), "d": (0, 1)}
_LOOK_KEYS = {"→": (1, 0), "←": (-1, 0), "↑": (0, 1), "↓": (0, -1)}
_ARROW_NAMES = {"right": "→", "left": "←", "up": "↑", "down": "↓"}
_NOTHING_HELD = {"", "·", "none"}


@dataclass(frozen=True)
class Action:
    """What the player holds during one block: a move (WASD) and a look (arrow keys)."""

    move: Move = Move.STILL
    look: Look = Look.STILL

    @property
    def index(self) -> int:
        """Position in `Discrete(81)`: ``9 * move + look``; 0 is standing still."""
        return len(Look) * self.move + self.look

    @property
    def keys(self) -> str:
        """Walking keys held, as in "W+A"; "" for none."""
        return MOVES[self.move][0]

    @property
    def arrows(self) -> str:
        """Arrow keys held, as in "↑→"; "" for none."""
        return LOOKS[self.look][0]

    @property
    def walk(self) -> tuple[int, int]:
        """(forward, right), each -1, 0 or 1."""
        return MOVES[self.move][2]

    @property
    def turn(self) -> tuple[int, int]:
        """(right, up), each -1, 0 or 1."""
        return LOOKS[self.look][2]

    @property
    def caption(self) -> str:
        """The sentence pair a world model reads, in the released 5B demo's vocabulary."""
        return f"{MOVES[self.move][1]} {LOOKS[self.look][1]}"

    @property
    def meaning(self) -> str:
        """Short name for people, as in "W+A →"; "noop" for standing still."""
        return " ".join(part for part in (self.keys, self.arrows) if part) or "noop"

    @classmethod
    def from_index(cls, index: int) -> Action:
        """The inverse of `index`. Raises ValueError outside 0..80."""
        if isinstance(index, bool) or not 0 <= int(index) < NUM_ACTIONS or int(index) != index:
            raise ValueError(f"action must be an integer in 0..{NUM_ACTIONS - 1}, got {index!r}")
        move, look = divmod(int(index), len(Look))
        return cls(Move(move), Look(look))

    @classmethod
    def from_keys(cls, keys: str = "", look: str = "") -> Action:
        """Action of held keys: ``from_keys("W+A", "→")``, in any order and case; opposite keys cancel.

        `look` takes arrows ("↑→") or names ("up+right"); "", "·" and "none" hold nothing. Raises ValueError for an unknown key.
        """
        walk = _held(_split(keys, "+"), _MOVE_KEYS, "walking key", "W, A, S, D")
        if "+" in look or look.lower() in _ARROW_NAMES:
            arrows: Iterable[str] = [_ARROW_NAMES.get(name, name) for name in _split(look, "+")]
        else:
            arrows = list("".join(_split(look, "+")))
        return cls(
            _MOVE_OF[walk], _LOOK_OF[_held(arrows, _LOOK_KEYS, "arrow key", "→ ← ↑ ↓ (or right, left, up, down)")]
        )


def _split(keys: str, separator: str) -> list[str]:
    if keys.strip().lower() in _NOTHING_HELD:
        return []
    return [part.strip().lower() for part in keys.split(separator)]


def _held(names: Iterable[str], table: dict[str, tuple[int, int]], what: str, accepted: str) -> tuple[int, int]:
    held = set(names)
    unknown = sorted(held - table.keys())
    if unknown:
        raise ValueError(f"unknown {what} {unknown[0]!r}: use {accepted}, joined by '+'")
    return sum(table[name][0] for name in held), sum(table[name][1] for name in held)


ALL_ACTIONS: tuple[Action, ...] = tuple(Action.from_index(index) for index in range(NUM_ACTIONS))
