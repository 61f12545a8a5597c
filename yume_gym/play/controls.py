"""Keyboard and gamepad of the play window: SDL events in, held keys and commands out.

| Key | Gamepad | |
|---|---|---|
| W A S D | left stick, cross | walk |
| ↑ ← ↓ → | right stick | look |
| Enter | | type an event; Enter begins it (an empty line ends the one before), Esc leaves it |
| R | back | the same start again |
| N | | the next seed |
| P or space | start | pause |
| F | Y | save a clip of the last 30 seconds |
| Tab | | more or less on the screen |
| T | X | dream and street, dream, street (with a twin) |
| Esc | | leave |

Models of recorded environments have keys of their own (`yume_gym.keyboard`), which come first: space may be one of them.
Where a world has no walking keys, the left stick and the cross are arrows. A picture dropped on the window starts a world
from it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from yume_gym.keyboard import CODES, WALKING, FirstPersonKeys
from yume_gym.street.events import MAX_TEXT_LENGTH

_DEAD = 0.4  # how far a stick must be moved
_LEFT_STICK = {0: ("A", "D"), 1: ("W", "S")}  # axis: keys of its negative and positive direction
_RIGHT_STICKS = ({2: ("←", "→"), 3: ("↑", "↓")}, {3: ("←", "→"), 4: ("↑", "↓")})  # of up to four axes, and of more
_AS_ARROWS = {"W": "↑", "A": "←", "S": "↓", "D": "→"}
CommandName = Literal["quit", "restart", "another", "pause", "clip", "hud", "view", "event", "image"]
_PAD_BUTTONS: dict[int, CommandName] = {7: "pause", 6: "restart", 3: "clip", 2: "view"}


@dataclass(frozen=True)
class Command:
    """Something asked for once. `text`: the event ("" ends it) or the dropped file's path."""

    name: CommandName
    text: str = ""


class Controls:
    """Keys held on keyboard and gamepads, and the line that is being typed (None while none is).

    While somebody types, the keys held when they began stay held: they walk on.
    """

    def __init__(self, pygame: Any, keys: Collection[str] = FirstPersonKeys.keys) -> None:
        """keys: names of those that mean something in the model's action space."""
        self._pygame = pygame
        self._keys = {CODES[key]: key for key in keys}
        self._walks = not set(WALKING).isdisjoint(keys)
        self._commands: dict[int, CommandName] = {
            pygame.K_r: "restart",
            pygame.K_n: "another",
            pygame.K_p: "pause",
            pygame.K_SPACE: "pause",
            pygame.K_f: "clip",
            pygame.K_TAB: "hud",
            pygame.K_t: "view",
            pygame.K_ESCAPE: "quit",
        }
        self._down: set[str] = set()
        self._kept: frozenset[str] = frozenset()
        self._pads: dict[int, Any] = {}
        self._axes: dict[tuple[int, int], set[str]] = {}
        self._hats: dict[tuple[int, int], set[str]] = {}
        self.typing: str | None = None

    @property
    def held(self) -> frozenset[str]:
        """Keys held now: of W A S D ↑ ← ↓ →, or the model's own."""
        keyboard = self._kept if self.typing is not None else frozenset(self._down)
        pads: frozenset[str] = frozenset().union(*self._axes.values(), *self._hats.values())
        return keyboard | (pads if self._walks else {_AS_ARROWS.get(key, key) for key in pads})

    def handle(self, event: Any) -> Command | None:
        """Follows one SDL event; the command that it is, if any."""
        pygame = self._pygame
        if event.type == pygame.QUIT:
            return Command("quit")
        if event.type == pygame.DROPFILE:
            return Command("image", event.file)
        if event.type == pygame.WINDOWFOCUSLOST:  # releases elsewhere are not heard of
            self._down.clear()
            self._kept = frozenset()
        elif event.type == pygame.KEYUP:
            self._down.discard(self._keys.get(event.key, ""))
        elif event.type == pygame.TEXTINPUT and self.typing is not None:
            self.typing = (self.typing + event.text)[:MAX_TEXT_LENGTH]
        elif event.type == pygame.KEYDOWN:
            return self._typed(event) if self.typing is not None else self._pressed(event)
        return self._pad(event)

    def _pressed(self, event: Any) -> Command | None:
        pygame = self._pygame
        if event.key in self._keys:
            self._down.add(self._keys[event.key])
        elif event.key in (pygame.K_RETURN, pygame.K_KP_ENTER):
            self.typing, self._kept = "", frozenset(self._down)
            pygame.key.start_text_input()
        elif event.key in self._commands:
            return Command(self._commands[event.key])
        return None

    def _typed(self, event: Any) -> Command | None:
        pygame, text = self._pygame, self.typing or ""
        if event.key == pygame.K_BACKSPACE:
            self.typing = text[:-1]
        elif event.key in (pygame.K_RETURN, pygame.K_KP_ENTER, pygame.K_ESCAPE):
            self.typing = None
            pygame.key.stop_text_input()
            if event.key != pygame.K_ESCAPE:
                return Command("event", text.strip())
        return None

    def _pad(self, event: Any) -> Command | None:
        pygame = self._pygame
        if event.type == pygame.JOYDEVICEADDED:
            pad = pygame.joystick.Joystick(event.device_index)
            self._pads[pad.get_instance_id()] = pad  # SDL is silent about pads that nobody keeps
        elif event.type == pygame.JOYDEVICEREMOVED:
            self._pads.pop(event.instance_id, None)
            for places in (self._axes, self._hats):
                for place in [place for place in places if place[0] == event.instance_id]:
                    del places[place]
        elif event.type == pygame.JOYAXISMOTION:
            pad = self._pads.get(event.instance_id)
            right = _RIGHT_STICKS[pad is not None and pad.get_numaxes() > 4]
            keys = (_LEFT_STICK | right).get(event.axis)
            if keys is not None:
                moved = {keys[event.value > 0]} if abs(event.value) > _DEAD else set()
                self._axes[event.instance_id, event.axis] = moved
        elif event.type == pygame.JOYHATMOTION:
            across, up = event.value
            self._hats[event.instance_id, event.hat] = {("A", "", "D")[across + 1], ("S", "", "W")[up + 1]} - {""}
        elif event.type == pygame.JOYBUTTONDOWN and event.button in _PAD_BUTTONS:
            return Command(_PAD_BUTTONS[event.button])
        return None
