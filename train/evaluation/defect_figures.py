"""Figures of what a person dislikes in a rollout: pure functions of pictures.

Legend: T pictures, B blocks of K pictures, H x W pixels. Pictures are uint8 [T, H, W, 3], figures in grey levels, 0..255.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from train.generator.measures import psnr, to_grey

GRID = 8  # pixels between the borders of an autoencoder's patches
FINE = 2.0  # pixels: deviation of the Gaussian whose blur is no fine detail
HARDLY = 1.0  # grey levels from picture to picture: less than this hardly changes
UNIFORM = 8.0  # grey levels of deviation over a picture: below this it is nearly uniform
LIKE = 15.0  # dB to the start: from here on the picture is still the same


def differences(pictures: np.ndarray) -> np.ndarray:
    """[T - 1, H, W] grey levels from each picture to the next, signed."""
    return np.diff(to_grey(pictures), axis=0)


def changes(pictures: np.ndarray) -> np.ndarray:
    """[T - 1] mean absolute difference of successive pictures."""
    return abs(differences(pictures)).mean(axis=(1, 2))


def border_changes(pictures: np.ndarray, block: int) -> tuple[float, float]:
    """Mean of `changes` (across block borders, inside blocks) of 1 + B * K pictures; `block` is K, 2 or more.

    The first picture is the last one of the block before.
    """
    by_block = changes(pictures).reshape(-1, block)
    return float(by_block[:, 0].mean()), float(by_block[:, 1:].mean())


def fine_change(pictures: np.ndarray) -> float:
    """Mean absolute difference of successive pictures, less the Gaussian blur of that difference.

    A drop of rain counts. A picture that becomes brighter as a whole does not.
    """
    found = differences(pictures)
    blurred = ndimage.gaussian_filter(found, (0, FINE, FINE), mode="nearest")
    return float(abs(found - blurred).mean())


def deviations(pictures: np.ndarray) -> np.ndarray:
    """[T] deviation of the grey levels over each picture."""
    return to_grey(pictures).std(axis=(1, 2))


def grid_energy(pictures: np.ndarray, size: int = GRID) -> float:
    """Difference of neighbouring pixels across borders of the grid over that of all other neighbours.

    Borders lie before the columns and rows that are multiples of `size`. NaN where no other neighbours differ.
    """
    grey = to_grey(pictures)
    steps = [abs(np.diff(grey, axis=2)), abs(np.diff(grey, axis=1)).swapaxes(1, 2)]
    across = [np.arange(1, part.shape[2] + 1) % size == 0 for part in steps]
    on = np.concatenate([part[:, :, there].ravel() for part, there in zip(steps, across)]).mean()
    off = np.concatenate([part[:, :, ~there].ravel() for part, there in zip(steps, across)]).mean()
    return ratio(float(on), float(off))


def stuck(change: np.ndarray, free: np.ndarray) -> float:
    """Share of the blocks with a `free` way [B] in which the picture hardly changes; NaN where none is free.

    change [B]: mean of `changes` in each block.
    """
    return float((change[free] < HARDLY).mean()) if free.any() else np.nan


def kept(pictures: np.ndarray, fps: float) -> float:
    """Seconds before the picture is first unlike the first one; all of them where it never is."""
    likeness = psnr(pictures, np.broadcast_to(pictures[:1], pictures.shape), kept=1)
    unlike = likeness < LIKE
    return float(unlike.argmax() if unlike.any() else len(pictures) - 1) / fps


def ratio(value: float, other: float) -> float:
    """value / other; NaN where `other` is zero."""
    return value / other if other else np.nan
