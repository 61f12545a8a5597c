"""Maps made once per town: where sun and lamplight fall on the ground, clouds and stars."""

from __future__ import annotations

import numpy as np
from numba import njit

from yume_gym.street import primitives as P

SUN_BY_DAY = np.array([-0.48, 0.80, -0.36])  # (x, up, z), towards the sun
SUN_LOW = np.array([0.93, 0.24, 0.28])
TEXELS_PER_METRE = 2


def light_map(cells: np.ndarray, heights: np.ndarray, shapes: np.ndarray, size: float) -> np.ndarray:
    """float32 [K, K, 3], texel (i, j) at x = (i+.5)/2, z = (j+.5)/2 metres: day sun, low sun and lamplight, 0..1."""
    k = round(size * TEXELS_PER_METRE)
    crowns = shapes[(shapes[:, P.KIND] == P.ELLIPSOID) & (shapes[:, P.MATERIAL] == P.FOLIAGE)]
    cars = shapes[shapes[:, P.MATERIAL] == P.CAR]
    lamps = shapes[shapes[:, P.MATERIAL] == P.LAMP]
    heights = np.ascontiguousarray(heights)
    sun = np.stack([_sunlight(cells, heights, crowns, cars, size, k, d) for d in (SUN_BY_DAY, SUN_LOW)], axis=-1)
    lamp = _lamplight(lamps[:, [P.X, P.Z]].copy(), size, k)
    blurred = sum(np.roll(sun, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)) / 9
    return np.concatenate([blurred, lamp[..., None]], axis=-1).astype(np.float32)


def cloud_map(rng: np.random.Generator, texels: int = 256) -> np.ndarray:
    """float32 [texels, texels, 2], periodic: density of bold soft clouds, and stars; 0..1."""
    fx = np.fft.fftfreq(texels)[:, None] * texels
    fy = np.fft.fftfreq(texels)[None, :] * texels
    power = 1.0 / (1.0 + (fx**2 + fy**2) / 16.0) ** 1.5
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((texels, texels))) * power).real
    noise = (noise - noise.mean()) / noise.std()
    clouds = np.clip((noise - 0.1) / 1.0, 0, 1)
    stars = np.zeros((texels, texels))
    spots = rng.integers(texels, size=(60, 2))
    stars[spots[:, 0], spots[:, 1]] = rng.uniform(0.5, 1.0, len(spots))
    return np.stack([clouds * clouds * (3 - 2 * clouds), stars], axis=-1).astype(np.float32)


@njit(cache=True)
def _sunlight(
    cells: np.ndarray, heights: np.ndarray, crowns: np.ndarray, cars: np.ndarray, size: float, k: int, sun: np.ndarray
) -> np.ndarray:
    """1 where the sun reaches the ground, 0 where a building stands in the way, between under trees and cars."""
    out = np.ones((k, k))
    n = len(cells)
    step = 0.5
    for i in range(k):
        for j in range(k):
            x, z = (i + 0.5) / 2.0, (j + 0.5) / 2.0
            t = 0.0
            while t * sun[1] < 45.0 and t < 120.0:
                t += step
                b = cells[
                    int(np.floor((x + t * sun[0] - 2.0) / 4.0)) % n, int(np.floor((z + t * sun[2] - 2.0) / 4.0)) % n
                ]
                if b >= 0 and heights[b] > t * sun[1]:
                    out[i, j] = 0.0
                    break
            for c in range(len(crowns)):
                ox = x - crowns[c, 1]
                oz = z - crowns[c, 3]
                ox -= size * np.round(ox / size)
                oz -= size * np.round(oz / size)
                oh = -crowns[c, 2]
                along = ox * sun[0] + oh * sun[1] + oz * sun[2]
                miss = ox * ox + oh * oh + oz * oz - along * along
                r = crowns[c, 4]
                if along < 0.0 and miss < r * r:
                    out[i, j] *= 0.25
            for c in range(len(cars)):
                ox = abs(x - cars[c, 1] + 0.3 * sun[0])
                oz = abs(z - cars[c, 3] + 0.3 * sun[2])
                if min(ox, size - ox) < cars[c, 4] + 0.1 and min(oz, size - oz) < cars[c, 6] + 0.1:
                    out[i, j] *= 0.3
    return out


@njit(cache=True)
def _lamplight(lamps: np.ndarray, size: float, k: int) -> np.ndarray:
    out = np.zeros((k, k))
    for i in range(k):
        for j in range(k):
            x, z = (i + 0.5) / 2.0, (j + 0.5) / 2.0
            for c in range(len(lamps)):
                dx = x - lamps[c, 0]
                dz = z - lamps[c, 1]
                dx -= size * np.round(dx / size)
                dz -= size * np.round(dz / size)
                out[i, j] += 1.0 / (1.0 + (dx * dx + dz * dz) / 6.0) ** 2
            out[i, j] = min(1.0, out[i, j])
    return out
