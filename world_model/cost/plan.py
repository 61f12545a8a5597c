"""What a model costs on real GPUs, in numbers: `python -m world_model.cost.plan yume-5b --size 544x960`.

Operations and bytes are counted by running the model's own code on the meta device (costs.py), in bfloat16. Frames per second
follow from a GPU's peak and a stated utilisation; nothing here was timed on a GPU.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from world_model.baselines import BASELINES, baseline
from world_model.config import ModelConfig, Tiers
from world_model.cost.costs import (
    DTYPE,
    Block,
    Part,
    Training,
    count_block,
    count_decoder,
    count_parameters,
    count_text,
    count_training,
)
from world_model.presets import PRESETS, get_preset

HISTORIES = (5, 23, 87, 343, 3000)


@dataclass(frozen=True)
class Device:
    """A GPU: dense bfloat16 peak of its tensor cores (accumulating in float32) per second, and its memory in bytes."""

    name: str
    flops: float
    memory: float


# the makers' data sheets
DEVICES = (
    Device("A100", 312e12, 80 * 2**30),
    Device("H100", 989e12, 80 * 2**30),
    Device("RTX 4090", 165e12, 24 * 2**30),
)


@dataclass(frozen=True)
class Plan:
    """Everything counted of one config; `blocks` in the order of the histories asked for, joint before cached."""

    config: ModelConfig
    parameters: int
    block_parameters: int
    blocks: list[Block]
    refused: list[str]  # histories that a packing does not reach, and why
    decoder: Part
    text: Part
    training: Training
    trained_at: int  # history latents of the training figures

    def seconds(self, block: Block, device: Device, utilisation: float) -> float:
        """Time of one block, decoding included, if `utilisation` of the device's peak is reached throughout."""
        return (block.flops + self.decoder.cost.flops) / (device.flops * utilisation)

    def frames_per_second(self, block: Block, device: Device, utilisation: float) -> float:
        return self.config.frames_per_block / self.seconds(block, device, utilisation)

    def memory(self, block: Block) -> int:
        """Bytes on the GPU while one world runs: DiT and autoencoder resident, text read elsewhere."""
        weights = (self.parameters + self.decoder.parameters) * DTYPE.itemsize
        held = block.held.total
        return weights + self.decoder.carried + max(block.peak, held + self.decoder.cost.peak)

    def distillation(self, gpus: int) -> dict[str, int]:
        """Bytes on each of `gpus` GPUs, one world each: everything that FSDP2 shards, what it gathers, and activations.

        Generator and fake score: float32 weights and gradients, AdamW's two states; the generator's average; the real score
        in bfloat16. Gathered: two blocks and what is not in blocks of each of the three, in bfloat16, and one block's gradient
        in float32. Activations: one network's backward pass (the three take turns).
        """
        outside = self.parameters - self.config.dit.layers * self.block_parameters
        return {
            "generator": 16 * self.parameters // gpus,
            "fake score": 16 * self.parameters // gpus,
            "EMA": 4 * self.parameters // gpus,
            "real score": 2 * self.parameters // gpus,
            "gathered": 3 * 2 * outside + 2 * 2 * self.block_parameters + 4 * self.block_parameters,
            "activations": self.training.cost.peak,
        }

    def training_flops(self, block: Block) -> dict[str, float]:
        """Per world: a step of foundation training, of the fake score, and of the generator (with the fake score's)."""
        t, evaluations = self.training, (block.steps + 1) / 2  # the exit step is drawn from all
        dream = block.conditions.flops + evaluations * block.step.flops
        fake = dream + t.cost.flops
        scores = 3 * t.forward.flops  # fake, real with and without the text
        learn = dream - block.conditions.flops - block.step.flops + t.cost.flops + scores + t.cost.flops
        return {"foundation": t.cost.flops, "fake score": fake, "generator": learn}


