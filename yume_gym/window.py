"""A window that shows frames at their pace, for ``render_mode="human"``. pygame is imported when it first opens."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from yume_gym.keyboard import CODES

MIN_HEIGHT = 384  # small pictures are enlarged by a whole factor to at least about this many pixels


class Window:
    """One pygame window. It opens with the first `show` and may be closed and shown again.

    Without a display (no DISPLAY or WAYLAND_DISPLAY on Linux) SDL's dummy driver takes its place: nothing is seen,
    nothing fails.
    """

    def __init__(self, title: str, height: int, width: int, fps: float) -> None:
        self._title, self._fps = title, fps
        scale = max(1, round(MIN_HEIGHT / height))
        self._size = (width * scale, height * scale)
        self._pygame: Any = None
        self._surface: Any = None
        self._clock: Any = None

    def show(self, frames: np.ndarray) -> None:
        """Show `frames`, uint8 [T, H, W, 3], one after another at the window's rate.

        Raises DependencyNotInstalled where pygame is missing.
        """
        if self._surface is None:
            self._open()
        pygame = self._pygame
        for frame in frames:
            pygame.event.pump()
            picture = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
            pygame.transform.scale(picture, self._size, self._surface)
            pygame.display.flip()
            self._clock.tick(self._fps)

    def held(self) -> frozenset[str] | None:
        """Names of `keyboard.CODES` that are held down now; None after Esc or where the window was closed by hand."""
        if self._surface is None:
            return frozenset()
        pygame = self._pygame
        down = pygame.key.get_pressed()
        if down[pygame.K_ESCAPE] or pygame.event.peek(pygame.QUIT):
            return None
        return frozenset(name for name, code in CODES.items() if down[code])

    def close(self) -> None:
        """Close the window if it is open."""
        if self._surface is not None:
            self._surface = None
            self._pygame.display.quit()

    def _open(self) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled("render_mode='human' needs pygame: pip install 'yume-gym[play]'") from error
        self._pygame = pygame
        pygame.display.init()
        pygame.display.set_caption(self._title)
        self._surface = pygame.display.set_mode(self._size)
        self._clock = pygame.time.Clock()
