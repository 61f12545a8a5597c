"""Writes shippable weights of a model that knows a town (others: train.export) from a run:

    python -m train.land street --run RUN --vae RUN --data DIR --out FOLDER

Takes the EMA of the DiT (of train.foundation or train.distill) and the autoencoder, encodes the 81 action captions, draws the
starting pictures in YumeStreet, measures held-out walks, and writes the folder that `WorldModel.load` reads (world_model.weights).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from train.data.corpus import Corpus, town_start
from train.data.latents import load_vae
from train.data.shards import HELD_OUT
from train.depth import load_depth
from train.engine.loop import prepare_cpu
from train.evaluation.held_out import held_out_psnr
from train.export import config_of, load_ema, run_metadata
from train.finder import WEIGHTS as FINDER
from train.places import load_places
from train.street.growth import load_events
from train.street.routes import open_start
from train.street.scene import part_name, part_of
from train.street.walks import known_street
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.presets import get_preset
from world_model.priors.config import events_of, places_of
from world_model.text import Conditioning
from world_model.weights import read_manifest, save_weights
from yume_gym.street.simulator import StreetSimulator

# (light, weather) of the starting pictures: mostly a clear day
STARTS = [("day", "clear")] * 16 + [
    ("overcast", "clear"),
    ("golden", "clear"),
    ("golden", "clear"),
    ("night", "clear"),
    ("overcast", "rain"),
    ("overcast", "snow"),
    ("day", "fog"),
    ("night", "clear"),
]


def starting_pictures(config: ModelConfig, seed: int = 1000) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """uint8 [n * H, W, 3]: one picture of YumeStreet for each of `STARTS` in each known town, below each other; none stares at a
    wall. And where each was taken: (x, z; metres; yaw, radians)."""
    pictures, poses = [], []
    places = places_of(config)
    for town in range(len(places.towns) if places is not None else 1):
        street = known_street(config, town) if places is not None else StreetSimulator.like(config)
        x, z = town_start(config, town)
        for number, (light, weather) in enumerate(STARTS):
            pictures.append(open_start(street, np.random.default_rng((seed, number)), light, weather))
            poses.append((x + street.position[0], z + street.position[1], street.yaw))
    return np.concatenate(pictures), poses


def outgrown(config: ModelConfig, run: Path) -> list[str]:
    """What the model has come to know otherwise since a run began: those of "places" and "events" that have another shape now."""
    began = config_of(run)
    return [name for name, of in (("places", places_of), ("events", events_of)) if of(began) != of(config)]


@dataclass(frozen=True)
class Network:
    """Where the DiT comes from."""

    run: Path  # of train.foundation or train.distill
    before: Sequence[Path] = ()  # earlier runs that this one continued, oldest first
    initial: Path | None = None  # weights that the first of these runs began from: their metadata comes first
    interpolation: float = 1.0  # of the run's weights; the rest are those of the last run before it


@dataclass(frozen=True)
class Parts:
    """Runs of the stages that train parts of the scene prior. None: as in the DiT's run, for the finder as in `initial`."""

    depth: Path | None = None
    places: Path | None = None
    events: Path | None = None
    finder: Path | None = None  # relocalisation, which models with a scene field of a town need