def make_plan(
    config: ModelConfig, histories: Sequence[int] = HISTORIES, trained_at: int = 23, baselines: Sequence[str] = ()
) -> Plan:
    """Counts everything for `config`: its own packing, `Tiers()` beside it where that is the released one, and `baselines`."""
    packings = [config.dit.history.packing] + ([] if isinstance(config.dit.history.packing, Tiers) else [Tiers()])
    blocks, refused = [], []
    for packing in packings:
        for attention in ("joint", "cached"):
            variant = config.with_history(packing=packing, attention=attention)
            # tiers hold as much whatever the world's age
            for history in histories if packing == "released" else histories[-1:]:
                try:
                    blocks.append(count_block(variant, history))
                except ValueError as error:
                    refused.append(f"history {history}, {attention}: {error}")
    for name in baselines:
        for history in histories:
            try:
                blocks.append(replace(count_block(baseline(config, name), history), packing=name))
            except ValueError as error:
                refused.append(f"history {history}, {name}: {error}")
    return Plan(
        config,
        *count_parameters(config),
        blocks,
        refused,
        count_decoder(config),
        count_text(config.text),
        count_training(config, trained_at),
        trained_at,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _flop(count: float) -> str:
    return _scaled(count, 1000, ("", " K", " M", " G", " T", " P"))


def _size(count: float) -> str:
    return _scaled(count, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    """Three digits and a unit; 999.9 rounds into the next one."""
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.3g}{units[power]}"


def report(plan: Plan, utilisation: float, gpus: Sequence[int] = (8, 16, 64)) -> str:
    """The plan as Markdown."""
    config, decoder, text = plan.config, plan.decoder, plan.text
    weights = [("DiT", plan.parameters), ("autoencoder", decoder.parameters), ("text encoder", text.parameters)]
    parts = [
        f"{config.name} at {config.height}x{config.width}, {config.fps} frames/s: a block is {config.block_latents} latents, "
        f"{config.frames_per_block} frames, {plan.blocks[0].target_tokens} tokens, {config.sampler.steps} sampler steps.",
        _table(
            ["weights", "parameters", "in bfloat16"], [[n, f"{p:,}", _size(p * DTYPE.itemsize)] for n, p in weights]
        ),
        "One block of one world, in FLOP (a multiplication and an addition are two): the conditions, once; each sampler step; "
        "decoding; all. Memory: the embedded history or its keys and values; the text's keys and values; the most that the DiT "
        "has alive besides its weights; the whole GPU with the weights of DiT and autoencoder and with decoding, the text "
        "encoder elsewhere.",
        _table(
            [
                "history",
                "packing",
                "attention",
                "history tokens",
                "conditions",
                "step",
                "decode",
                "block",
                "history memory",
                "text memory",
                "DiT peak",
                "GPU",
            ],
            [_row(plan, block) for block in plan.blocks],
        ),
        *(f"No figure for {why}" for why in plan.refused),
        f"Decoding a block: {_flop(decoder.cost.flops)} FLOP, {_size(decoder.cost.peak)} alive at most, "
        f"{_size(decoder.carried)} carried from block to block. Reading an event: {_flop(text.cost.flops)} FLOP, once.",
        f"Frames per second if {utilisation:.0%} of the GPU's peak is reached throughout, decoding included (small models wait for "
        "kernel launches and stay below). * is more than that GPU's memory.",
        _table(
            ["history", "packing", "attention", *(d.name for d in DEVICES)],
            [[*_name(block), *(_speed(plan, block, d, utilisation) for d in DEVICES)] for block in plan.blocks],
        ),
    ]
    needs = {n: plan.distillation(n) for n in gpus}
    parts += [
        f"Distillation, memory of each GPU, one world each at {plan.trained_at} history latents: sharded float32 weights, "
        "gradients and AdamW states, the average, what is gathered for computing, activations with checkpointing.",
        _table(
            ["GPUs", *needs[gpus[0]], "all"],
            [[str(n), *map(_size, need.values()), _size(sum(need.values()))] for n, need in needs.items()],
        ),
        "FLOP a world: "
        + ", ".join(f"{k} step {_flop(v)}" for k, v in plan.training_flops(plan.blocks[0]).items())
        + f" (dreams at {plan.blocks[0].history} history latents, backward passes at {plan.trained_at}).",
    ]
    return "\n\n".join(parts)


def _name(block: Block) -> list[str]:
    age = "any" if block.packing == "tiers" else str(block.history)
    return [age, block.packing, block.attention]


def _row(plan: Plan, block: Block) -> list[str]:
    flops = (block.conditions.flops, block.step.flops, plan.decoder.cost.flops, block.flops + plan.decoder.cost.flops)
    sizes = (block.held.history, block.held.text, block.peak, plan.memory(block))
    return [*_name(block), str(block.history_tokens), *map(_flop, flops), *map(_size, sizes)]


def _speed(plan: Plan, block: Block, device: Device, utilisation: float) -> str:
    fits = plan.memory(block) <= device.memory
    return f"{plan.frames_per_second(block, device, utilisation):.3g}" + ("" if fits else " *")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"preset name: {', '.join(PRESETS)}")
    parser.add_argument(
        "--size", metavar="HxW", help="picture size, a multiple of the patch grid (default: the preset's)"
    )
    parser.add_argument("--history", type=int, nargs="+", default=HISTORIES, help="history lengths in latents")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of a GPU's peak that is reached")
    parser.add_argument("--gpus", type=int, nargs="+", default=(8, 16, 64), help="numbers of GPUs for distillation")
    parser.add_argument("--baselines", nargs="*", default=(), choices=list(BASELINES), help="rows of other memories")
    args = parser.parse_args()
    try:
        plan = make_plan(resized(get_preset(args.model), args.size), args.history, baselines=args.baselines)
        print(report(plan, args.utilisation, args.gpus))
    except ValueError as error:
        parser.error(str(error))


def parse_size(size: str, example: str) -> tuple[int, int]:
    """(height, width) of "HxW". Raises ValueError, with an `example`, for anything else."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
        raise ValueError(f"size {size!r} should be height x width, such as {example}")
    height, width = map(int, size.split("x"))
    return height, width


def resized(config: ModelConfig, size: str | None) -> ModelConfig:
    """`config` for pictures of `size`, "HxW". Raises ValueError where that is not on the patch grid."""
    if size is None:
        return config
    height, width = parse_size(size, f"{config.height}x{config.width}")
    # a model still to be trained may be of any size
    return replace(config, video=replace(config.video, height=height, width=width))


if __name__ == "__main__":
    main()
