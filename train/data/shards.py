"""Shards: walks of equal length on disk, as tensors with a JSON beside them that holds their words.

Legend: N walks of a shard, B blocks of a walk, K frames of a block, T = B * K frames of a walk, H x W pixels.

    shard_00000.safetensors     frames uint8 [N, T, H, W, 3]; action uint8 [N, B] (`Action.index`);
                                yaw, pitch float32 [N, T] (radians); position float32 [N, T, 2] (x, z; metres);
                                blocked uint8 [N, B]
    shard_00000.json            a `Header` and a `TrajectoryInfo` for each walk
    latents_00000.safetensors   what an autoencoder made of the frames (`python -m train.data encode`)

The picture a walk starts from is not stored: frame 0 is the first frame of block 0, after motion has begun.
A shard is written under a temporary name and renamed, its JSON last: a shard with a JSON is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from world_model.actions import NUM_ACTIONS

HELD_OUT = 4  # walks of the first shard that nothing is trained on

EventChange = tuple[int, str | None, str | None]  # (block it begins with, text, kind); text and kind None: no event

# dtype and shape after the walk axis, in letters of the legend
LAYOUT: dict[str, tuple[str, str]] = {
    "frames": ("uint8", "THW3"),
    "action": ("uint8", "B"),
    "yaw": ("float32", "T"),
    "pitch": ("float32", "T"),
    "position": ("float32", "T2"),
    "blocked": ("uint8", "B"),
}


class ShardError(ValueError):
    """A shard that is missing a part, damaged, or of other settings than asked for."""


@dataclass(frozen=True)
class Header:
    """What is common to all walks of a folder. `source` (JSON values) says where they came from and how."""

    preset: str
    height: int
    width: int
    fps: int
    frames_per_block: int
    blocks_per_walk: int
    seed: int
    source: Mapping[str, Any]

    @property
    def frames_per_walk(self) -> int:
        return self.blocks_per_walk * self.frames_per_block


@dataclass(frozen=True)
class TrajectoryInfo:
    """Caption and events of one trajectory.

    `event` lists changes in order of blocks. `light` and `weather` are those that it starts with, None where unknown.
    """

    caption: str
    event: tuple[EventChange, ...] = ()
    light: str | None = None
    weather: str | None = None

    def event_at(self, block: int) -> str | None:
        """The event text in force during block number `block`, or None."""
        active = None
        for start, text, _ in self.event:
            if start <= block:
                active = text
        return active


@dataclass(frozen=True)
class Trajectory:
    """One trajectory: arrays as in the module's docstring without the first axis, its caption and events."""

    frames: np.ndarray
    action: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    position: np.ndarray
    blocked: np.ndarray
    info: TrajectoryInfo


class Shard:
    """One shard on disk, open for reading. Frames stay on disk until asked for; all else is in memory.

    Attributes: path, header, walks (a tuple of TrajectoryInfo), action, yaw, pitch, position, blocked (arrays [N, ...]).

    Raises:
        FileNotFoundError: a file of the shard is missing.
        ShardError: it is truncated, damaged, or tensors and header contradict each other.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.header, self.walks = _read_info(self.path.with_suffix(".json"))
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no such shard: {str(self.path)!r}, though its .json exists: delete that and render again"
            )
        try:
            self._file = safe_open(self.path, framework="np")
            self._check()
            small = {name: self._file.get_tensor(name) for name in LAYOUT if name != "frames"}
        except (SafetensorError, OSError) as error:
            raise ShardError(f"{self.path} is damaged ({error}): delete it and make it again") from error
        self.action, self.yaw, self.pitch = small["action"], small["yaw"], small["pitch"]
        self.position, self.blocked = small["position"], small["blocked"]
        if self.action.max(initial=0) >= NUM_ACTIONS:
            raise ShardError(f"{self.path}: 'action' holds {self.action.max()}, accepted are 0..{NUM_ACTIONS - 1}")

    def __len__(self) -> int:
        return len(self.walks)

    def frames(self, walk: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start..stop of a walk, uint8 [stop - start, H, W, 3], read from disk at every call."""
        if not 0 <= walk < len(self):
            raise IndexError(f"{self.path} has walks 0..{len(self) - 1}, asked for {walk}")
        return self._file.get_slice("frames")[
            walk : walk + 1, start : self.header.frames_per_walk if stop is None else stop
        ][0]

    def trajectory(self, index: int) -> Trajectory:
        """Trajectory number `index` with all its frames."""
        return Trajectory(
            frames=self.frames(index),
            action=self.action[index],
            yaw=self.yaw[index],
            pitch=self.pitch[index],
            position=self.position[index],
            blocked=self.blocked[index],
            info=self.walks[index],
        )

    def _check(self) -> None:
        missing = sorted(LAYOUT.keys() - set(self._file.keys()))
        if missing:
            raise ShardError(f"{self.path} lacks the tensor {missing[0]!r}: delete it and make it again")
        names = {"uint8": "U8", "float32": "F32"}
        for name, (dtype, _) in LAYOUT.items():
            found = self._file.get_slice(name)
            expected = (len(self.walks), *_shape(name, self.header))
            if found.get_dtype() != names[dtype] or tuple(found.get_shape()) != expected:
                is_now = f"{found.get_dtype()} {found.get_shape()}"
                raise ShardError(f"{self.path}: {name!r} is {is_now}, its header asks for {dtype} {list(expected)}")


