"""Times the real size on a GPU: `python -m world_model.cost.measure yume-5b --size 544x960 --out runs/measured.json`.

Random weights in bfloat16. A block of one world with 4 and 2 sampler steps, history cached and joint, eager and compiled, decoding
timed apart; memory; operations counted (costs.py) and the share of the GPU's peak that they come to; one foundation step with
activation checkpointing and AdamW, all in bfloat16. Runs on a CPU at small sizes, where no share of a peak is given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from world_model import flow
from world_model.actions import Action
from world_model.batch import move
from world_model.config import ModelConfig
from world_model.cost.costs import count_block, count_decoder, count_training
from world_model.cost.plan import DEVICES, Device, resized
from world_model.dit import DiT
from world_model.memory import WorldBatch
from world_model.presets import PRESETS, get_preset
from world_model.rollout import block_noise, commanded_motions, denoise_block, encode_conditions
from world_model.tscm import History
from world_model.vae import build_vae

REPEATS = 3


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest of a few times, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def build_dit(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> DiT:
    """Random weights, made where they will be."""
    torch.manual_seed(0)
    with torch.device(device):
        dit = DiT(config)
    for parameter in dit.parameters():  # what begins at zero would have no gradient behind it
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return dit.to(dtype)


def build_worlds(dit: DiT, history: int, device: torch.device) -> WorldBatch:
    """One world that holds what its packing holds after `history` latent frames, of noise."""
    config, held = dit.config, dit.packing.held(history)
    stream = torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.dit.latent_channels, held, *config.latent_size, generator=stream)
    still, frame = torch.zeros(1, held, dtype=torch.float64), torch.arange(-held, 0)[None]
    past = History(latents, frame, still, still, torch.ones(1, held, dtype=torch.bool))
    zero = torch.zeros(1, dtype=torch.float64)
    picture = torch.zeros(1, 3, config.height, config.width)
    past, zero, picture = move((past, zero, picture), device)
    return WorldBatch(past, dit.encode_memory(past), zero, zero, zero.long(), picture, (), ())


class Stage:
    """One network on a device, and what a block of it takes."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, history: int) -> None:
        self.config, self.device = config, device
        self.dit = build_dit(config, device, dtype)
        text = config.text
        self.context = torch.randn(1, text.event_tokens + text.action_tokens, text.dim, device=device, dtype=dtype)
        with torch.no_grad():
            self.worlds = build_worlds(self.dit, history, device)
        self.motion = commanded_motions(config, [Action.from_keys("W")], self.worlds.yaw, self.worlds.pitch)
        self.noise = block_noise(config, [0], [0]).to(device)

    @torch.no_grad()
    def block(self, steps: int) -> Tensor:
        """Conditions and `steps` Euler steps; no decoding."""
        sigmas = flow.schedule_of(self.config.sampler, steps)
        return denoise_block(self.dit, self._conditions()[0], self.noise, sigmas)

    def _conditions(self) -> Any:
        pooled = self.context.mean(dim=1)
        return encode_conditions(self.dit, None, self.worlds, self.motion, self.context, pooled)  # type: ignore[arg-type]

    def foundation(self) -> Callable[[], None]:
        """A step of training on one world: forward, backward with checkpointing, AdamW."""
        self.dit.train().requires_grad_(True).activation_checkpointing = True
        optimizer = torch.optim.AdamW(self.dit.parameters(), lr=1e-5)
        sigma = torch.full((1,), 0.7, dtype=torch.float64, device=self.device)

        def step() -> None:
            output = self.dit(self.noise, sigma, self._conditions()[0])
            (output.float() - self.noise).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def measure(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, history: int, compiled: Sequence[bool | str]
) -> dict[str, Any]:
    """All figures. `compiled`: what blocks are compiled with: False, True (inductor) or a backend of torch.compile."""
    peak = _peak(device)
    rows = []
    for attention in ("joint", "cached"):
        variant = config.with_history(attention=attention)
        counted = count_block(variant, history)
        for backend in compiled:
            stage = Stage(variant, device, dtype, history)
            for block in stage.dit.layers if backend else ():
                block.compile(backend="inductor" if backend is True else backend, dynamic=True)
            for steps in (4, 2):
                _reset(device)
                took = seconds(partial(stage.block, steps), device)
                flops = counted.conditions.flops + steps * counted.step.flops
                rows.append(
                    {
                        "attention": attention,
                        "compiled": backend,
                        "steps": steps,
                        "seconds": took,
                        "flops": flops,
                        "share_of_peak": flops / took / peak.flops if peak else None,
                        "bytes": _used(device),
                    }
                )
            del stage
    decode = _decode(config, device, dtype)
    for row in rows:
        row["frames_per_second"] = config.frames_per_block / (row["seconds"] + decode["seconds"])
    _reset(device)
    took = seconds(Stage(config, device, dtype, history).foundation(), device)
    flops = count_training(config, history).cost.flops
    share = flops / took / peak.flops if peak else None
    training = {"seconds": took, "flops": flops, "share_of_peak": share, "bytes": _used(device)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    size = [config.height, config.width]
    return {
        "model": config.name,
        "size": size,
        "history": history,
        "device": name,
        "dtype": str(dtype),
        "blocks": rows,
        "decode": decode,
        "foundation_step": training,
    }


@torch.no_grad()
def _decode(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Decoding of a block in the middle of a world."""
    _reset(device)
    torch.manual_seed(0)
    vae: Any = build_vae(config.vae).to(device=device, dtype=dtype).eval()
    latents = block_noise(config, [0], [0]).to(device=device, dtype=dtype)
    cache = vae.decode(latents)[1]
    took = seconds(lambda: vae.decode(latents, cache), device)
    return {"seconds": took, "flops": count_decoder(config).cost.flops, "bytes": _used(device)}


def _peak(device: torch.device) -> Device | None:
    """The data sheet's peak of a GPU that the plan knows (an H200 computes as an H100 does)."""
    name = torch.cuda.get_device_name(device).replace("H200", "H100") if device.type == "cuda" else ""
    return next((known for known in DEVICES if known.name in name), None)


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _used(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"preset name ({', '.join(PRESETS)}) or a config.json")
    parser.add_argument("--size", metavar="HxW", help="picture size (default: the model's)")
    parser.add_argument("--history", type=int, default=23, help="history latents")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--compile", nargs="*", default=["no", "inductor"], help="no, or backends of torch.compile")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args(argv)
    path = Path(given.model)
    config = ModelConfig.from_json(path.read_text()) if path.suffix == ".json" else get_preset(given.model)
    if config.priors:
        parser.error(f"{config.name} has priors; this measures networks without")
    backends = [False if name == "no" else name for name in given.compile]
    found = measure(
        resized(config, given.size), torch.device(given.device), getattr(torch, given.dtype), given.history, backends
    )
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