def export_with_priors(
    config: ModelConfig, network: Network, vae_folder: Path, data: Path, out: Path, parts: Parts | None = None
) -> dict[str, float]:
    """Writes the folder; returns its evaluation.

    Raises ValueError where the config has changed since the run began and a part is not given, or where a finder is missing or
    superfluous.
    """
    initial, given = network.initial, parts or Parts()
    earlier = read_manifest(initial) if initial is not None else {}
    if given.finder is None and initial is not None and (initial / FINDER).is_file():
        given = replace(given, finder=initial)
    folders: dict[str, Path | None] = vars(given)
    _check_parts(config, network.run, folders)
    dit, training = _load_network(config, network, folders)
    vae, _ = load_vae(config, vae_folder)
    corpus = Corpus(config, data)
    conditioning = Conditioning(config.text)
    figures = held_out_psnr(dit.eval(), vae, corpus, conditioning)[0]
    out.mkdir(parents=True, exist_ok=True)
    pictures, poses = starting_pictures(config)
    Image.fromarray(pictures).save(out / "starts.png", optimize=True)
    metadata = {
        "autoencoder": json.loads((vae_folder / "vae.json").read_text())["vae_training"],
        **{stage: _stage_metadata(run, stage, earlier) for stage, run in folders.items()},
        "training": [*earlier.get("training", []), *(run_metadata(folder) for folder in network.before), training],
        "evaluation": {"walks": HELD_OUT, **{k: round(v, 2) for k, v in figures.items()}},
    }
    tensors = {
        "dit.safetensors": dit.state_dict(),
        "vae.safetensors": vae.state_dict(),
        "text.safetensors": {"actions": conditioning.actions},
    }
    if given.finder is not None:
        tensors["finder.safetensors"] = load_file(given.finder / FINDER)
        (out / "starts.json").write_text(json.dumps(poses) + "\n")
    save_weights(out, config, tensors, metadata)
    return figures


def _check_parts(config: ModelConfig, run: Path, folders: dict[str, Path | None]) -> None:
    """ValueError where a part that the export needs is not given."""
    if (folders["finder"] is None) != (places_of(config) is None):
        raise ValueError(f"{config.name}: --finder is needed by models that know a town, and by no others")
    for name in outgrown(config, run):
        if folders[name] is None:
            raise ValueError(f"{run} knows other {name} than {config.name}: pass --{name}, a run of train.{name}")


def _load_network(config: ModelConfig, network: Network, folders: dict[str, Path | None]) -> tuple[DiT, dict]:
    """The averaged DiT with the parts of `folders` put in, and the metadata of its run.

    With `interpolation` below 1 its weights lie between those of the run before (0) and its own (1): distillation sharpens, and
    overshoots, while what lies between a network and its fine-tuned self is often better than both (Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    replaced = [part_name(name) for name, folder in folders.items() if folder is not None]
    dit, training = load_ema(config, network.run, replaced)
    share = network.interpolation
    if share != 1:
        if not network.before or not 0 <= share < 1:
            raise ValueError(
                f"--interpolation {share} must be from 0 to 1, and --before name the run that the rest is of"
            )
        earlier = load_ema(config, network.before[-1], replaced)[0]
        for parameter, other in zip(dit.parameters(), earlier.parameters(), strict=True):
            parameter.data.lerp_(other.data, 1 - share)
        training["share"] = share
    for name, load in (("depth", load_depth), ("places", load_places), ("events", load_events)):
        folder, part = folders[name], part_of(dit, name)
        if folder is not None and part is not None:
            load(part, folder)
    return dit, training


def _stage_metadata(run: Path | None, stage: str, earlier: dict) -> dict:
    """What a run says of its training, without the config; where it did not go on, what earlier weights say."""
    if run is None or not (run / f"{stage}.json").is_file():
        return earlier.get(stage, {})
    return json.loads((run / f"{stage}.json").read_text())[f"{stage}_training"]


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="preset name")
    for name, text in (
        ("run", "run folder of the DiT"),
        ("vae", "run folder of train.vae"),
        ("data", "encoded shards"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument(
        "--before", type=Path, nargs="*", default=[], help="run folders that this run continued, oldest first"
    )
    for stage in ("depth", "places", "events"):
        parser.add_argument(
            f"--{stage}", type=Path, help=f"run folder of train.{stage}, if it went on after --run began"
        )
    parser.add_argument(
        "--initial", type=Path, help="folder of weights that these runs began from: its metadata is kept"
    )
    parser.add_argument(
        "--interpolation", type=float, default=1.0, help="of the run's weights; the rest are those of the last --before"
    )
    parser.add_argument("--finder", type=Path, help="run folder of train.finder, for a model that knows a town")
    arguments = parser.parse_args()
    config = get_preset(arguments.model)
    network = Network(arguments.run, arguments.before, arguments.initial, arguments.interpolation)
    parts = Parts(arguments.depth, arguments.places, arguments.events, arguments.finder)
    figures = export_with_priors(config, network, arguments.vae, arguments.data, arguments.out, parts)
    print("\n".join(f"{name:24} {value:6.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
