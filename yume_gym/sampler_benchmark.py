"""What do fewer denoising steps cost? `python -m yume_gym.sampler_benchmark [--model street] [--steps 1 2 4] [--walks 8]`

The same walks are dreamt with each number of steps, from pictures of a town that the model knows, with the same seeds and keys as
a walk through the true street. Said for each: likeness to the true pictures, sharpness as a share of theirs, and processor time.
Prints Markdown. First-person models only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from world_model.actions import Action
from world_model.model import WorldModel
from world_model.presets import preset_like
from yume_gym.env import YumeWorldEnv
from yume_gym.rewards import Latents
from yume_gym.street.env import YumeStreetEnv

KEYS = (("W", ""), ("W", ""), ("W", "→"), ("W", ""), ("", "→"), ("W", ""), ("W", "←"), ("W", ""), ("A", ""), ("W", ""))


@dataclass(frozen=True)
class Row:
    """One number of steps: mean PSNR (dB) to the true pictures and distance in latents (`Latents`: 0 the same, 1 unrelated), of
    the first two blocks and of the last two; sharpness as a share of the true pictures'; processor time of a block in ms."""

    steps: int
    psnr: tuple[float, float]
    distance: tuple[float, float]
    sharpness: float
    milliseconds: float


def benchmark(model: WorldModel, steps: Sequence[int], walks: int, blocks: int = 10, town: int = 0) -> list[Row]:
    """Dreams `walks` walks with each number of `steps`. Raises ValueError for fewer than one walk or block."""
    if walks < 1 or blocks < 1:
        raise ValueError(f"walks and blocks must be 1 or more, got {walks} and {blocks}")
    street = YumeStreetEnv(town_seed=town, preset=preset_like(model.config), weather="clear")
    actions = [Action.from_keys(*KEYS[number % len(KEYS)]).index for number in range(blocks)]
    truth = []
    for seed in range(walks):
        start = street.reset(seed=seed)[0]
        truth.append((start, np.stack([street.step(action)[0] for action in actions])))
    latents, rows = Latents(model), []
    for number in steps:
        env, psnr, apart, sharp, spent = YumeWorldEnv(model, steps=number), [], [], [], 0.0
        for seed, (start, true) in enumerate(truth):
            env.reset(seed=seed, options={"image": start})
            before = time.process_time()
            dreamt = np.stack([env.step(action)[0] for action in actions])
            spent += time.process_time() - before
            psnr.append([_psnr(one, other) for one, other in zip(dreamt, true)])
            apart.append([latents.distance(latents.of(one), latents.of(other)) for one, other in zip(dreamt, true)])
            sharp.append(_sharpness(dreamt) / _sharpness(true))
        rows.append(Row(number, _ends(psnr), _ends(apart), float(np.mean(sharp)), 1000 * spent / (walks * blocks)))
    return rows


def _ends(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Means of values [walks, blocks] over the first and the last two blocks."""
    table = np.array(values)
    return float(table[:, :2].mean()), float(table[:, -2:].mean())


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(np.float64) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def _sharpness(pictures: np.ndarray) -> float:
    """Mean length of the gradients of grey pictures, of uint8 [N, H, W, 3]."""
    down, across = np.gradient(pictures.astype(np.float32).mean(axis=-1), axis=(1, 2))
    return float(np.hypot(down, across).mean())


def report(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "| steps | PSNR, blocks 1 and 2 / last two | distance, the same | sharpness | processor time of a block |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        psnr, distance = (
            f"{first:.{digits}f} / {last:.{digits}f}" for (first, last), digits in ((row.psnr, 1), (row.distance, 2))
        )
        lines.append(f"| {row.steps} | {psnr} | {distance} | {row.sharpness:.2f} | {row.milliseconds:.0f} ms |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a name or a folder of weights")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--walks", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=10)
    given = parser.parse_args(argv)
    try:
        print(report(benchmark(WorldModel.load(given.model), given.steps, given.walks, given.blocks)))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
