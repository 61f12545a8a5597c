"""Kernels that say what colour the sky and the ground are. All textures are box-filtered analytically, by the filters here.

Colours are floats 0..1 as (red, green, blue); a footprint is the width in metres that a ray covers where it hits.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

from numba import njit

from yume_gym.street import atmosphere as A
from yume_gym.street import layout as T


@njit(fastmath=True)
def triple(values, at):
    """The colour that stands in a row of numbers from `at` on."""
    return values[at], values[at + 1], values[at + 2]


@njit(fastmath=True)
def mix(a, b, w):
    """Colour `a` turned into `b` by the share `w`."""
    return a[0] + (b[0] - a[0]) * w, a[1] + (b[1] - a[1]) * w, a[2] + (b[2] - a[2]) * w


@njit(fastmath=True)
def band(x, low, high, width):
    """Share of the footprint [x - width/2, x + width/2] inside [low, high]."""
    return max(0.0, min(x + 0.5 * width, high) - max(x - 0.5 * width, low)) / width


@njit(fastmath=True)
def _filled(x, period, low, high):
    n = math.floor(x / period)
    return n * (high - low) + min(max(x - n * period - low, 0.0), high - low)


@njit(fastmath=True)
def pulses(x, period, low, high, width):
    """Share of the footprint around x inside the pulses [low, high] that repeat every `period`."""
    return (_filled(x + 0.5 * width, period, low, high) - _filled(x - 0.5 * width, period, low, high)) / width


@njit(fastmath=True)
def chance(a, b, c):
    """A number in 0..1 that three integers decide."""
    n = (a * 374761393 + b * 668265263 + c * 1274126177) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1103515245) & 0x7FFFFFFF
    n = ((n ^ (n >> 11)) * 12345701) & 0x7FFFFFFF
    return (n >> 7) / 16777216.0


@njit(fastmath=True)
def wrap(x, period):
    """x within 0..period (far cheaper here than `%`)."""
    return x - period * math.floor(x / period)


@njit(fastmath=True)
def _turn(i, n):
    return i + n if i < 0 else (i - n if i >= n else i)


@njit(fastmath=True)
def texel(image, u, v, channel):
    """Bilinear sample of a periodic [K, K, C] image at texel coordinates, at most one turn outside."""
    n = image.shape[0]
    u -= 0.5
    v -= 0.5
    i, j = math.floor(u), math.floor(v)
    a, b = u - i, v - j
    i0, j0 = _turn(i, n), _turn(j, n)
    i1, j1 = _turn(i + 1, n), _turn(j + 1, n)
    low = image[i0, j0, channel] * (1 - b) + image[i0, j1, channel] * b
    high = image[i1, j0, channel] * (1 - b) + image[i1, j1, channel] * b
    return low * (1 - a) + high * a


@njit(fastmath=True)
def sky(dx, dh, dz, air, clouds):
    """Sky with hills, clouds, sun or moon and stars in a direction (unit vector)."""
    low = triple(air, A.SKY_LOW)
    up = max(dh, 0.0)
    colour = mix(low, triple(air, A.SKY_TOP), math.sqrt(min(1.0, 1.7 * up)))
    flat = 1.0 / math.sqrt(dx * dx + dz * dz + 1e-9)
    cx, cz = dx * flat, dz * flat
    clear = air[A.COVER]
    sun = dx * air[A.SUN_DIR] + dh * air[A.SUN_DIR + 1] + dz * air[A.SUN_DIR + 2]
    dark = air[A.DARK]
    if air[A.DISC] > 0.0 and sun > 0.0:
        glow = sun * sun
        glow *= glow
        glow *= glow
        glow *= glow
        disc = min(1.0, max(0.0, (sun - 0.9962) * 700.0)) * air[A.DISC]
        halo = 0.45 * glow * (1.0 - 0.8 * dark) * air[A.DISC]
        colour = mix(colour, (1.0, 0.93, 0.74), halo)
        colour = mix(colour, (1.0, 0.97, 0.86), disc)
    if up > 0.0 and clear > 0.0:
        reach = 40.0 / (dh + 0.22)
        cloud = texel(clouds, cx * (1.0 - dh) * reach + 128.0, cz * (1.0 - dh) * reach + 128.0, 0)
        cloud *= clear * min(1.0, 6.0 * up)
        shade = 0.86 + 0.14 * min(1.0, 3.0 * up)
        colour = mix(colour, (air[A.CLOUD] * shade, air[A.CLOUD + 1] * shade, air[A.CLOUD + 2] * shade), 0.9 * cloud)
        if dark > 0.5:
            star = (
                texel(clouds, cx * (1.0 - dh) * 90.0 + 128.0, cz * (1.0 - dh) * 90.0 + 128.0, 1)
                * (dark - 0.5)
                * 2.0
                * clear
            )
            colour = mix(colour, (0.9, 0.92, 1.0), min(1.0, 1.6 * star * min(1.0, 4.0 * up)))
    hill = 0.075 + 0.035 * (cx * cx - cz * cz) + 0.03 * (4.0 * cx * cx * cx - 3.0 * cx) + 0.02 * (2.0 * cx * cz)
    cover = min(1.0, max(0.0, (hill - dh) * 90.0 + 0.5))
    if cover > 0.0:
        tone = 0.72 + 0.1 * cz
        colour = mix(colour, (low[0] * tone * 0.80, low[1] * tone * 0.92, low[2] * tone), cover * (0.35 + 0.5 * clear))
    return colour


@njit(fastmath=True)
def in_lot(x, z):
    """Whether a place on the ground (metres) is behind the pavements."""
    p = T.PITCH
    return abs(x - p * math.floor(x / p + 0.5)) > T.LOT_EDGE and abs(z - p * math.floor(z / p + 0.5)) > T.LOT_EDGE


@njit(fastmath=True)
def ground(x, z, fx, fz, ground_of, tints, air):
    """The ground's own colour and its wetness at a place (metres on the torus) under a footprint fx, fz."""
    p = T.PITCH
    nx, nz = math.floor(x / p + 0.5), math.floor(z / p + 0.5)
    sx, sz = x - nx * p, z - nz * p
    blocks = tints.shape[1]
    ax, az = abs(sx), abs(sz)
    # the two streets' own greys and stones, blended over the crossing
    turn = min(1.0, max(0.0, 0.5 + (ax - az) / 8.0))
    along, across = tints[0, nx % blocks], tints[1, nz % blocks]
    asphalt = mix((along[0], along[1], along[2]), (across[0], across[1], across[2]), turn)
    stone = mix((along[3], along[4], along[5]), (across[3], across[4], across[5]), turn)
    on_x, on_z = band(sx, -T.ROAD_EDGE, T.ROAD_EDGE, fx), band(sz, -T.ROAD_EDGE, T.ROAD_EDGE, fz)
    road = 1.0 - (1.0 - on_x) * (1.0 - on_z)
    # pavement slabs, or what lies in the lot
    slab = 0.10 * max(pulses(x, 2.0, 0.0, 0.12, fx), pulses(z, 2.0, 0.0, 0.12, fz))
    colour = (stone[0] * (1.0 - slab), stone[1] * (1.0 - slab), stone[2] * (1.0 - slab))
    if ax > T.LOT_EDGE - 0.5 * fx and az > T.LOT_EDGE - 0.5 * fz:
        n = ground_of.shape[0]
        kind = ground_of[math.floor((x - T.CELL_OFFSET) / T.CELL) % n, math.floor((z - T.CELL_OFFSET) / T.CELL) % n]
        if kind != T.PLAZA:
            inside = (1.0 - band(sx, -T.LOT_EDGE, T.LOT_EDGE, fx)) * (1.0 - band(sz, -T.LOT_EDGE, T.LOT_EDGE, fz))
            if kind == T.LAWN:
                mown = 0.06 * (pulses(x + z, 4.0, 0.0, 2.0, fx + fz) - 0.5)
                lot = (0.33 + mown, 0.62 + mown, 0.22 + mown)
            elif kind == T.PATH:
                lot = (0.86, 0.76, 0.56)
            else:
                lot = (0.16, 0.42, 0.56)
                rim_x, rim_z = (x - T.CELL_OFFSET) % T.CELL, (z - T.CELL_OFFSET) % T.CELL
                i, j = math.floor((x - T.CELL_OFFSET) / T.CELL), math.floor((z - T.CELL_OFFSET) / T.CELL)
                di = -1 if rim_x < 0.5 else (1 if rim_x > T.CELL - 0.5 else 0)
                dj = -1 if rim_z < 0.5 else (1 if rim_z > T.CELL - 0.5 else 0)
                if ground_of[(i + di) % n, j % n] != T.WATER or ground_of[i % n, (j + dj) % n] != T.WATER:
                    lot = (0.80, 0.78, 0.74)
                else:
                    wet = 1.0 - air[A.SNOW] * 0.7
                    return lot, wet
            colour = mix(colour, lot, inside)
    wet = 0.25 * air[A.WET]
    if road > 0.0:
        paint = 0.0
        if ax < T.ROAD_EDGE + fx:  # street along z: zebra, middle line, stop line
            paint = _markings(sx, sz, fx, fz)
        if az < T.ROAD_EDGE + fz:
            paint = max(paint, _markings(sz, sx, fz, fx))
        colour = mix(colour, mix(asphalt, (0.93, 0.92, 0.86), 0.95 * paint), road)
        wet = wet + (0.5 * air[A.WET] - wet) * road
    kerb_x, kerb_z = (
        band(sx, -T.ROAD_EDGE - 0.22, T.ROAD_EDGE + 0.22, fx),
        band(sz, -T.ROAD_EDGE - 0.22, T.ROAD_EDGE + 0.22, fz),
    )
    kerb = 1.0 - (1.0 - kerb_x) * (1.0 - kerb_z) - road
    colour = mix(colour, (0.86, 0.85, 0.82), max(0.0, kerb))
    damp = 1.0 - 0.25 * air[A.WET]
    colour = (colour[0] * damp, colour[1] * damp, colour[2] * damp)
    return mix(colour, (0.93, 0.95, 0.99), air[A.SNOW] * (0.90 - 0.22 * road)), wet


@njit(fastmath=True)
def _markings(across, along, f_across, f_along):
    """Share of white paint on a carriageway, `across` metres from its middle and `along` metres from a crossing."""
    far = abs(along)
    on_road = band(across, -3.6, 3.6, f_across)
    zebra = band(far, 4.7, 7.7, f_along) * pulses(across + 0.25, 1.2, 0.0, 0.6, f_across) * on_road
    dash = (1.0 - band(along, -10.0, 10.0, f_along)) * pulses(along, 5.0, 0.0, 2.5, f_along)
    line = band(across, -0.11, 0.11, f_across) * dash
    stop = band(far, 8.5, 9.0, f_along) * band(across * along, 0.0, 60.0, f_across * far) * on_road
    return min(1.0, zebra + line + stop)