def write_shard(path: str | os.PathLike, header: Header, walks: Sequence[Trajectory]) -> None:
    """Writes a shard and its JSON, never half of one. Raises ShardError for arrays that do not fit `header`."""
    path = Path(path)
    if not walks:
        raise ShardError(f"{path}: a shard needs at least one walk")
    for k, walk in enumerate(walks):
        for name, (dtype, _) in LAYOUT.items():
            array = getattr(walk, name)
            if array.dtype != dtype or array.shape != _shape(name, header):
                raise ShardError(
                    f"walk {k}: {name!r} is {array.dtype} {array.shape}, accepted is {dtype} {_shape(name, header)}"
                )
    tensors = {name: np.stack([getattr(walk, name) for walk in walks]) for name in LAYOUT}
    info = {**dataclasses.asdict(header), "walks": [dataclasses.asdict(walk.info) for walk in walks]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    write_tensors(path, tensors)
    unfinished = path.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(info, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(unfinished, path.with_suffix(".json"))


def write_shards(
    directory: str | os.PathLike, header: Header, walks: Iterable[Trajectory], walks_per_shard: int
) -> int:
    """Streams `walks` into shard_00000, shard_00001, ... of `directory`; returns how many there were."""
    waiting: list[Trajectory] = []
    shards = total = 0
    for walk in walks:
        waiting.append(walk)
        if len(waiting) == walks_per_shard:
            write_shard(shard_path(directory, shards), header, waiting)
            shards, total, waiting = shards + 1, total + len(waiting), []
    if waiting:
        write_shard(shard_path(directory, shards), header, waiting)
    return total + len(waiting)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file under a temporary name, then renames it."""
    unfinished = path.with_suffix(path.suffix + ".unfinished")
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, unfinished, metadata)
    os.replace(unfinished, path)


def is_whole(path: str | os.PathLike, header: Header, walks: int) -> bool:
    """Whether a readable shard of these very settings and at least this many walks stands at `path`.

    A missing or damaged one, or one with fewer walks, is not whole. Raises ShardError where a readable one was
    made with other settings: two kinds of data in one folder are a mistake.
    """
    try:
        shard = Shard(path)
    except (FileNotFoundError, ShardError):
        return False
    found = shard.header
    different = [name for name in _fields(Header) if getattr(found, name) != getattr(header, name)]
    if different:
        name = different[0]
        raise ShardError(
            f"{path} was made with {name} {getattr(found, name)!r}, asked for is {getattr(header, name)!r}: "
            "use another folder or delete that one"
        )
    return len(shard) >= walks


def shard_path(directory: str | os.PathLike, index: int) -> Path:
    return Path(directory) / f"shard_{index:05d}.safetensors"


def latents_path(shard: str | os.PathLike) -> Path:
    """Where the latents of a shard stand."""
    path = Path(shard)
    return path.with_name(path.name.replace("shard_", "latents_", 1))


def find_shards(directory: str | os.PathLike) -> list[Path]:
    """The finished shards of a folder and of those in it, in order. Raises FileNotFoundError where there are none."""
    found = sorted(Path(directory).rglob("shard_*.safetensors"))
    whole = [path for path in found if path.with_suffix(".json").is_file()]
    if not whole:
        raise FileNotFoundError(
            f"no shards in {str(directory)!r}: make some with "
            f"`python -m train.data street render --out {directory} --walks 50`"
        )
    return whole


def _shape(name: str, header: Header) -> tuple[int, ...]:
    sizes = {
        "T": header.frames_per_walk,
        "B": header.blocks_per_walk,
        "H": header.height,
        "W": header.width,
        "2": 2,
        "3": 3,
    }
    return tuple(sizes[letter] for letter in LAYOUT[name][1])


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _read_info(path: Path) -> tuple[Header, tuple[TrajectoryInfo, ...]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no such file: {str(path)!r}: a shard without its .json was not finished, make it again"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        walks = tuple(
            TrajectoryInfo(**{**walk, "event": tuple((int(at), text, kind) for at, text, kind in walk["event"])})
            for walk in values.pop("walks")
        )
        return Header(**values), walks
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete the shard and make it again"
        ) from error
