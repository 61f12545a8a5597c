"""Events: how each kind begins, goes on and ends, as light and weather called for and shapes in the world."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from yume_gym.street import event_objects as A
from yume_gym.street import primitives as P
from yume_gym.street.event_state import EventState, Rows
from yume_gym.street.furniture import COATS, PAINTS, SKINS, TROUSERS


@dataclass(frozen=True)
class Kind:
    """What an event is made of: the light and weather it brings (None: as they are) and the shapes it draws."""

    light: str | None = None
    weather: str | None = None
    draw: Callable[[EventState, float, float], Rows] | None = None
    distance: float = 0.0  # metres ahead of the viewer where it takes place


def _ufo(event: EventState, age: float, weight: float) -> Rows:
    """Comes in from the right, hovers over the street with a beam, swaying."""
    arrive = 10.0 * math.exp(-1.3 * age)
    x, z = event.beyond(2.0 * math.sin(0.5 * age), arrive + 2.5 * math.sin(0.8 * age))
    h = 6.5 + 0.5 * math.sin(1.3 * age) + 0.2 * arrive
    lights: Rows = []
    for k in range(6):
        a = math.tau * k / 6 + 1.5 * age
        lamp = (1.0, 0.85, 0.2) if k % 2 else (1.0, 0.2, 0.3)
        lights.append(
            P.shape(
                P.ELLIPSOID,
                (x + 2.5 * math.cos(a), h - 0.25, z + 2.5 * math.sin(a)),
                (0.36, 0.3, 0.36),
                lamp,
                emit=1.0,
                alpha=weight,
            )
        )
    return [
        P.shape(P.ELLIPSOID, (x, h, z), (3.0, 0.65, 3.0), (0.62, 0.64, 0.72), alpha=weight),
        P.shape(P.ELLIPSOID, (x, h + 0.6, z), (1.3, 1.0, 1.3), (0.35, 0.95, 0.75), emit=0.35, alpha=weight),
        *lights,
        P.shape(P.PILLAR, (x, h / 2 - 0.3, z), (1.3, h / 2 - 0.3, 1.3), (0.65, 1.0, 0.75), alpha=0.45 * weight),
    ]


_SPARKS = ((1.0, 0.30, 0.30), (1.0, 0.88, 0.20), (0.35, 1.0, 0.5), (0.55, 0.75, 1.0), (1.0, 0.5, 0.95))


def _fireworks(event: EventState, age: float, weight: float) -> Rows:
    """A shell bursts every 0.9 s somewhere above the street; sparks spread, sink and go out."""
    rows: Rows = []
    for shell in range(max(0, int(age / 0.9) - 1), int(age / 0.9) + 1):
        t = age - 0.9 * shell
        x, z = event.beyond(3.0 * math.sin(2.4 * shell), 6.0 * math.sin(4.1 * shell + 0.4))
        h = 9.0 + 2.0 * math.sin(1.7 * shell)
        spread, fade = 5.0 * (1.0 - math.exp(-2.2 * t)), max(0.0, 1.0 - t / 1.8)
        colour = _SPARKS[shell % len(_SPARKS)]
        rows.append(
            P.shape(P.GLOW, (x, h, z), (2.6, 2.6, 2.6), (1.0, 0.95, 0.8), alpha=weight * max(0.0, 1.0 - 2.5 * t))
        )
        for k in range(18):
            up = 1.0 - 2.0 * (k + 0.5) / 18
            ring, a = math.sqrt(1.0 - up * up), 2.39996 * k
            place = (x + spread * ring * math.cos(a), h + spread * up - 1.2 * t * t, z + spread * ring * math.sin(a))
            rows.append(P.shape(P.MIST, place, (0.75, 0.75, 0.75), colour, emit=1.0, alpha=weight * math.sqrt(fade)))
    return rows


def _ghost(event: EventState, age: float, weight: float) -> Rows:
    """A pale figure that floats to and fro over the street and looks at nobody."""
    x, z = event.beyond(0.0, 1.6 * math.sin(0.7 * age))
    h = 1.7 + 0.25 * math.sin(1.9 * age)
    body, dark = (0.90, 0.97, 1.0), (0.05, 0.06, 0.12)
    sin, cos = math.sin(event.heading), math.cos(event.heading)
    eyes = [
        P.shape(
            P.ELLIPSOID,
            (x - 0.55 * sin + s * 0.22 * cos, h + 0.62, z - 0.55 * cos - s * 0.22 * sin),
            (0.12, 0.17, 0.12),
            dark,
            alpha=weight,
        )
        for s in (-1.0, 1.0)
    ]
    return [
        P.shape(P.MIST, (x, h, z), (1.5, 2.2, 1.5), (0.75, 0.9, 1.0), emit=0.3, alpha=0.35 * weight),
        P.shape(P.ELLIPSOID, (x, h + 0.5, z), (0.6, 0.68, 0.6), body, emit=0.55, alpha=0.85 * weight),
        P.shape(P.CYLINDER, (x, h - 0.35, z), (0.6, 0.85, 0.6), body, emit=0.5, alpha=0.75 * weight),
        *eyes,
    ]


def _fire(event: EventState, age: float, weight: float) -> Rows:
    """Flames that lick up a facade the viewer saw, and smoke above."""
    x, z, out = (*event.place, event.heading) if event.wall is None else event.wall[1:]
    sin, cos = math.sin(out), math.cos(out)

    def at(outwards: float, sideways: float, height: float) -> tuple[float, float, float]:
        return x + outwards * sin + sideways * cos, height, z + outwards * cos - sideways * sin

    rows: Rows = []
    for k in range(6):
        rise = (0.15 * age + k / 6) % 1.0
        place = at(0.8 + rise, 1.8 * math.sin(5 * k) + 1.5 * rise, 6.5 + 12.0 * rise)
        rows.append(
            P.shape(P.MIST, place, (1.6 + 2.4 * rise,) * 3, (0.17, 0.16, 0.16), alpha=0.9 * weight * (1 - rise))
        )
    for k in range(18):
        flicker = 0.5 + 0.5 * math.sin(6.0 * age + 2.1 * k)
        height, size = 0.8 + 0.38 * k + 0.7 * flicker, (0.85 + 0.3 * flicker) * (1.15 - 0.03 * k)
        colour = ((1.0, 0.86, 0.25), (1.0, 0.55, 0.08), (0.98, 0.28, 0.05))[k % 3]
        rows.append(
            P.shape(
                P.MIST,
                at(0.6, 3.0 * math.sin(2.3 * k), height),
                (size, 1.6 * size, size),
                colour,
                emit=1.0,
                alpha=weight,
            )
        )
    return rows


def _crowd(event: EventState, age: float, weight: float) -> Rows:
    """Twenty people who stand together and sway."""
    rows: Rows = []
    for k in range(20):
        forward, right = 1.25 * (k // 5) + 0.4 * math.sin(3.1 * k), 1.3 * (k % 5 - 2) + 0.4 * math.sin(5.7 * k)
        x, z = event.beyond(forward, right + 0.12 * math.sin(2.0 * age + k))
        rows += P.person(x, z, COATS[(5 * k) % len(COATS)], TROUSERS[k % 3], SKINS[(k // 2) % 3], alpha=weight)
    return rows


def _car(event: EventState, age: float, weight: float) -> Rows:
    """A red car that comes along the street towards the viewer, passes, and comes round again."""
    travelled = (8.0 * age) % 48.0 - 22.0
    x, z, along_z, direction = event.in_lane(travelled)
    ends = max(0.0, min(1.0, (22.0 + travelled) / 3.0, (26.0 - travelled) / 3.0))
    return P.car(x, z, along_z, PAINTS[0], forward=direction, alpha=weight * ends)


def _balloon(event: EventState, age: float, weight: float) -> Rows:
    """Rises from the street, then hangs in the wind."""
    h = 3.5 + 5.5 * (1.0 - math.exp(-0.25 * age))
    x, z = event.beyond(0.0, 1.2 * math.sin(0.4 * age))
    rope = [
        P.shape(P.CYLINDER, (x + a, h - 1.6, z + b), (0.04, 1.3, 0.04), (0.3, 0.25, 0.2), alpha=weight)
        for a in (-0.4, 0.4)
        for b in (-0.4, 0.4)
    ]
    return [
        *rope,
        P.shape(P.BOX, (x, h - 2.6, z), (0.55, 0.4, 0.55), (0.50, 0.32, 0.16), alpha=weight),
        P.shape(P.ELLIPSOID, (x, h + 1.5, z), (2.6, 3.0, 2.6), (0.90, 0.16, 0.22), material=P.GORES, alpha=weight),
    ]


KINDS: dict[str, Kind] = {
    "heavy_rain": Kind(weather="heavy_rain"),
    "snow": Kind(weather="snow"),
    "fog": Kind(weather="fog"),
    "night": Kind(light="night"),
    "sun": Kind(light="day", weather="clear"),
    "sunset": Kind(light="golden", weather="clear"),
    "ufo": Kind(draw=_ufo, distance=16.0),
    "fireworks": Kind(draw=_fireworks, distance=22.0),
    "ghost": Kind(draw=_ghost, distance=7.0),
    "fire": Kind(draw=_fire, distance=12.0),
    "crowd": Kind(draw=_crowd, distance=8.0),
    "car": Kind(draw=_car, distance=8.0),
    "balloon": Kind(draw=_balloon, distance=14.0),
    "tornado": Kind(draw=A.tornado, distance=18.0),
    "dinosaur": Kind(draw=A.dinosaur, distance=10.0),
    "tram": Kind(draw=A.tram, distance=8.0),
    "bubbles": Kind(draw=A.bubbles, distance=8.0),
}


def event_shapes(event: EventState, time: float) -> np.ndarray:
    """[N, primitives.COLUMNS] rows of what an event puts into the world at a time (s)."""
    draw, weight = KINDS[event.kind].draw, event.weight(time)
    return P.rows(draw(event, time - event.begin, weight) if draw is not None and weight > 0 else [])
