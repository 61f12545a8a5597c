"""Is play in the browser fluent? `python -m yume_gym.play.web_benchmark [--model street] [--seconds 120] [--players 4]`

Serves the page from a process of its own, opens it in Chromium and holds changing keys, as a player would: first one page, for
`--seconds`, then several at once. All times are taken in the page: when pictures appear, and how long after a key they follow it.
Prints Markdown. Needs Chromium and Playwright's Python package: pip install 'yume-gym[dev]'.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from yume_gym.benchmark import machine, memory_in_use

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
KEYS = ("w", "a", "s", "d", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown")
SETTLE = 5.0  # seconds of play that are not counted
TOGETHER = 30.0  # seconds for several players
SMOOTH = 1.5  # frame periods: a picture that comes later after the one before is a stutter
HOLD = (0.4, 1.5)  # seconds for which a key is held, at least and at most


@dataclass(frozen=True)
class Seen:
    """What one page showed. shown: times of its pictures; delays: from key to picture; milliseconds. dropped: of all frames,
    how many never appeared."""

    shown: np.ndarray
    delays: np.ndarray
    dropped: int
    fps: int
    block: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return 1000 * (len(self.shown) - 1) / float(self.shown[-1] - self.shown[0]) if len(self.shown) > 1 else 0.0

    @property
    def smooth(self) -> float:
        """Share of pictures that came within `SMOOTH` frame periods of the one before."""
        return float((np.diff(self.shown) <= SMOOTH * 1000 / self.fps).mean()) if len(self.shown) > 1 else 0.0


def play(pages: Sequence[Any], seconds: float, seed: int = 0) -> list[Seen]:
    """Holds random keys in all `pages` at once for so long; what each showed after `SETTLE`."""
    random = np.random.default_rng(seed)
    held: list[str | None] = [None] * len(pages)

    def press_for(duration: float) -> None:
        left = duration
        while left > 0:
            for i, page in enumerate(pages):
                if held[i]:
                    page.keyboard.up(held[i])
                held[i] = str(random.choice(KEYS))
                page.keyboard.down(held[i])
            pause = min(left, random.uniform(*HOLD))
            pages[0].wait_for_timeout(1000 * pause)
            left -= pause

    press_for(SETTLE)
    for page in pages:
        page.evaluate("Object.assign(yume.log, { shown: [], delays: [], skipped: 0 })")
    press_for(seconds)
    return [_seen(page.evaluate("({ ...yume.log, fps: yume.world.fps, block: yume.world.block })")) for page in pages]


def report(alone: Seen, together: Sequence[Seen], memory: tuple[int | None, int | None], about: str) -> str:
    """Markdown."""
    delays = alone.delays if len(alone.delays) else np.array([np.nan])
    rows = [
        ("machine", about),
        ("pictures/s, one player", f"{alone.rate:.2f} of {alone.fps}"),
        (f"pictures within {SMOOTH} frame periods", f"{alone.smooth:.2%} of {len(alone.shown)}"),
        ("frames that never appeared", str(alone.dropped)),
        ("key to picture, median", _delay(float(np.median(delays)), alone.block)),
        ("key to picture, 95%", _delay(float(np.quantile(delays, 0.95)), alone.block)),
        ("keys measured", str(len(alone.delays))),
        (f"pictures/s, {len(together)} players at once", ", ".join(f"{seen.rate:.2f}" for seen in together)),
        ("the server's memory, before and after", " / ".join(_mebibytes(size) for size in memory)),
    ]
    return "\n".join(
        ["| play in the browser | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    )


def _delay(milliseconds: float, block: float) -> str:
    return f"{milliseconds:.0f} ms, {milliseconds / 1000 / block:.2f} blocks"


def _mebibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.0f} MiB"


def _seen(log: dict[str, Any]) -> Seen:
    return Seen(np.array(log["shown"]), np.array(log["delays"]), log["skipped"], log["fps"], log["block"])


def _serve(pipe: Connection, model: str, device: str, players: int) -> None:
    """The server's process: tells its address, then its memory whenever asked, until told to stop."""
    import threading

    from world_model.model import WorldModel
    from yume_gym.play.dreamer import Dreamer
    from yume_gym.play.web import Server, create_app
    from yume_gym.play.web_lobby import Lobby

    loaded = WorldModel.load(model, device=device)
    with Dreamer(loaded, max_sessions=players) as dreamer:
        dreamer.warm_up()
        server = Server(create_app(Lobby(dreamer, players, held_for=0.0)), "127.0.0.1", 0, pipe.send)
        thread = threading.Thread(target=server.run)
        thread.start()
        while pipe.recv() == "measure":
            pipe.send((memory_in_use(), machine(loaded)))
        server.should_exit = True
        thread.join()


def measure(model: str, device: str, seconds: float, players: int, chromium: str) -> str:
    """Runs everything; the report."""
    from playwright.sync_api import sync_playwright

    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, model, device, players), daemon=True)
    process.start()
    theirs.close()
    address = pipe.recv()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))

        def visit() -> Any:
            page = browser.new_context().new_page()
            page.goto(address)
            while not page.evaluate("yume.log.last?.block >= 0"):
                page.wait_for_timeout(100)
            return page

        first = visit()
        pipe.send("measure")
        before, about = pipe.recv()
        alone = play([first], seconds)[0]
        pipe.send("measure")
        after = pipe.recv()[0]
        together = play([first, *(visit() for _ in range(players - 1))], min(seconds, TOGETHER))
        browser.close()
    pipe.send("stop")
    process.join()
    return report(alone, together, (before, after), about)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=120, help="how long one player walks (default 120)")
    parser.add_argument("--players", type=int, default=4, help="how many play at once afterwards (default 4)")
    parser.add_argument("--chromium", help="path of the browser (default: $CHROMIUM, or what is found)")
    args = parser.parse_args(argv)
    chromium = args.chromium or os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        parser.error("no Chromium was found: apt-get install chromium, or --chromium /path/to/it")
    print(measure(args.model, args.device, args.seconds, args.players, chromium))


if __name__ == "__main__":
    main()
