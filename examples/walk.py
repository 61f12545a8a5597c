"""A first walk: 20 seconds through a dreamed street, with turns and a rainstorm on the way.

    python examples/walk.py [--seed 10] [--steps 40] [--image photo.jpg] [--text "..."] [--event "night falls"] [--twin]

Writes walk.mp4 and walk.png (a contact sheet) and says how fast the world was dreamed. With --twin the walk starts
where YumeStreet-v0 starts, and the real street under the same keys is shown below the dream.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import imageio
import numpy as np

import yume_gym  # noqa: F401  (registers the environments)
from world_model.actions import Action
from yume_gym.hud import Shot, contact_sheet, draw_hud

# keys, arrows, steps of half a second: along the street, with looks to the sides that come back to it
WALK = (
    ("W", "", 6),
    ("", "→", 2),
    ("", "←", 2),
    ("W", "", 5),
    ("W", "←", 2),
    ("W", "→", 2),
    ("W", "", 4),
    ("", "←", 4),
    ("", "→", 4),
    ("W", "", 4),
    ("", "↑", 1),
    ("", "↓", 1),
    ("W+D", "", 2),
    ("W", "", 1),
)
EVENT_AT = 0.4  # of the walk
SHEET_COLUMNS = 6
SHEET_ROWS = 3


def walk_actions(steps: int) -> list[Action]:
    """The first `steps` actions of WALK, which begins again when it is over."""
    once = [Action.from_keys(keys, look) for keys, look, count in WALK for _ in range(count)]
    return [once[step % len(once)] for step in range(steps)]


def walk(env: gymnasium.Env, actions: Sequence[Action], seed: int, options: dict) -> tuple[list[Shot], float]:
    """Walks once. Returns every frame with its keys and event, and the seconds that dreaming took."""
    _, info = env.reset(seed=seed, options=options)
    shots, seconds = [Shot(info["frames"][-1])], 0.0
    for action in actions:
        _, _, _, _, info = env.step(action.index)
        seconds += info["latency_ms"] / 1000
        shots += [Shot(frame, info["keys"], info["look"], info["event"]) for frame in info["frames"]]
    return shots, seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="steps of half a second (default 40)")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for walk.mp4 and walk.png")
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--image", type=Path, help="start from this picture")
    parser.add_argument("--text", help="start from, or with, this description")
    parser.add_argument("--event", default="a heavy rainstorm begins", help='what happens on the way; "" for nothing')
    parser.add_argument(
        "--zoom", type=int, help="how many times larger the pictures are written (default: to 256 rows)"
    )
    parser.add_argument("--twin", action="store_true", help="show YumeStreet-v0 under the same keys below")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    if args.twin and (args.image or args.text):
        parser.error("--twin starts where the street starts: leave out --image and --text")

    actions = walk_actions(args.steps)
    options = {"events": {int(EVENT_AT * args.steps): args.event}}
    start: dict = {"image": args.image, "text": args.text}
    env = gymnasium.make("YumeWorld-v0", model=args.model)
    twins = []
    if args.twin:  # the street in the model's own picture size, frame rate and block length
        street = gymnasium.make("YumeStreet-v0", preset=env.unwrapped.model.config.name, light="day", weather="clear")
        twins = [walk(street, actions, args.seed, options)[0]]
        start = {"image": twins[0][0].frame}
    dream, seconds = walk(env, actions, args.seed, {**options, **start})

    fps = env.metadata["render_fps"]
    zoom = args.zoom or max(1, round(256 / dream[0].frame.shape[0]))
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = [[draw_hud(shot, zoom) for shot in shots] for shots in (dream, *twins)]
    video = [np.concatenate(pictures) for pictures in zip(*drawn, strict=True)]  # the dream above its twin
    imageio.mimwrite(args.out / "walk.mp4", video, fps=fps, macro_block_size=2, quality=8)
    imageio.imwrite(args.out / "walk.png", contact_sheet(sheet_rows(drawn)))

    rate = (len(dream) - 1) / seconds
    print(f"{len(dream) - 1} frames dreamed in {seconds:.1f} s: {rate:.1f} frames/s, {rate / fps:.1f} x real time")
    print(f"wrote {args.out / 'walk.mp4'} and {args.out / 'walk.png'}")


def sheet_rows(walks: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """Pictures spread evenly over the walks, row by row, each walk's row above its twin's."""
    chosen = np.linspace(0, len(walks[0]) - 1, SHEET_COLUMNS * SHEET_ROWS).round().astype(int)
    rows = []
    for part in np.split(chosen, SHEET_ROWS):
        rows += [[pictures[i] for i in part] for pictures in walks]
    return rows


if __name__ == "__main__":
    main()
