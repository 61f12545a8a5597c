"""An environment as recordings show it: pictures of one size, one action for several steps, discrete actions counted from 0.

`RecordedEnv.of("data/takecover")` is the real environment behind a recording. Its spaces are those of `YumeWorld-v0` with a
model of that recording: an agent of one acts in the other.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from train.recordings.format import Provenance, Recording, RecordingError, read_recording
from train.recordings.pictures import RESIZES, Pictures, find_pictures, resized, said
from train.recordings.spaces import Actions, action_meanings
from yume_gym.keyboard import action_space

ATARI, DOOM = "ALE/", "Vizdoom"
ATARI_FPS = 60.0  # of the machine; what its environments say depends on their version
DEFAULT_FPS = 30.0  # where an environment does not say
SIZE_STEP = 8  # pixels that height and width are multiples of


@dataclass(frozen=True)
class PictureSettings:
    """The pictures of a recording. Raises RecordingError for values that a recording cannot have."""

    size: tuple[int, int] = (64, 64)  # (height, width), multiples of 8 pixels
    resize: str = "stretch"  # how they get that size, one of RESIZES
    source: str = "auto"  # where they are, see `find_pictures`

    def __post_init__(self) -> None:
        if any(side < SIZE_STEP or side % SIZE_STEP for side in self.size):
            raise RecordingError(f"--size must be two multiples of {SIZE_STEP}, got {self.size[0]}x{self.size[1]}")
        if self.resize not in RESIZES:
            raise RecordingError(f"--resize must be one of {', '.join(RESIZES)}, got {self.resize!r}")

    def resize_of(self, original: tuple[int, int]) -> str:
        """How pictures of a size (height, width) get the one asked for: `resize`, or "none"."""
        return "none" if original == self.size else self.resize


@dataclass(frozen=True)
class TextSettings:
    """The texts of a recording."""

    caption: str | None = None  # of every episode
    key: str | None = None  # entry of info, or of a Dict observation, that holds the text in force


@dataclass(frozen=True)
class RecordSettings:
    """What is recorded, and how. Raises RecordingError for values that a recording cannot have."""

    env: str  # id
    env_kwargs: str = "{}"  # a JSON object
    imports: tuple[str, ...] = ()  # modules that register environments
    policy: str = "sticky"
    frame_skip: int = 1  # steps of the environment for one action
    max_episode_steps: int = 1000  # actions after which an episode is cut
    fps: float | None = None  # steps of the environment a second; None to ask it
    seed: int = 0
    pictures: PictureSettings = PictureSettings()
    texts: TextSettings = TextSettings()

    def __post_init__(self) -> None:
        for name in ("frame_skip", "max_episode_steps"):
            if getattr(self, name) < 1:
                raise RecordingError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if self.fps is not None and not self.fps > 0:
            raise RecordingError(f"--fps must be above 0, got {self.fps}")

    @classmethod
    def of(cls, recording: Recording) -> RecordSettings:
        """The settings that made a recording. Raises RecordingError for one that no environment of Gymnasium made."""
        made, source = recording.provenance, recording.provenance.source
        if source.get("world") != "gymnasium":
            raise RecordingError(
                f"the recording of {recording.env!r} does not say how to make its environment: record it with train.record"
            )
        resize = "stretch" if made.resize == "none" else made.resize
        return cls(
            recording.env,
            json.dumps(source["env_kwargs"]),
            tuple(source.get("imports", ())),
            made.policy,
            made.frame_skip,
            source["max_episode_steps"],
            recording.fps * made.frame_skip,
            made.seed,
            PictureSettings((recording.height, recording.width), resize, source["pictures"]),
            TextSettings(source["task_text"], source["text_key"]),
        )

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


class RecordedEnv(gymnasium.Env[np.ndarray, Any]):
    """One environment as it is recorded. Observations are uint8 [H, W, 3], actions as `ActionSpec` stores them.

    `inner` is the environment itself, `observation` what it observed last, `actions` translates between the two spaces, and
    `notes` are lines for people. Raises RecordingError where the environment is unknown, shows no pictures, or has actions that
    cannot be recorded.
    """

    def __init__(self, settings: RecordSettings) -> None:
        self.settings = settings
        self.inner, source = make(settings)
        self._pictures = Pictures(self.inner, source)
        self.actions = Actions(self.inner.action_space, action_meanings(self.inner))
        self.observation, _ = self.inner.reset(seed=settings.seed)
        shown = self._pictures.take(self.observation).shape
        original, size = (shown[0], shown[1]), settings.pictures.size
        fps, says = self._frames_per_second()
        provenance = Provenance(
            settings.frame_skip,
            settings.pictures.resize_of(original),
            original,
            settings.policy,
            settings.seed,
            source={
                "world": "gymnasium",
                "env_kwargs": settings.kwargs,
                "imports": list(settings.imports),
                "pictures": source,
                "text_key": settings.texts.key,
                "task_text": settings.texts.caption,
                "max_episode_steps": settings.max_episode_steps,
            },
        )
        rate = fps / settings.frame_skip
        self.recording = Recording(settings.env, *size, rate, self.actions.spec, provenance=provenance)
        self.notes = [
            f"{settings.env} {settings.kwargs or ''}: actions {self.inner.action_space} by {settings.policy}",
            said(source, original, size, settings.pictures.resize),
            f"rate: {fps:g} steps a second ({says}), every {settings.frame_skip} is one action: "
            f"{self.recording.fps:g} pictures a second",
        ]
        self.action_space = action_space(self.actions.spec)
        self.observation_space = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.recording.fps}
        self.render_mode = "rgb_array"
        self._steps, self._shown = 0, np.zeros((*size, 3), np.uint8)

    @classmethod
    def of(cls, folder: Path | str) -> RecordedEnv:
        """The environment behind the recording in a folder. Raises RecordingError for one that was not made by train.record."""
        return cls(RecordSettings.of(read_recording(Path(folder))))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation, info = self.inner.reset(seed=seed, options=options)
        self._steps, self._shown = 0, self._picture(self._pictures.take(self.observation))
        return self._shown.copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds one action for `frame_skip` steps: the last picture, the sum of rewards."""
        picture, reward, terminated, truncated, info = self._hold(self.actions.given(np.asarray(action)))
        over = terminated or truncated
        # Doom shows nothing after an end, or black
        lost = picture is None or (over and self.settings.env.startswith(DOOM) and not picture.any())
        self._shown = self._shown if lost or picture is None else self._picture(picture)
        self._steps += 1
        truncated |= not over and self._steps >= self.settings.max_episode_steps
        return self._shown.copy(), reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        """The current picture, uint8 [H, W, 3]."""
        return self._shown.copy()

    def close(self) -> None:
        self.inner.close()

    def _hold(self, action: Any) -> tuple[np.ndarray | None, float, bool, bool, dict[str, Any]]:
        """Atari's picture is the brighter of two, pixel by pixel, since its games draw some things in every other frame only."""
        total, before, picture = 0.0, None, None
        for step in range(self.settings.frame_skip):
            self.observation, reward, terminated, truncated, info = self.inner.step(action)
            total += float(reward)
            over = bool(terminated or truncated)
            atari = self.settings.env.startswith(ATARI) and step == self.settings.frame_skip - 2
            if atari or over or step == self.settings.frame_skip - 1:
                before, picture = picture, self._pictures.take(self.observation)
            if over:
                break
        if before is not None and picture is not None:
            picture = np.maximum(before, picture)
        return picture, total, bool(terminated), bool(truncated), info

    def _picture(self, picture: np.ndarray) -> np.ndarray:
        return resized(picture, self.settings.pictures.size, self.settings.pictures.resize)

    def _frames_per_second(self) -> tuple[float, str]:
        if self.settings.fps is not None:
            return self.settings.fps, "--fps"
        if self.settings.env.startswith(ATARI):
            return ATARI_FPS / int(self.settings.kwargs["frameskip"]), "Atari's"
        says = self.inner.metadata.get("render_fps")
        return (
            (float(says), "the environment's render_fps") if says else (DEFAULT_FPS, "it does not say: --fps sets it")
        )


def make(settings: RecordSettings) -> tuple[gymnasium.Env, str]:
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
        source = find_pictures(env.observation_space, settings.pictures.source)
        if source == "render":
            env.close()
            env = gymnasium.make(settings.env, disable_env_checker=True, render_mode="rgb_array", **kwargs)
    except RecordingError:
        raise
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise RecordingError(f"cannot make {settings.env} {settings.kwargs or ''}: {error}") from error
    return env, source
