"""Draws the documentation's pictures of the dream with the shipped weights: minute.png, minute-ends.png, town-1.png and events.png.

    python docs/figures.py [--model street] [--out docs] [--walks 20] [--only town-1 events]

minute.png: a minute of walking and turning, the dream above the real street under the same keys: the first three walks.
minute-ends.png: the last picture of every walk, the dream's above the street's.
town-1.png: three such minutes in the other town that the model knows.
events.png: events told on the way, half a second to four seconds later; and worlds that began with a text alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import yume_gym  # noqa: F401  (registers the environments)
from train.data.shards import Trajectory
from train.street.walks import StreetRecipe, render_walk
from world_model.actions import Action
from yume_gym.hud import contact_sheet

SECONDS = (0, 0.5, 1, 2, 4, 8, 15, 30, 45, 60)
SHOWN = 3  # walks shown from beginning to end
SEED = 2026  # of the walks: none that a model was trained on
CLEAR_DAY = 0  # seed of a starting picture by day
# and the keys held: what comes is best seen by who stays
EVENTS = {
    "night falls": "W",
    "heavy rain": "W",
    "it starts snowing": "W",
    "thick fog": "W",
    "a UFO flies by": "",
    "a ghost appears": "",
    "a building is on fire": "",
    "a tornado whirls through the street": "",
    "a dinosaur stomps into the street": "",
    "giant soap bubbles drift past": "",
}
AFTER = (0, 1, 2, 4, 8)  # blocks
TEXTS = (
    "First-person view of a sunny street with shops",
    "A walk through a quiet street at night",
    "First-person view of a street in heavy snow",
    "Walking through a foggy park",
    "A rainy street under a grey sky",
)


def minute(model: str, walks: int, town: int = 0) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """For each walk through a town (its seed) its labelled pictures: the dream's, and the street's."""
    rows = []
    env = gymnasium.make("YumeWorld-v0", model=model)
    config = env.unwrapped.model.config
    blocks = round(SECONDS[-1] * config.fps / config.frames_per_block)
    for number in range(walks):
        walk = render_walk(StreetRecipe.of(config, blocks + 16, SEED, town_seed=town), number)
        first = first_level_block(walk, config.frames_per_block)
        start = first * config.frames_per_block - 1
        _, info = env.reset(seed=number, options={"image": walk.frames[start]})
        dream = [info["frames"][-1]]
        for block in range(first, first + blocks):
            env.unwrapped.trigger_event(walk.info.event_at(block))
            dream += list(env.step(int(walk.action[block]))[4]["frames"])
        chosen = [round(seconds * config.fps) for seconds in SECONDS]
        dreamt = [labelled(dream[i], f"{s:g} s") for i, s in zip(chosen, SECONDS, strict=True)]
        rows.append((dreamt, [labelled(walk.frames[start + i], "") for i in chosen]))
    return rows


def ends(walks: Sequence[tuple[list[np.ndarray], list[np.ndarray]]], across: int = 5) -> list[list[np.ndarray]]:
    """The last pictures of all walks, so many side by side: a row of dreams above a row of streets."""
    sheets = []
    for i in range(0, len(walks), across):
        sheets += [
            list(row) for row in zip(*((dream[-1], street[-1]) for dream, street in walks[i : i + across]), strict=True)
        ]
    return sheets


def first_level_block(walk: Trajectory, size: int) -> int:
    """Of the first blocks the one that begins looking most nearly straight ahead."""
    return min(range(1, 16), key=lambda block: abs(float(walk.pitch[block * size - 1])))


def events(model: str) -> list[list[np.ndarray]]:
    """One row of labelled pictures an event, then one a text."""
    env = gymnasium.make("YumeWorld-v0", model=model)
    forward, rows = Action.from_keys("W").index, []
    for event, keys in EVENTS.items():
        _, info = env.reset(seed=CLEAR_DAY)
        shown = [info["frames"][-1]]
        env.unwrapped.trigger_event(event)
        for _ in range(AFTER[-1]):
            shown.append(env.step(Action.from_keys(keys).index)[4]["frames"][-1])
        rows.append([labelled(shown[i], event if i == 0 else f"after {i} steps") for i in AFTER])
    for seed, text in enumerate(TEXTS):
        _, info = env.reset(seed=seed, options={"text": text})
        shown = [info["frames"][-1]]
        for _ in range(AFTER[-1]):
            shown.append(env.step(forward)[4]["frames"][-1])
        rows.append([labelled(shown[i], text if i == 0 else f"after {i} steps") for i in AFTER])
    return rows


def labelled(frame: np.ndarray, text: str, zoom: int = 2) -> np.ndarray:
    """The frame enlarged, with a line of text at its top."""
    image = Image.fromarray(frame).resize((frame.shape[1] * zoom, frame.shape[0] * zoom), Image.Resampling.LANCZOS)
    if text:
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(10)
        draw.rectangle((0, 0, image.width, 13), fill=(20, 22, 28))
        draw.text((3, 0), text, fill=(255, 214, 64), font=font)
    return np.asarray(image)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--walks", type=int, default=20)
    parser.add_argument(
        "--only", nargs="+", choices=("minute", "town-1", "events"), default=("minute", "town-1", "events")
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    sheets = {}
    if "minute" in args.only:
        walks = minute(args.model, args.walks)
        sheets = {"minute": [row for pair in walks[:SHOWN] for row in pair], "minute-ends": ends(walks)}
    if "town-1" in args.only:
        sheets["town-1"] = [row for pair in minute(args.model, SHOWN, town=1) for row in pair]
    if "events" in args.only:
        sheets["events"] = events(args.model)
    for name, rows in sheets.items():
        sheet = Image.fromarray(contact_sheet(rows)).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)  # half the size
        sheet.save(args.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
