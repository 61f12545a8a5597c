"""Readings of the wall clock in `info`."""

from __future__ import annotations


class WallClock(float):
    """Milliseconds a call took. Every reading equals every other one: how long it took is no part of what happened.

    Two runs with one seed therefore give equal infos. As a number (order, arithmetic, printing) it is a plain float.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WallClock) or float(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = float.__hash__
