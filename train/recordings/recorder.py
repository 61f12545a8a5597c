"""Records episodes of any Gymnasium environment. Episode number i depends on the settings and i alone, never on workers."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from train.recordings.format import Episode, Recording, RecordingError, TextChange
from train.recordings.pictures import RESIZES, Pictures, find_pictures, resized, said
from train.recordings.policies import policy_maker
from train.recordings.spaces import Actions, action_meanings
from train.recordings.writer import EpisodeWriter

ATARI, DOOM = "ALE/", "Vizdoom"
ATARI_FPS = 60.0  # of the machine; what its environments say depends on their version
DEFAULT_FPS = 30.0  # where an environment does not say
SIZE_STEP = 8  # pixels that height and width are multiples of


@dataclass(frozen=True)
class RecordSettings:
    """What is recorded, and how.

    env: id. env_kwargs: a JSON object. imports: modules that register environments. frame_skip: steps of the environment for one
    action. size: (height, width). pictures: see `find_pictures`. max_episode_steps: actions after which an episode is cut.
    fps: steps of the environment a second, None to ask it. task_text: caption of every episode. text_key: entry of info, or of
    a Dict observation, that holds the text in force.
    """

    env: str
    env_kwargs: str = "{}"
    imports: tuple[str, ...] = ()
    policy: str = "sticky"
    frame_skip: int = 1
    size: tuple[int, int] = (64, 64)
    resize: str = "stretch"
    pictures: str = "auto"
    max_episode_steps: int = 1000
    fps: float | None = None
    seed: int = 0
    task_text: str | None = None
    text_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("frame_skip", "max_episode_steps"):
            if getattr(self, name) < 1:
                raise RecordingError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if any(side < SIZE_STEP or side % SIZE_STEP for side in self.size):
            raise RecordingError(f"--size must be two multiples of {SIZE_STEP}, got {self.size[0]}x{self.size[1]}")
        if self.resize not in RESIZES:
            raise RecordingError(f"--resize must be one of {', '.join(RESIZES)}, got {self.resize!r}")
        if self.fps is not None and not self.fps > 0:
            raise RecordingError(f"--fps must be above 0, got {self.fps}")

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of the environment. Atari is asked for every frame, since frames are skipped here."""
        try:
            given = json.loads(self.env_kwargs)
        except ValueError as error:
            raise RecordingError(f"--env-kwargs is not JSON ({error}): {self.env_kwargs!r}") from error
        if not isinstance(given, dict):
            raise RecordingError(
                f"--env-kwargs must be a JSON object such as '{{\"mode\": 1}}', got {self.env_kwargs!r}"
            )
        return ({"frameskip": 1} if self.env.startswith(ATARI) else {}) | given


