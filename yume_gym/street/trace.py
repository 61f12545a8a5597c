"""The ray caster: true rays through the grid for buildings and ground, then small shapes over the depth buffer.

Heights grow upwards here; poses use OpenCV axes (y down), so height = -y.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from yume_gym.street import atmosphere as A
from yume_gym.street import layout as T
from yume_gym.street.draw import Camera, draw_shapes
from yume_gym.street.facades import wall
from yume_gym.street.materials import ground, in_lot, mix, sky, texel, triple, wrap
from yume_gym.street.particles import draw_particles

FAR = 90.0  # metres: what is farther has faded into the sky
SKY_DEPTH = 1000.0  # metres reported where a ray meets nothing

_GROUND, _SKY, _DONE = -1, -2, -1000  # surfaces; a wall is 4 * building + side


class Surfaces(NamedTuple):
    """What walls, ground and sky are shaded from: of a `Town` all but its cells, and the air."""

    size: float  # metres
    ground: np.ndarray
    buildings: np.ndarray
    tints: np.ndarray
    light: np.ndarray
    clouds: np.ndarray
    air: np.ndarray


@njit(fastmath=True)
def cast(cells, buildings, eye, ray, far):
    """Distance (m) to the first wall along a unit ray, its building and facade; (far, -1, 0) if there is none.

    `eye` (x, height, z) in metres, `ray` a direction on the same axes. Facades: 0 faces -x, 1 +x, 2 -z, 3 +z.
    """
    (x, h, z), (dx, dh, dz) = eye, ray
    n = cells.shape[0]
    gx, gz = (x - T.CELL_OFFSET) / T.CELL, (z - T.CELL_OFFSET) / T.CELL
    i, j = math.floor(gx), math.floor(gz)
    step_x, step_z = (1 if dx > 0 else -1), (1 if dz > 0 else -1)
    each_x, each_z = T.CELL / max(abs(dx), 1e-9), T.CELL / max(abs(dz), 1e-9)
    next_x = (i + 1 - gx if dx > 0 else gx - i) * each_x
    next_z = (j + 1 - gz if dz > 0 else gz - j) * each_z
    i %= n
    j %= n
    t = 0.0
    while True:
        if next_x < next_z:
            t = next_x
            next_x += each_x
            i += step_x
            i = 0 if i == n else (n - 1 if i < 0 else i)
            side = 0 if step_x > 0 else 1
        else:
            t = next_z
            next_z += each_z
            j += step_z
            j = 0 if j == n else (n - 1 if j < 0 else j)
            side = 2 if step_z > 0 else 3
        if t >= far:
            return far, -1, 0
        b = cells[i, j]
        if b >= 0 and h + t * dh < buildings[b, T.HEIGHT]:
            return t, b, side


@njit(fastmath=True)
def trace(town, shapes, air, camera, samples, time, picture):
    """Fill a `Picture` whose grid has `samples` x `samples` rays to a pixel of the camera's, `time` in seconds.

    Every sample is traced, but each surface that a pixel's samples meet is shaded once: textures are filtered anyway.
    """
    size, cells, buildings = town.size, town.cells, town.buildings
    surfaces = Surfaces(size, town.ground, buildings, town.tints, town.light, town.clouds, air)
    rotation, depth, rays = camera.rotation, picture.depth, picture.rays
    x, h, z = camera.x % size, camera.h, camera.z % size
    pixel = 1.0 / camera.focal
    highest = 0.0
    for b in range(buildings.shape[0]):
        highest = max(highest, buildings[b, T.HEIGHT])
    met = np.empty((samples, samples), np.int64)
    for row in range(depth.shape[0] // samples):
        for column in range(depth.shape[1] // samples):
            for a in range(samples):
                for b in range(samples):
                    i, j = row * samples + a, column * samples + b
                    px, py = (j + 0.5 - 0.5 * depth.shape[1]) * pixel, (i + 0.5 - 0.5 * depth.shape[0]) * pixel
                    dx = rotation[0, 0] * px + rotation[0, 1] * py + rotation[0, 2]
                    dh = -(rotation[1, 0] * px + rotation[1, 1] * py + rotation[1, 2])
                    dz = rotation[2, 0] * px + rotation[2, 1] * py + rotation[2, 2]
                    norm = 1.0 / math.sqrt(dx * dx + dh * dh + dz * dz)
                    dx, dh, dz = dx * norm, dh * norm, dz * norm
                    rays[i, j, 0], rays[i, j, 1], rays[i, j, 2] = dx, dh, dz
                    to_ground = -h / dh if dh < -1e-6 else 1e9
                    far = min(FAR, to_ground)
                    if dh > 1e-6:
                        far = min(far, (highest - h) / dh)
                    t, building, side = cast(cells, buildings, (x, h, z), (dx, dh, dz), far)
                    met[a, b] = 4 * building + side if building >= 0 else (_GROUND if to_ground <= far else _SKY)
                    depth[i, j] = t if met[a, b] != _SKY else SKY_DEPTH
                    if met[a, b] == _GROUND and in_lot(x + t * dx, z + t * dz):
                        met[a, b] = -10 - (a * samples + b)  # lawn, path and pond have edges of their own
            for a in range(samples):
                for b in range(samples):
                    if met[a, b] != _DONE:
                        _shade(surfaces, (x, h, z), row, column, met[a, b], met, pixel * samples, picture)
    near = Camera(x, h, z, rotation, camera.focal)
    draw_shapes(shapes, near, size, air, town.clouds, picture)
    draw_particles(near, air, time, picture)


@njit(fastmath=True, inline="always")
def _shade(surfaces, eye, row, column, surface, met, pixel, picture):
    """Colour those samples of a pixel that met a surface, by the middle of where they met it."""
    (x, h, z), air, clouds, size = eye, surfaces.air, surfaces.clouds, surfaces.size
    colour, depth, rays = picture.colour, picture.depth, picture.rays
    samples = met.shape[0]
    ox, oh, oz, count = 0.0, 0.0, 0.0, 0
    for a in range(samples):
        for b in range(samples):
            if met[a, b] == surface:
                i, j = row * samples + a, column * samples + b
                ox, oh, oz = (
                    ox + depth[i, j] * rays[i, j, 0],
                    oh + depth[i, j] * rays[i, j, 1],
                    oz + depth[i, j] * rays[i, j, 2],
                )
                count += 1
    ox, oh, oz = ox / count, oh / count, oz / count
    t = math.sqrt(ox * ox + oh * oh + oz * oz)
    dx, dh, dz = ox / t, oh / t, oz / t
    spread = t * pixel * (math.sqrt(count) / samples)
    if surface == _SKY:
        c = sky(dx, dh, dz, air, clouds)
    elif surface >= 0:
        hit = (x + ox, h + oh, z + oz)
        c = _lit_wall(surfaces, hit, (dx, dh, dz), spread, surface // 4, surface % 4)
        c = through_air(c, t, dx, dh, dz, air, clouds)
    else:
        c = _lit_ground(surfaces, wrap(x + ox, size), wrap(z + oz, size), (dx, dh, dz), spread)
        c = through_air(c, t, dx, dh, dz, air, clouds)
    for a in range(samples):
        for b in range(samples):
            if met[a, b] == surface:
                i, j = row * samples + a, column * samples + b
                colour[i, j, 0], colour[i, j, 1], colour[i, j, 2] = c
                met[a, b] = _DONE


@njit(fastmath=True, inline="always")
def _lit_wall(surfaces, hit, ray, spread, building, side):
    """A facade's colour at `hit` (x, height, z; metres), seen along the unit vector `ray`."""
    (px, v, pz), (dx, dh, dz), size, air = hit, ray, surfaces.size, surfaces.air
    row = surfaces.buildings[building]
    if side < 2:
        along, length = wrap(pz - row[T.Z0], size), row[T.Z1] - row[T.Z0]
        slope, slope_v = dz / dx, dh / dx
    else:
        along, length = wrap(px - row[T.X0], size), row[T.X1] - row[T.X0]
        slope, slope_v = dx / dz, dh / dz
    fu, fv = spread * math.sqrt(1.0 + slope * slope), spread * math.sqrt(1.0 + slope_v * slope_v)
    own, glow = wall(row, side, along, v, length, (fu, fv), air)
    towards = air[A.SUN_DIR] if side < 2 else air[A.SUN_DIR + 2]
    lit = 1.15 * max(0.0, towards if side % 2 else -towards)
    shade = 0.80 + 0.20 * min(1.0, v / 2.5) - 0.06 * (side // 2)
    lamp = 0.0
    if air[A.DARK] > 0.0 and v < 9.0:
        lamp = (
            air[A.DARK]
            * texel(surfaces.light, 2.0 * wrap(px - 0.3 * dx, size), 2.0 * wrap(pz - 0.3 * dz, size), 2)
            * (1.0 - v / 9.0)
        )
    c = (
        own[0] * (air[A.AMBIENT] * shade + air[A.SUN] * lit + lamp) + glow[0],
        own[1] * (air[A.AMBIENT + 1] * shade + air[A.SUN + 1] * lit + 0.8 * lamp) + glow[1],
        own[2] * (air[A.AMBIENT + 2] * shade + air[A.SUN + 2] * lit + 0.5 * lamp) + glow[2],
    )
    if air[A.FIRE] > 0.0 and building == int(air[A.BURNING]):
        c = mix(c, (1.0, 0.42, 0.08), 0.35 * air[A.FIRE])
    return c


@njit(fastmath=True, inline="always")
def _lit_ground(surfaces, gx, gz, ray, spread):
    """The ground's colour at (gx, gz; metres, within the town), seen along the unit vector `ray`."""
    (dx, dh, dz), air, light = ray, surfaces.air, surfaces.light
    steep = 1.0 / (dh * dh)
    fx, fz = spread * math.sqrt(1.0 + dx * dx * steep), spread * math.sqrt(1.0 + dz * dz * steep)
    own, wet = ground(gx, gz, fx, fz, surfaces.ground, surfaces.tints, air)
    u, w = 2.0 * gx, 2.0 * gz
    shine = max(0.0, 1.0 - air[A.DAY_SUN] - air[A.LOW_SUN])
    if air[A.DAY_SUN] > 0.0:
        shine += texel(light, u, w, 0) * air[A.DAY_SUN]
    if air[A.LOW_SUN] > 0.0:
        shine += texel(light, u, w, 1) * air[A.LOW_SUN]
    lamp = air[A.DARK] * texel(light, u, w, 2) if air[A.DARK] > 0.0 else 0.0
    lift = 0.85 * shine
    c = (
        own[0] * (0.92 * air[A.AMBIENT] + air[A.SUN] * lift + lamp),
        own[1] * (0.92 * air[A.AMBIENT + 1] + air[A.SUN + 1] * lift + 0.8 * lamp),
        own[2] * (0.92 * air[A.AMBIENT + 2] + air[A.SUN + 2] * lift + 0.5 * lamp),
    )
    if wet > 0.0:
        grazing = (1.0 + dh) * (1.0 + dh)
        c = mix(c, sky(dx, -dh, dz, air, surfaces.clouds), wet * (0.35 + 0.5 * grazing * grazing))
    return c


@njit(fastmath=True)
def through_air(c, t, dx, dh, dz, air, clouds):
    """What of a colour arrives from `t` metres away: haze, and a fade into the sky behind before the end of sight."""
    low = triple(air, A.SKY_LOW)
    c = mix(c, low, 1.0 - math.exp(-air[A.HAZE] * t))
    if t > 0.7 * FAR:
        gone = min(1.0, (t / FAR - 0.7) / 0.3)
        c = mix(c, sky(dx, dh, dz, air, clouds), gone * gone * (3.0 - 2.0 * gone))
    return c


@njit
def shrink(colour, samples, out):
    """Mean of samples x samples colours, as uint8."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(3):
                total = 0.0
                for a in range(samples):
                    for b in range(samples):
                        total += min(1.0, max(0.0, colour[i * samples + a, j * samples + b, k]))
                out[i, j, k] = int(255.0 * total / (samples * samples) + 0.5)
