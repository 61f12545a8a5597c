"""Kernels that say what colour a facade is: upper floors, shops and entrances; colours and footprints as in `materials`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

from numba import njit

from yume_gym.street import atmosphere as A
from yume_gym.street import layout as T
from yume_gym.street.materials import band, chance, mix, pulses, triple


@njit(fastmath=True)
def wall(b, side, u, v, length, footprint, air):
    """A facade's own colour and own light, `u` of `length` metres along it and `v` above ground.

    `b` is the building's row, `side` 0..3 the facade, the footprint in metres along and up.
    """
    fv = footprint[1]
    height, ground_h, tone = b[T.HEIGHT], b[T.GROUND_H], int(b[T.TONE]) + 7919 * side
    trim = triple(b, T.TRIM)
    accent = triple(b, T.ACCENT)
    colour = triple(b, T.WALL)
    if b[T.PATTERN] == T.STRIPED:
        colour = mix(colour, accent, pulses(v - ground_h, 8.0, 0.0, 4.0, fv))
    elif b[T.PATTERN] == T.CHECKERED:
        su, sv = pulses(u, 8.0, 0.0, 4.0, footprint[0]), pulses(v - ground_h, 8.0, 0.0, 4.0, fv)
        colour = mix(colour, accent, su * (1.0 - sv) + sv * (1.0 - su))
    light = (0.0, 0.0, 0.0)
    if v > ground_h - 0.5 * fv and v < height - b[T.CORNICE] + fv:
        colour, light = _upper_floors(b, tone, colour, (u, v), length, footprint, air)
    colour = mix(colour, trim, band(v, height - b[T.CORNICE], height + 1.0, fv))
    if v < ground_h + 0.5 * fv:
        if b[T.SHOP] > 0.0:
            colour, light = _shop(b, colour, light, (u, v), length, footprint, air)
        else:
            colour, light = _entrance(b, tone, colour, light, (u, v, length), footprint, air)
    white = air[A.SNOW] * (band(v, height - 0.5, height + 1.0, fv) + 0.12)
    return mix(colour, (0.94, 0.96, 1.0), min(1.0, white)), light


@njit(fastmath=True)
def _upper_floors(b, tone, colour, at, length, footprint, air):
    """Windows with frames, shutters and bands above the ground floor: the facade's colour and its own light."""
    (u, v), (fu, fv) = at, footprint
    height, ground_h = b[T.HEIGHT], b[T.GROUND_H]
    trim = triple(b, T.TRIM)
    accent = triple(b, T.ACCENT)
    glass = triple(b, T.PANE)
    low = triple(air, A.SKY_LOW)
    bays = max(1.0, math.floor(length / b[T.BAY] + 0.5))
    bay, floor = length / bays, b[T.FLOOR]
    up = v - ground_h
    pw, ph = bay * b[T.PANE_W], floor * b[T.PANE_H]
    u0, v0 = 0.5 * (bay - pw), 0.5 * (floor - ph)
    upper = band(v, ground_h, height - b[T.CORNICE], fv)
    frame = b[T.FRAME]
    column = pulses(u, bay, u0, u0 + pw, fu)
    row = pulses(up, floor, v0, v0 + ph, fv)
    i, k = math.floor(u / bay), math.floor(up / floor)
    if b[T.BAND] > 0.0:
        colour = mix(colour, trim, upper * pulses(up, floor, 0.0, 0.3, fv))
    if frame > 0.0:
        around = pulses(u, bay, u0 - frame, u0 + pw + frame, fu) * pulses(up, floor, v0 - frame, v0 + ph + frame, fv)
        colour = mix(colour, trim, upper * around)
    if b[T.SHUTTER] > 0.0:
        w = 0.42 * pw
        left = pulses(u, bay, u0 - w - frame, u0 - frame, fu)
        right = pulses(u, bay, u0 + pw + frame, u0 + pw + frame + w, fu)
        colour = mix(colour, accent, upper * min(1.0, left + right) * row)
    pane = upper * column * row
    # far windows share the mean of what near ones show one by one
    near = max(0.0, 1.0 - max(fu / bay, fv / floor))
    pick = chance(i, k, tone)
    shown = near * (0.30 * pick - 0.15)
    mirror = b[T.SHEEN] * (0.45 + 0.55 * min(1.0, v / 25.0)) + shown
    colour = mix(colour, mix(glass, low, mirror), pane)
    share = near * (1.0 if pick < b[T.LIT] else 0.0) + (1.0 - near) * b[T.LIT]
    warm = chance(k, i, tone + 1)
    glow = pane * air[A.DARK] * share
    return colour, (glow * 1.0, glow * (0.72 + 0.16 * warm), glow * (0.34 + 0.34 * warm))


