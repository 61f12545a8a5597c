"""Trajectories through a small street, and the shards that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.data.shards import (
    LAYOUT,
    Header,
)
from train.street.walks import StreetRecipe, render_walk
from world_model.presets import get_preset

DEBUG = get_preset("debug")
BLOCKS = 8
RECIPE = StreetRecipe(
    height=DEBUG.height,
    width=DEBUG.width,
    fps=DEBUG.fps,
    frames_per_block=DEBUG.frames_per_block,
    camera=DEBUG.camera,
    blocks_per_walk=BLOCKS,
    seed=5,
    town_blocks=2,
    town_seed=0,
)
HEADER = Header("debug", DEBUG.height, DEBUG.width, DEBUG.fps, DEBUG.frames_per_block, BLOCKS, 5, {"world": "street"})


@pytest.fixture(name="walks", scope="module")
def walks_fixture() -> list:
    return [render_walk(RECIPE, index) for index in range(5)]


def same(a, b) -> bool:
    return a.info == b.info and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in LAYOUT)


def damage(path: Path, how: str) -> None:
    info = path.with_suffix(".json")
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no tensors":
        path.unlink()
    elif how == "no json":
        info.unlink()
    elif how == "half a json":
        info.write_text(info.read_text(encoding="utf-8")[:200], encoding="utf-8")
    else:
        info.write_text(info.read_text(encoding="utf-8").replace('"height": 32', '"height": 40'), encoding="utf-8")
