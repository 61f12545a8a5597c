"""Kernels that intersect a ray with a small shape: ellipsoid, cylinder, box or hip roof."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

from numba import njit

from yume_gym.street import primitives as P

MISS = (-1.0, 0.0, 0.0, 0.0)  # distance and normal of a shape that a ray does not hit


@njit(fastmath=True)
def hit(shape, kind, centre, ray):
    """Distance to a solid shape `centre` (x, height, z; metres) away along a ray, and its normal; negative if missed."""
    if kind == P.ELLIPSOID:
        return _hit_ellipsoid(shape, centre, ray)
    if kind == P.CYLINDER:
        return _hit_cylinder(shape, centre, ray)
    if kind == P.BOX:
        return _hit_box(shape, centre, ray)
    return _hit_roof(shape, centre, ray)


@njit(fastmath=True)
def _hit_ellipsoid(shape, centre, ray):
    a, b, c = shape[P.A], shape[P.B], shape[P.C]
    (cx, ch, cz), (dx, dh, dz) = centre, ray
    ux, uh, uz = dx / a, dh / b, dz / c
    px, ph, pz = cx / a, ch / b, cz / c
    uu = ux * ux + uh * uh + uz * uz
    up = ux * px + uh * ph + uz * pz
    disc = up * up - uu * (px * px + ph * ph + pz * pz - 1.0)
    if disc < 0.0:
        return MISS
    t = (up - math.sqrt(disc)) / uu
    nx, nh, nz = (t * ux - px) / a, (t * uh - ph) / b, (t * uz - pz) / c
    norm = 1.0 / math.sqrt(nx * nx + nh * nh + nz * nz + 1e-12)
    return t, nx * norm, nh * norm, nz * norm


@njit(fastmath=True)
def _hit_cylinder(shape, centre, ray):
    """An upright one: its side, or its top from above."""
    a, b = shape[P.A], shape[P.B]
    (cx, ch, cz), (dx, dh, dz) = centre, ray
    uu = dx * dx + dz * dz
    up = dx * cx + dz * cz
    disc = up * up - uu * (cx * cx + cz * cz - a * a)
    if disc < 0.0 or uu < 1e-12:
        return MISS
    t = (up - math.sqrt(disc)) / uu
    v = t * dh - ch
    if abs(v) <= b:
        return t, (t * dx - cx) / a, 0.0, (t * dz - cz) / a
    if dh < 0.0 and v > b:
        t = (ch + b) / dh
        if (t * dx - cx) ** 2 + (t * dz - cz) ** 2 <= a * a:
            return t, 0.0, 1.0, 0.0
    return MISS


@njit(fastmath=True)
def _hit_box(shape, centre, ray):
    a, b, c = shape[P.A], shape[P.B], shape[P.C]
    (cx, ch, cz), (dx, dh, dz) = centre, ray
    ix, ih, iz = 1.0 / (dx + 1e-12), 1.0 / (dh + 1e-12), 1.0 / (dz + 1e-12)
    nx, nh, nz = cx * ix - a * abs(ix), ch * ih - b * abs(ih), cz * iz - c * abs(iz)
    leave = min(cx * ix + a * abs(ix), min(ch * ih + b * abs(ih), cz * iz + c * abs(iz)))
    enter = max(nx, max(nh, nz))
    if enter > leave:
        return MISS
    if enter == nx:
        return enter, (-1.0 if dx > 0 else 1.0), 0.0, 0.0
    if enter == nh:
        return enter, 0.0, (-1.0 if dh > 0 else 1.0), 0.0
    return enter, 0.0, 0.0, (-1.0 if dz > 0 else 1.0)


@njit(fastmath=True)
def _hit_roof(shape, centre, ray):
    """A hip roof: eaves at the centre's height, each side rises by `slope`."""
    a, c, slope = shape[P.A], shape[P.C], shape[P.PARAM]
    (cx, ch, cz), (dx, dh, dz) = centre, ray
    enter, leave, face = -1e9, 1e9, -1
    for side in range(5):
        if side == 4:
            denominator, numerator = -dh, -ch
        elif side < 2:
            s = 1.0 if side == 0 else -1.0
            denominator, numerator = dh + s * slope * dx, ch + slope * (a + s * cx)
        else:
            s = 1.0 if side == 2 else -1.0
            denominator, numerator = dh + s * slope * dz, ch + slope * (c + s * cz)
        if abs(denominator) < 1e-9:
            if numerator < 0.0:
                return MISS
            continue
        t = numerator / denominator
        if denominator < 0.0:
            if t > enter:
                enter, face = t, side
        else:
            leave = min(leave, t)
    if enter > leave or face < 0:
        return MISS
    if face == 4:
        return enter, 0.0, -1.0, 0.0
    n = 1.0 / math.sqrt(1.0 + slope * slope)
    s = (1.0 if face % 2 == 0 else -1.0) * slope * n
    return (enter, s, n, 0.0) if face < 2 else (enter, 0.0, n, s)
