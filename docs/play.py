"""Writes docs/play-window.png, the picture in docs/play.md: the play window with a twin, a few blocks into a walk.

python docs/play.py
"""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v3 as iio

from world_model.model import WorldModel
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.start import Start
from yume_gym.play.window import PlayWindow
from yume_gym.play.world import Frame

PICTURE = Path(__file__).with_name("play-window.png")
SEED = 3
BLOCK = 2


def main() -> None:
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    import pygame

    with Dreamer(WorldModel.load("street")) as dreamer:
        dreamer.warm_up()
        session = dreamer.open(Start(SEED, twin=True))

        def on_frame(frame: Frame) -> None:
            if frame.block < 0:
                for key in (pygame.K_w, pygame.K_RIGHT):
                    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, unicode="", mod=0))
            if frame.block == BLOCK and window.picture is not None:
                iio.imwrite(PICTURE, window.picture)
                pygame.event.post(pygame.event.Event(pygame.QUIT))

        window = PlayWindow(session, on_frame=on_frame)
        window.run()


if __name__ == "__main__":
    main()
