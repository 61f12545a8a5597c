"""Parts of several runs as one model:

    python -m train.generator.graft RUN --out NEW [--student FOLDER] [--expert FOLDER] [--denoiser STEPS]

RUN is a folder of train.street_world, whose moved frames are taken. The parts that see the noise (`DiT.seeing_noise`) are those of
`--student`, weights that a discriminator taught (adversarial.py), or RUN's own. The expert for texts is that of `--expert`, or else
the student's, if it has one. All must be of one size and one autoencoder. With `--denoiser` a copy of the expert takes the place of
the parts that see the noise (world_model/denoiser.py); it makes a block in so many sampler steps.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from world_model.config import DenoiserConfig
from world_model.dit import DiT
from world_model.weights import (
    dit_tensors,
    find_weights,
    load_tensors,
    read_config,
    read_manifest,
    save_with_other_dit,
)

COARSE = 17  # pixels


def graft(
    run: Path,
    out: Path,
    student: Path | None = None,
    expert: Path | None = None,
    denoiser: int = 0,
    coarse_size: int = COARSE,
) -> dict[str, Any]:
    """Writes the new folder `out`; returns its manifest. denoiser: sampler steps of a copy of the expert, 0 for no copy;
    coarse_size: in pixels, of what is the denoiser's (`DenoiserConfig`).

    Raises ValueError for an `out` that holds something, a model that moves no frames, other sizes or another autoencoder, no expert
    where one is needed, FileNotFoundError for what is missing.
    """
    config, student = read_config(run), student or run
    expert = expert or student
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a new folder, or delete that one first")
    if not config.dit.output.flow_layer:
        raise ValueError(f"{config.name!r} moves no frames: it has no parts that could be another's")
    for folder in (student, expert):
        check_autoencoder(run, folder)
    shape, experts = read_config(student).dit, read_config(expert).dit.expert
    dit = dataclasses.replace(config.dit, layers=shape.layers, denoiser=shape.denoiser, expert=experts)
    if experts is None and (denoiser or expert != student):
        raise ValueError(f"{expert} has no expert: choose a folder that train.generator.expert wrote")
    if denoiser and experts is not None:
        own = {field.name: getattr(experts, field.name) for field in dataclasses.fields(DenoiserConfig)}
        own["coarse_size"] = coarse_size
        dit = dataclasses.replace(dit, layers=dit.output.flow_layer, denoiser=DenoiserConfig(**own))
        sampler = dataclasses.replace(config.sampler, steps=denoiser, shift=experts.shift)
        config = dataclasses.replace(config, sampler=sampler)
    config = dataclasses.replace(config, dit=dit)
    network = DiT(config)
    texts = {name: value for name, value in dit_tensors(expert).items() if name.startswith("expert.")}
    sources = {f"{part}.": (student, dit_tensors(student)) for part in network.seeing_noise()}
    sources["expert."] = expert, texts
    if denoiser:  # what the layers found out adds nothing at first
        copied = {f"denoiser.{name.removeprefix('expert.')}": value for name, value in texts.items()}
        fresh = {name: value for name, value in network.state_dict().items() if name.startswith("found.")}
        sources |= {"denoiser.": (expert, copied), "found.": (run, fresh)}
    tensors, others = {}, (run, dit_tensors(run))
    for name, like in network.state_dict().items():
        folder, found = next((given for part, given in sources.items() if name.startswith(part)), others)
        if name not in found or found[name].shape != like.shape:
            raise ValueError(f"{folder} has no {name} of shape {tuple(like.shape)}: choose weights of the same size")
        tensors[name] = found[name]
    came = {"seeing_noise": student} if student != run else {}
    if expert not in (run, student):
        came["expert"] = expert
    kept = {name: read_manifest(folder)["training"] for name, folder in came.items()}
    return save_with_other_dit(run, out, config, tensors, [kept])


def check_autoencoder(run: Path, other: Path) -> None:
    """Raises ValueError where two folders have different autoencoders."""
    eyes = (load_tensors(folder, "vae.safetensors") for folder in (run, other))
    mine, others = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in eyes)
    if not torch.equal(mine, others):
        raise ValueError(f"{other} has another autoencoder than {run}: latents of the one mean nothing to the other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of train.street_world, whose moved frames are taken")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--student", help="a model's name or folder, whose parts that see the noise are taken")
    parser.add_argument("--expert", help="a model's name or folder, whose expert is taken")
    parser.add_argument(
        "--denoiser", type=int, default=0, metavar="STEPS", help="a copy of the expert takes the place of these parts"
    )
    parser.add_argument(
        "--coarse-size",
        type=int,
        default=COARSE,
        metavar="PIXELS",
        help=f"of what is that copy's in a block; finer details are those of the moved frames; odd, 0: all (default {COARSE})",
    )
    given = parser.parse_args()
    if given.denoiser < 0:
        parser.error(f"--denoiser must be a number of sampler steps, got {given.denoiser}")
    try:
        student, expert = (None if name is None else find_weights(name) for name in (given.student, given.expert))
        graft(given.run, given.out, student, expert, given.denoiser, given.coarse_size)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(given.out)


if __name__ == "__main__":
    main()
