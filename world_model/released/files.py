"""Released weights: find the parts of a model in a folder, check them all, and load them.

A part may have the layout of the original release or of diffusers and transformers; both may be mixed in one folder:

    transformer    diffusion_pytorch_model.safetensors, or shards with .index.json, and config.json (also under transformer/)
    autoencoder    Wan2.2_VAE.pth, or vae/
    text encoder   models_t5_umt5-xxl-enc-bf16.pth, or text_encoder/
    tokenizer      google/umt5-xxl/, or tokenizer/

The shape of every tensor of all three networks is compared with the network built on the meta device before any memory is spent.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from world_model.actions import ALL_ACTIONS
from world_model.checkpoint import FETCH_AGAIN, Checkpoint, Shape, require_shapes, shapes_of
from world_model.config import DiTConfig, ModelConfig, TextConfig, VAEConfig
from world_model.dit import DiT
from world_model.presets import PRESETS
from world_model.released.placement import LoadOptions, place
from world_model.released.umt5 import UMT5Encoder, build_umt5, sizes, transformers_name
from world_model.released.wan_vae import LATENTS_MEAN, LATENTS_STD, WanVAE, diffusers_name
from world_model.text import Conditioning, JoinedConditioning
from world_model.vae import VideoVAE
from world_model.weights import load_released, missing_channel_path

log = logging.getLogger(__name__)
FULL_SIZE = "yume-5b"
TRAINING_ONLY = ("sideblock.", "mask_token")  # of the authors' training; their inference never reads them

_DIT = ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors")
_TEXT = ("model.safetensors.index.json", "model.safetensors")
PARTS: dict[str, tuple[str, ...]] = {  # what stands for each part, in order of preference
    "transformer": (*_DIT, *(f"transformer/{name}" for name in _DIT)),
    "configuration": ("config.json", "transformer/config.json"),
    "autoencoder": (*(f"vae/{name}" for name in _DIT), "Wan2.2_VAE.pth"),
    "text encoder": (*(f"text_encoder/{name}" for name in _TEXT), "models_t5_umt5-xxl-enc-bf16.pth"),
    "tokenizer": ("tokenizer/tokenizer_config.json", "google/umt5-xxl/tokenizer_config.json"),
}


@dataclass(frozen=True)
class Release:
    """A checked folder: the model it holds and the checkpoints of its parts."""

    config: ModelConfig
    dit: Checkpoint
    vae: Checkpoint
    text: Checkpoint
    tokenizer: Path


def is_released(folder: Path) -> bool:
    """Whether a folder holds weights as they were released (ours have a manifest.json)."""
    return not (folder / "manifest.json").exists() and any((folder / name).exists() for name in PARTS["transformer"])


def open_release(folder: Path, channel: bool = False) -> Release:
    """Finds and checks all parts; reads headers and small JSON files only.

    channel: keep the channel path in the config, which released weights lack, for training: `load_released` adds it, and its output
    is zero at first. Raises FileNotFoundError that names what is missing and where it may lie, ValueError that names the file and
    the tensors that do not fit.
    """
    found = {
        part: next((folder / name for name in names if (folder / name).exists()), None) for part, names in PARTS.items()
    }
    missing = [f"the {part} ({' or '.join(PARTS[part])})" for part, path in found.items() if path is None]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {'; '.join(missing)}: put it there, see docs/yume-5b.md")
    paths = {part: path for part, path in found.items() if path is not None}
    dit = Checkpoint(paths["transformer"], lambda name: None if name.startswith(TRAINING_ONLY) else name)
    vae = Checkpoint(paths["autoencoder"], diffusers_name)
    text = Checkpoint(paths["text encoder"], transformers_name)
    config = _config(folder, paths, dit, vae, text, channel)
    if dit.left_out:
        log.info("%s: %s are for training only and not read", dit.path.name, ", ".join(sorted(dit.left_out)))
    return Release(config, dit, vae, text, paths["tokenizer"].parent)


def _config(
    folder: Path, paths: Mapping[str, Path], dit: Checkpoint, vae: Checkpoint, text: Checkpoint, channel: bool
) -> ModelConfig:
    """The model's config from config.json and the tensors' shapes, all of which it is then held to."""
    full = PRESETS[FULL_SIZE]
    sizes_of_dit, length = _dit_config(paths["configuration"], dit)
    action_tokens = full.text.action_tokens * length // (full.text.event_tokens + full.text.action_tokens)
    whole = sizes_of_dit == full.dit
    try:
        vae_config = full.vae if whole else _vae_config(vae.shapes)
        text_config = full.text if whole else sizes(text.shapes, length - action_tokens, action_tokens)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{folder}: {vae.path.name} or {text.path.name} is no part of a Yume model ({error})"
        ) from error
    text_config = replace(text_config, joined=full.text.joined, prefix=full.text.prefix)
    name = full.name if whole else folder.resolve().name
    config = replace(full, name=name, dit=sizes_of_dit, vae=vae_config, text=text_config)

    with torch.device("meta"):
        expected = shapes_of(DiT(config).state_dict())
        autoencoder = shapes_of(WanVAE(vae_config).model.state_dict())
    added = missing_channel_path(expected, dit.shapes)
    expected = {name: shape for name, shape in expected.items() if name not in added}
    encoder = {name: tuple(p.shape) for name, p in build_umt5(text_config).named_parameters()}
    for checkpoint, shapes in ((dit, expected), (vae, autoencoder), (text, encoder)):
        require_shapes(shapes, checkpoint.shapes, f"{checkpoint.path} does not fit {paths['configuration']}")
    _check_normalisation(vae.path.parent / "config.json")
    if added and not channel:  # its output would be zero: nothing is lost without it
        config = config.with_history(channel=None)
    return config


def _dit_config(path: Path, dit: Checkpoint) -> tuple[DiTConfig, int]:
    """Sizes of the transformer, and the text length, from Wan's config.json; what it does not say is Wan2.2's default."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        full = PRESETS[FULL_SIZE].dit
        names = {"dim": "dim", "heads": "num_heads", "layers": "num_layers", "latent_channels": "in_dim"}
        told = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
        layer = replace(full.layer, **{name: values[name] for name in ("ffn_dim", "eps") if name in values})
        embedding = replace(full.embedding, freq_dim=values.get("freq_dim", full.embedding.freq_dim))
        width = dit.shapes.get("text_embedding.0.weight", (0, full.text_dim))[1]
        patch = tuple(values.get("patch_size", full.patch))
        parts = {"text_dim": values.get("text_dim", width), "patch": patch, "layer": layer, "embedding": embedding}
        return replace(full, **told, **parts), values.get("text_len", 512)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration of a Wan transformer ({error}): {FETCH_AGAIN}") from error


