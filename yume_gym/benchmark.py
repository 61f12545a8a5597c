"""How fast is the dream, and does it stay so? `python -m yume_gym.benchmark [--model street] [--blocks 300]`

Generates many blocks at batch 1 and times every one as a user of the environment sees it, decoding included. Blocks of a
young and of an old world are then timed in turn, from saved states, so that whatever else the machine does hits both alike.
Prints Markdown (--json and --plot write files); every figure is measured in this run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_model import flow
from world_model.actions import NUM_ACTIONS, Action
from world_model.model import WorldModel, WorldState
from world_model.rollout import (
    append_and_decode,
    block_noise,
    commanded_motions,
    denoise_block,
    encode_conditions,
    generator,
)
from yume_gym.env import YumeWorldEnv
from yume_gym.first_person import EnvState, FirstPersonEnv
from yume_gym.street.env import YumeStreetEnv

WARM_UP = 3  # blocks that are not timed
YOUNG = 20  # the young world's age in blocks
REPEATS = 20  # timings of each world, and of each part
STREET_BLOCKS = 40


@dataclass(frozen=True)
class Times:
    """Milliseconds of one kind of call."""

    median: float
    p90: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Times:
        return cls(float(np.median(milliseconds)), float(np.quantile(milliseconds, 0.9)))


@dataclass(frozen=True)
class Age:
    """A world of `blocks` blocks: the time of its next block by the clock and by the processors that were kept busy
    (which other programs disturb less), and the process's memory when it was reached (bytes)."""

    blocks: int
    block: Times
    processor: Times
    memory: int | None


@dataclass(frozen=True)
class Setup:
    """What was measured, and on what."""

    machine: str  # as `machine` says it
    model: str
    frames_per_block: int
    fps: int  # frames of a second in the world's own time


@dataclass(frozen=True)
class Result:
    """Everything that was measured."""

    setup: Setup
    blocks: int
    block: Times
    frames_per_second: float  # of a median block
    real_time: float  # frames_per_second in units of the world's fps
    young: Age
    old: Age
    parts: dict[str, float]  # median milliseconds of the parts of a block
    street_frames_per_second: float
    block_times: tuple[float, ...]  # milliseconds of every block


def benchmark(env: YumeWorldEnv, street: YumeStreetEnv, blocks: int = 300) -> Result:
    """Measures `env` over `blocks` blocks of one world, and `street` over a few.

    Raises ValueError for fewer than 2 blocks.
    """
    if blocks < 2:
        raise ValueError(f"blocks must be 2 or more, got {blocks}")
    model, config = env.model, env.model.config
    actions = np.random.default_rng(0).integers(NUM_ACTIONS, size=blocks)
    env.reset(seed=0)
    start = env.get_state()
    for action in actions[:WARM_UP]:
        env.step(action)
    env.set_state(start)

    young_age = min(YOUNG, blocks // 2)
    states, memory, times = {}, {}, []
    for number, action in enumerate(actions, start=1):
        times.append(_step_time(env, action)[0])
        if number in (young_age, blocks):
            states[number], memory[number] = env.get_state(), memory_in_use()
    ages = _time_in_turn(env, states)
    block = Times.of(times)
    rate = 1000 * config.frames_per_block / block.median
    return Result(
        setup=Setup(machine(model), config.name, config.frames_per_block, config.fps),
        blocks=blocks,
        block=block,
        frames_per_second=rate,
        real_time=rate / config.fps,
        young=Age(young_age, *ages[young_age], memory[young_age]),
        old=Age(blocks, *ages[blocks], memory[blocks]),
        parts=time_parts(model, states[blocks].episode.world),
        street_frames_per_second=street_speed(street),
        block_times=tuple(times),
    )


def time_parts(model: WorldModel, state: WorldState) -> dict[str, float]:
    """Median milliseconds of the parts of one block of one world: conditions, denoising, decoding and remembering."""
    config, world, action = model.config, state.worlds, [Action.from_keys("W", "→")]
    sigmas = flow.schedule_of(config.sampler)
    noise = block_noise(config, state.seeds, state.steps).to(model.device, model.dtype)
    steps = f"{config.sampler.steps} denoising steps"
    samples: dict[str, list[float]] = {"text, history and priors": [], steps: [], "decoding and remembering": []}
    with torch.inference_mode():
        for _ in range(REPEATS):
            streams = [generator("benchmark", seed) for seed in state.seeds]
            marks = [_now(model)]
            context, pooled = (t.to(model.device, model.dtype) for t in model.conditioning.context(action, [None]))
            motion = commanded_motions(config, action, world.yaw, world.pitch)
            conditions, block = encode_conditions(model.dit, model.vae, world, motion, context, pooled)
            marks.append(_now(model))
            latents = denoise_block(model.dit, conditions, noise, sigmas)
            marks.append(_now(model))
            append_and_decode(model.dit, model.vae, block, latents, streams)
            marks.append(_now(model))
            for part, seconds in zip(samples.values(), np.diff(marks), strict=True):
                part.append(1000 * seconds)
    return {name: float(np.median(part)) for name, part in samples.items()}


def street_speed(street: YumeStreetEnv) -> float:
    """Frames a second of YumeStreet-v0, everything that its `step` does included."""
    street.reset(seed=0)
    actions = np.random.default_rng(0).integers(NUM_ACTIONS, size=STREET_BLOCKS)
    for action in actions[:WARM_UP]:
        street.step(action)
    times = [_step_time(street, action)[0] for action in actions]
    return 1000 * street.metadata["frames_per_step"] / float(np.median(times))


def memory_in_use() -> int | None:
    """Bytes of this process in memory (resident); None where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (FileNotFoundError, PermissionError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine(model: WorldModel) -> str:
    """One line about what the figures were measured on."""
    if model.device.type == "cuda":
        chip = torch.cuda.get_device_name(model.device)
    else:
        chip = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    number = str(model.dtype).removeprefix("torch.")
    return f"{chip}; {number}; torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


def report(result: Result) -> str:
    """The result as Markdown."""
    setup, young, old = result.setup, result.young, result.old
    rows = [
        ("block, median", f"{result.block.median:.1f} ms"),
        ("block, 90th percentile", f"{result.block.p90:.1f} ms"),
        ("frames/s", f"{result.frames_per_second:.1f}"),
        ("x real time", f"{result.real_time:.2f}"),
        *((f"part: {name}", f"{time:.1f} ms") for name, time in result.parts.items()),
        (f"block after {young.blocks} blocks, median", f"{young.block.median:.1f} ms"),
        (f"block after {old.blocks} blocks, median", f"{old.block.median:.1f} ms"),
        ("old to young, time", f"{old.block.median / young.block.median - 1:+.1%}"),
        ("old to young, processor time", f"{old.processor.median / young.processor.median - 1:+.1%}"),
        (f"memory after {young.blocks} blocks", _mebibytes(young.memory)),
        (f"memory after {old.blocks} blocks", _mebibytes(old.memory)),
        ("YumeStreet-v0, frames/s", f"{result.street_frames_per_second:.1f}"),
    ]
    head = (
        f"Model {setup.model}, batch 1, {setup.frames_per_block} frames a block at {setup.fps} frames/s, "
        f"{result.blocks} blocks.\n{setup.machine}"
    )
    return "\n".join([head, "", "| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def plot(result: Result, path: Path) -> None:
    """The time of every block, as a picture. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, result.blocks + 1), result.block_times, ".", markersize=3)
    axes.axhline(1000 * result.setup.frames_per_block / result.setup.fps, color="grey", label="real time")
    axes.set(xlabel="block", ylabel="ms", ylim=(0, None), title=f"{result.setup.model}: time of a block")
    axes.legend()
    figure.savefig(path, dpi=120)


