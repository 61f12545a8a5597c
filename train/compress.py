"""Rounds large tensors of weights to int8, in place: `python -m train.compress FOLDER [--over 65536] [--files NAME ...]`.

Each row has a scale of its own (LLM.int8(), arXiv 2208.07339, section 2.1), so that a weight changes by about 1% of its row's
deviation. Half of the bytes go. The command rolls out the same worlds before and after, prints how alike they are (PSNR, dB) and
writes that to the manifest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.engine.loop import prepare_cpu
from train.generator.measures import psnr
from world_model.model import WorldModel
from world_model.weights import SCALE, list_files, read_manifest
from yume_gym.keyboard import action_space

OVER = 2**16  # numbers of a tensor that is large
WORLDS, BLOCKS = 4, 12  # of the rollouts that are compared
FILES = (
    "dit.safetensors",
    "finder.safetensors",
    "text.safetensors",
)  # the autoencoder is small, and every picture passes it


def compress(folder: Path, over: int = OVER, files: Sequence[str] = FILES) -> dict[str, Any]:
    """Rewrites those of `files` that the folder has.

    Returns {"over", "files", "bytes_before", "bytes", "psnr_1", "psnr_12"}; the last two are of rollouts' first and last blocks.
    Raises ValueError for less than one number or another file, and what `WorldModel.load` raises; then nothing is written.
    """
    if over < 1:
        raise ValueError(f"--over is a count of numbers, 1 or more; got {over}")
    if not set(files) <= set(FILES):
        raise ValueError(f"--files are some of {', '.join(FILES)}; got {', '.join(files)}")
    manifest, before, sizes = read_manifest(folder), rollouts(folder), _bytes(folder)
    given = [name for name in files if (folder / name).is_file()]
    for path in (folder / name for name in given):
        rounded: dict[str, Tensor] = {}
        for name, value in load_file(path).items():
            large = value.is_floating_point() and value.itemsize > 1 and value.dim() > 1 and value.numel() > over
            rounded |= rounded_rows(name, value.float()) if large else {name: value}
        save_file(rounded, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    list_files(folder)
    alike = psnr(rollouts(folder), before, kept=1)
    found = {
        "over": over,
        "files": given,
        "bytes_before": sizes,
        "bytes": _bytes(folder),
        "psnr_1": round(float(alike[0]), 1),
        f"psnr_{BLOCKS}": round(float(alike[-1]), 1),
    }
    manifest = {**manifest, "int8": found, "files": read_manifest(folder)["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return found


def rounded_rows(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor [n, ...] as whole numbers in -127..127, and the scale of each row."""
    scale = (value.flatten(1).abs().amax(dim=1) / 127).clamp(min=1e-30)
    columns = scale.view(-1, *[1] * (value.dim() - 1))
    return {name: (value / columns).round().clamp(-127, 127).to(torch.int8), name + SCALE: scale}


def rollouts(folder: Path) -> np.ndarray:
    """uint8 [BLOCKS, WORLDS, T, H, W, 3]: worlds from shipped pictures, or from texts, with actions drawn by seed."""
    model = WorldModel.load(folder)
    pictures = [None if model.starts is None else model.starting_image(seed) for seed in range(WORLDS)]
    state = model.start(pictures, [""] * WORLDS, range(WORLDS))
    space, frames = action_space(model.config.action), []
    space.seed(0)
    for _ in range(BLOCKS):
        state, made = model.step(state, [space.sample() for _ in range(WORLDS)])
        frames.append(made)
    return np.stack(frames)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="weights folder, changed in place")
    parser.add_argument("--over", type=int, default=OVER, help="tensors of more numbers than this are rounded")
    parser.add_argument(
        "--files", nargs="+", default=FILES, metavar="NAME", help=f"of {', '.join(FILES)} (default all)"
    )
    given = parser.parse_args()
    try:
        found = compress(given.folder, given.over, given.files)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for name, value in found.items():
        print(f"{name:14} {value:>12,}" if not isinstance(value, list) else f"{name:14} {', '.join(value)}")


if __name__ == "__main__":
    main()
