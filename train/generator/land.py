"""Writes shippable weights of a generator from a run: `python -m train.generator.land RUN --evaluation DIR --out FOLDER`.

RUN is a folder of train.street_world; DIR is what `python -m train.evaluate RUN --towns report --out DIR` wrote. FOLDER then holds
what `WorldModel.load` reads, without checkpoints. Its manifest says how the model was trained and what was measured. Models with
priors are landed by train.land.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from world_model.weights import check_file, list_files, read_config, read_manifest


def land(run: Path, evaluation: Path, out: Path) -> dict[str, Any]:
    """Copies the weights of `run` into the new folder `out`, whose name the model gets; returns its manifest.

    Raises ValueError for a model with priors, an `out` that holds something, or an evaluation of other weights, FileNotFoundError
    for what is missing.
    """
    config, manifest = read_config(run), read_manifest(run)
    if config.priors:
        raise ValueError(f"{config.name!r} has priors, which train.land exports: python -m train.land {config.name}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a new folder, or delete that one first")
    figures = read_evaluation(evaluation, manifest["files"])
    files = [check_file(run, name) for name in manifest["files"]]
    out.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, out / path.name)
    (out / "config.json").write_text(dataclasses.replace(config, name=out.name).to_json() + "\n")
    (out / "manifest.json").write_text(json.dumps({**manifest, "evaluation": figures}))
    list_files(out)
    return read_manifest(out)


def read_evaluation(folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    """{"towns": their seeds, "figures": {row: {world: [value, low, high]}}} of a folder of `train.evaluate --towns`.

    files: what the manifest of the model says of its files. Raises FileNotFoundError for a folder without it, ValueError where a
    town was measured with other weights.
    """
    path = folder / "towns.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run python -m train.evaluate RUN --towns report --out {folder}")
    towns = []
    for identity in sorted(folder.glob("town_*/parts/identity.json")):
        if json.loads(identity.read_text())["model"] != files:
            raise ValueError(f"{identity.parents[1]} was measured with other weights: evaluate these in a new folder")
        towns.append(int(identity.parents[1].name.removeprefix("town_")))
    return {"towns": towns, "figures": json.loads(path.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of train.street_world")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of train.evaluate --towns")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write; its name is the model's")
    given = parser.parse_args()
    try:
        manifest = land(given.run, given.evaluation, given.out)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f'{size / 1e6:.1f} MB: gymnasium.make("YumeWorld-v0", model="{given.out}")')


if __name__ == "__main__":
    main()
