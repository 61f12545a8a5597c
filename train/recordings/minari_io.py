"""Datasets of Minari (https://minari.farama.org) to recordings and back. Needs `minari[hdf5]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from train.recordings.environment import DEFAULT_FPS, RecordSettings
from train.recordings.episodes import open_episodes
from train.recordings.format import Episode, Provenance, Recording, RecordingError
from train.recordings.pictures import as_rgb, find_pictures, resized, said
from train.recordings.spaces import Actions
from train.recordings.writer import EpisodeWriter
from yume_gym.keyboard import action_space

_EPISODES_AT_ONCE = 32  # of a recording in memory while it is written


def read_minari(dataset_id: str, out: Path, settings: RecordSettings) -> EpisodeWriter:
    """Writes a Minari dataset whose observations are, or hold, pictures into `out`; returns the writer, closed.

    Of `settings` count pictures, fps and the caption. It is downloaded where it is not there. Raises RecordingError
    without such a dataset, without pictures in it, or for actions that cannot be recorded.
    """
    minari = _minari()
    try:
        dataset = minari.load_dataset(dataset_id, download=True)
    except Exception as error:  # whatever its storage or the network raises
        raise RecordingError(
            f"cannot load the Minari dataset {dataset_id!r} ({error}): see `minari list remote`"
        ) from error
    source = find_pictures(dataset.observation_space, settings.pictures.source)
    if source == "render":
        raise RecordingError(
            f"no pictures in {dataset_id}: its observations are {dataset.observation_space}, expected uint8 [H, W, 3]"
        )
    space = dataset.observation_space if source == "observation" else dataset.observation_space[source]
    original = (int(space.shape[0]), int(space.shape[1]))
    actions = Actions(dataset.action_space)
    wanted = settings.pictures
    provenance = Provenance(
        resize=wanted.resize_of(original),
        original_size=original,
        policy="minari",
        source={"world": "minari", "dataset": dataset_id, "pictures": source, "task_text": settings.texts.caption},
    )
    env = dataset.env_spec.id if dataset.env_spec else dataset_id
    recording = Recording(env, *wanted.size, settings.fps or DEFAULT_FPS, actions.spec, provenance=provenance)
    origin = "--fps" if settings.fps else "assumed: --fps sets it"
    tqdm.write(said(source, original, wanted.size, wanted.resize), file=sys.stderr)
    tqdm.write(f"rate: {recording.fps:g} pictures a second ({origin})", file=sys.stderr)
    with EpisodeWriter(out, recording) as writer:
        left = [int(number) for number in dataset.episode_indices[writer.episodes :]]
        for data in tqdm(dataset.iterate_episodes(left), total=len(left), desc="minari", unit="episode"):
            writer.add(_episode(data, source, actions, settings))
    return writer


def write_minari(folder: Path, dataset_id: str) -> int:
    """Writes the recording in `folder` as a new Minari dataset, without loss; returns the number of episodes.

    Where an action has several pictures the last is kept. Raises RecordingError where the dataset exists or cannot be made.
    """
    minari, files = _minari(), open_episodes(folder)
    about, dataset = files.recording, None
    size = (about.height, about.width, 3)
    for first in tqdm(range(0, len(files), _EPISODES_AT_ONCE), desc="to minari", unit="file"):
        buffers = list(_buffers(files, range(first, min(first + _EPISODES_AT_ONCE, len(files)))))
        if dataset is not None:
            dataset.update_dataset_from_buffer(buffers)
            continue
        try:
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=spaces.Box(0, 255, size, np.uint8),
                action_space=action_space(about.action),
                algorithm_name=about.provenance.policy,
                jpeg_encoding=False,
                description=f"Recorded by yume_gym: {json.dumps(about.to_json())}",
            )
        except (ValueError, OSError) as error:
            raise RecordingError(f"cannot make the Minari dataset {dataset_id!r}: {error}") from error
    return len(files)


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise RecordingError("Minari's datasets need it: pip install 'yume-gym[worlds]'") from error
    return minari


def _episode(data: Any, source: str, actions: Actions, settings: RecordSettings) -> Episode:
    observations = data.observations if source == "observation" else data.observations[source]
    size, resize = settings.pictures.size, settings.pictures.resize
    frames = np.stack([resized(as_rgb(picture), size, resize) for picture in observations])
    ends = {name: np.asarray(getattr(data, name), np.uint8) for name in ("terminations", "truncations")}
    return Episode(
        frames,
        np.stack([actions.stored(action) for action in data.actions]),
        np.asarray(data.rewards, np.float32),
        ends["terminations"],
        ends["truncations"],
        settings.texts.caption,
        info={"minari_episode": int(data.id)},
    )


def _buffers(files: Any, numbers: range) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for number in numbers:
        episode, step = files.episode(number), files.recording.frames_per_step
        yield EpisodeBuffer(
            id=number,
            observations=list(episode.frames[::step]),
            actions=list(episode.action),
            rewards=episode.reward.tolist(),
            terminations=episode.terminated.astype(bool).tolist(),
            truncations=episode.truncated.astype(bool).tolist(),
        )
