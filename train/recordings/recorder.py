"""Records episodes of any Gymnasium environment. Episode number i depends on the settings and i alone, never on workers."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from functools import lru_cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from train.recordings.environment import RecordedEnv, RecordSettings
from train.recordings.format import Episode, RecordingError, TextChange
from train.recordings.policies import policy_maker
from train.recordings.writer import EpisodeWriter


class EpisodeRecorder:
    """One environment, ready to record any episode. Raises what `RecordedEnv` and `policy_maker` raise."""

    def __init__(self, settings: RecordSettings) -> None:
        self.settings = settings
        self._policy = policy_maker(settings.policy)
        self._env = RecordedEnv(settings)
        self.recording, self.notes = self._env.recording, self._env.notes

    def record(self, index: int) -> Episode:
        """Episode number `index`."""
        env, settings = self._env, self.settings
        seeds, moves = np.random.default_rng([settings.seed, index]).spawn(2)
        env_seed = int(seeds.integers(2**31))
        env.inner.action_space.seed(env_seed)
        picture, info = env.reset(seed=env_seed)
        policy = self._policy(env.inner, moves)
        frames = [picture]
        texts: list[TextChange] = []
        self._hear(texts, 0, info)
        rows: list[tuple] = []
        over = False
        while not over:
            action = env.actions.stored(policy(env.observation))
            picture, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            frames.append(picture)
            rows.append((action, reward, terminated, truncated))
            if not over:
                self._hear(texts, len(rows), info)
        actions, rewards, terminations, truncations = zip(*rows)
        return Episode(
            np.stack(frames),
            np.array(actions, self.recording.action.dtype),
            np.array(rewards, np.float32),
            np.array(terminations, np.uint8),
            np.array(truncations, np.uint8),
            settings.texts.caption,
            tuple(texts),
            {"index": index, "env_seed": env_seed},
        )

    def _hear(self, texts: list[TextChange], step: int, info: dict[str, Any]) -> None:
        """Adds the text in force from `step` on, where it is another than before."""
        key = self.settings.texts.key
        if key is None:
            return
        entries = self._env.observation if isinstance(self._env.observation, dict) else {}
        text = info.get(key, entries.get(key))
        if text is not None and not isinstance(text, str):
            raise RecordingError(f"--text-key {key}: expected a text or None, got {type(text).__name__}")
        text = text or None
        if text != (texts[-1][1] if texts else None):
            texts.append((step, text))


def record(
    settings: RecordSettings, out: Path, *, steps: int | None = None, episodes: int | None = None, workers: int = 1
) -> EpisodeWriter:
    """Records whole episodes into `out` until there are `steps` actions or `episodes`; what is there of the same settings counts.

    Returns the writer, closed. Whole episodes are kept whatever ends it. Raises RecordingError as `EpisodeRecorder` and
    `EpisodeWriter` do, and where not exactly one of `steps` and `episodes` is given.
    """
    if (steps is None) == (episodes is None) or (steps or episodes or 0) < 1:
        raise RecordingError(f"give either --steps or --episodes, 1 or more; got {steps} and {episodes}")
    if workers > 1 and settings.policy.startswith("keyboard"):
        raise RecordingError(f"a person plays one environment at a time: leave out --workers {workers}")
    recorder = _recorder(settings)
    for note in recorder.notes:
        tqdm.write(note, file=sys.stderr)
    with EpisodeWriter(out, recorder.recording) as writer:
        wanted = steps or episodes
        bar = tqdm(
            total=wanted,
            initial=_done(writer, steps),
            desc="record",
            unit="step" if steps else "episode",
            mininterval=1,
        )
        with bar, closing(_episodes(settings, writer.episodes, workers)) as made:
            while _done(writer, steps) < (wanted or 0):
                writer.add(next(made))
                bar.n = _done(writer, steps)
                bar.refresh()
    return writer


def _done(writer: EpisodeWriter, steps: int | None) -> int:
    return writer.episodes if steps is None else writer.steps


def _episodes(settings: RecordSettings, first: int, workers: int) -> Generator[Episode, None, None]:
    """Episodes from number `first` on, in order, without end; made in this process (workers 0 or 1) or in several."""
    numbers: Iterator[int] = count(first)
    if workers <= 1:
        recorder = _recorder(settings)
        yield from (recorder.record(number) for number in numbers)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            ahead: deque[Future[Episode]] = deque(
                pool.submit(_record_one, settings, next(numbers)) for _ in range(workers + 1)
            )
            while True:
                yield ahead.popleft().result()
                ahead.append(pool.submit(_record_one, settings, next(numbers)))
        finally:
            pool.shutdown(cancel_futures=True)


def _record_one(settings: RecordSettings, index: int) -> Episode:
    return _recorder(settings).record(index)


@lru_cache(maxsize=1)
def _recorder(settings: RecordSettings) -> EpisodeRecorder:
    """One a process."""
    return EpisodeRecorder(settings)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
