"""The play window: a session in a pygame window, with keyboard, gamepad and a HUD (`controls` lists the keys)."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from world_model.config import ModelConfig
from yume_gym.hud import Shot, draw_hud, enlarge, write_lines
from yume_gym.keyboard import keyboard
from yume_gym.play.controls import Command, Controls
from yume_gym.play.session import Session
from yume_gym.play.start import Start
from yume_gym.play.world import Frame

PLAY_HEIGHT = 512  # small pictures are enlarged by a whole factor to about this many rows
_NAP = 0.008  # seconds between two looks at the keyboard
_NOTICE_SECONDS = 4.0
_VIEWS = ("both", "dream", "street")
_HELP = "R restart   N next seed   P pause   F clip   Tab HUD   Esc leave"


class PlayWindow:
    """A window on `session`. `run` returns when the player leaves; the session is not closed by it.

    clips: folder where F saves clips. on_frame: called with every frame right after it came on the screen.
    Raises DependencyNotInstalled where pygame is missing.
    """

    def __init__(
        self, session: Session, clips: Path = Path("clips"), on_frame: Callable[[Frame], None] | None = None
    ) -> None:
        self._session, self._clips, self._on_frame = session, clips, on_frame
        self._pygame = _import_pygame()
        self._controls: Controls | None = None
        self._screen: Any = None
        self._frame: Frame | None = None
        self._full_hud, self._view = True, 0
        self._notice, self._notice_until = _help(session.config), time.monotonic() + 2 * _NOTICE_SECONDS
        self._drawn: tuple[object, ...] | None = None  # what the screen shows
        self.picture: np.ndarray | None = None  # the screen, uint8 [H, W, 3]
        self.drawing = 0.0  # seconds from a frame's being due to its being on the screen, the last time

    def run(self, seconds: float | None = None, leave_when_finished: bool = False) -> None:
        """Play until the player leaves, `seconds` are over, or (if wished) a replay has been shown.

        Raises RuntimeError if dreaming fails.
        """
        self._open()
        end = None if seconds is None else time.monotonic() + seconds
        try:
            while end is None or time.monotonic() < end:
                if not self._turn() or (leave_when_finished and self._session.finished):
                    return
                time.sleep(min(_NAP, self._session.wait_time()))
        finally:
            self._session.hold(())
            self._pygame.quit()

    # -- within --------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        pygame, session = self._pygame, self._session
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # nothing here makes a sound
        pygame.display.init()
        pygame.joystick.init()
        pygame.display.set_caption(f"yume: {session.config.name}")
        pictures = 2 if session.start.twin else 1
        zoom = self._zoom(pictures)
        size = (pictures * zoom * session.config.width, zoom * session.config.height)
        self._screen = pygame.display.set_mode(size, pygame.RESIZABLE)
        pygame.key.stop_text_input()
        self._controls = Controls(pygame, keyboard(session.config.action).keys)

    def _turn(self) -> bool:
        """One look at everything; False when the player leaves."""
        controls = self._controls
        assert controls is not None
        for event in self._pygame.event.get():
            command = controls.handle(event)
            self._session.hold(controls.held)  # at every event: a tap is a press and a release in one turn
            if command is not None and not self._obey(command):
                return False
        frame = self._session.take()
        self._frame = frame or self._frame
        begun = time.perf_counter()
        self._draw()
        self.drawing = time.perf_counter() - begun
        if frame is not None and self._on_frame is not None:
            self._on_frame(frame)
        return True

    def _obey(self, command: Command) -> bool:
        session = self._session
        try:
            if command.name == "quit":
                return False
            if command.name == "pause":
                session.resume() if session.paused else session.pause()
            elif command.name == "restart":
                session.restart()
            elif command.name == "another":
                old = session.start
                session.restart(Start(old.seed + 1, old.image, old.text, old.twin))
            elif command.name == "image":
                session.restart(Start(session.start.seed, command.text))
            elif command.name == "event":
                session.set_event(command.text)
            elif command.name == "clip":
                threading.Thread(target=self._save_clip, name="clip").start()
            elif command.name == "hud":
                self._full_hud = not self._full_hud
            elif command.name == "view":
                self._view = (self._view + 1) % len(_VIEWS)
        except (ValueError, TypeError, OSError) as error:
            self._tell(str(error))
        return True

    def _save_clip(self) -> None:
        self._tell("saving the last 30 seconds ...")
        try:
            path = self._session.save_clip(self._clips / time.strftime("yume-%Y%m%d-%H%M%S.mp4"))
        except (ValueError, OSError) as error:
            self._tell(str(error))
        else:
            self._tell(f"saved {path}")

    def _tell(self, text: str) -> None:
        self._notice_until = time.monotonic() + _NOTICE_SECONDS
        self._notice = text

    def _draw(self) -> None:
        frame, controls, session = self._frame, self._controls, self._session
        if frame is None or controls is None:
            return
        notice = self._notice if time.monotonic() < self._notice_until else ""
        typing = None if controls.typing is None else f"event: {controls.typing}_"
        wanted = (
            frame,
            controls.held,
            typing,
            notice,
            session.paused,
            session.over,
            self._full_hud,
            self._view,
            self._screen.get_size(),
        )
        if wanted == self._drawn:
            return
        self._drawn = wanted
        views = [frame.picture] if frame.twin is None else [frame.picture, frame.twin]
        if len(views) == 2 and _VIEWS[self._view] != "both":
            views = [views[self._view - 1]]
        zoom = self._zoom(len(views))
        stats = session.stats()
        if self._full_hud:
            shots = [Shot(view, stats.action.keys, stats.action.arrows, frame.event) for view in views]
            picture = np.concatenate([draw_hud(shot, zoom) for shot in shots], axis=1)
            picture = write_lines(picture, self._facts(frame), "top")
        else:
            picture = np.concatenate([enlarge(view, zoom) for view in views], axis=1)
        over = f"{session.over}: R begins again" if session.over else None
        below = [line for line in (typing, "paused" if session.paused else None, over, notice) if line]
        self.picture = write_lines(picture, below, "middle") if below else picture
        self._flip(self.picture)

    def _facts(self, frame: Frame) -> list[str]:
        """The HUD's lines."""
        stats = self._session.stats()
        lines = [f"seed {stats.seed}   block {max(0, frame.block)}", f"{_number(stats.frames.fps, '.1f')} frames/s"]
        lines.append(f"key to picture {_number(stats.latency.last, '.0f', 1000)} ms")
        lines.append(f"block {_number(stats.block_time, '.0f', 1000)} ms")
        if stats.action.keys is None:
            lines.append(f"action {stats.action.meaning}")
        if stats.score is not None:
            lines.append(f"score {stats.score:g}")
        if frame.twin is not None and not frame.street_event:
            lines.append("the street does not know this event")
        if self._session.recording:
            lines.append("recording")
        return lines

    def _flip(self, picture: np.ndarray) -> None:
        """`picture` as large as the window allows, in its middle."""
        pygame, screen = self._pygame, self._screen
        surface = pygame.surfarray.make_surface(picture.swapaxes(0, 1))
        columns, rows = screen.get_size()
        scale = min(columns / surface.get_width(), rows / surface.get_height())
        size = (max(1, round(scale * surface.get_width())), max(1, round(scale * surface.get_height())))
        if size != surface.get_size():
            surface = pygame.transform.smoothscale(surface, size)
        screen.fill((0, 0, 0))
        screen.blit(surface, ((columns - size[0]) // 2, (rows - size[1]) // 2))
        pygame.display.flip()

    def _zoom(self, pictures: int) -> int:
        """Two pictures side by side are smaller each."""
        return max(1, round(PLAY_HEIGHT / self._session.config.height * (1 if pictures == 1 else 0.75)))


def _help(config: ModelConfig) -> str:
    """What the keys do, in a line."""
    keys = keyboard(config.action).keys
    acts = "WASD walk   arrows look" if config.action.kind == "first_person" else f"{' '.join(keys)} act"
    return f"{acts}   {'Enter event   ' if config.text.kind != 'none' else ''}{_HELP}"


def has_display() -> bool:
    """Whether there is a screen, or SDL was told to do without one."""
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))


def _import_pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise DependencyNotInstalled("the play window needs pygame: pip install 'yume-gym[play]'") from error
    return pygame


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else format(factor * value, form)
