"""Reads what runs wrote: averaged networks and progress from checkpoints, single networks and metadata from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from train.engine import sharding
from train.street.scene import part_name
from world_model.priors.names import renamed
from world_model.weights import Adapt, read_manifest, with_own

PROGRESS = "progress.pt"  # beside the shards of a checkpoint that many processes wrote


def load_checkpoint_ema(checkpoint: Path, average: AveragedModel, replaced: Sequence[str] = ()) -> dict[str, Any]:
    """Fills `average` with the first EMA of a checkpoint, however many processes wrote it, but for parts of the network that are
    `replaced` afterwards and may be of another shape by now; returns its `Progress`."""
    shards = checkpoint / sharding.SHARDS
    if shards.exists():
        name = next(key.split(".")[1] for key in sharding.sizes_in(shards) if key.startswith("average."))
        parts = tuple(f"module.{part}." for part in replaced)
        wanted = {key: value for key, value in average.state_dict().items() if not key.startswith(parts)}
        sharding.load_shards(shards, {f"average.{name}.{key}": value for key, value in wanted.items()})
    else:  # accelerate numbers the objects registered by Run: progress first, then the averages
        held = torch.load(checkpoint / "custom_checkpoint_1.pkl", map_location="cpu", weights_only=True)
        average.n_averaged.copy_(held.pop("n_averaged"))
        tensors = {name.removeprefix("module."): value for name, value in held.items()}
        average.module.load_state_dict(with_own(average.module, tensors, replaced))
    return load_progress(checkpoint)


def load_progress(checkpoint: Path) -> dict[str, Any]:
    """The `Progress` of a checkpoint, however many processes wrote it and whatever its networks are."""
    many = (checkpoint / sharding.SHARDS).exists()
    return torch.load(checkpoint / (PROGRESS if many else "custom_checkpoint_0.pkl"), weights_only=True)


def load_network(
    network: nn.Module, folder: Path | None, name: str, missing: str, what: str, adapt: Adapt | None = None
) -> None:
    """Puts the file `name` of a run's folder into `network`, or its part of the DiT in a folder of weights. Raises
    FileNotFoundError (`missing` says what to do) without either, ValueError where they do not hold `what`. `adapt` makes tensors of
    another shape of the network fit."""
    path = folder / name if folder is not None else None
    prefix = ""
    if path is not None and not path.is_file():
        path, prefix = path.with_name("dit.safetensors"), f"{part_name(path.stem)}."
    if path is None or not path.is_file():
        raise FileNotFoundError(f"no {name} in {str(folder)!r}: {missing}")
    try:
        held = renamed(load_file(path)) if prefix else load_file(path)
        tensors = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        network.load_state_dict(adapt(tensors) if adapt is not None else tensors)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold {what} of this model: {error}") from error


def stage_metadata(folder: Path, stage: str) -> dict[str, Any]:
    """Metadata of a stage's training, from its run or from a folder of weights; {} where weights have none."""
    path = folder / f"{stage}.json"
    if path.is_file():
        return json.loads(path.read_text())[f"{stage}_training"]
    return read_manifest(folder).get(stage, {})
