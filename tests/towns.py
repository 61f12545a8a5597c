"""A small made-up town."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from world_model.config import ModelConfig
from world_model.priors.config import scene_of


def streets(config: ModelConfig) -> tuple[np.ndarray, Tensor]:
    """Solid voxels and walkable cells of a made-up town: streets 12 m wide every 40 m, houses of 15 m between them."""
    cells, levels = (round(side / scene_of(config).places.cell) for side in (80, scene_of(config).places.height))
    middle = (np.arange(cells) + 0.5) * scene_of(config).places.cell
    lot = np.abs(middle % 40 - 20) < 14
    solid = np.zeros((cells, levels, cells), bool)
    solid[:, : round(15 / scene_of(config).places.cell)] = (lot[:, None] & lot[None])[:, None]
    road = np.abs((middle + 20) % 40 - 20) < 5
    return solid, torch.from_numpy(road[:, None] | road[None])
