"""Kernels that draw small shapes over a traced picture, by exact ray hits inside their screen rectangles."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from yume_gym.street import atmosphere as A
from yume_gym.street import primitives as P
from yume_gym.street.intersections import hit
from yume_gym.street.materials import mix, sky, triple

_NEAR = 0.12  # metres
_SIGHT = 88.0  # metres to the farthest shape drawn


class Camera(NamedTuple):
    """Where a picture is taken from: metres on the axes of `trace`, camera-to-world [3, 3], focal length in samples."""

    x: float
    h: float
    z: float
    rotation: np.ndarray
    focal: float


class Picture(NamedTuple):
    """What is drawn into: colours 0..1 [h, w, 3], depths (metres) [h, w] and unit rays [h, w, 3] of all samples."""

    colour: np.ndarray
    depth: np.ndarray
    rays: np.ndarray


@njit(fastmath=True)
def _rectangle(shape, centre, camera, rows, columns, out):
    """Screen rectangle (rows, then columns) that holds the box around a shape `centre` away; False if it is out of view."""
    (cx, ch, cz), rotation, focal = centre, camera.rotation, camera.focal
    corners = np.empty((8, 3))
    inside = 0
    for k in range(8):
        ox = cx + (shape[P.A] if k & 1 else -shape[P.A])
        oy = -(ch + (shape[P.B] if k & 2 else -shape[P.B]))
        oz = cz + (shape[P.C] if k & 4 else -shape[P.C])
        for a in range(3):
            corners[k, a] = rotation[0, a] * ox + rotation[1, a] * oy + rotation[2, a] * oz
        if corners[k, 2] > _NEAR:
            inside += 1
    if inside == 0:
        return False
    left, right, top, bottom = 1e9, -1e9, 1e9, -1e9
    for k in range(8):
        c = corners[k]
        if c[2] > _NEAR:
            u, v = c[0] / c[2], c[1] / c[2]
            left, right, top, bottom = min(left, u), max(right, u), min(top, v), max(bottom, v)
        if inside < 8:
            for bit in (1, 2, 4):
                o = corners[k ^ bit]
                if c[2] > _NEAR and o[2] <= _NEAR:
                    s = (c[2] - _NEAR) / (c[2] - o[2])
                    u, v = (c[0] + s * (o[0] - c[0])) / _NEAR, (c[1] + s * (o[1] - c[1])) / _NEAR
                    left, right, top, bottom = min(left, u), max(right, u), min(top, v), max(bottom, v)
    out[0] = max(0, int(max(-1e6, min(1e6, top * focal + 0.5 * rows - 0.5))))
    out[1] = min(rows, int(max(-1e6, min(1e6, bottom * focal + 0.5 * rows + 1.5))))
    out[2] = max(0, int(max(-1e6, min(1e6, left * focal + 0.5 * columns - 0.5))))
    out[3] = min(columns, int(max(-1e6, min(1e6, right * focal + 0.5 * columns + 1.5))))
    return out[0] < out[1] and out[2] < out[3]


@njit(fastmath=True)
def _paint(shape, hx, hh, hz, nx, nh, nz, air):
    """Own colour and own light of a shape at a hit (hx, hh, hz) from its middle with a normal."""
    material = int(shape[P.MATERIAL])
    colour = (shape[P.RED], shape[P.GREEN], shape[P.BLUE])
    emit = shape[P.EMIT]
    if material == P.FOLIAGE:
        bumps = math.sin(4.1 * hx + 1.0) * math.sin(4.3 * hh) + math.sin(4.7 * hz + 2.0) * math.sin(3.7 * hx - 3.1 * hh)
        k = 1.0 + 0.16 * bumps
        colour = (colour[0] * k, colour[1] * k, colour[2] * k)
    elif material == P.STRIPES:
        along = hh if nh == 0.0 and shape[P.KIND] == P.CYLINDER else (hx if shape[P.A] > shape[P.C] else hz)
        if (along / shape[P.PARAM]) % 2.0 < 1.0:
            colour = (0.97, 0.96, 0.92)
    elif material == P.TILES:
        if nh < 0.0:
            colour = (0.5, 0.45, 0.4)
        elif hh % 1.2 < 0.25:
            colour = (colour[0] * 0.85, colour[1] * 0.85, colour[2] * 0.85)
    elif material == P.GORES:
        if (math.atan2(hz, hx) * 4.0 / math.pi) % 2.0 < 1.0:
            colour = (0.98, 0.88, 0.25)
    elif material == P.CABIN:
        if nh == 0.0 and hh < 0.17:
            colour = (0.12, 0.16, 0.22)
    elif material == P.CAR:
        if hh < -0.12:
            colour = (colour[0] * 0.6, colour[1] * 0.6, colour[2] * 0.6)
    elif material == P.LAMP:
        emit = 0.9 * air[A.DARK]
    white = air[A.SNOW] * min(1.0, max(0.0, 1.6 * nh - 0.2)) * (1.0 if emit == 0.0 else 0.0)
    return mix(colour, (0.94, 0.96, 1.0), 0.9 * white), emit


@njit(fastmath=True)
def draw_shapes(shapes, camera, size, air, clouds, picture):
    """Solid shapes against the depth buffer, then soft ones over them from far to near."""
    x, h, z, rotation = camera.x, camera.h, camera.z, camera.rotation
    rows, columns = picture.depth.shape
    turns = math.ceil(_SIGHT / size)
    rectangle = np.empty(4, np.int64)
    soft = np.empty((len(shapes) * (2 * turns + 1) ** 2, 5))
    count = 0
    for k in range(len(shapes)):
        shape = shapes[k]
        kind = int(shape[P.KIND])
        if shape[P.ALPHA] <= 0.0 or (shape[P.MATERIAL] == P.HALO and air[A.DARK] <= 0.0):
            continue
        near_x = shape[P.X] - x - size * math.floor((shape[P.X] - x) / size + 0.5)
        near_z = shape[P.Z] - z - size * math.floor((shape[P.Z] - z) / size + 0.5)
        ch = shape[P.H] - h
        reach = max(shape[P.A], shape[P.C])
        for i in range(-turns, turns + 1):
            for j in range(-turns, turns + 1):
                cx, cz = near_x + i * size, near_z + j * size
                away = math.sqrt(cx * cx + cz * cz)
                ahead = rotation[0, 2] * cx - rotation[1, 2] * ch + rotation[2, 2] * cz
                if away > _SIGHT or ahead < -(shape[P.A] + shape[P.B] + shape[P.C]):
                    continue
                if reach < 0.6 and away < 0.5 and kind < P.MIST:
                    continue  # whoever walks through a person or a post does not see its inside
                if kind >= P.MIST:
                    soft[count, 0], soft[count, 1], soft[count, 2], soft[count, 3], soft[count, 4] = (
                        -away,
                        k,
                        cx,
                        ch,
                        cz,
                    )
                    count += 1
                elif _rectangle(shape, (cx, ch, cz), camera, rows, columns, rectangle):
                    _draw_solid(shape, kind, (cx, ch, cz), rectangle, air, clouds, picture)
    order = np.argsort(soft[:count, 0])
    for n in order:
        shape, centre = shapes[int(soft[n, 1])], (soft[n, 2], soft[n, 3], soft[n, 4])
        if _rectangle(shape, centre, camera, rows, columns, rectangle):
            _draw_soft(shape, centre, rectangle, air, picture)


@njit(fastmath=True)
def _draw_solid(shape, kind, centre, rectangle, air, clouds, picture):
    (cx, ch, cz), colour, depth, rays = centre, picture.colour, picture.depth, picture.rays
    low = triple(air, A.SKY_LOW)
    alpha = shape[P.ALPHA]
    for row in range(rectangle[0], rectangle[1]):
        for column in range(rectangle[2], rectangle[3]):
            dx, dh, dz = rays[row, column, 0], rays[row, column, 1], rays[row, column, 2]
            t, nx, nh, nz = hit(shape, kind, centre, (dx, dh, dz))
            if t < _NEAR or t >= depth[row, column]:
                continue
            own, emit = _paint(shape, t * dx - cx, t * dh - ch, t * dz - cz, nx, nh, nz, air)
            facing = nx * air[A.SUN_DIR] + nh * air[A.SUN_DIR + 1] + nz * air[A.SUN_DIR + 2]
            lit, shade = max(0.0, 0.15 + 0.85 * facing), 0.78 + 0.22 * nh
            c = (
                own[0] * (air[A.AMBIENT] * shade + air[A.SUN] * lit + emit),
                own[1] * (air[A.AMBIENT + 1] * shade + air[A.SUN + 1] * lit + emit),
                own[2] * (air[A.AMBIENT + 2] * shade + air[A.SUN + 2] * lit + emit),
            )
            c = mix(c, low, 1.0 - math.exp(-air[A.HAZE] * t))
            if t > 63.0:
                gone = min(1.0, (t - 63.0) / 25.0)
                c = mix(c, sky(dx, dh, dz, air, clouds), gone * gone * (3.0 - 2.0 * gone))
            if alpha < 1.0:
                c = mix((colour[row, column, 0], colour[row, column, 1], colour[row, column, 2]), c, alpha)
            if alpha > 0.5:
                depth[row, column] = t
            colour[row, column, 0], colour[row, column, 1], colour[row, column, 2] = c


@njit(fastmath=True)
def _draw_soft(shape, centre, rectangle, air, picture):
    """Blend a soft ellipsoid or pillar: densest where the ray passes nearest to its middle (or axis)."""
    (cx, ch, cz), colour, depth, rays = centre, picture.colour, picture.depth, picture.rays
    a, b, c = shape[P.A], shape[P.B], shape[P.C]
    pillar = shape[P.KIND] == P.PILLAR
    middle = math.sqrt(cx * cx + ch * ch + cz * cz)
    strength = (
        shape[P.ALPHA] * math.exp(-0.7 * air[A.HAZE] * middle) * (air[A.DARK] if shape[P.MATERIAL] == P.HALO else 1.0)
    )
    if middle > 55.0:
        strength *= max(0.0, 1.0 - (middle - 55.0) / 30.0)
    lit = (1.0, 1.0, 1.0)
    if shape[P.KIND] == P.MIST:
        e = shape[P.EMIT]
        lit = (
            e + (1.0 - e) * (air[A.AMBIENT] + air[A.SUN]),
            e + (1.0 - e) * (air[A.AMBIENT + 1] + air[A.SUN + 1]),
            e + (1.0 - e) * (air[A.AMBIENT + 2] + air[A.SUN + 2]),
        )
    glow = shape[P.KIND] == P.GLOW
    tint = (shape[P.RED] * lit[0], shape[P.GREEN] * lit[1], shape[P.BLUE] * lit[2])
    for row in range(rectangle[0], rectangle[1]):
        for column in range(rectangle[2], rectangle[3]):
            dx, dh, dz = rays[row, column, 0], rays[row, column, 1], rays[row, column, 2]
            ux, uz, px, pz = dx / a, dz / c, cx / a, cz / c
            uh, ph = (0.0, 0.0) if pillar else (dh / b, ch / b)
            uu = ux * ux + uh * uh + uz * uz + 1e-12
            t = (ux * px + uh * ph + uz * pz) / uu
            if t < 0.0 or t > depth[row, column] + 0.5:
                continue
            miss = (t * ux - px) ** 2 + (t * uh - ph) ** 2 + (t * uz - pz) ** 2
            if miss >= 1.0 or (pillar and abs(t * dh - ch) > b):
                continue
            w = (1.0 - miss) * strength
            w = w * (1.0 - miss) if glow else min(1.0, 1.5 * w)
            old = (colour[row, column, 0], colour[row, column, 1], colour[row, column, 2])
            if shape[P.MATERIAL] == P.HALO:
                new = (old[0] + w * tint[0], old[1] + w * tint[1], old[2] + w * tint[2])
            else:
                new = mix(old, tint, min(1.0, w))
            colour[row, column, 0], colour[row, column, 1], colour[row, column, 2] = new
