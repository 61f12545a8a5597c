"""The 81 actions: indices, keys and the captions that models read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from world_model.actions import ALL_ACTIONS, LOOKS, MOVES, NUM_ACTIONS, Action, Look, Move


def test_every_move_with_every_look_once():
    assert len(ALL_ACTIONS) == NUM_ACTIONS == 81
    assert {(action.move, action.look) for action in ALL_ACTIONS} == set(itertools.product(Move, Look))
    for field in ("caption", "meaning"):
        assert len({getattr(action, field) for action in ALL_ACTIONS}) == NUM_ACTIONS


def test_index_and_action_are_inverses():
    assert [action.index for action in ALL_ACTIONS] == list(range(NUM_ACTIONS))
    assert all(Action.from_index(action.index) == action for action in ALL_ACTIONS)
    assert Action.from_index(np.int64(80)) == ALL_ACTIONS[80]


def test_standing_still_is_number_zero():
    still = Action()
    assert still.index == 0
    assert (still.walk, still.turn, still.keys, still.arrows, still.meaning) == ((0, 0), (0, 0), "", "", "noop")


def test_keys_and_action_are_inverses():
    assert all(Action.from_keys(action.keys, action.arrows) == action for action in ALL_ACTIONS)


@pytest.mark.parametrize(
    ("keys", "look", "same"),
    [
        ("D+W", "", ("W+D", "")),
        (" w + a ", "", ("W+A", "")),
        ("W+S", "", ("", "")),
        ("W+S+D", "", ("D", "")),
        ("A+D+S", "←→↑", ("S", "↑")),
        ("none", "none", ("", "")),
        ("·", "·", ("", "")),
        ("", "→↑", ("", "↑→")),
        ("", "up+right", ("", "↑→")),
        ("", "LEFT", ("", "←")),
        ("", "↓+←", ("", "↓←")),
    ],
)
def test_many_ways_to_say_it(keys, look, same):
    assert Action.from_keys(keys, look) == Action.from_keys(*same)


@pytest.mark.parametrize(
    ("keys", "look", "named"),
    [("W+Q", "", "q"), ("WA", "", "wa"), ("", "x", "x"), ("", "up+north", "north"), ("↑", "", "↑")],
)
def test_an_unknown_key_is_named(keys, look, named):
    with pytest.raises(ValueError, match=f"unknown .* key '{named}'"):
        Action.from_keys(keys, look)


@pytest.mark.parametrize("index", [-1, 81, 1.5, True, np.int64(100)])
def test_an_index_outside_is_refused(index):
    with pytest.raises(ValueError, match=r"0\.\.80"):
        Action.from_index(index)


@pytest.mark.parametrize(
    ("keys", "look", "caption"),
    [
        ("W", "", "The camera pushes forward (W). The rotation direction of the camera remains stationary (·)."),
        (
            "S+D",
            "↓←",
            "The camera pulls back and moves to the right (S+D). The camera tilts down and pans to the left (↓←).",
        ),
        ("W+A", "→", "The camera pushes forward and moves to the left (W+A). The camera pans to the right (→)."),
        ("", "↑", "The camera's movement direction remains stationary (·). The camera tilts up (↑)."),
    ],
)
def test_captions_are_the_released_ones(keys, look, caption):
    assert Action.from_keys(keys, look).caption == caption


def test_captions_say_the_keys_they_stand_for():
    for keys, sentence, _ in [*MOVES.values(), *LOOKS.values()]:
        assert sentence.endswith(f"({keys or '·'}).")


def test_directions_are_those_of_the_words():
    for action in ALL_ACTIONS:
        forward, right = action.walk
        assert ("forward" in action.caption, "back" in action.caption) == (forward == 1, forward == -1)
        assert ("moves to the right" in action.caption, "moves to the left" in action.caption) == (
            right == 1,
            right == -1,
        )
        turn_right, up = action.turn
        assert ("pans to the right" in action.caption, "pans to the left" in action.caption) == (
            turn_right == 1,
            turn_right == -1,
        )
        assert ("tilts up" in action.caption, "tilts down" in action.caption) == (up == 1, up == -1)
