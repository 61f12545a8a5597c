"""An agent in the generated world (left) and in the real one (right), in one video:

    python examples/watch_agent.py --agent runs/transfer/generated-0 --model runs/grid --recording data/grid --out agent.mp4
    python examples/watch_agent.py --agent scripted --model street --reward beacon --real YumeStreetBeacon-v0 --out beacon.mp4

The agent was trained in one of the two (agents.ppo) and sees pictures only. Each side begins anew where its episode ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.evaluate import load_agent
from agents.worlds import Where
from train.data.video import write_video
from train.recordings import read_recording

GAP = 8  # pixels between the two pictures
STREET_FPS = 4.0  # pictures a second where no recording says how many; a step of the street is half a second


def watch(agent: str, where: Where, steps: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Pictures uint8 [1 + steps, H, W, 3] of an agent that acts in one world, and the returns of the episodes that ended."""
    worlds = where.make(1, seed)
    player = load_agent(agent, worlds.action_space, seed)
    seen = worlds.reset()
    pictures, returns, state, ended = [seen[0, ..., -3:]], [], None, np.ones(1, bool)
    for _ in range(steps):
        action, state = player.predict(seen, state, ended)
        seen, _, ended, infos = worlds.step(action)
        pictures.append(seen[0, ..., -3:])
        if ended[0]:
            returns.append(float(infos[0]["episode"]["r"]))
    worlds.close()
    return np.stack(pictures), returns


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", required=True, help="folder of agents.ppo, a .zip, random, scripted, or planner:RUN")
    parser.add_argument("--model", required=True, help="run folder of train.world, or a name")
    parser.add_argument("--reward", help="of the generated world; its own if not given")
    real = parser.add_mutually_exclusive_group(required=True)
    real.add_argument("--recording", help="folder of train.record that the model was trained on")
    real.add_argument("--real", metavar="ENV", help="id of the real environment")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--longest", type=int, help="truncate episodes after so many steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zoom", type=int, default=4, help="how many times larger the pictures are written")
    parser.add_argument("--out", type=Path, default=Path("agent.mp4"))
    args = parser.parse_args(argv)
    if args.steps < 1 or args.zoom < 1:
        parser.error("--steps and --zoom must be 1 or more")
    arguments = {"model": args.model} | ({"reward": args.reward} if args.reward else {})
    real = {"env": args.real} if args.real else {"recording": args.recording}
    sides = {"generated": Where(arguments=arguments, longest=args.longest), "real": Where(**real, longest=args.longest)}
    shown = []
    for name, where in sides.items():
        pictures, returns = watch(args.agent, where, args.steps, args.seed)
        print(f"{name} world: returns {[round(value, 2) for value in returns]}")
        shown.append(pictures.repeat(args.zoom, 1).repeat(args.zoom, 2))
    gap = np.full((*shown[0].shape[:2], GAP, 3), 255, np.uint8)
    fps = STREET_FPS if args.real else read_recording(Path(args.recording)).fps
    write_video(args.out, np.concatenate([shown[0], gap, shown[1]], axis=2), min(fps, 15.0))
    print(args.out)


if __name__ == "__main__":
    main()
