"""Results on disk, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class StoreError(ValueError):
    """A folder that holds results of something else."""


class Store:
    """A folder of results, each written whole or not at all. What is there is read, what is not is computed.

    `identity` (JSON values) says what is measured and how. Raises StoreError where the folder holds results of another.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        path = folder / "parts" / "identity.json"
        identity = json.loads(json.dumps(identity))
        if path.exists():
            found = json.loads(path.read_text())
            different = sorted(k for k in found.keys() | identity.keys() if found.get(k) != identity.get(k))
            if different:
                there, asked = (str(values.get(different[0]))[:200] for values in (found, identity))
                raise StoreError(
                    f"{folder} holds the evaluation of another {different[0]}: there {there}, asked for {asked}; "
                    "use another folder or delete that one"
                )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(identity, indent=1).encode())

    def result(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A part's result as JSON values; NaN becomes None."""
        path = self.folder / "parts" / f"{name}.json"
        if not path.exists():
            began = time.monotonic()
            values = make()
            kept = {"seconds": round(time.monotonic() - began, 1), "result": plain(values)}
            _write(path, json.dumps(kept, indent=1, allow_nan=False).encode())
        found = json.loads(path.read_text())
        self.seconds[name] = found["seconds"]
        return found["result"]

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays of one trial, from which results are computed."""
        path = self.folder / "parts" / f"{name}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez_compressed(unfinished, **make())  # type: ignore[arg-type]
            os.replace(unfinished, path)
        with np.load(path) as file:
            return dict(file)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(path.suffix + ".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def plain(value: Any) -> Any:
    """As JSON would give it back: lists for tuples, numbers rounded, None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return round(float(value), 5) if np.isfinite(value) else None
    return value
