"""Checkpoints as they are published: safetensors, one file or shards with an index, and the original `.pth` files.

A `Checkpoint` knows the name and shape of every tensor from the files' headers alone, so that a wrong or truncated file is named
by tensor before any memory is spent; tensors are read one at a time when asked for. Pickled files are read with
``weights_only=True``: they can hold tensors and nothing that runs.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

Shape = tuple[int, ...]
FETCH_AGAIN = "fetch it again"


@dataclass(frozen=True)
class Place:
    """Where a tensor is kept: its file, its name there, and its shape."""

    file: Path
    name: str
    shape: Shape


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one model in one or more files, by their new names. Reads headers at once, values when asked for.

    rename: gives a tensor its name in the network, or None to leave it out. Raises FileNotFoundError for a missing file or shard,
    ValueError for one that is damaged, truncated or disagrees with its index.
    """

    def __init__(self, path: Path, rename: Callable[[str], str | None] = lambda name: name) -> None:
        self.path = path
        self.places: dict[str, Place] = {}
        self.left_out: list[str] = []
        for place in _all_places(path):
            name = rename(place.name)
            if name is None:
                self.left_out.append(place.name)
            elif name in self.places:
                raise ValueError(f"{place.file} holds {place.name!r} twice, or under two names: {FETCH_AGAIN}")
            else:
                self.places[name] = place
        self._pickled: dict[Path, dict[str, Tensor]] = {}

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: place.shape for name, place in self.places.items()}

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors, without an index."""
        return sorted({place.file for place in self.places.values()})

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        if place.file.suffix == ".safetensors":
            with safe_open(place.file, framework="pt") as file:
                return file.get_tensor(place.name)
        if place.file not in self._pickled:
            self._pickled[place.file] = _unpickled(place.file, "cpu")
        return self._pickled[place.file][place.name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """Every tensor, cast and moved one after the other: never more than one of them in its stored form.

        Always copies: weights must not live in a mapped file, and products round by how their memory is aligned.
        """
        return {name: self[name].to(device, dtype, copy=True) for name in self}


def require_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], what: str) -> None:
    """Raises ValueError that names what is unknown, missing or misshapen unless `found` has exactly the `expected` tensors."""
    problems = {
        "unknown": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "misshapen": [
            f"{name} {shape} instead of {expected[name]}"
            for name, shape in found.items()
            if name in expected and shape != expected[name]
        ],
    }
    named = [
        f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' * (len(names) > 5)})"
        for kind, names in problems.items()
        if names
    ]
    if named:
        raise ValueError(f"{what}, its tensors differ: {'; '.join(named)}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _all_places(path: Path) -> Iterable[Place]:
    if path.name.endswith(".index.json"):
        return _shards(path)
    return _safetensors_places(path) if path.suffix == ".safetensors" else _pickled_places(path)


def _shards(index: Path) -> list[Place]:
    table = _json(index, "weight_map")
    held = {
        file: {place.name: place for place in _all_places(index.parent / file)} for file in sorted(set(table.values()))
    }
    for name, file in table.items():
        if name not in held[file]:
            raise ValueError(f"{index.parent / file} lacks {name!r}, which {index.name} says it holds: {FETCH_AGAIN}")
    return [place for places in held.values() for place in places.values()]


def _safetensors_places(path: Path) -> list[Place]:
    """From the file's own header (a length, then JSON with a byte range for each tensor)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {FETCH_AGAIN}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = file.read(length) if 8 + length <= size else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in entries.items()}
        places = [Place(path, name, tuple(entry["shape"])) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file, its header cannot be read: {FETCH_AGAIN}"
        ) from error
    beyond = sorted((name for name in ends if ends[name] > size), key=ends.__getitem__)
    if beyond:
        raise ValueError(
            f"{path} is truncated: it has {size} of {max(ends.values())} bytes and ends within {beyond[0]!r}, {len(beyond)} of "
            f"{len(ends)} tensors are cut off; {FETCH_AGAIN}"
        )
    return places


def _pickled_places(path: Path) -> list[Place]:
    return [Place(path, name, tuple(value.shape)) for name, value in _unpickled(path, "meta").items()]


def _unpickled(path: Path, device: str) -> dict[str, Tensor]:
    """Tensors of a `.pth` file, mapped, not read; on the meta device they cost nothing but their names and shapes."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {FETCH_AGAIN}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is truncated or no PyTorch file: {path.stat().st_size} bytes without a closing directory; {FETCH_AGAIN}"
        )
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): {FETCH_AGAIN}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is not opened ({error})") from error
    strange = (
        [name for name, value in state.items() if not isinstance(value, Tensor)] if isinstance(state, dict) else [""]
    )
    if strange:
        raise ValueError(f"{path} is no plain table of tensors (entry {strange[0]!r}): {FETCH_AGAIN}")
    return state


def _json(path: Path, key: str) -> dict[str, Any]:
    """The table under `key` of a JSON file. Raises FileNotFoundError or ValueError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {FETCH_AGAIN}")
    try:
        table = json.loads(path.read_text())[key]
        table.items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {FETCH_AGAIN}") from error
    return table
