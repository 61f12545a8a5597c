"""Frames, depths and lines of sight of a town, for Python; the kernels behind them are in `trace`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from yume_gym.street import (
    atmosphere,
    draw,
    facades,
    intersections,
    layout,
    materials,
    particles,
    primitives,
    trace,
)
from yume_gym.street.town import Town
from yume_gym.street.trace import FAR, SKY_DEPTH

SUPERSAMPLES = 2
__all__ = ["FAR", "SKY_DEPTH", "SUPERSAMPLES", "depth_map", "line_of_sight", "render"]


class Kernels(NamedTuple):
    """What Python calls of the compiled code."""

    trace: Callable
    shrink: Callable
    cast: Callable


def render(
    town: Town, shapes: np.ndarray, air: np.ndarray, pose: np.ndarray, size: tuple[int, int], focal: float, time: float
) -> np.ndarray:
    """Draw one frame, uint8 [height, width, 3], of a town and loose `shapes` [N, primitives.COLUMNS].

    `air` is an atmosphere's vector, `pose` camera-to-world [4, 4], `size` (height, width), `focal` in pixels, `time` in
    seconds.
    """
    colour, _ = _samples(town, shapes, air, pose, size, focal, SUPERSAMPLES, time)
    out = np.empty((*size, 3), np.uint8)
    _compiled().shrink(colour, SUPERSAMPLES, out)
    return out


def depth_map(
    town: Town, shapes: np.ndarray, air: np.ndarray, pose: np.ndarray, size: tuple[int, int], focal: float
) -> np.ndarray:
    """float32 [height, width] metres along the ray through each pixel's middle; SKY_DEPTH where it meets nothing."""
    return _samples(town, shapes, air, pose, size, focal, 1, 0.0)[1].astype(np.float32)


def line_of_sight(town: Town, x: float, z: float, yaw: float, far: float = FAR) -> tuple[float, int, int]:
    """A level ray from a place (metres): distance to the first wall, its building and facade; (far, -1, 0) if none.

    Facades: 0 faces -x, 1 +x, 2 -z, 3 +z.
    """
    x, z = x % town.size, z % town.size
    away, building, side = _compiled().cast(
        town.cells, town.buildings, (x, 1.0, z), (math.sin(yaw), 0.0, math.cos(yaw)), far
    )
    return float(away), int(building), int(side)


def _samples(
    town: Town,
    shapes: np.ndarray,
    air: np.ndarray,
    pose: np.ndarray,
    size: tuple[int, int],
    focal: float,
    samples: int,
    time: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours 0..1 [h, w, 3] and depths [h, w] of `samples` x `samples` rays a pixel."""
    grid = (size[0] * samples, size[1] * samples)
    picture = draw.Picture(np.empty((*grid, 3)), np.empty(grid), np.empty((*grid, 3)))
    x, y, z = (float(v) for v in pose[:3, 3])
    camera = draw.Camera(x, -y, z, np.ascontiguousarray(pose[:3, :3]), focal * samples)
    _compiled().trace(town, shapes, air, camera, samples, time, picture)
    return picture.colour, picture.depth


@lru_cache(maxsize=1)
def _compiled() -> Kernels:
    """Compile the kernels that Python calls, or load them from numba's cache.

    Only these are cached on disk. numba's cache sees changes of the file a function stands in, not of the files whose
    functions it calls, but its key holds closures: so they close over a digest of all the kernels' sources.
    """
    stamp = _sources_digest()

    @njit(cache=True, fastmath=True)
    def trace_(town, shapes, air, camera, samples, time, picture):
        if stamp:
            trace.trace(town, shapes, air, camera, samples, time, picture)

    @njit(cache=True)
    def shrink(colour, samples, out):
        if stamp:
            trace.shrink(colour, samples, out)

    @njit(cache=True, fastmath=True)
    def cast(cells, buildings, eye, ray, far):
        return trace.cast(cells, buildings, eye, ray, far if stamp else 0.0)

    return Kernels(trace_, shrink, cast)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for module in (atmosphere, draw, facades, intersections, layout, materials, particles, primitives, trace):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