def _vae_config(shapes: Mapping[str, Shape]) -> VAEConfig:
    depth = sum(name.startswith("encoder.down_blocks.0.resnets.") and name.endswith("conv1.weight") for name in shapes)
    return replace(
        PRESETS[FULL_SIZE].vae,
        latent_channels=shapes["post_quant_conv.weight"][0],
        width=shapes["encoder.conv_in.weight"][0],
        decoder_width=shapes["decoder.norm_out.gamma"][0],
        depth=depth,
    )


def _check_normalisation(path: Path) -> None:
    """diffusers' folders say what latents are normalised with: it has to be Wan2.2's numbers."""
    if path.parent.name != "vae" or not path.exists():
        return
    values = json.loads(path.read_text())
    for key, ours in (("latents_mean", LATENTS_MEAN), ("latents_std", LATENTS_STD)):
        if key in values and tuple(values[key]) != ours:
            raise ValueError(f"{path}: its {key} are not those of Wan2.2's autoencoder, {FETCH_AGAIN}")


def load_release(
    folder: Path, options: LoadOptions, size: tuple[int, int] | None = None
) -> tuple[ModelConfig, DiT, VideoVAE, Conditioning]:
    """A released model, placed as the options want it. Raises what `open_release` and `ModelConfig.resized` raise."""
    release = open_release(folder)
    config = release.config if size is None else release.config.resized(size)
    joined = options.captions == "joined" if options.captions else config.text.joined and options.text != "drop"
    config = replace(config, text=replace(config.text, joined=joined))
    dit, vae = read_dit(release, config, options), read_vae(release, options)
    placed, placed_vae = place(dit, vae, options)
    return config, placed, placed_vae, _conditioning(release, config.text, options)