class EpisodeRecorder:
    """One environment, ready to record any episode. `recording` describes them; `notes` are lines for people.

    Raises RecordingError where the environment is unknown, shows no pictures, or has actions that cannot be recorded.
    """

    def __init__(self, settings: RecordSettings) -> None:
        self.settings = settings
        self._policy = policy_maker(settings.policy)
        self._env, source = _make(settings)
        self._pictures = Pictures(self._env, source)
        self._actions = Actions(self._env.action_space, action_meanings(self._env))
        observation, _ = self._env.reset(seed=settings.seed)
        shown = self._pictures.take(observation).shape
        original = (shown[0], shown[1])
        fps, says = self._frames_per_second()
        self.recording = Recording(
            env=settings.env, height=settings.size[0], width=settings.size[1], fps=fps / settings.frame_skip,
            action=self._actions.spec, frame_skip=settings.frame_skip,
            resize="none" if original == settings.size else settings.resize, original_size=original,
            policy=settings.policy, seed=settings.seed,
            source={
                "world": "gymnasium", "env_kwargs": settings.kwargs, "pictures": source, "text_key": settings.text_key,
                "task_text": settings.task_text, "max_episode_steps": settings.max_episode_steps,
            },
        )  # fmt: skip
        self.notes = [
            f"{settings.env} {settings.kwargs or ''}: actions {self._env.action_space} by {settings.policy}",
            said(source, original, settings.size, settings.resize),
            f"rate: {fps:g} steps a second ({says}), every {settings.frame_skip} is one action: "
            f"{self.recording.fps:g} pictures a second",
        ]

    def record(self, index: int) -> Episode:
        """Episode number `index`."""
        settings = self.settings
        seeds, moves = np.random.default_rng([settings.seed, index]).spawn(2)
        env_seed = int(seeds.integers(2**31))
        self._env.action_space.seed(env_seed)
        observation, info = self._env.reset(seed=env_seed)
        policy = self._policy(self._env, moves)
        frames = [self._picture(self._pictures.take(observation))]
        texts: list[TextChange] = []
        self._hear(texts, 0, observation, info)
        rows: list[tuple] = []
        over = False
        while not over:
            action = self._actions.stored(policy(observation))
            picture, observation, reward, terminated, truncated, info = self._hold(self._actions.given(action))
            over = terminated or truncated
            black = over and settings.env.startswith(DOOM) and (picture is None or not picture.any())
            frames.append(frames[-1] if picture is None or black else self._picture(picture))
            truncated |= not over and len(rows) + 1 >= settings.max_episode_steps
            over |= truncated
            rows.append((action, reward, terminated, truncated))
            if not over:
                self._hear(texts, len(rows), observation, info)
        actions, rewards, terminations, truncations = zip(*rows)
        return Episode(
            np.stack(frames), np.array(actions, self.recording.action.dtype), np.array(rewards, np.float32),
            np.array(terminations, np.uint8), np.array(truncations, np.uint8), settings.task_text, tuple(texts),
            {"index": index, "env_seed": env_seed},
        )  # fmt: skip

    def _hold(self, action: Any) -> tuple[np.ndarray | None, Any, float, bool, bool, dict[str, Any]]:
        """One action for `frame_skip` steps: the last picture, the sum of rewards. Atari's picture is the brighter of two, pixel
        by pixel, since its games draw some things in every other frame only."""
        total, before, picture = 0.0, None, None
        for step in range(self.settings.frame_skip):
            observation, reward, terminated, truncated, info = self._env.step(action)
            total += float(reward)
            over = bool(terminated or truncated)
            atari = self.settings.env.startswith(ATARI) and step == self.settings.frame_skip - 2
            if atari or over or step == self.settings.frame_skip - 1:
                before, picture = picture, self._pictures.take(observation)
            if over:
                break
        if before is not None and picture is not None:
            picture = np.maximum(before, picture)
        return picture, observation, total, bool(terminated), bool(truncated), info

    def _picture(self, picture: np.ndarray) -> np.ndarray:
        return resized(picture, self.settings.size, self.settings.resize)

    def _hear(self, texts: list[TextChange], step: int, observation: Any, info: dict[str, Any]) -> None:
        """Adds the text in force from `step` on, where it is another than before."""
        key = self.settings.text_key
        if key is None:
            return
        entries = observation if isinstance(observation, dict) else {}
        text = info.get(key, entries.get(key))
        if text is not None and not isinstance(text, str):
            raise RecordingError(f"--text-key {key}: expected a text or None, got {type(text).__name__}")
        text = text or None
        if text != (texts[-1][1] if texts else None):
            texts.append((step, text))

    def _frames_per_second(self) -> tuple[float, str]:
        if self.settings.fps is not None:
            return self.settings.fps, "--fps"
        if self.settings.env.startswith(ATARI):
            return ATARI_FPS / int(self.settings.kwargs["frameskip"]), "Atari's"
        says = self._env.metadata.get("render_fps")
        return (
            (float(says), "the environment's render_fps") if says else (DEFAULT_FPS, "it does not say: --fps sets it")
        )


def record(
    settings: RecordSettings, out: Path, *, steps: int | None = None, episodes: int | None = None, workers: int = 1
) -> EpisodeWriter:
    """Records whole episodes into `out` until there are `steps` actions or `episodes`; what is there of the same settings counts.

    Returns the writer, closed. Whole episodes are kept whatever ends it. Raises RecordingError as `EpisodeRecorder` and
    `EpisodeWriter` do, and where not exactly one of `steps` and `episodes` is given.
    """
    if (steps is None) == (episodes is None) or (steps or episodes or 0) < 1:
        raise RecordingError(f"give either --steps or --episodes, 1 or more; got {steps} and {episodes}")
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


def _make(settings: RecordSettings) -> tuple[gymnasium.Env, str]:
    """The environment, and where its pictures are; made with render_mode="rgb_array" only if they are rendered."""
    modules = list(settings.imports)
    modules += ["ale_py"] if settings.env.startswith(ATARI) else []
    modules += ["vizdoom.gymnasium_wrapper"] if settings.env.startswith(DOOM) else []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RecordingError(
                f"cannot import {module} for {settings.env} ({error}): pip install 'yume-gym[worlds]'"
            ) from error
    doom_config = Path(tempfile.gettempdir(), "_vizdoom.ini")  # which the game writes, else in the working folder
    kwargs = ({"doom_config_path": str(doom_config)} if settings.env.startswith(DOOM) else {}) | settings.kwargs
    try:
        env = gymnasium.make(settings.env, disable_env_checker=True, **kwargs)
        source = find_pictures(env.observation_space, settings.pictures)
        if source == "render":
            env.close()
            env = gymnasium.make(settings.env, disable_env_checker=True, render_mode="rgb_array", **kwargs)
    except RecordingError:
        raise
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise RecordingError(f"cannot make {settings.env} {settings.kwargs or ''}: {error}") from error
    return env, source
