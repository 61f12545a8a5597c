"""What a recording consists of: its description, its episodes, and where its files stand. The format is in `episodes.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from world_model.action_spaces import ActionSpec

FORMAT = 1
STEPS: dict[str, type] = {"reward": np.float32, "terminated": np.uint8, "truncated": np.uint8}
EXTRA = "extra."

TextChange = tuple[int, str | None]  # (step it begins with, text); None ends the text before it


class RecordingError(ValueError):
    """A recording that is missing a part, damaged, or other than what was asked for."""


@dataclass(frozen=True)
class Provenance:
    """Where a recording came from, and how."""

    frame_skip: int = 1  # steps of the environment for one action
    resize: str = "none"  # how pictures got their size: "none", "stretch", "crop" or "pad"
    original_size: tuple[int, int] = (0, 0)  # (height, width) before that, pixels
    policy: str = ""  # what chose the actions
    seed: int = 0  # of all random draws
    source: Mapping[str, Any] = field(default_factory=dict)  # JSON values that say what was recorded


@dataclass(frozen=True)
class Recording:
    """What is common to all episodes of a folder. Raises RecordingError for a number that is not above 0."""

    env: str  # id or name
    height: int  # of pictures, pixels, as is width
    width: int
    fps: float  # pictures a second of the world's time
    action: ActionSpec
    frames_per_step: int = 1  # pictures of one action
    provenance: Provenance = Provenance()
    format: int = FORMAT

    def __post_init__(self) -> None:
        values = self.by_name()
        for name in ("height", "width", "fps", "frames_per_step", "frame_skip"):
            if not values[name] > 0:
                raise RecordingError(f"{name} of a recording must be above 0, got {values[name]}")

    def by_name(self) -> dict[str, Any]:
        """All values by their names in dataset.json, in its order: those of the provenance stand beside the others there."""
        values = dict(vars(self))
        provenance, number = values.pop("provenance"), values.pop("format")
        return {**values, **vars(provenance), "format": number}

    def to_json(self) -> dict[str, Any]:
        """What dataset.json holds."""
        return {**self.by_name(), "action": asdict(self.action), "source": dict(self.provenance.source)}

    def frames_of(self, steps: int) -> int:
        """Pictures of an episode of so many steps."""
        return 1 + steps * self.frames_per_step


@dataclass(frozen=True)
class Episode:
    """One episode: arrays as in the module's docstring, for one episode, and its words.

    caption: describes the world at the reset. texts: changes of what it is told, in order of steps. info: JSON values.
    extra: arrays [1 + S * T, ...] by name.
    """

    frames: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    caption: str | None = None
    texts: tuple[TextChange, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)


def check_episode(episode: Episode, recording: Recording) -> None:
    """Raises RecordingError where an episode does not fit a recording."""
    steps, spec = len(episode.action), recording.action
    if not steps:
        raise RecordingError("an episode needs at least one step")
    size = (recording.height, recording.width, 3)
    wanted = {"frames": (np.uint8, (recording.frames_of(steps), *size)), "action": (spec.dtype, (steps, *spec.shape))}
    wanted |= {name: (dtype, (steps,)) for name, dtype in STEPS.items()}
    for name, (dtype, shape) in wanted.items():
        array = getattr(episode, name)
        if array.dtype != dtype or array.shape != shape:
            raise RecordingError(
                f"{name} of this episode is {array.dtype} {array.shape}, "
                f"the recording asks for {np.dtype(dtype)} {shape} ({steps} steps of {recording.frames_per_step} pictures)"
            )
    for name, array in episode.extra.items():
        if len(array) != recording.frames_of(steps):
            raise RecordingError(f"extra {name!r} has {len(array)} values for {recording.frames_of(steps)} pictures")
    low, high = spec.bounds
    if not (np.isfinite(episode.action).all() and (episode.action >= low).all() and (episode.action <= high).all()):
        raise RecordingError(
            f"an action of this episode is outside of its {spec.kind} space: accepted is {low} to {high}"
        )
    starts = [step for step, _ in episode.texts]
    if starts != sorted(starts) or any(step < 0 for step in starts):
        raise RecordingError(f"texts of an episode begin with steps of 0 or more, in order, got {starts}")


def episodes_path(folder: str | os.PathLike, number: int) -> Path:
    """Where file number `number` of a recording stands."""
    return Path(folder) / f"episodes_{number:05d}.safetensors"


def whole_files(folder: str | os.PathLike) -> list[Path]:
    """The finished files of a recording, in order. Raises RecordingError where one before the last is missing."""
    found = sorted(Path(folder).glob("episodes_*.json"))
    paths = [path.with_suffix(".safetensors") for path in found]
    for number, path in enumerate(paths):
        if path != episodes_path(folder, number):
            raise RecordingError(
                f"{episodes_path(folder, number)} is not whole, though {path.name} exists: record the folder again"
            )
    return paths


def read_recording(folder: str | os.PathLike) -> Recording:
    """The `dataset.json` of a folder. Raises RecordingError where it is missing, damaged or of a format not known here."""
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise RecordingError(
            f"no recording in {str(folder)!r}, it has no dataset.json: make one with `python -m train.record --out {folder}`"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise RecordingError(f"{path} is of format {values.get('format')}, this version reads {FORMAT}")
        action = ActionSpec.from_json(values.pop("action"))
        values["original_size"] = tuple(values["original_size"])
        provenance = {part.name: values.pop(part.name) for part in fields(Provenance) if part.name in values}
        return Recording(action=action, provenance=Provenance(**provenance), **values)
    except RecordingError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordingError(f"{path} is damaged ({type(error).__name__}: {error}): record it again") from error
