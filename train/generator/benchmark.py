"""Times a learned world beside a U-Net of the size of DIAMOND's Atari models.

    python -m train.generator.benchmark runs/breakout --out runs/benchmark

DIAMOND (arXiv 2405.12399) generates a 64 x 64 picture from four earlier ones in three denoising steps of a U-Net with two residual
blocks at each of four levels, 64 channels wide. Its own code is not used. The U-Net is that of diffusers in the same shape; it has
fewer parameters than the published 4.4 million, which count attention and a reward model too. Both run in turns in one process.
Writes benchmark.md and benchmark.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch

from world_model.model import WorldModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DIAMOND_STEPS, DIAMOND_FRAMES = 3, 4


def unet_step(height: int, width: int) -> tuple[Callable[[], None], int]:
    """One picture of the U-Net, and its number of parameters."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=(height, width),
        in_channels=3 * (DIAMOND_FRAMES + 1),
        out_channels=3,
        block_out_channels=(64,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        layers_per_block=2,
        add_attention=False,
    ).eval()
    pictures = torch.randn(1, 3 * (DIAMOND_FRAMES + 1), height, width)

    @torch.inference_mode()
    def step() -> None:
        for level in range(DIAMOND_STEPS):
            network(pictures, torch.tensor([float(level)]))

    return step, sum(parameter.numel() for parameter in network.parameters())


def world_step(model: WorldModel, worlds: int) -> Callable[[], None]:
    """One step of so many worlds of a model."""
    held = [model.start([model.starting_image(seed) for seed in range(worlds)], [None] * worlds, list(range(worlds)))]

    def step() -> None:
        held[0], _ = model.step(held[0], [model.config.action.noop] * worlds)

    return step


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one after another so that a busy machine slows all alike; the first round is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    model = WorldModel.load(arguments.model)
    unet, parameters = unet_step(model.config.height, model.config.width)
    size = sum(parameter.numel() for parameter in model.dit.parameters())
    name = f"{model.config.name}, {size / 1e6:.1f} M"
    other = f"U-Net of DIAMOND's shape, {parameters / 1e6:.1f} M, {DIAMOND_STEPS} steps"
    seconds = in_turns({name: world_step(model, 1), other: unet}, arguments.rounds)
    rates = {key: model.config.frames_per_block / float(np.median(values)) for key, values in seconds.items()}
    rates[other] = 1 / float(np.median(seconds[other]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = ["| model | pictures a second | ms a step, median | 10th to 90th percentile |", "|---|---|---|---|"]
    for key, values in seconds.items():
        low, middle, high = (1000 * float(q) for q in np.quantile(values, (0.1, 0.5, 0.9)))
        lines.append(f"| {key} | {rates[key]:.1f} | {middle:.0f} | {low:.0f} to {high:.0f} |")
    lines.append(
        f"\n{rates[name] / rates[other]:.1f} times as many pictures a second, on {torch.get_num_threads()} threads."
    )
    (arguments.out / "benchmark.md").write_text("\n".join(lines) + "\n")
    figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
    axes.boxplot([1000 * np.array(v) for v in seconds.values()], orientation="horizontal", tick_labels=list(seconds))
    axes.set_xlabel("milliseconds a step")
    figure.savefig(arguments.out / "benchmark.png", dpi=120)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
