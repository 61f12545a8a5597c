"""Moved frames of one run, and what is added to them from another:

    python -m train.generator.graft RUN --student FOLDER --out NEW [--unseen-steps 6]

RUN is a folder of train.street_world, FOLDER one of weights that a discriminator taught (adversarial.py). The parts that see the
noise (`DiT.seeing_noise`) are FOLDER's, and its expert for texts if it has one; all others are RUN's. It serves where frames are
moved better than before, and the minutes do not suffice to teach a student anew. Both must be of one size and one autoencoder.
With `--unseen-steps` FOLDER's expert makes what is not in view in every block, in so many sampler steps.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from world_model.dit import DiT
from world_model.weights import (
    dit_tensors,
    find_weights,
    load_tensors,
    read_config,
    read_manifest,
    save_with_other_dit,
)


def graft(run: Path, student: Path, out: Path, unseen_steps: int = 0) -> dict[str, Any]:
    """Writes the new folder `out`; returns its manifest.

    Raises ValueError for an `out` that holds something, a model that moves no frames, other sizes or another autoencoder, or
    `unseen_steps` without an expert, FileNotFoundError for what is missing.
    """
    config = read_config(run)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a new folder, or delete that one first")
    if not config.dit.output.flow_layer:
        raise ValueError(f"{config.name!r} moves no frames: it has no parts that could be another's")
    taken = tuple(f"{name}." for name in DiT(config).seeing_noise())
    own, other = dit_tensors(run), dit_tensors(student)
    for name in (name for name in own if name.startswith(taken)):
        if name not in other or other[name].shape != own[name].shape:
            raise ValueError(
                f"{student} has no {name} of shape {tuple(own[name].shape)}: choose a student of the same size"
            )
        own[name] = other[name]
    if (expert := read_config(student).dit.expert) is not None:
        if unseen_steps:
            expert = dataclasses.replace(expert, unseen=True)
            sampler = dataclasses.replace(config.sampler, steps=unseen_steps, shift=expert.shift)
            config = dataclasses.replace(config, sampler=sampler)
        config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=expert))
        own = {name: value for name, value in own.items() if not name.startswith("expert.")}
        own |= {name: value for name, value in other.items() if name.startswith("expert.")}
    elif unseen_steps:
        raise ValueError(
            f"{student} has no expert: leave out --unseen-steps, or choose one that train.generator.expert wrote"
        )
    eyes = (load_tensors(folder, "vae.safetensors") for folder in (run, student))
    mine, others = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in eyes)
    if not torch.equal(mine, others):
        raise ValueError(f"{student} has another autoencoder than {run}: latents of the one mean nothing to the other")
    return save_with_other_dit(run, out, config, own, [{"seeing_noise": read_manifest(student)["training"]}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of train.street_world, whose moved frames are taken")
    parser.add_argument(
        "--student", required=True, help="a model's name or folder, whose parts that see the noise are taken"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--unseen-steps",
        type=int,
        default=0,
        metavar="N",
        help="sampler steps in which the expert makes what is not in view",
    )
    given = parser.parse_args()
    if given.unseen_steps < 0:
        parser.error(f"--unseen-steps must be 0 or more, got {given.unseen_steps}")
    try:
        graft(given.run, find_weights(given.student), given.out, given.unseen_steps)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(given.out)


if __name__ == "__main__":
    main()