def read_dit(release: Release, config: ModelConfig, options: LoadOptions) -> DiT:
    """The transformer with its weights."""
    with torch.device("meta"):
        dit = DiT(config)
    load_released(dit, release.dit.read(options.number(options.dtype), options.staging))
    return dit


def read_vae(release: Release, options: LoadOptions) -> WanVAE:
    """The autoencoder with its weights."""
    with torch.device("meta"):
        vae = WanVAE(release.config.vae)
    home = options.torch_device if options.offload == "none" else "cpu"
    state = release.vae.read(options.number(options.vae_dtype), home)
    vae.model.load_state_dict(state, strict=True, assign=True)
    return vae


def _conditioning(release: Release, config: TextConfig, options: LoadOptions) -> Conditioning:
    encoder = _encoder(release.text, release.tokenizer, config, options)
    if config.joined:
        return JoinedConditioning(config, encoder)
    captions = [f"{config.prefix}{action.caption}" for action in ALL_ACTIONS]
    return Conditioning(config, encoder.encode_all(captions, config.action_tokens), encoder)


def _encoder(checkpoint: Checkpoint, tokenizer: Path, config: TextConfig, options: LoadOptions) -> UMT5Encoder:
    device = options.torch_device if options.text == "device" else "cpu"
    return UMT5Encoder(
        config, checkpoint, tokenizer, device, options.number(options.dtype), keep=options.text != "drop"
    )


# ---- the text encoder alone, which exported weights keep as it was released ---------------------------------------------


def holds_text_encoder(folder: Path) -> bool:
    """Whether a folder has a UMT5 with its tokenizer, in either layout."""
    return all(any((folder / name).exists() for name in PARTS[part]) for part in ("text encoder", "tokenizer"))


def open_text_encoder(folder: Path, config: TextConfig, options: LoadOptions) -> UMT5Encoder:
    """The UMT5 of a folder; its weights are read when the first text is encoded.

    Raises FileNotFoundError without one, ValueError that names the tensors that are not those of `config`.
    """
    encoder, tokenizer = _text_parts(folder)
    checkpoint = Checkpoint(encoder, transformers_name)
    shapes = {name: tuple(p.shape) for name, p in build_umt5(config).named_parameters()}
    require_shapes(shapes, checkpoint.shapes, f"{encoder} is not the text encoder of this model")
    return _encoder(checkpoint, tokenizer.parent, config, options)


def link_text_encoder(source: Path, target: Path) -> None:
    """Puts the UMT5 of one folder into another as it is: hard links, or copies where the file system has none."""
    encoder, tokenizer = _text_parts(source)
    files = [path for path in tokenizer.parent.iterdir() if path.is_file()]
    if encoder.suffix == ".pth":
        files.append(encoder)
    else:
        files += [path for path in encoder.parent.iterdir() if path.is_file()]
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), place)
        except OSError:
            shutil.copy2(path, place)


def _text_parts(folder: Path) -> tuple[Path, Path]:
    """The file that stands for the encoder, and the tokenizer's."""
    found = [
        next((folder / name for name in PARTS[part] if (folder / name).exists()), None)
        for part in ("text encoder", "tokenizer")
    ]
    if found[0] is None or found[1] is None:
        wanted = "; ".join(" or ".join(PARTS[part]) for part in ("text encoder", "tokenizer"))
        raise FileNotFoundError(f"no text encoder UMT5 in {str(folder)!r}: expected {wanted} (docs/yume-5b.md)")
    return found[0], found[1]