@njit(fastmath=True)
def _shop(b, colour, light, at, length, footprint, air):
    """A ground floor of shop windows with goods and a sign: the facade's colour and its own light."""
    (u, v), (fu, fv), ground_h = at, footprint, b[T.GROUND_H]
    trim = triple(b, T.TRIM)
    hue = triple(b, T.ACCENT)
    glass = triple(b, T.PANE)
    low = triple(air, A.SKY_LOW)
    street = band(v, -1.0, ground_h, fv)
    unit = length / max(1.0, math.floor(length / 6.0 + 0.5))
    body = mix(trim, hue, 0.15)
    window = pulses(u, unit, 0.45, unit - 0.45, fu) * band(v, 0.55, 2.75, fv)
    goods = pulses(u, 1.5, 0.35, 1.05, fu) * band(v, 0.55, 1.35, fv)
    inside = mix(mix(glass, low, 0.22), (0.94, 0.86, 0.70), 0.85 * goods)
    body = mix(body, inside, window)
    sign = band(v, 2.85, 3.65, fv)
    letters = pulses(u, unit, 0.25 * unit, 0.75 * unit, fu) * pulses(u, 0.7, 0.0, 0.42, fu) * band(v, 3.05, 3.45, fv)
    body = mix(mix(body, hue, sign), (0.98, 0.97, 0.92), letters)
    glow = air[A.DARK] * street
    light = (
        light[0] + glow * (0.95 * window + 0.45 * hue[0] * sign),
        light[1] + glow * (0.74 * window + 0.45 * hue[1] * sign),
        light[2] + glow * (0.42 * window + 0.45 * hue[2] * sign),
    )
    return mix(colour, body, street), light


@njit(fastmath=True)
def _entrance(b, tone, colour, light, along, footprint, air):
    """A ground floor of doors and windows, `along` (u, v, length): the facade's colour and its own light."""
    (u, v, length), (fu, fv), ground_h = along, footprint, b[T.GROUND_H]
    trim = triple(b, T.TRIM)
    accent = triple(b, T.ACCENT)
    glass = triple(b, T.PANE)
    low = triple(air, A.SKY_LOW)
    street = band(v, -1.0, ground_h, fv)
    unit = length / max(1.0, math.floor(length / 6.0 + 0.5))
    i = math.floor(u / unit)
    plinth = (colour[0] * 0.7, colour[1] * 0.7, colour[2] * 0.7)
    body = mix(mix(colour, trim, 0.15), plinth, band(v, -1.0, 0.6, fv))
    window = pulses(u, unit, 0.9, unit - 2.3, fu) * band(v, 1.0, 2.9, fv)
    door = pulses(u, unit, unit - 1.7, unit - 0.5, fu) * band(v, -1.0, 2.5, fv)
    body = mix(mix(body, mix(glass, low, 0.2), window), accent, door)
    body = mix(body, trim, band(v, ground_h - 0.35, ground_h, fv))
    lit = air[A.DARK] * street * window * 0.6 * (1.0 if chance(i, 5, tone) < 0.5 else 0.0)
    return mix(colour, body, street), (light[0] + lit, light[1] + 0.78 * lit, light[2] + 0.45 * lit)
