"""Writes episodes to a folder, so that a stop at any moment leaves whole files only. The format is in `episodes.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from train.data.shards import write_tensors
from train.recordings.episodes import open_episodes
from train.recordings.format import (
    EXTRA,
    STEPS,
    Episode,
    Recording,
    RecordingError,
    check_episode,
    episodes_path,
    read_recording,
    whole_files,
)


class EpisodeWriter:
    """Appends episodes to a folder; whole files that are there of an equal `recording` stay and are continued.

    Episodes wait in memory until they fill a file: `bytes_per_file` of pictures. Leaving the `with` block writes those that
    wait, whatever ended it. `episodes` and `steps` count all, those that wait too.

    Raises RecordingError where the folder holds another recording, or a whole file of it is damaged.
    """

    def __init__(self, folder: str | os.PathLike, recording: Recording, bytes_per_file: int = 32 << 20) -> None:
        if bytes_per_file < 1:
            raise RecordingError(f"bytes_per_file must be 1 or more, got {bytes_per_file}")
        self.folder, self.recording, self._limit = Path(folder), recording, bytes_per_file
        self._waiting: list[Episode] = []
        self._extra: dict[str, tuple] | None = None  # name -> dtype and shape of one value
        self._files = self.episodes = self.steps = 0
        if (self.folder / "dataset.json").is_file():
            self._continue()
        else:
            if whole_files(self.folder):
                raise RecordingError(f"{self.folder} holds episodes without their dataset.json: use another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(self.folder / "dataset.json", recording.to_json())
        for rest in [*self.folder.glob("*.unfinished"), *self.folder.glob("episodes_*.safetensors")]:
            if rest.suffix == ".unfinished" or not rest.with_suffix(".json").exists():
                rest.unlink()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, episode: Episode) -> None:
        """Takes one whole episode. Raises RecordingError where it does not fit the recording, or the episodes before it."""
        check_episode(episode, self.recording)
        extra = {name: (array.dtype, array.shape[1:]) for name, array in episode.extra.items()}
        if self._extra is not None and extra != self._extra:
            raise RecordingError(f"extra arrays of this episode are {extra}, of those before it {self._extra}")
        self._extra = extra
        self._waiting.append(episode)
        self.episodes, self.steps = self.episodes + 1, self.steps + len(episode)
        if sum(waiting.frames.nbytes for waiting in self._waiting) >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Writes the episodes that wait as one file; nothing where none wait."""
        if not self._waiting:
            return
        names = ("frames", "action", *STEPS)
        tensors = {name: np.concatenate([getattr(e, name) for e in self._waiting]) for name in names}
        tensors["length"] = np.array([len(e) for e in self._waiting], np.int64)
        for name in self._extra or ():
            tensors[EXTRA + name] = np.concatenate([e.extra[name] for e in self._waiting])
        path = episodes_path(self.folder, self._files)
        write_tensors(path, tensors)
        words = [{"caption": e.caption, "texts": list(e.texts), "info": dict(e.info)} for e in self._waiting]
        _write_json(path.with_suffix(".json"), {"episodes": words})
        self._files, self._waiting = self._files + 1, []

    def _continue(self) -> None:
        found, wanted = read_recording(self.folder).by_name(), self.recording.by_name()
        same = {name: wanted[name] == value for name, value in found.items() if name != "source"}
        same["source"] = json.loads(json.dumps(dict(wanted["source"]))) == found["source"]
        for name in (name for name, equal in same.items() if not equal):
            raise RecordingError(
                f"{self.folder} was recorded with {name} {found[name]!r}, asked for is {wanted[name]!r}: "
                "use another folder or delete that one"
            )
        if whole_files(self.folder):
            files = open_episodes(self.folder)
            self._files, self.episodes, self.steps = len(files.paths), len(files), len(files.action)
            self._extra = {name: (a.dtype, a.shape[1:]) for name, a in files.episode(0).extra.items()}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(unfinished, path)
