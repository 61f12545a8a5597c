"""Records episodes of any Gymnasium environment: what a model of a new world is trained on.

    python -m train.record --env ALE/Breakout-v5 --steps 100000 --frame-skip 4 --out data/breakout
    python -m train.record --env VizdoomTakeCover-v1 --steps 60000 --frame-skip 4 --out data/takecover
    python -m train.record --env MiniGrid-Fetch-8x8-N3-v0 --import minigrid --text-key mission --steps 20000 --out data/fetch
    python -m train.record --minari D4RL/some-pictures-v0 --out data/theirs
    python -m train.record --to-minari me/breakout-v0 --out data/breakout
    python -m train.record --env ALE/Breakout-v5 --policy keyboard:15 --frame-skip 4 --episodes 5 --out data/mine
    python -m train.record --env CarRacing-v3 --policy train.recordings.policies:car_racing --steps 20000 --out data/carracing

It can be stopped (Ctrl-C) and started again: whole episodes are kept, and the same command goes on. The result does not depend
on --workers. The format is described in train/recordings/episodes.py, policies in train/recordings/policies.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.recordings.environment import PictureSettings, RecordSettings, TextSettings
from train.recordings.format import RecordingError
from train.recordings.minari_io import read_minari, write_minari
from train.recordings.pictures import RESIZES
from train.recordings.recorder import record


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH as in 64x64, got {text!r}")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    default = RecordSettings("")
    parser = argparse.ArgumentParser(
        prog="python -m train.record", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--env", help="id of the environment to record")
    what.add_argument("--minari", metavar="DATASET", help="read a dataset of Minari instead")
    what.add_argument("--to-minari", metavar="DATASET", help="write the recording in --out as a dataset of Minari")
    parser.add_argument("--out", type=Path, required=True, help="folder of the recording")
    parser.add_argument("--steps", type=int, help="actions to record; the last episode is recorded to its end")
    parser.add_argument("--episodes", type=int, help="episodes to record, instead of --steps")
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], help="module that registers it; repeatable"
    )
    parser.add_argument("--env-kwargs", default=default.env_kwargs, help="its arguments, a JSON object")
    parser.add_argument(
        "--policy", default=default.policy, help="random, sticky[:P], smooth, keyboard[:R], a .zip, or module:function"
    )
    parser.add_argument("--frame-skip", type=int, default=default.frame_skip, help="its steps for one action")
    parser.add_argument(
        "--size", type=_size, default=default.pictures.size, help="HEIGHTxWIDTH, multiples of 8 (default 64x64)"
    )
    parser.add_argument("--resize", choices=RESIZES, default=default.pictures.resize, help="how pictures get that size")
    parser.add_argument(
        "--pictures", default=default.pictures.source, help="auto, observation, render, or an entry of it"
    )
    parser.add_argument(
        "--max-episode-steps", type=int, default=default.max_episode_steps, help="actions of an episode"
    )
    parser.add_argument("--fps", type=float, help="its steps a second, where it does not say so rightly")
    parser.add_argument("--task-text", help="a caption for all episodes")
    parser.add_argument("--text-key", help="entry of info or of the observation that holds the text in force")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=default.seed)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; prints what was wrong with the input and exits with 2, after Ctrl-C with 130."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    out, steps, episodes, workers = (given.pop(name) for name in ("out", "steps", "episodes", "workers"))
    dataset, new_dataset = given.pop("minari"), given.pop("to_minari")
    size, resize, source, caption, key = (given.pop(n) for n in ("size", "resize", "pictures", "task_text", "text_key"))
    try:
        if new_dataset is not None:
            print(f"{write_minari(out, new_dataset)} episodes in the Minari dataset {new_dataset}")
            return
        pictures, texts = PictureSettings(size, resize, source), TextSettings(caption, key)
        given |= {"imports": tuple(given["imports"]), "env": given["env"] or ""}
        settings = RecordSettings(**given, pictures=pictures, texts=texts)
        if dataset is not None:
            writer = read_minari(dataset, out, settings)
        else:
            writer = record(settings, out, steps=steps, episodes=episodes, workers=workers)
        print(f"{writer.episodes} episodes, {writer.steps} steps in {out}")
    except RecordingError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        print(f"stopped; whole episodes are kept in {out}, the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
