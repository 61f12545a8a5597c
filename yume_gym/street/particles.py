"""Kernels for falling rain and snow: particles of the world, not of the screen."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

from numba import njit

from yume_gym.street import atmosphere as A
from yume_gym.street.materials import chance

_BOX = 8.0  # metres: rain and snow repeat after it, a divisor of the town's size
_RAIN_DROPS, _SNOW_FLAKES = 260, 420  # in a box


@njit(fastmath=True)
def draw_particles(camera, air, time, picture):
    """Rain streaks and snow flakes that fall in the world and repeat every 8 m."""
    if air[A.RAINFALL] > 0.0:
        _fall(camera, int(_RAIN_DROPS * air[A.RAINFALL]), time, True, air, picture)
    if air[A.SNOWFALL] > 0.0:
        _fall(camera, int(_SNOW_FLAKES * air[A.SNOWFALL]), time, False, air, picture)


@njit(fastmath=True)
def _fall(camera, number, time, rain, air, picture):
    x, h, z, rotation, focal = camera
    rows, columns = picture.depth.shape
    box = _BOX
    speed = 9.0 if rain else 1.3
    light = (0.80, 0.85, 0.92) if rain else (1.0, 1.0, 1.0)
    bright = min(1.0, 0.25 + air[A.AMBIENT + 1])
    lit = (light[0] * bright, light[1] * bright, light[2] * bright)
    for n in range(number):
        sway = 0.0 if rain else 0.5 * math.sin(time + 6.28 * chance(n, 4, 5))
        fx, fz = box * chance(n, 1, 17) + sway, box * chance(n, 2, 29)
        fh = box * chance(n, 3, 43) - speed * time * (0.8 + 0.4 * chance(n, 5, 3))
        bx, bz = (fx - x) % box, (fz - z) % box
        bh = (fh - h) % box
        for i in range(-1, 1):
            for j in range(-1, 1):
                for k in range(-1, 1):
                    ox, oy, oz = bx + i * box, -(bh + k * box), bz + j * box
                    cz = rotation[0, 2] * ox + rotation[1, 2] * oy + rotation[2, 2] * oz
                    if cz < 0.8 or h - oy < 0.0:
                        continue
                    cx = rotation[0, 0] * ox + rotation[1, 0] * oy + rotation[2, 0] * oz
                    cy = rotation[0, 1] * ox + rotation[1, 1] * oy + rotation[2, 1] * oz
                    u, v = focal * cx / cz + 0.5 * columns, focal * cy / cz + 0.5 * rows
                    away = math.sqrt(ox * ox + oy * oy + oz * oz)
                    if away > box:
                        continue
                    fade = 1.0 - away / box
                    long = 0.30 * focal / cz if rain else 0.04 * focal / cz
                    wide = 0.5 if rain else long
                    alpha = (0.40 if rain else 0.95) * min(1.0, 2.0 * fade)
                    _spot(u, v, (max(0.6, wide), max(0.8, long)), alpha, away, lit, picture)


@njit(fastmath=True)
def _spot(u, v, half, alpha, away, lit, picture):
    """Blend a spot around column u and row v that reaches `half` (columns, rows) each way, where nothing is nearer."""
    (wide, long), colour, depth = half, picture.colour, picture.depth
    rows, columns = depth.shape
    for row in range(max(0, int(v - long)), min(rows, int(v + long) + 1)):
        for column in range(max(0, int(u - wide)), min(columns, int(u + wide) + 1)):
            if depth[row, column] < away:
                continue
            a, b = (column + 0.5 - u) / (wide + 0.5), (row + 0.5 - v) / (long + 0.5)
            w = alpha * max(0.0, 1.0 - a * a - b * b)
            for k in range(3):
                colour[row, column, k] += w * (lit[k] - colour[row, column, k])
