"""Find, verify and strictly load weights. A weights folder holds one whole model:

    config.json          the ModelConfig
    manifest.json        sha256 and size of every file, how the weights were made, their evaluation
    dit.safetensors      the DiT          vae.safetensors     the autoencoder
    text.safetensors     `actions` [81, n, dim]: the encoded action captions; of first-person models, unless `TextConfig.joined`
    text_encoder/ and tokenizer/, or their released files: UMT5, of models that read texts with it (released/files.py)
    heads.safetensors    reward and termination (heads.py), float32, and heads.json: its `HeadsConfig` (optional)
    beacon.safetensors and text_goal.safetensors, each with a .json: picture_heads.py (optional); beacon.png: starting pictures of
                         the first
    known.safetensors and known.json: texts and pictures of training (known.py; optional)
    starts.png           starting pictures, one above the other (optional)
    finder.safetensors   the finder, and starts.json: (x, z, yaw) of the starting pictures; of models that know a town

Tensors are float16 on disk, whole numbers as they are. Large ones may be int8 with a scale for each row, `NAME.row_scale`
(train.compress), or float8. Nothing is ever filled in: a
missing, damaged or unfitting file is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from world_model.checkpoint import Shape, require_shapes, shapes_of
from world_model.checks import short
from world_model.config import ModelConfig
from world_model.presets import PRESETS
from world_model.priors.names import renamed

Adapt = Callable[[dict[str, Tensor]], dict[str, Tensor]]

DIT = "dit.safetensors"
SCALE = ".row_scale"  # end of the name of a rounded tensor's scales
# in the manifest, beside weights and pictures
LISTED = ("config.json", "starts.json", "heads.json", "beacon.json", "text_goal.json", "known.json")
EMBEDDED = Path(__file__).parent / "weights"


def model_names() -> list[str]:
    """Names that `find_weights` knows: presets, and folders of weights that are shipped with the package."""
    return sorted({*PRESETS, *(folder.name for folder in EMBEDDED.iterdir() if holds_weights(folder))})


def find_weights(model: str | os.PathLike) -> Path:
    """The folder of a shipped model's weights, of one below YUME_WEIGHTS, or of a path.

    Raises TypeError for neither, ValueError for an unknown name, FileNotFoundError for a missing folder or one without weights.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            f"model must be a name, the path of a weights folder or a loaded WorldModel; got {short(model)}"
        )
    name, known = os.fspath(model), model_names()
    if name not in known:
        folders = [Path(name)]
    else:
        root = os.environ.get("YUME_WEIGHTS")
        folders = [EMBEDDED / name, *([Path(root) / name] if root else [])]
    for folder in folders:
        if holds_weights(folder):
            return folder
    if name in known:
        raise FileNotFoundError(
            f"the weights of {name!r} are not shipped with this package: put them in a folder with config.json and manifest.json "
            f"and pass its path as model=, or set YUME_WEIGHTS to the folder that holds {name!r}"
        )
    if _exists(folders[0]):
        raise FileNotFoundError(f"no weights in {name!r}: expected config.json there (see world_model.weights)")
    if not isinstance(model, str) or os.sep in name or name.startswith(("~", ".")):
        raise FileNotFoundError(
            f"no folder {name!r}: pass the path of a weights folder, or one of the names {', '.join(known)}"
        )
    raise ValueError(f"unknown model {short(name)}: pass one of {', '.join(known)}, or the path of a weights folder")


def holds_weights(folder: Path) -> bool:
    """Whether a folder has a configuration where ours or a released one has it."""
    return _exists(folder / "config.json") or _exists(folder / "transformer" / "config.json")


