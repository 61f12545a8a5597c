"""Writes a folder of weights from a run: `python -m train.export runs/foundation --initial weights/ --data clips/ --out FOLDER`.

Takes the averaged DiT of a run of train.foundation or train.distill, the autoencoder and the text encoder of the weights that the
run began from, pictures of held-out walks to start from, and measures these walks. `gymnasium.make("YumeWorld-v0", model=FOLDER)`,
train.distill and train.foundation read the folder. Models that know a town are exported by train.land.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.optim.swa_utils import AveragedModel

from train.data.clips import open_corpus
from train.data.corpus import Corpus
from train.data.latents import load_vae
from train.data.shards import HELD_OUT
from train.data.texts import open_conditioning
from train.engine.checkpoints import load_checkpoint_ema, load_progress
from train.engine.loop import prepare_cpu
from train.engine.sharding import own_device
from train.evaluation.held_out import held_out_psnr
from train.evaluation.sheet import to_pictures
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.released.files import is_released, link_text_encoder
from world_model.text import Conditioning
from world_model.weights import read_manifest, save_weights


def export(
    run: Path, out: Path, vae_folder: Path, initial: Path | None = None, data: Path | None = None, blocks: int = 4
) -> dict[str, float]:
    """Writes the folder `out`; returns the evaluation on the first walks of `data`, {} without.

    initial: the weights that the run began from; what they say of their making comes first, and their text encoder is taken along.
    blocks: how far held-out walks are dreamt. Raises ValueError for a model with priors, FileNotFoundError for what is missing.
    """
    config = config_of(run)
    if config.priors:
        raise ValueError(f"{config.name!r} has priors, which train.land exports: python -m train.land {config.name}")
    if config.text.kind == "umt5" and initial is None:
        raise ValueError(f"{config.name!r} reads texts with UMT5: --initial must name the weights that bring it")
    dit, training = load_ema(config, run)
    vae, fingerprint = load_vae(config, vae_folder)
    tensors = {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae.state_dict()}
    conditioning = open_conditioning(config, run if data is None else data, initial)
    if config.action.kind == "first_person" and not config.text.joined:
        tensors["text.safetensors"] = {"actions": conditioning.actions}
    figures: dict[str, float] = {}
    out.mkdir(parents=True, exist_ok=True)
    if data is not None:
        corpus = open_corpus(config, data, vae.to(own_device()))
        figures = _measure(dit, vae, corpus, conditioning, blocks)
        _save_starts(corpus, out)
    if config.text.kind == "umt5" and initial is not None:
        link_text_encoder(initial, out)
    metadata = {
        "autoencoder": {"sha256": fingerprint},
        "training": [*_earlier(initial), training],
        "evaluation": {"walks": HELD_OUT, **{name: round(value, 2) for name, value in figures.items()}},
    }
    save_weights(out, config, tensors, metadata)
    return figures


def _measure(dit: DiT, vae: Any, corpus: Corpus, conditioning: Conditioning, blocks: int) -> dict[str, float]:
    dit.eval().to(own_device())
    return held_out_psnr(dit, vae, corpus, conditioning, blocks)[0]


def _save_starts(corpus: Corpus, out: Path) -> None:
    """starts.png: the first pictures of held-out walks, below each other."""
    pictures = [corpus.picture(walk, 0) for walk in range(min(HELD_OUT, len(corpus)))]
    strip = to_pictures(torch.cat(pictures, dim=1)[:, None])[0]
    Image.fromarray(strip).save(out / "starts.png", optimize=True)


def _earlier(initial: Path | None) -> list[Any]:
    """What the weights that a run began from say of their training."""
    if initial is None:
        return []
    return [{"released": initial.name}] if is_released(initial) else read_manifest(initial).get("training", [])


# ---- runs -------------------------------------------------------------------------------------------------------------


def load_ema(config: ModelConfig, run: Path, replaced: Sequence[str] = ()) -> tuple[DiT, dict]:
    """The averaged DiT of a run's checkpoint, and the run's settings and progress; parts that are `replaced` afterwards are left
    fresh, and may be of another shape in the run. Raises FileNotFoundError without one."""
    checkpoint = run / "checkpoint"
    if not checkpoint.exists():
        raise FileNotFoundError(
            f"no checkpoint in {str(run)!r}: train first (python -m train.foundation, train.distill)"
        )
    average = AveragedModel(DiT(config))
    load_checkpoint_ema(checkpoint, average, replaced)
    assert isinstance(average.module, DiT)
    return average.module, run_metadata(run)


def config_of(run: Path) -> ModelConfig:
    """The config that a run began with. Raises FileNotFoundError where the folder is no run."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{str(run)!r} is no run folder: config.json is missing")
    return ModelConfig.from_json(path.read_text())


def run_metadata(run: Path) -> dict:
    """Metadata of a run: stage, steps, minutes and settings. Its model may be of an older shape of the model."""
    progress = load_progress(run / "checkpoint")
    metadata = {"stage": run.name, "steps": progress["step"], "minutes": round(progress["seconds"] / 60, 1)}
    return {**metadata, "settings": json.loads((run / "settings.json").read_text())}


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of train.foundation or train.distill")
    parser.add_argument("--initial", type=Path, help="weights that the run began from, released or exported")
    parser.add_argument("--vae", type=Path, help="folder of the autoencoder (default: --initial)")
    parser.add_argument("--data", type=Path, help="clips or shards: starting pictures and held-out walks to measure")
    parser.add_argument("--blocks", type=int, default=4, help="how many blocks of a held-out walk are dreamt")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    given = parser.parse_args()
    if given.vae is None and given.initial is None:
        parser.error("give --initial or --vae: where the autoencoder is")
    try:
        figures = export(given.run, given.out, given.vae or given.initial, given.initial, given.data, given.blocks)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n".join(f"{name:24} {value:6.2f}" for name, value in figures.items()))
    print(f'gymnasium.make("YumeWorld-v0", model="{given.out}")')


if __name__ == "__main__":
    main()
