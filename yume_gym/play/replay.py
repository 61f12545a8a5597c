"""Replays: what a player did, enough to dream the same frames again. JSON lines, one block a line:

    {"replay": 1, "model": "street", "weights": "5f1c...", "steps": null, "frames_per_block": 4, "fps": 8}
    {"start": {"seed": 3, "text": null, "twin": false, "image": null}}     an image is a PNG in base64
    {"block": [9, "night falls", 4]}                                       action, event, frames shown

An action is its index, or a list of its components; "kind" in the first line names the action space (`ActionSpec`).

Every further "start" is a restart. Frames are equal bit by bit on the same kind of machine, in float32 on a CPU.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from world_model.action_spaces import Kind
from world_model.actions import Action
from world_model.model import WorldModel
from yume_gym.pictures import load_picture
from yume_gym.play.start import Start
from yume_gym.street.events import check_event

VERSION = 1


@dataclass(frozen=True)
class ReplayHeader:
    """The first line of a replay: what it was made with. `weights` tells models apart (`fingerprint`); `steps`: sampler steps,
    None the model's own; kind: of the model's action space."""

    model: str
    weights: str
    steps: int | None
    frames_per_block: int
    fps: int
    kind: Kind = "first_person"


@dataclass(frozen=True)
class Block:
    """One block: the action's index or its components, the event in force, and how many of its frames were shown."""

    action: int | tuple[float, ...]
    event: str | None
    frames: int


@dataclass(eq=False)
class ReplaySegment:
    """One world from its start on."""

    start: Start
    blocks: list[Block] = field(default_factory=list)
    _distinct: dict[Block, Block] = field(default_factory=dict, init=False, repr=False)

    def add(self, block: Block) -> None:
        """Equal blocks share one object: an hour of play takes kilobytes."""
        self.blocks.append(self._distinct.setdefault(block, block))


@dataclass(frozen=True, eq=False)
class Replay:
    """A session: its worlds one after another."""

    header: ReplayHeader
    segments: tuple[ReplaySegment, ...]


def fingerprint(model: WorldModel) -> str:
    """Tells weights apart by a few numbers of every tensor: quick for any size. 16 hex digits."""
    digest = hashlib.blake2b(model.config.to_json().encode(), digest_size=8)
    for part in (model.dit, model.vae):
        for name, tensor in part.state_dict().items():  # type: ignore[union-attr]
            digest.update(name.encode() + tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def replay_header(model: WorldModel, steps: int | None) -> ReplayHeader:
    """The header of a replay of `model`."""
    config = model.config
    return ReplayHeader(config.name, fingerprint(model), steps, config.frames_per_block, config.fps, config.action.kind)


class ReplayWriter:
    """Writes a replay while it happens; what is written is safe at once."""

    def __init__(self, path: Path, header: ReplayHeader) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._write({"replay": VERSION, **asdict(header)})

    def add_segment(self, segment: ReplaySegment) -> None:
        """A new world, with the blocks that it has already."""
        self._write({"start": _start_values(segment.start)})
        for block in segment.blocks:
            self.add_block(block)

    def add_block(self, block: Block) -> None:
        self._write({"block": [block.action, block.event, block.frames]})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


def write_replay(path: str | os.PathLike, replay: Replay) -> Path:
    """Write a whole replay. Raises OSError where it cannot be written."""
    writer = ReplayWriter(Path(path), replay.header)
    for segment in replay.segments:
        writer.add_segment(segment)
    writer.close()
    return Path(path)


def read_replay(path: str | os.PathLike) -> Replay:
    """Read and check a replay. Raises FileNotFoundError, or ValueError that names the line that is wrong."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such replay: {os.fspath(path)!r}")
    number, header = 0, None
    segments: list[ReplaySegment] = []
    try:
        for text in Path(path).read_text(encoding="utf-8").splitlines():
            number += 1
            line = json.loads(text)
            if header is None:
                header = _header(line)
            elif "start" in line:
                segments.append(ReplaySegment(_start(line["start"])))
            else:
                segments[-1].add(_block(line["block"], header))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
        raise ValueError(f"{os.fspath(path)!r}, line {number}, is not a replay's: {error!r}") from error
    if header is None or not segments:
        raise ValueError(f"{os.fspath(path)!r} is an empty replay")
    return Replay(header, tuple(segments))


class Script:
    """A replay as it is played: the next start, the next block."""

    def __init__(self, replay: Replay) -> None:
        self._segments = iter(replay.segments)
        self._blocks: Iterator[Block] = iter(())
        self.upcoming: Block | None = None  # in this world

    def next_start(self) -> Start | None:
        """Goes on to the next world; None at the end."""
        segment = next(self._segments, None)
        self._blocks = iter(segment.blocks if segment else ())
        self.upcoming = next(self._blocks, None)
        return segment.start if segment else None

    def next_block(self) -> Block:
        """The upcoming block. Raises ValueError where there is none."""
        block, self.upcoming = self.upcoming, next(self._blocks, None)
        if block is None:
            raise ValueError("this world's replay is over: go on with next_start")
        return block


def _start_values(start: Start) -> dict[str, Any]:
    values: dict[str, Any] = {"seed": start.seed, "text": start.text, "twin": start.twin, "image": None}
    if start.image is not None:
        png = io.BytesIO()
        Image.fromarray(np.asarray(start.image)).save(png, "PNG")
        values["image"] = base64.b64encode(png.getvalue()).decode()
    return values


def _header(line: dict[str, Any]) -> ReplayHeader:
    version = line.pop("replay", None)
    if version != VERSION:
        raise ValueError(f"version {version!r}, this program reads {VERSION}")
    return ReplayHeader(**line)


def _start(values: dict[str, Any]) -> Start:
    image = values["image"]
    if image is not None:
        try:
            with Image.open(io.BytesIO(base64.b64decode(image, validate=True))) as picture:
                image = load_picture(picture, picture.height, picture.width)
        except (binascii.Error, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"the image is no picture ({error})") from error
    return Start(int(values["seed"]), image, values["text"], bool(values["twin"]))


def _block(values: Sequence[Any], header: ReplayHeader) -> Block:
    action, event, frames = values
    if not 1 <= frames <= header.frames_per_block:
        raise ValueError(f"{frames} frames shown of a block of {header.frames_per_block}")
    if header.kind == "first_person":
        action = Action.from_index(action).index
    elif isinstance(action, list):
        action = tuple(action)
    return Block(action, check_event(event), frames)
