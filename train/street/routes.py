"""Routes: which keys to hold, block after block, so that the camera really does what they say.

A route is planned in YumeStreet without drawing it. All 81 actions come equally often, in random order, each held for one
to three blocks; an action waits where a wall, a car or the limit of the tilt would make the real motion another than the
commanded one, or where it would end up staring at a wall. So a block's keys are its true motion, and a dream that obeys
has nothing to excuse it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from world_model.actions import ALL_ACTIONS, Action
from yume_gym.street.simulator import StreetSimulator, StreetState
from yume_gym.street.walker import obstacles

OPEN_VIEW = (
    (0.0, 20.0),
    (-0.4, 5.0),
    (0.4, 5.0),
)  # (radians off the middle, metres that must be free there) at the start
LONGEST_HOLD = 3  # blocks
_SIGHT = ((0.0, 5.0), (-0.5, 2.5), (0.5, 2.5))  # the same after every block of a route
_CLEARANCE = 0.8  # metres kept from cars, posts and trunks
_DECKS_BELOW = 27  # cards left when the next 81 are added
_CHOICE = 3  # free cards of which the one that ends nearest to level is taken
_WAY_OUT = Action.from_keys("", "→")  # out of a dead end, wherever it looks

# what stands ahead stays in view under these keys
TO_AND_FRO = tuple(
    Action.from_keys(*keys) for keys in (("W", ""), ("", "→"), ("", "←"), ("S", ""), ("", "←"), ("", "→"))
)


@dataclass(frozen=True)
class Route:
    """Actions [B], whether each differs from the one before, and the street's state before each block and at the end [B + 1]."""

    actions: tuple[Action, ...]
    switch: tuple[bool, ...]
    states: tuple[StreetState, ...]

    def __len__(self) -> int:
        return len(self.actions)


def open_start(
    street: StreetSimulator, rng: np.random.Generator, light: str = "day", weather: str = "clear"
) -> np.ndarray:
    """Stands somewhere with a view along a street and returns the picture, uint8 [H, W, 3]."""
    picture = street.reset(rng, light=light, weather=weather)
    while not _open(street, OPEN_VIEW):
        picture = street.reset(rng, light=light, weather=weather)
    return picture


def balanced_route(street: StreetSimulator, rng: np.random.Generator, blocks: int) -> Route:
    """A route of `blocks` from where `street` stands; the street stands there again afterwards."""
    begin = street.get_state()
    actions: list[Action] = []
    switch: list[bool] = []
    states = [begin]
    deck: list[Action] = []
    things = obstacles(street.town)
    while len(actions) < blocks:
        if len(deck) < _DECKS_BELOW:
            deck += [ALL_ACTIONS[i] for i in rng.permutation(len(ALL_ACTIONS))]
        hold = int(rng.integers(1, LONGEST_HOLD + 1))
        cards = list(itertools.islice((action for action in deck if _free(street, action, things)), _CHOICE))
        if cards:
            action = min(cards, key=lambda card: abs(street.ahead(card)[0][-1].pitch))  # of equals the first
            deck.remove(action)
        else:
            action, hold = _WAY_OUT, 1
        for held in range(min(hold, blocks - len(actions))):
            if held and not _free(street, action, things):
                break
            switch.append(not actions or actions[-1] != action)
            actions.append(action)
            street.set_state(street.ahead(action)[0][-1])
            states.append(street.get_state())
    street.set_state(begin)
    return Route(tuple(actions), tuple(switch), tuple(states))


def _open(street: StreetSimulator, view: tuple[tuple[float, float], ...]) -> bool:
    return all(street.free_distance(street.yaw + turn) >= metres for turn, metres in view)


def _free(street: StreetSimulator, action: Action, things: np.ndarray) -> bool:
    """Whether the commanded motion would be the real one and lead to a good view."""
    before = street.get_state()
    tilt = math.radians(street.camera.tilt_speed) * street.frames_per_block / street.fps * action.turn[1]
    if abs(before.pitch + tilt) > math.radians(street.camera.max_tilt) + 1e-9:
        return False
    states, blocked = street.ahead(action)
    if blocked:
        return False
    if action.walk != (0, 0):
        places = np.array([(state.x, state.z) for state in (before, *states)])
        size = street.town.size
        offset = (things[:, None, :2] - places + size / 2) % size - size / 2
        away = np.hypot(offset[..., 0], offset[..., 1]) - things[:, 2:] - _CLEARANCE
        if ((away[:, 1:] < 0) & (away[:, 1:] < away[:, :1])).any():  # too near and not on the way out
            return False
    street.set_state(states[-1])
    good = _open(street, _SIGHT)
    street.set_state(before)
    return good
