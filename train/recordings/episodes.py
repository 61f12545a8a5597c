"""Episodes on disk: the one format that models of new worlds are trained on.

Legend: E episodes of a file; S steps of an episode; T pictures a step (`frames_per_step`); H x W pixels;
N = all steps of a file; M = E + N * T, all its pictures.

    dataset.json                  a `Recording`: what is common to all episodes
    episodes_00000.safetensors    episodes one after another:
                                  frames uint8 [M, H, W, 3]: of each episode the picture after its reset, then T for each step
                                  action [N, *shape] (`ActionSpec.shape` and `dtype`); reward float32 [N];
                                  terminated, truncated uint8 [N]; length int64 [E] (steps);
                                  extra.NAME [M, ...]: further values of each picture; all episodes have the same names
    episodes_00000.json           of each episode: caption, texts, info

A file is written under a temporary name and renamed, its .json last: a file with a .json is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from train.recordings.format import (
    EXTRA,
    STEPS,
    Episode,
    Recording,
    RecordingError,
    TextChange,
    read_recording,
    whole_files,
)

_DTYPES = {"U8": np.uint8, "I64": np.int64, "F32": np.float32}


def open_episodes(folder: str | os.PathLike) -> EpisodeFiles:
    """The episodes of a folder. Raises RecordingError where it holds none, or a file is missing, damaged or contradicts itself."""
    return EpisodeFiles(folder)


class EpisodeFiles:
    """The episodes of a folder, numbered through its files. Pictures stay on disk until asked for; all else is in memory.

    Attributes: folder; recording; paths (of the files); lengths int64 [E] (steps of each episode); starts int64 [E] (its first
    step in the arrays that follow); action, reward, terminated, truncated [sum of lengths, ...]; captions, texts, infos
    (lists with one entry an episode); extras (names of further arrays of pictures).
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder, self.recording = Path(folder), read_recording(folder)
        self.paths = whole_files(folder)
        if not self.paths:
            raise RecordingError(f"{self.folder} holds no whole file of episodes: record some first")
        self._open: dict[int, Any] = {}  # files this process has open
        parts, self.captions, self.texts, self.infos = [], [], [], []
        self._places: list[tuple[int, int]] = []  # of each episode: its file, its first picture there
        for number, path in enumerate(self.paths):
            words = _read_words(path)
            parts.append(small := _read_small(path, self._file(number), self.recording, len(words)))
            counts = 1 + small["length"] * self.recording.frames_per_step
            self._places += [(number, int(end - count)) for end, count in zip(counts.cumsum(), counts)]
            self.captions += [caption for caption, _, _ in words]
            self.texts += [texts for _, texts, _ in words]
            self.infos += [info for _, _, info in words]
        names = [_extras(self._file(number)) for number in range(len(parts))]
        if any(other != names[0] for other in names):
            raise RecordingError(f"files in {self.folder} have different extra arrays: {sorted(set().union(*names))}")
        self.extras: tuple[str, ...] = tuple(sorted(names[0]))
        self.lengths, self.action, self.reward, self.terminated, self.truncated = (
            np.concatenate([part[name] for part in parts]) for name in ("length", "action", *STEPS)
        )
        self.starts = self.lengths.cumsum() - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # open files do not travel to other processes

    @property
    def has_text(self) -> bool:
        """Whether any episode has a caption or a text."""
        return any(self.captions) or any(text for texts in self.texts for _, text in texts)

    def frames(self, episode: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Pictures start..stop of an episode, uint8 [stop - start, H, W, 3], read from disk at every call.

        Picture 0 is that of the reset; those of step s are 1 + s * T .. 1 + (s + 1) * T.
        """
        return self._slice("frames", episode, start, stop)

    def extra(self, name: str, episode: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Like `frames`, of an extra array."""
        if name not in self.extras:
            raise RecordingError(f"{self.folder} has no extra array {name!r}; it has {list(self.extras)}")
        return self._slice(EXTRA + name, episode, start, stop)

    def text_at(self, episode: int, step: int) -> str | None:
        """The text in force during step number `step` of an episode, or None. Its caption is not such a text."""
        active = None
        for start, text in self.texts[episode]:
            if start > step:
                break
            active = text
        return active

    def episode(self, index: int) -> Episode:
        """Episode number `index` with all its pictures."""
        frames = self.frames(index)
        steps = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return Episode(
            frames,
            self.action[steps],
            self.reward[steps],
            self.terminated[steps],
            self.truncated[steps],
            self.captions[index],
            self.texts[index],
            self.infos[index],
            {name: self.extra(name, index) for name in self.extras},
        )

    def _file(self, number: int) -> Any:
        if number not in self._open:
            path = self.paths[number]
            if not path.is_file():
                raise RecordingError(f"{path} is missing, though its .json exists: record it again")
            try:
                self._open[number] = safe_open(path, framework="np")
            except (SafetensorError, OSError) as error:
                raise RecordingError(f"{path} is damaged ({error}): record it again") from error
        return self._open[number]

    def _slice(self, name: str, episode: int, start: int, stop: int | None) -> np.ndarray:
        if not 0 <= episode < len(self):
            raise IndexError(f"{self.folder} has episodes 0..{len(self) - 1}, asked for {episode}")
        count = self.recording.frames_of(int(self.lengths[episode]))
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise IndexError(f"episode {episode} has pictures 0..{count - 1}, asked for {start} up to {stop}")
        number, first = self._places[episode]
        return self._file(number).get_slice(name)[first + start : first + stop]


def _read_words(path: Path) -> list[tuple[str | None, tuple[TextChange, ...], dict[str, Any]]]:
    path = path.with_suffix(".json")
    try:
        episodes = json.loads(path.read_text(encoding="utf-8"))["episodes"]
        return [
            (e["caption"], tuple((int(step), text) for step, text in e["texts"]), dict(e["info"])) for e in episodes
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordingError(f"{path} is damaged ({type(error).__name__}: {error}): record it again") from error


def _extras(file: Any) -> set[str]:
    return {name.removeprefix(EXTRA) for name in file.keys() if name.startswith(EXTRA)}  # noqa: SIM118


def _read_small(path: Path, file: Any, recording: Recording, episodes: int) -> dict[str, np.ndarray]:
    """All of a file but its pictures and extras, after a check that its parts agree."""
    spec, size = recording.action, (recording.height, recording.width, 3)
    wanted: dict[str, tuple] = {
        "length": (np.int64, ()),
        "frames": (np.uint8, size),
        "action": (spec.dtype, spec.shape),
    }
    wanted |= {name: (dtype, ()) for name, dtype in STEPS.items()}
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    for name, (dtype, shape) in wanted.items():
        if name not in found:
            raise RecordingError(f"{path} lacks the tensor {name!r}: record it again")
        if _DTYPES.get(found[name].get_dtype()) != dtype or tuple(found[name].get_shape()[1:]) != shape:
            is_now = f"{found[name].get_dtype()} {found[name].get_shape()}"
            raise RecordingError(
                f"{path}: {name!r} is {is_now}, its dataset.json asks for {np.dtype(dtype)} [., {shape}]"
            )
    small = {name: file.get_tensor(name) for name in wanted if name != "frames"}
    steps = int(small["length"].sum())
    frames = len(small["length"]) + steps * recording.frames_per_step
    counts = {name: (steps, len(small[name])) for name in ("action", *STEPS)}
    counts |= {"length": (episodes, len(small["length"]))}
    if small["length"].min(initial=1) < 1:
        raise RecordingError(
            f"{path}: an episode has {small['length'].min()} steps, each needs 1 or more: record it again"
        )
    counts |= {n: (frames, s.get_shape()[0]) for n, s in found.items() if n == "frames" or n.startswith(EXTRA)}
    for name, (expected, count) in counts.items():
        if count != expected:
            raise RecordingError(
                f"{path}: {name!r} has {count} entries, the lengths of its episodes ask for {expected}"
            )
    return small
