"""Data: walks through the street to shards, shards to latents, shards to and from Sekai-style clips; texts encoded once; episodes
in many towns.

    python -m train.data street render --out data/street --walks 1600 --workers 2 --seed 0
    python -m train.data street encode --data data/street --vae runs/vae
    python -m train.data street sekai-write --data data/street --out data/clips
    python -m train.data street sekai-read --data data/clips --out data/from_clips --blocks-per-walk 4
    python -m train.data weights/ encode-text --data data/clips --captions apart
    python -m train.data weights/ mix --real sekai/=8 --synthetic openvid/=1 --events events/=1 --out data/clips
    python -m train.data street episodes --out data/street-train --towns 300 --workers 2

The first word is a model (a preset, a config.json or a folder of weights): its picture size, rate and block length are those of
the data. All but sekai-read can be stopped and started again: what is whole is kept. A walk depends on (seed, number of the walk)
alone, never on workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.data import sekai
from train.data.mixture import KINDS, load_captioner, mix, parse_source
from train.data.poses import PUBLISHED, Thresholds
from train.data.shards import (
    Header,
    Shard,
    ShardError,
    Trajectory,
    find_shards,
    is_whole,
    shard_path,
    write_shard,
    write_shards,
)
from train.street.episodes import EventTimes, render_episodes
from train.street.towns import TRAINING_TOWNS
from train.street.walks import StreetRecipe, render_walk
from world_model.config import ModelConfig


def render(
    config: ModelConfig, out: Path, recipe: StreetRecipe, *, walks: int, workers: int = 1, walks_per_shard: int = 32
) -> None:
    """Renders walks 0 .. `walks` - 1 of a recipe for `config` into shards in `out`; whole shards of the same settings are kept.

    Raises ShardError where `out` holds shards of other settings, ValueError for counts below 1.
    """
    counts = {"walks": walks, "blocks-per-walk": recipe.blocks_per_walk, "walks-per-shard": walks_per_shard}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"--{name} must be 1 or more, got {value}")
    source = {
        "world": "street",
        "town_blocks": recipe.town_blocks,
        "town_seed": recipe.town_seed,
        "walks_per_shard": walks_per_shard,
        "camera": dataclasses.asdict(config.camera),
    }
    header = _header(config, recipe.blocks_per_walk, recipe.seed, source)
    shards = {
        shard_path(out, number): range(first, min(first + walks_per_shard, walks))
        for number, first in enumerate(range(0, walks, walks_per_shard))
    }
    missing = {path: numbers for path, numbers in shards.items() if not is_whole(path, header, len(numbers))}
    tasks = [(recipe, index) for numbers in missing.values() for index in numbers]
    bar = tqdm(total=walks, initial=walks - len(tasks), desc="render", unit="walk")
    with bar, closing(_rendered(tasks, workers)) as rendered:
        for path, numbers in missing.items():
            shard = []
            for _ in numbers:
                shard.append(next(rendered))
                bar.update()
            write_shard(path, header, shard)


def sekai_write(config: ModelConfig, data: Path, out: Path) -> int:
    """Writes all walks of the shards in `data` as Sekai-style clips below `out`; returns the number of clips."""
    clips = 0
    for path in tqdm(find_shards(data), desc="sekai-write", unit="shard"):
        shard = Shard(path)
        for index in range(len(shard)):
            name = f"{shard.header.preset}_{shard.header.seed}_{path.stem}_{index:03d}"
            clips += len(sekai.write_walk(out, name, shard.trajectory(index), shard.header, config.camera))
    print(f"{clips} clips in {out}")
    return clips


def sekai_read(
    config: ModelConfig,
    data: Path,
    out: Path,
    *,
    blocks_per_walk: int,
    walks_per_shard: int = 32,
    thresholds: Thresholds = PUBLISHED,
) -> int:
    """Turns the Sekai-style clips below `data` into shards in `out`; returns the number of walks.

    Broken clips are named, skipped and counted. Raises FileNotFoundError without any clip, ShardError if none was
    usable or `out` holds shards already.
    """
    if shard_path(out, 0).exists():
        raise ShardError(f"{out} holds shards already: use another folder or delete that one")
    header = _header(config, blocks_per_walk, 0, {"world": "sekai", "clips": data.name})
    problems: list[str] = []
    with tqdm(total=len(sekai.find_clips(data)), desc="sekai-read", unit="clip") as bar:

        def count(problem: str | None) -> None:
            if problem:
                problems.append(problem)
                bar.write(f"skipped {problem}", file=sys.stderr)
            bar.update()

        walks = sekai.read_walks(data, header, config.camera, thresholds, on_clip=count)
        total = write_shards(out, header, walks, walks_per_shard)
        clips = bar.n
    print(f"{total} walks from {clips - len(problems)} of {clips} clips, {len(problems)} skipped")
    if not total:
        raise ShardError(f"none of the {clips} clips in {data} gave a walk; the first: {problems[0]}")
    return total


def _header(config: ModelConfig, blocks_per_walk: int, seed: int, source: dict[str, object]) -> Header:
    return Header(
        preset=config.name,
        height=config.height,
        width=config.width,
        fps=config.fps,
        frames_per_block=config.frames_per_block,
        blocks_per_walk=blocks_per_walk,
        seed=seed,
        source=source,
    )


def _rendered(tasks: list[tuple[StreetRecipe, int]], workers: int) -> Generator[Trajectory, None, None]:
    """Walks in the order of `tasks`, made in this process (workers 0 or 1) or in several."""
    if workers <= 1 or len(tasks) < 2:
        yield from (render_walk(*task) for task in tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_render_task, tasks)


def _render_task(task: tuple[StreetRecipe, int]) -> Trajectory:
    return render_walk(*task)


def _mix(config: ModelConfig, given: dict[str, Any]) -> None:
    sources = [parse_source(kind, text) for kind in KINDS for text in given[kind]]
    captioner = load_captioner(given["captioner"]) if given["captioner"] else None
    estimate = given["keys"] == "estimate"
    made = mix(config, sources, given["out"], extrinsics=given["extrinsics"], estimate=estimate, captioner=captioner)
    total = sum(source.weight for source in made)
    for source in made:
        print(f"{source.kind} {source.folder}: {source.clips} clips, {source.weight / total:.1%} of the worlds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "model",
        help="whose picture size, rate and block length the data have: a preset, a config.json, a folder of weights",
    )
    parser.add_argument("--size", metavar="HxW", help="picture size on the patch grid (default: the model's)")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_render, _add_encode, _add_encode_text, _add_episodes, _add_mix, _add_sekai):
        add(commands)
    return parser


def _add_render(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("render", help="walks through the street -> shards")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--walks", type=int, required=True)
    command.add_argument("--blocks-per-walk", type=int, default=32)
    command.add_argument("--walks-per-shard", type=int, default=32)
    command.add_argument("--workers", type=int, default=1, help="processes")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--town-blocks", type=int, default=2, help="the town is a torus of this many blocks each way")
    command.add_argument("--town-seed", type=int, default=0)


def _add_encode(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("encode", help="shards -> latents beside them")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--vae", type=Path, required=True, help="folder of a trained autoencoder")
    command.add_argument("--device", default="auto")


def _add_encode_text(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("encode-text", help="texts of clips or shards -> <data>/texts, encoded once (UMT5)")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument(
        "--weights", type=Path, help="folder with the text encoder (default: the model, if it is such)"
    )
    command.add_argument(
        "--captions",
        choices=("apart", "joined"),
        help="event and action apart, or one caption (default: the model's way)",
    )
    command.add_argument("--device", default="auto")


def _add_episodes(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("episodes", help="walks through many towns -> a recording (train/recordings)")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--towns", type=int, required=True, help="towns, of seeds that follow one another")
    command.add_argument(
        "--first-town", type=int, default=TRAINING_TOWNS.start, help="seed of the first (train/street/towns.py)"
    )
    command.add_argument("--episodes-per-town", type=int, default=2)
    command.add_argument("--blocks", type=int, default=32, help="of an episode")
    command.add_argument("--workers", type=int, default=1, help="processes")
    command.add_argument("--seed", type=int, default=0)
    times, least_most = EventTimes(), ("LEAST", "MOST")
    command.add_argument(
        "--event-blocks", type=int, nargs=2, metavar=least_most, default=times.blocks, help="blocks that an event lasts"
    )
    command.add_argument(
        "--event-gap", type=int, nargs=2, metavar=least_most, default=times.gap, help="blocks without one between two"
    )


def _add_mix(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "mix", help="downloaded sets -> one training mixture of Sekai-style clips, with weights"
    )
    for kind in KINDS:
        command.add_argument(
            f"--{kind}", metavar="DIR=WEIGHT", nargs="+", default=[], help="folders, each with its share"
        )
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--extrinsics", choices=("c2w", "w2c"), help="what the matrices of <id>.npz files are")
    command.add_argument(
        "--keys",
        choices=("still", "estimate"),
        default="still",
        help="of clips for which neither labels nor poses tell them",
    )
    command.add_argument("--captioner", metavar="MODULE:FUNCTION", help="relabels every clip (train/data/captioner.py)")


def _add_sekai(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("sekai-write", help="shards -> Sekai-style clips")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)

    command = commands.add_parser("sekai-read", help="Sekai-style clips -> shards")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--blocks-per-walk", type=int, default=4, help="shorter clips are skipped, longer ones cut")
    command.add_argument("--walks-per-shard", type=int, default=32)
    default = PUBLISHED
    command.add_argument(
        "--translation-threshold", type=float, default=default.translation, help="unlabelled clips: least step"
    )
    command.add_argument(
        "--rotation-threshold", type=float, default=default.rotation, help="unlabelled clips: least turn, radians"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; prints what was wrong with the input and exits with 2."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    from train.engine.arguments import configured  # torch stays out of workers, which import this module

    try:
        model = given.pop("model")
        config = configured(model, given.pop("size"), given.pop("captions", None))
        if command == "render":
            kind = (given.pop(name) for name in ("blocks_per_walk", "seed", "town_blocks", "town_seed"))
            render(config, given.pop("out"), StreetRecipe.of(config, *kind), **given)
        elif command == "episodes":
            events = EventTimes(tuple(given.pop("event_blocks")), tuple(given.pop("event_gap")))
            render_episodes(config, given.pop("out"), events=events, **given)
        elif command == "encode":
            from train.data.latents import encode  # the only command that needs torch

            encode(config, given.pop("data"), given.pop("vae"), **given)
        elif command == "encode-text":
            from train.data.texts import encode_texts

            encoded, total = encode_texts(config, given["data"], given["weights"] or Path(model), given["device"])
            print(f"{encoded} of {total} texts encoded, into {given['data'] / 'texts'}")
        elif command == "mix":
            _mix(config, given)
        elif command == "sekai-write":
            sekai_write(config, **given)
        else:
            thresholds = Thresholds(given.pop("translation_threshold"), given.pop("rotation_threshold"))
            sekai_read(config, **given, thresholds=thresholds)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
