"""How the camera moved between two pictures, by optical flow: no network, no training, no knowledge of the action.

Dense Lucas-Kanade flow over a pyramid, then a robust fit of what a camera can do: turn, tilt, and move along its axis.
Accuracy on the ground-truth street, where poses are known, is tested in tests/test_control.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LUMA = np.array([0.299, 0.587, 0.114])

_WINDOW = 2.0  # deviation of the flow's averaging window, pixels
_ITERATIONS = 5  # on each level of the pyramid
_MIN_SIDE = 12  # pixels of the coarsest level
_TEXTURE_FLOOR = 2.0  # (grey levels / pixel)^2; below it a place tells nothing
_TEXTURE_TRUSTED = 50.0  # (grey levels / pixel)^2 at which a place counts half
_MISFIT = 100.0  # (grey levels)^2 left after alignment at which a place counts half
_OUTLIER = 0.5  # pixels from the fitted motion at which a place counts half
_FIT_ITERATIONS = 12


@dataclass(frozen=True)
class CameraMotion:
    """turn (to the right) and tilt (upwards) in degrees; zoom is the picture's relative expansion around its centre."""

    turn: float
    tilt: float
    zoom: float


def optical_flow(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow [2, H, W] in pixels (right, down) from a grey picture [H, W], 0..255, to the next; its weight [H, W], 0..1.

    The weight is low where there is no texture, where the pictures do not match, and where the flow leaves the picture.
    """
    pyramid = [(before, after)]
    while min(pyramid[-1][0].shape) >= 2 * _MIN_SIDE:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    flow = np.zeros((2, *pyramid[-1][0].shape))
    weight = np.zeros_like(before)
    for first, second in reversed(pyramid):
        flow, weight = _refine(first, second, _enlarged(flow, first.shape))
    return flow, weight


def camera_motion(before: np.ndarray, after: np.ndarray, focal: float) -> CameraMotion:
    """Camera motion between two pictures uint8 [H, W, 3]; `focal` length in pixels.

    Weighted least squares with outliers damped: what moves by itself, or nearer than the rest, counts less.
    """
    flow, weight = optical_flow(before @ LUMA, after @ LUMA)
    height, width = weight.shape
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2]).reshape(2, -1)
    seen, trust = flow.reshape(2, -1), weight.ravel()
    fitted, damping, motion = np.zeros_like(seen), np.ones_like(trust), np.zeros(3)
    for _ in range(_FIT_ITERATIONS):
        # at the middle of the way the effect of a finite turn is odd in the angle: it does not look like zoom. That middle is
        # the fitted motion's, not the flow's, whose errors would correlate with the place and look like zoom as well
        design = _rates(places + fitted / 2, focal)
        weighted = design * (trust * damping)[None, :, None]
        normal = np.einsum("cpi,cpj->ij", weighted, design) + 1e-9 * focal**2 * np.eye(3)
        motion = np.linalg.solve(normal, np.einsum("cpi,cp->i", weighted, seen))
        fitted = design @ motion
        damping = 1 / (1 + ((seen - fitted) ** 2).sum(0) / _OUTLIER**2)
    return CameraMotion(float(np.degrees(motion[0])), float(np.degrees(motion[1])), float(motion[2]))


def _rates(places: np.ndarray, focal: float) -> np.ndarray:
    """[2, P, 3]: how fast places [2, P] (pixels from the centre) move across and down per unit of turn, tilt and zoom."""
    x, y = places
    across = np.stack([-(focal + x * x / focal), x * y / focal, x], axis=-1)
    down = np.stack([-x * y / focal, focal + y * y / focal, y], axis=-1)
    return np.stack([across, down])


def block_motion(frames: np.ndarray, focal: float) -> CameraMotion:
    """The sum of the motions between successive pictures, uint8 [T, H, W, 3]."""
    motions = [camera_motion(before, after, focal) for before, after in itertools.pairwise(frames)]
    return CameraMotion(sum(m.turn for m in motions), sum(m.tilt for m in motions), sum(m.zoom for m in motions))


def _halved(picture: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(picture, 1.0)[::2, ::2]


def _enlarged(flow: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The flow of a coarser level on a finer one of `shape`."""
    if flow.shape[1:] == shape:
        return flow
    rows, columns = np.mgrid[: shape[0], : shape[1]] / 2
    return np.stack([2 * ndimage.map_coordinates(part, [rows, columns], order=1, mode="nearest") for part in flow])


def _refine(before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A few Lucas-Kanade steps on one level; returns the flow and its weight."""
    rows, columns = np.mgrid[: before.shape[0], : before.shape[1]].astype(float)
    down, across = np.gradient(before)
    xx, xy, yy = (_averaged(product) for product in (across * across, across * down, down * down))
    xx, yy = xx + _TEXTURE_FLOOR, yy + _TEXTURE_FLOOR
    determinant = xx * yy - xy * xy
    for _ in range(_ITERATIONS):
        aligned = ndimage.map_coordinates(after, [rows + flow[1], columns + flow[0]], order=1, mode="nearest")
        error = aligned - before
        x, y = _averaged(across * error), _averaged(down * error)
        update = np.stack([xy * y - yy * x, xy * x - xx * y]) / determinant
        flow = flow + np.clip(update, -1, 1)
    half_trace = (xx + yy) / 2
    texture = half_trace - np.sqrt(np.maximum(half_trace**2 - determinant, 0)) - _TEXTURE_FLOOR
    ends_x, ends_y = columns + flow[0], rows + flow[1]
    inside = (ends_x >= 0) & (ends_x <= before.shape[1] - 1) & (ends_y >= 0) & (ends_y <= before.shape[0] - 1)
    weight = inside * texture / (texture + _TEXTURE_TRUSTED) / (1 + _averaged(error * error) / _MISFIT)
    return flow, weight


def _averaged(values: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(values, _WINDOW)
