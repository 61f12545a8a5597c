"""Step into the dream: a window with keyboard or gamepad, or a page in a browser.

python examples/human_play.py                                  # WASD and arrows; Enter types an event; --help
python examples/human_play.py --image photo.jpg --seed 3
python examples/human_play.py --twin                           # YumeStreet-v0 beside the dream, under the same keys
python examples/human_play.py --record out.mp4                 # and out.replay, which --replay dreams again
python examples/human_play.py --model runs/breakout            # a recorded world, under its own keys
python examples/human_play.py --web                            # http://127.0.0.1:8000, for machines without a screen
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from world_model.model import WorldModel
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.replay import Replay, read_replay
from yume_gym.play.session import Session
from yume_gym.play.start import Start, prepare
from yume_gym.play.window import PlayWindow, has_display


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if not args.web and not has_display():
        parser.error("there is no display: use --web and a browser (or SDL_VIDEODRIVER=dummy for a window nobody sees)")
    if args.twin and args.image:
        parser.error("--twin starts where the street starts: leave out --image")
    try:
        replay = read_replay(args.replay) if args.replay else None
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))

    steps = args.steps if replay is None else replay.header.steps
    start = Start(args.seed or 0, args.image, args.text, args.twin)
    try:
        model = WorldModel.load(args.model, device=args.device)
        if args.web:
            from yume_gym.play.web import check_page

            check_page(model.config)
        prepare(model, start)  # what is wrong with it is said at once
        dreamer = Dreamer(model, max_sessions=args.players if args.web else 1, steps=steps)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    with dreamer:
        print("waking up ...", flush=True)
        dreamer.warm_up()
        if args.web:
            from yume_gym.play.web import serve
            from yume_gym.play.web_lobby import Lobby

            own = (args.seed, args.image, args.text) == (None, None, None)  # then every player gets a seed of their own
            first = None if own else start
            lobby = Lobby(dreamer, args.players, first, twin=args.twin, record=args.record, replay=replay)
            serve(lobby, host=args.host, port=args.port, token=args.token)
        else:
            play(parser, args, dreamer, start, replay)


def play(
    parser: argparse.ArgumentParser, args: argparse.Namespace, dreamer: Dreamer, start: Start, replay: Replay | None
) -> None:
    """One player at the window."""
    try:
        session = dreamer.open(start) if replay is None else dreamer.replay(replay)
        if args.record:
            print(f"recording {args.record}, replay {session.record(args.record)}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    PlayWindow(session, args.clips).run(
        args.seconds, leave_when_finished=replay is not None and args.record is not None
    )
    print(summary(session))
    try:
        session.close()
    except OSError as error:  # a video that could not be written
        parser.exit(1, f"{error}\n")


def summary(session: Session) -> str:
    """How it went, in a line."""
    stats = session.stats()
    frames, median = stats.frames, stats.latency.median
    smooth = "-" if frames.smooth is None else f"{frames.smooth:.1%}"
    delay = "-" if median is None else f"{1000 * median:.0f} ms"
    return f"{frames.shown} frames, {smooth} of them within 1.5 frame periods; key to picture {delay} (median)"


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--device", default="auto", help="where the network runs, such as cpu or cuda")
    parser.add_argument("--steps", type=int, help="denoising steps a block (default: the model's own)")
    parser.add_argument("--seed", type=int, help="default: 0, in the browser one for every player")
    parser.add_argument("--image", type=Path, help="start from this picture")
    parser.add_argument("--text", help="start from, or with, this description")
    parser.add_argument("--twin", action="store_true", help="YumeStreet-v0 beside the dream, under the same keys")
    parser.add_argument(
        "--record", type=Path, metavar="OUT.mp4", help="record a video of the session, and write its replay beside it"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="dream a recorded session again, frame by frame")
    window = parser.add_argument_group("window")
    window.add_argument("--clips", type=Path, default=Path("clips"), help="where F saves clips (default: clips)")
    window.add_argument("--seconds", type=float, help="leave after so long")
    web = parser.add_argument_group("browser")
    web.add_argument("--web", action="store_true", help="serve a page instead of opening a window")
    web.add_argument("--host", default="127.0.0.1", help="address to serve on; any but this machine's demands a token")
    web.add_argument("--port", type=int, default=8000)
    web.add_argument("--players", type=int, default=4, help="how many may play at once (default 4)")
    web.add_argument("--token", help="what a browser has to show (default: made up where one is needed)")
    return parser


if __name__ == "__main__":
    main()
