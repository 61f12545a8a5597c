"""The command lines of the training stages, and where a stage begins: the model and the weights that they name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from world_model.baselines import BASELINES, baseline
from world_model.config import ModelConfig
from world_model.cost.plan import resized
from world_model.dit import DiT
from world_model.presets import PRESETS, get_preset
from world_model.released.files import is_released, open_release
from world_model.weights import Adapt, holds_weights, load_dit, load_released, read_config

PATHS = {
    "data": "folder of shards (train.data; encoded ones for a DiT), or of Sekai-style clips",
    "vae": "folder of the autoencoder: a run of train.vae, or weights, released or exported (default: MODEL, if it is such)",
    "initial": "folder of weights to start from, released or exported (default: MODEL, if it is such)",
    "depth": "run folder of train.depth, where --initial brings none or an older one",
    "places": "run folder of train.places, or a folder of weights, where --initial brings none or older ones",
    "events": "run folder of train.events, or a folder of weights, where --initial brings none or older ones",
}
IN_WEIGHTS = ("vae", "initial")  # what a folder of weights that is given as MODEL brings


def read_arguments(
    description: str | None,
    settings: type,
    numbers: Sequence[str],
    needed: Sequence[str] = (),
    offered: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> tuple[ModelConfig, Any, argparse.Namespace]:
    """The command line of a stage: its model, `settings` with the fields `numbers` as given, and the rest: out, steps, minutes and
    the `PATHS` that are needed or offered ("captions": how texts reach the model; "baseline": another memory).

    Fields of nested settings have a dot, such as "pool.size". `names` says what options are called other than the field itself.
    """
    options = {field: (names or {}).get(field, field.rpartition(".")[2]) for field in numbers}
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", metavar="MODEL", help="preset name, a config.json, or a folder of weights, released or exported"
    )
    parser.add_argument("--size", metavar="HxW", help="picture size on the patch grid (default: the model's)")
    if "captions" in offered:
        parser.add_argument(
            "--captions",
            choices=("apart", "joined"),
            help="how texts reach the model: event and action encoded apart (the paper), or as one caption (the public demo); "
            "default: the model's own way. The config of what is trained keeps it.",
        )
    if "baseline" in offered:
        parser.add_argument(
            "--baseline", choices=list(BASELINES), help="another memory in place of TSCM (world_model/baselines.py)"
        )
    paths = [name for name in (*needed, *offered) if name in PATHS]
    for folder in paths:
        required = folder in needed and folder not in IN_WEIGHTS
        parser.add_argument(f"--{folder}", type=Path, required=required, help=PATHS[folder])
    parser.add_argument("--out", type=Path, required=True, help="run folder; a checkpoint in it is resumed")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, help="stop after this much training")
    for field, name in options.items():
        default = reduce(getattr, field.split("."), settings)
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    arguments = parser.parse_args()
    for name in IN_WEIGHTS:
        if name in paths and getattr(arguments, name) is None and _is_folder(arguments.model):
            setattr(arguments, name, Path(arguments.model))
    missing = [f"--{name}" for name in needed if name in paths and getattr(arguments, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)} (or a folder of weights as MODEL)")
    try:
        given = vars(arguments)
        config = configured(arguments.model, arguments.size, given.get("captions"), given.get("baseline"))
        found = settings()
        for field, name in options.items():
            found = replaced(found, field, getattr(arguments, name))
        return config, found, arguments
    except (ValueError, OSError) as error:
        parser.error(str(error))


def replaced(settings: Any, field: str, value: Any) -> Any:
    """Settings with another value of a field; "pool.size" is a field of nested ones."""
    name, _, rest = field.partition(".")
    return replace(settings, **{name: replaced(getattr(settings, name), rest, value) if rest else value})


def configured(model: str, size: str | None, captions: str | None = None, memory: str | None = None) -> ModelConfig:
    """The config of `named_config`, for pictures of another size ("HxW"), with texts told "apart" or "joined", and with the memory
    of a baseline.

    Raises ValueError or OSError for a wrong one.
    """
    config = named_config(model)
    if captions is not None:
        config = replace(config, text=replace(config.text, joined=captions == "joined"))
    return resized(config if memory is None else baseline(config, memory), size)


def named_config(model: str) -> ModelConfig:
    """The config of a preset, of a file config.json, or of a folder of weights; released ones get the channel path that they lack.

    Raises ValueError or OSError for what is none of them.
    """
    if model in PRESETS and not _is_folder(model):
        return get_preset(model)
    path = Path(model)
    if path.suffix == ".json":
        return ModelConfig.from_json(path.read_text())
    if not holds_weights(path):
        return get_preset(model)  # raises, and says which there are
    return open_release(path, channel=True).config if is_released(path) else read_config(path)


def _is_folder(model: str) -> bool:
    return holds_weights(Path(model))


def initial_dit(
    config: ModelConfig, folder: Path | None, without: Sequence[str] = (), adapt: Adapt | None = None
) -> DiT:
    """The DiT that a stage begins with, float32: fresh, or with the weights of a folder, released or exported.

    What released weights lack of a channel path is added with a zero output (`weights.load_released`): the network computes what it
    was trained to, but for a baseline, whose memory is another. `without` and `adapt` as in `weights.load_dit`. Raises ValueError
    or FileNotFoundError for unfitting weights.
    """
    if folder is None or not is_released(folder):
        dit = DiT(config)
        if folder is not None:
            load_dit(dit, folder, without, adapt)
        return dit
    release = open_release(folder, channel=config.dit.history.channel is not None)
    own = config.dit
    same = ("packing", "channel", "attention")  # of the model that is asked for, whatever the release says
    memory = {name: getattr(own.history, name) for name in same}
    if release.config.with_history(**memory).dit != own:
        raise ValueError(f"the weights in {folder} are not of {config.name!r}: give the folder itself as MODEL")
    with torch.device("meta"):
        dit = DiT(config)
    state, expected = release.dit.read(torch.float32, "cpu"), dit.state_dict()
    if (
        own.history.packing != "released"
    ):  # kernels that another packing has no use for, and what stands where it has no frame yet
        state = {name: v for name, v in state.items() if name in expected or not name.startswith("patch_embedding_")}
        state |= {"empty": torch.zeros(own.dim)} if "empty" in expected else {}
    load_released(dit, state)
    return dit
