"""How the tornado, the dinosaur, the tram and the soap bubbles look at each age.

After a few seconds everything repeats itself every `ROUND` seconds exactly.
"""

from __future__ import annotations

import math

from yume_gym.street import primitives as P
from yume_gym.street.event_state import EventState, Rows

ROUND = 10.0  # seconds
_TURN = math.tau / ROUND


def tornado(event: EventState, age: float, weight: float) -> Rows:
    """A funnel of dust that sways over the street; shreds of it and things it tore loose whirl round it."""
    rows: Rows = []

    def axis(height: float) -> tuple[float, float, float]:
        """Where the middle of the funnel is at a height, and its radius: metres forward, to the right, and wide."""
        bend = 0.09 * height
        right = 1.6 * math.sin(_TURN * age) + bend * math.sin(2 * _TURN * age - 0.35 * height)
        return 0.8 * math.cos(_TURN * age), right, 0.75 + 0.013 * height**2

    for k in range(17):
        height = 0.4 + 0.85 * k
        forward, right, wide = axis(height)
        x, z = event.beyond(forward, right)
        tone = 0.30 if k % 2 else 0.38
        colour = (tone, 0.93 * tone, 0.84 * tone)
        rows.append(P.shape(P.MIST, (x, height, z), (wide, 1.1, wide), colour, emit=0.1, alpha=0.95 * weight))
    for k in range(26):
        height = 0.3 + 14.0 * ((0.381966 * k + age / ROUND) % 1.0)
        forward, right, wide = axis(height)
        a = 2.39996 * k + 6 * _TURN * age
        x, z = event.beyond(forward + wide * math.cos(a), right + wide * math.sin(a))
        size = 0.35 + 0.3 * wide
        tone = (0.58, 0.18, 0.48)[k % 3]
        colour = (tone, 0.92 * tone, 0.80 * tone)
        rows.append(P.shape(P.MIST, (x, height, z), (size, 0.45 * size, size), colour, emit=0.1, alpha=0.75 * weight))
    for k in range(7):
        a = math.tau * k / 7 + 3 * _TURN * age
        forward, right, _ = axis(0.0)
        x, z = event.beyond(forward + 1.5 * math.cos(a), right + 1.5 * math.sin(a))
        rows.append(P.shape(P.MIST, (x, 0.5, z), (1.2, 0.8, 1.2), (0.55, 0.47, 0.36), alpha=0.7 * weight))
    return rows


_GREEN, _BELLY, _DARK = (0.20, 0.62, 0.16), (0.62, 0.78, 0.32), (0.06, 0.32, 0.10)
_OWN = 0.1  # light of its own, or the night would hide it


