"""What callers hand in, checked at the door: every error says what was wrong, what is expected and so what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np


def check_whole(name: str, value: Any, least: int | None = 0, most: int | None = None) -> int:
    """`value` as an int. TypeError for what is no whole number (bools are none), ValueError outside `least`..`most`."""
    wanted = "a whole number"
    if least is not None:
        wanted = f"a whole number, {least} or more" if most is None else f"a whole number in {least}..{most}"
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be {wanted}; got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {wanted}; got {short(value)}") from None
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} must be {wanted}; got {number}")
    return number


def check_finite(name: str, value: object) -> float:
    """`value` as a float. TypeError for what is no number (bools are none), ValueError for infinity and NaN."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number; got {short(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    return float(value)


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool. TypeError for anything but True and False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {short(value)}")
    return bool(value)


def check_choice(name: str, value: Any, choices: tuple[Any, ...], hint: str = "") -> Any:
    """`value` if it is one of the choices (strings or None). TypeError for another kind of thing, ValueError for another value."""
    known = f"{name} must be {' or '.join(map(repr, choices))}{hint}"
    if not isinstance(value, str) and not (value is None and None in choices):
        raise TypeError(f"{known}; got {short(value)}")
    if value not in choices:
        raise ValueError(f"{known}; got the unknown {name} {value!r}")
    return value


def check_seed(value: object) -> int:
    """A seed of a world as an int. TypeError for what is no whole number, ValueError for one below 0."""
    return check_whole("a seed", value)


def check_texts(texts: Iterable[object]) -> None:
    """TypeError for one that is neither a str nor None."""
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise TypeError(f"a text must be a str, or None for none; got {short(text)}")


def short(value: object) -> str:
    """`value` for a message: its type unless it is a str, and what it looks like in 60 characters at most."""
    try:
        text = repr(value)
    except Exception as error:  # a message must not fail because what it tells of does
        text = f"something without a repr ({type(error).__name__})"
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if isinstance(value, str) else f"{type(value).__name__} {text}"
