"""Contact sheets: rows of pictures in one PNG. Look at them: they say what a loss curve hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def save_sheet(path: Path, rows: list[list[np.ndarray]], zoom: int = 1) -> None:
    """Rows of uint8 pictures [H, W, 3], all of one size; short rows are filled with black."""
    width = max(len(row) for row in rows)
    blank = np.zeros_like(rows[0][0])
    sheet = np.concatenate([np.concatenate([*row, *[blank] * (width - len(row))], axis=1) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.repeat(zoom, 0).repeat(zoom, 1)).save(path)


def to_pictures(video: Tensor) -> np.ndarray:
    """[..., 3, T, H, W] in -1..1 -> uint8 [..., T, H, W, 3]."""
    return ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-4, -1).cpu().numpy()


def to_video(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., T, H, W, 3] -> float32 [..., 3, T, H, W] in -1..1."""
    return torch.as_tensor(frames).movedim(-1, -4).float() / 127.5 - 1