def dinosaur(event: EventState, age: float, weight: float) -> Rows:
    """A green giant seen from the side, on four legs, that steps to and fro, nods its long neck and swings its tail."""
    rows: Rows = []
    stride = 0.6 * math.sin(_TURN * age) - 0.3

    def part(right: float, height: float, forward: float, wide: float, tall: float, colour: P.Colour) -> None:
        x, z = event.beyond(forward, stride + right)
        rows.append(P.shape(P.ELLIPSOID, (x, height, z), (wide, tall, wide), colour, emit=_OWN, alpha=weight))

    for k, (right, forward) in enumerate(((-0.85, 0.4), (0.85, -0.4), (-0.85, -0.5), (0.85, 0.5))):
        x, z = event.beyond(forward, stride + right + 0.3 * math.sin(6 * _TURN * age + math.pi * (k // 2)))
        colour = _GREEN if k % 2 else _DARK
        rows.append(P.shape(P.CYLINDER, (x, 0.9, z), (0.3, 0.9, 0.3), colour, emit=_OWN, alpha=weight))
    for right, height, wide, tall in ((-0.95, 2.2, 0.90, 0.85), (0.0, 2.4, 1.05, 1.0), (0.95, 2.35, 0.90, 0.9)):
        part(right, height, 0.0, wide, tall, _GREEN)
        part(right, height - 0.32, -0.14, 0.9 * wide, 0.65 * tall, _BELLY)
    nod = 0.2 * math.sin(3 * _TURN * age)
    for k in range(8):
        up = k / 7
        part(1.4 + 0.45 * up + nod * up, 2.8 + 2.7 * up, -0.1, 0.52 - 0.18 * up, 0.55 - 0.12 * up, _GREEN)
    part(2.05 + nod, 5.70, -0.1, 0.50, 0.38, _GREEN)
    part(2.50 + nod, 5.58, -0.1, 0.34, 0.25, _GREEN)
    part(2.10 + nod, 5.88, -0.52, 0.12, 0.14, (0.98, 0.95, 0.30))
    for k in range(8):
        back = k / 7
        aside = 0.7 * back * math.sin(4 * _TURN * age - 1.5 * back)
        part(-1.5 - 1.7 * back, 2.1 - 1.1 * back, aside, 0.65 - 0.52 * back, 0.62 - 0.5 * back, _GREEN)
    for k in range(6):
        part(-1.2 + 0.5 * k, 3.3 + 0.15 * math.sin(0.63 * k), 0.0, 0.16, 0.32, _DARK)
    return rows


_YELLOW, _CREAM, _IRON = (0.98, 0.76, 0.06), (0.95, 0.92, 0.80), (0.13, 0.14, 0.16)


def tram(event: EventState, age: float, weight: float) -> Rows:
    """A long yellow tram that comes along the street towards the viewer, passes, and comes round again."""
    length = 5.5
    gone = (50.0 / ROUND * age) % 50.0 - 20.0
    x, z, along_z, direction = event.in_lane(gone)
    alpha = weight * max(0.0, min(1.0, (20.0 + gone) / 2.5, (30.0 - gone) / 2.5))

    def block(
        offset: float,
        height: float,
        long: float,
        tall: float,
        wide: float,
        colour: P.Colour,
        emit: float = 0.0,
        stripes: float = 0.0,
    ) -> list[float]:
        centre = (x, height, z + direction * offset) if along_z else (x + direction * offset, height, z)
        half = (wide, tall, long) if along_z else (long, tall, wide)
        material = P.STRIPES if stripes else P.PLAIN
        return P.shape(P.BOX, centre, half, colour, emit=emit, alpha=alpha, material=material, param=stripes)

    return [
        block(0.0, 0.22, length - 0.4, 0.22, 0.95, _IRON),
        block(0.0, 0.97, length, 0.55, 1.08, _YELLOW, _OWN),
        block(0.0, 1.97, length - 0.05, 0.45, 1.05, (0.16, 0.24, 0.34), 0.2, 0.85),
        block(0.0, 2.55, length, 0.15, 1.08, _YELLOW, _OWN),
        block(0.0, 2.78, length - 0.8, 0.08, 0.8, _CREAM),
        block(-0.6, 3.25, 0.05, 0.45, 0.05, _IRON),
        block(-0.6, 3.70, 0.06, 0.04, 0.8, _IRON),
        block(length, 1.95, 0.04, 0.42, 0.92, (0.20, 0.32, 0.45), 0.2),
        block(-length, 1.95, 0.04, 0.42, 0.92, (0.20, 0.32, 0.45), 0.2),
        block(length, 2.55, 0.05, 0.11, 0.6, _CREAM, 0.8),
        block(length, 0.85, 0.05, 0.13, 0.85, (1.0, 0.96, 0.75), 1.0),
        block(-length, 0.85, 0.05, 0.10, 0.85, (0.9, 0.1, 0.1), 0.8),
    ]


_FILMS = ((0.15, 0.75, 1.0), (1.0, 0.20, 0.80), (0.95, 0.90, 0.15))


def bubbles(event: EventState, age: float, weight: float) -> Rows:
    """Soap bubbles as large as people that rise and drift; each glistens in three colours."""
    rows: Rows = []
    sin, cos = math.sin(event.heading), math.cos(event.heading)
    for k in range(11):
        risen = (age / ROUND + 0.381966 * k) % 1.0
        size = 0.6 + 0.5 * ((0.618034 * k) % 1.0)
        right = 3.2 * math.sin(2.4 * k) + 0.5 * math.sin(2 * _TURN * age + k)
        x, z = event.beyond(2.0 * math.cos(2.4 * k), right)
        h = 0.8 + 4.6 * risen
        alpha = weight * min(1.0, 8.0 * risen, 8.0 * (1.0 - risen))
        turn = 4 * _TURN * age + k
        for number, film in enumerate(_FILMS):
            a = turn + math.tau * number / 3
            aside, up, own = 0.25 * size * math.cos(a), 0.25 * size * math.sin(a), 0.78 * size
            place = (x + aside * cos, h + up, z - aside * sin)
            rows.append(P.shape(P.ELLIPSOID, place, (own,) * 3, film, emit=0.25, alpha=0.34 * alpha))
        shine = (x - 0.75 * size * sin - 0.35 * size * cos, h + 0.4 * size, z - 0.75 * size * cos + 0.35 * size * sin)
        rows.append(P.shape(P.ELLIPSOID, shine, (0.17 * size,) * 3, (1.0, 1.0, 1.0), emit=0.8, alpha=0.9 * alpha))
    return rows
