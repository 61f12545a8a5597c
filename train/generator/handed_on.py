"""Weights that one training hands on to another: for a network that was changed since, and in files small enough to carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from train.engine.variants import fitting
from world_model.dit import DiT
from world_model.vae import ResBlock

PART = 15 * 2**20  # bytes of a part of the weights


def taken_over(dit: DiT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Earlier weights for a network that was changed since: a part of it (`flow.tone`, `blocks.3`) that has other parameters now,
    or of other shapes, begins fresh as a whole, and the log says so. More residual blocks than before begin as the identity."""
    own = dit.state_dict()
    fit = fitting(dit, tensors)
    blocks = [f"{name}." for name, module in dit.named_modules() if isinstance(module, ResBlock)]
    added = tuple(block for block in blocks if not any(name.startswith(block) for name in tensors))
    missing = {name for name in own.keys() - fit.keys() if not name.startswith(added)}
    changed = {part_of(name) for name in missing | (tensors.keys() - fit.keys())}
    if changed:
        tqdm.write(f"these parts of the network are not as in the initial weights and begin fresh: {sorted(changed)}")
    return {name: value if part_of(name) in changed else fit.get(name, value) for name, value in own.items()}


def learn_only(dit: DiT, parts: Sequence[str]) -> None:
    """Freezes all but some parts, such as `flow.tone`. Raises ValueError for one that the network has not."""
    names = {part_of(name) for name, _ in dit.named_parameters()}
    if unknown := sorted(set(parts) - names):
        raise ValueError(f"the network has no part {unknown[0]!r} that could learn, only {', '.join(sorted(names))}")
    for name, parameter in dit.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def part_of(parameter: str) -> str:
    """The first two parts of a parameter's name, without its own."""
    return ".".join(parameter.split(".")[:-1][:2])


def write_parts(out: Path) -> list[Path]:
    """Copies the weights of a folder into `parts/`, files of at most `PART` bytes; `join_parts` puts them together."""
    parts: list[dict[str, Tensor]] = [{}]
    held = 0
    for file in sorted(out.glob("*.safetensors")):
        for name, value in load_file(file).items():
            size = value.numel() * value.element_size()
            if held + size > PART and parts[-1]:
                parts.append({})
                held = 0
            parts[-1][f"{file.name}/{name}"] = value
            held += size
    folder = out / "parts"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"part_{i}.safetensors" for i in range(len(parts))]
    for path, tensors in zip(paths, parts):
        save_file(tensors, path)
    return paths


def join_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors of every weights file, by its name, from the parts in a folder."""
    files: dict[str, dict[str, Tensor]] = {}
    for path in sorted(folder.glob("part_*.safetensors")):
        for name, value in load_file(path).items():
            file, _, key = name.partition("/")
            files.setdefault(file, {})[key] = value
    if not files:
        raise FileNotFoundError(f"no parts of weights in {str(folder)!r}")
    return files