def _time_in_turn(env: YumeWorldEnv, states: dict[int, EnvState]) -> dict[int, tuple[Times, Times]]:
    """One block from each of the states, over and over: times by the clock and of the processors."""
    action = Action.from_keys("W").index
    times: dict[int, list[tuple[float, float]]] = {age: [] for age in states}
    for _ in range(REPEATS):
        for age, state in states.items():
            env.set_state(state)
            times[age].append(_step_time(env, action))
    return {age: (Times.of([t[0] for t in pairs]), Times.of([t[1] for t in pairs])) for age, pairs in times.items()}


def _step_time(env: FirstPersonEnv, action: int) -> tuple[float, float]:
    """Milliseconds of one step, by the clock and of all processors together."""
    started, busy = time.perf_counter(), time.process_time()
    env.step(action)
    return 1000 * (time.perf_counter() - started), 1000 * (time.process_time() - busy)


def _now(model: WorldModel) -> float:
    """Seconds, when all that was asked of the model's device is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _mebibytes(count: int | None) -> str:
    return "not known here" if count is None else f"{count / 2**20:.1f} MiB"


def _processor() -> str:
    """The processor's name as its maker writes it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_plot(parser: argparse.ArgumentParser, plot: Path | None) -> None:
    """Ends the program with a message where a plot is asked for and cannot be drawn."""
    if plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install matplotlib")


def write(page: str, result: Any, figures: Path | None, draw: Callable[[Path], None], picture: Path | None) -> None:
    """Prints a page, and writes the dataclass `result` as JSON and a picture to the paths that are given."""
    print(page)
    if figures:
        figures.write_text(json.dumps(asdict(result), indent=1))
    if picture:
        draw(picture)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--blocks", type=int, default=300, help="blocks to walk (default 300)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the time of every block into this picture (needs matplotlib)")
    args = parser.parse_args(argv)
    check_plot(parser, args.plot)
    if args.blocks < 2:
        parser.error("--blocks must be 2 or more")
    env = YumeWorldEnv(model=args.model, device=args.device, dtype=args.dtype)
    result = benchmark(env, YumeStreetEnv(light="day", weather="clear"), args.blocks)
    write(report(result), result, args.json, lambda path: plot(result, path), args.plot)


if __name__ == "__main__":
    main()