def _exists(path: Path) -> bool:
    """Whether something is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def read_config(folder: Path) -> ModelConfig:
    """The checked config of a weights folder. Raises FileNotFoundError or ValueError."""
    path = check_file(folder, "config.json")
    try:
        return ModelConfig.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is of another version: {error}") from error


def read_captions(folder: Path) -> Tensor:
    """The encoded action captions [81, n, dim] of a first-person model."""
    text = load_tensors(folder, "text.safetensors")
    if text.keys() != {"actions"}:
        raise ValueError(
            f"{folder / 'text.safetensors'} must hold one tensor, 'actions', not {sorted(text)}: fetch it again"
        )
    return text["actions"]


def read_strip(folder: Path, name: str, config: ModelConfig) -> np.ndarray | None:
    """Pictures uint8 [n, H, W, 3] of a weights folder, one above the other in a file; None without that file."""
    path = folder / name
    if not path.exists():
        return None
    check_file(folder, name)
    strip = np.asarray(Image.open(path).convert("RGB"))
    if strip.shape[1] != config.width or strip.shape[0] % config.height:
        raise ValueError(f"{path} must be a strip of {config.height}x{config.width} pictures, got {strip.shape}")
    return strip.reshape(-1, config.height, config.width, 3)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a weights folder; its "files" maps names to {"bytes", "sha256"}. Raises FileNotFoundError or ValueError."""
    path = folder / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: fetch the whole weights folder again")
    try:
        manifest = json.loads(path.read_text())
        complete = all({"bytes", "sha256"} <= metadata.keys() for metadata in manifest["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    if not complete:
        raise ValueError(f"{path} lists files without size or sha256: fetch it again")
    return manifest


def check_file(folder: Path, name: str) -> Path:
    """The path of a file whose size and sha256 are the manifest's. Raises FileNotFoundError or ValueError."""
    path = folder / name
    metadata = read_manifest(folder)["files"].get(name)
    if metadata is None or not path.exists():
        raise FileNotFoundError(f"{path} is missing: fetch the whole weights folder again")
    if path.stat().st_size != metadata["bytes"] or _sha256(path) != metadata["sha256"]:
        raise ValueError(f"{path} is damaged: its size or sha256 is not the manifest's; fetch it again")
    return path


def load_tensors(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of one checked file. Raises FileNotFoundError or ValueError."""
    path = check_file(folder, name)
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    scales = {key.removesuffix(SCALE): stored.pop(key) for key in [*stored] if key.endswith(SCALE)}
    found = {key: value.to(dtype) if value.is_floating_point() else value for key, value in stored.items()}
    return found | {key: scaled_rows(stored[key], scale).to(dtype) for key, scale in scales.items()}


def scaled_rows(whole: Tensor, scale: Tensor) -> Tensor:
    """What int8 numbers stand for, [n, ...] float32, by the scale [n] of each row."""
    return whole.float() * scale.float().view(-1, *[1] * (whole.dim() - 1))


def dit_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of the DiT of a weights folder, by their names of today. What a denoiser has in common with the expert is stored once
    (`stored_once`). Raises FileNotFoundError or ValueError."""
    tensors = renamed(load_tensors(folder, DIT))
    config = read_config(folder).dit
    if config.denoiser is None or config.expert is None or config.denoiser.shape != config.expert.shape:
        return tensors
    shared = {
        f"denoiser.{name.removeprefix('expert.')}": value
        for name, value in tensors.items()
        if name.startswith("expert.")
    }
    return shared | tensors


def stored_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DiT's tensors without those of its denoiser that are the expert's, too."""

    def expert_has(name: str, value: Tensor) -> bool:
        other = tensors.get(f"expert.{name.removeprefix('denoiser.')}")
        return name.startswith("denoiser.") and other is not None and torch.equal(other, value)

    return {name: value for name, value in tensors.items() if not expert_has(name, value)}


def load_into(
    module: nn.Module, folder: Path, name: str, without: Sequence[str] = (), adapt: Adapt | None = None
) -> None:
    """Strict: every tensor of the file has its place and shape in `module`, and every parameter of `module` is in the file, but for
    parts `without`, which stay as they are. `adapt` makes the tensors of another shape of the network fit."""
    tensors = dit_tensors(folder) if name == DIT else load_tensors(folder, name)
    try:
        module.load_state_dict(with_own(module, adapt(tensors) if adapt else tensors, without), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / name} does not fit its config.json: {error}") from error


def with_own(module: nn.Module, tensors: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    """`tensors` for `module`, with its own for the `parts` (submodules' names) that are not to be taken."""
    kept = tuple(f"{part}." for part in parts)
    own = {name: value for name, value in module.state_dict().items() if name.startswith(kept)}
    return {**{name: value for name, value in tensors.items() if not name.startswith(kept)}, **own}


def load_released(dit: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A DiT of released packing from a state dict with the released names (Wan2.2's, and Yume's coarse patch embeddings).

    Strict: every tensor of `state` has its place and shape in `dit`, and every tensor of `dit` is in `state`, except that the
    channel path, which the released model does not have, may be absent as a whole. It is then drawn afresh (always the same)
    with a zero output, so that the network computes what it was trained to. Tensors are taken as they are, not copied: `dit`
    may be on the meta device; it gets their dtype and device and shares their memory. Raises ValueError that names what does
    not fit.
    """
    expected, found = shapes_of(dit.state_dict()), shapes_of(state)
    added = missing_channel_path(expected, found)
    require_shapes({n: s for n, s in expected.items() if n not in added}, found, "not a checkpoint of this model")
    like = state["patch_embedding.weight"]
    random = torch.Generator(like.device).manual_seed(0)
    fresh = {name: _fresh(name, like.new_empty(expected[name]), random) for name in sorted(added)}
    dit.load_state_dict({**state, **fresh}, strict=True, assign=True)


def missing_channel_path(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> set[str]:
    """Names of a DiT's channel path where a checkpoint has none of it; empty where it has some."""
    channel = {name for name in expected if name.startswith("channel_") or ".channel." in name}
    return channel if channel.isdisjoint(found) else set()


@torch.no_grad()
def _fresh(name: str, tensor: Tensor, random: torch.Generator) -> Tensor:
    """First values of a channel-path tensor: zero outputs and biases, unit norms, Xavier weights."""
    if name.endswith("bias") or ".up." in name:
        return tensor.zero_()
    return tensor.fill_(1) if tensor.dim() == 1 else nn.init.xavier_uniform_(tensor, generator=random)


def load_dit(module: nn.Module, folder: Path, without: Sequence[str] = (), adapt: Adapt | None = None) -> None:
    """The DiT of a weights folder, to continue training from; its parts `without` stay as they are in `module`. For `adapt` see
    `load_into`."""
    load_into(module, folder, DIT, without, adapt)


def save_weights(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]
) -> None:
    """Writes a weights folder: `tensors` maps file names to state dicts; `metadata` (training, evaluation) go to the manifest.

    Other files already there (starts.png) are listed too. The manifest is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in tensors.items():
        save_file({k: _halved(v.detach().cpu()).contiguous() for k, v in stored_once(state).items()}, folder / name)
    (folder / "config.json").write_text(config.to_json() + "\n")
    _write_manifest(folder, metadata)


def save_with_other_dit(
    source: Path, out: Path, config: ModelConfig, dit: Mapping[str, Tensor], training: Sequence[Any]
) -> dict[str, Any]:
    """Writes the weights folder `out`, which is `source` with another config and other tensors of the DiT; what `training` says is
    added to the manifest, which is returned. Raises FileNotFoundError or ValueError for a damaged `source`, then writing nothing.
    """
    manifest = read_manifest(source)
    files = [check_file(source, name) for name in manifest["files"] if name not in (DIT, "config.json")]
    out.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, out / path.name)
    save_weights(out, config, {DIT: dit}, {**manifest, "training": [*manifest["training"], *training]})
    return read_manifest(out)


def list_files(folder: Path) -> None:
    """Lists in the manifest of a weights folder what is in it now. Raises what `read_manifest` raises."""
    _write_manifest(folder, read_manifest(folder))


def is_listed(folder: Path, name: str) -> bool:
    """Whether the manifest of a weights folder lists a file. Raises what `read_manifest` raises."""
    return name in read_manifest(folder)["files"]


def _write_manifest(folder: Path, metadata: Mapping[str, Any]) -> None:
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".png") or p.name in LISTED)
    listing = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    (folder / "manifest.json").write_text(json.dumps({**metadata, "files": listing}, indent=1) + "\n")


def _halved(tensor: Tensor) -> Tensor:
    """Numbers in float16; whole ones as they are."""
    return tensor.half() if tensor.is_floating_point() else tensor


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
