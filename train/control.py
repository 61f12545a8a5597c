"""Does the picture obey the keys? `python -m train.control --model street --seeds 20`

An independent measure: optical flow between generated frames says how the camera seems to have turned, tilted and
moved (train/judge/motion.py; no network). The dream starts from the pictures where YumeStreet-v0 starts and walks the same
tours, so both tables are about the same thing, and the street's is the ceiling. "Other keys" is the control: how often
the same verdict would be passed on blocks in which something else was held.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from train.judge.motion import CameraMotion, block_motion
from world_model.actions import Action
from world_model.camera import CameraConfig

WORLD, STREET = "yume_gym:YumeWorld-v0", "yume_gym:YumeStreet-v0"
CAMERA = CameraConfig()
STILL_SHARE = 0.1  # of the commanded turn or tilt: less than this is standing still
STILL_ZOOM = 0.016  # a metre commanded: the same for expansion (walking gives about 0.06 to 0.15 on the street)


@dataclass(frozen=True)
class Wish:
    """What held keys must do to the camera: the sign of its motion, 0 for none, None where it does not matter."""

    turn: int | None = None  # 1: to the right, the picture moves left
    tilt: int | None = None  # 1: up, the picture moves down
    zoom: int | None = None  # 1: the picture expands


# sideways steps move near things across the picture, which the flow reads as a turn to the same side
WISHES: dict[str, tuple[Action, Wish]] = {
    "look right": (Action.from_keys("", "→"), Wish(turn=1)),
    "look left": (Action.from_keys("", "←"), Wish(turn=-1)),
    "look up": (Action.from_keys("", "↑"), Wish(tilt=1)),
    "look down": (Action.from_keys("", "↓"), Wish(tilt=-1)),
    "W": (Action.from_keys("W"), Wish(zoom=1)),
    "S": (Action.from_keys("S"), Wish(zoom=-1)),
    "D": (Action.from_keys("D"), Wish(turn=1)),
    "A": (Action.from_keys("A"), Wish(turn=-1)),
    "W, look right": (Action.from_keys("W", "→"), Wish(turn=1, zoom=1)),
    "W, look left": (Action.from_keys("W", "←"), Wish(turn=-1, zoom=1)),
    "still": (Action(), Wish(turn=0, tilt=0, zoom=0)),
}

# there and back again, in steps: a tour ends about where it began, whatever came before it
TOURS: tuple[tuple[tuple[str, int], tuple[str, int]], ...] = (
    (("look right", 3), ("look left", 3)),
    (("look left", 3), ("look right", 3)),
    (("look up", 2), ("look down", 2)),
    (("look down", 2), ("look up", 2)),
    (("W", 3), ("S", 3)),
    (("S", 2), ("W", 2)),
    (("D", 1), ("A", 1)),
    (("W, look right", 2), ("look left", 2)),
    (("W, look left", 2), ("look right", 2)),
    (("still", 2), ("still", 2)),
)


@dataclass(frozen=True)
class Trial:
    """One block: what was held, whether that had just changed, how the camera seems to have moved (degrees, share)."""

    held: str
    switch: bool
    motion: CameraMotion


@dataclass(frozen=True)
class Score:
    """One row of the table. Shares are of blocks, None where there are none; `median` is the motion of a block."""

    held: str
    blocks: int
    right: float | None
    right_after_switch: float | None
    right_while_held: float | None
    other_keys: float | None
    median: CameraMotion


def tour_of(seed: int) -> list[tuple[str, bool]]:
    """(what to hold, whether it has just changed) of every step: all tours in an order drawn with `seed`."""
    order = np.random.default_rng(seed).permutation(len(TOURS))
    held = ["still", *(name for i in order for name, steps in TOURS[i] for _ in range(steps))]
    return [(now, now != before) for before, now in itertools.pairwise(held)]


def walk_tour(env: gymnasium.Env, seed: int, options: dict | None = None) -> Iterator[tuple[Trial, dict]]:
    """Walks the seed's tour in any environment with `info["frames"]`: every block's trial and its info."""
    _, info = env.reset(seed=seed, options=options)
    last = info["frames"][-1]
    focal = CAMERA.focal(last.shape[1])
    for held, switch in tour_of(seed):
        _, _, _, _, info = env.step(WISHES[held][0].index)
        frames = np.concatenate([last[None], info["frames"]])
        last = frames[-1]
        yield Trial(held, switch, block_motion(frames, focal)), info


def compare(world: gymnasium.Env, street: gymnasium.Env, seed: int) -> tuple[list[Trial], list[Trial]]:
    """(dream's trials, street's trials) of one tour from the same picture.

    Blocks in which a wall stopped the walker on the street are left out of both.
    """
    _, info = street.reset(seed=seed)
    picture = info["frames"][-1]
    true = list(walk_tour(street, seed))
    dreamt = list(walk_tour(world, seed, {"image": picture}))
    free = [not info["blocked"] for _, info in true]
    return [trial for (trial, _), ok in zip(dreamt, free) if ok], [trial for (trial, _), ok in zip(true, free) if ok]


def verdict(wish: Wish, motion: CameraMotion, seconds: float) -> bool:
    """Whether the camera moved as wished in a block of `seconds`."""
    limits = (STILL_SHARE * CAMERA.turn_speed, STILL_SHARE * CAMERA.tilt_speed, STILL_ZOOM * CAMERA.walk_speed)
    pairs = ((wish.turn, motion.turn), (wish.tilt, motion.tilt), (wish.zoom, motion.zoom))
    return all(
        wanted is None or (wanted * moved > limit * seconds if wanted else abs(moved) < limit * seconds)
        for (wanted, moved), limit in zip(pairs, limits, strict=True)
    )


def score(trials: Sequence[Trial], seconds: float) -> list[Score]:
    """The table: one row for each thing held, over blocks of `seconds`."""

    def share(wish: Wish, chosen: Sequence[Trial]) -> float | None:
        return sum(verdict(wish, trial.motion, seconds) for trial in chosen) / len(chosen) if chosen else None

    rows = []
    for held, (_, wish) in WISHES.items():
        own = [trial for trial in trials if trial.held == held]
        if not own:
            continue
        right = share(wish, own)
        after_switch = share(wish, [trial for trial in own if trial.switch])
        while_held = share(wish, [trial for trial in own if not trial.switch])
        other_keys = share(wish, [trial for trial in trials if trial.held != held])
        motions = np.array([(trial.motion.turn, trial.motion.tilt, trial.motion.zoom) for trial in own])
        median = CameraMotion(*np.median(motions, axis=0).tolist())
        rows.append(Score(held, len(own), right, after_switch, while_held, other_keys, median))
    return rows


def table(scores: Sequence[Score]) -> str:
    """The scores as Markdown."""
    lines = [
        "| held | right way | just pressed | kept held | other keys | turn | tilt | zoom | blocks |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in scores:
        shares = (row.right, row.right_after_switch, row.right_while_held, row.other_keys)
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        median = f"{row.median.turn:+.1f}° | {row.median.tilt:+.1f}° | {row.median.zoom:+.1%}"
        lines.append(f"| {row.held} | {' | '.join(cells)} | {median} | {row.blocks} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--seeds", type=int, default=20, help="seeds 0 to this (default 20)")
    parser.add_argument("--steps", type=int, help="denoising steps of a block (default: the model's)")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error("--seeds must be 1 or more")

    world = gymnasium.make(WORLD, model=args.model, steps=args.steps)
    name = world.get_wrapper_attr("model").config.name  # the street in the model's picture size and block length
    street = gymnasium.make(STREET, preset=name)
    pairs = [compare(world, street, seed) for seed in tqdm(range(args.seeds), desc="tours", leave=False)]
    scores = {}
    for number, env in enumerate((world, street)):
        seconds = env.metadata["frames_per_step"] / env.metadata["render_fps"]
        assert env.spec is not None
        scores[env.spec.id] = rows = score([trial for pair in pairs for trial in pair[number]], seconds)
        print(f"\n{env.spec.id}, {args.seeds} seeds, blocks of {seconds:g} s\n\n{table(rows)}")
    if args.json:
        args.json.write_text(
            json.dumps({name: [asdict(row) for row in rows] for name, rows in scores.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
