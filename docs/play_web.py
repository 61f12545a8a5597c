"""Takes the pictures of docs/play-web.md again: `python docs/play_web.py` (needs Chromium and Playwright)."""

from __future__ import annotations

import argparse
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from world_model.model import WorldModel
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.start import Start
from yume_gym.play.web import Server, create_app
from yume_gym.play.web_lobby import Lobby

HERE = Path(__file__).parent
SEED = 5
PICTURES: dict[str, tuple[bool, dict[str, Any]]] = {  # file: (beside the street?, what the browser is)
    "play-web.png": (True, {"viewport": {"width": 1280, "height": 760}}),
    "play-phone.png": (
        False,
        {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True},
    ),
}


def walk(page: Page) -> None:
    """A few steps, a look to the side, an event."""
    page.keyboard.down("w")
    until(page, "yume.log.last?.keys === 'W'")
    page.click("#chips button:has-text('sunset')")
    page.keyboard.down("ArrowRight")
    until(page, "yume.log.last.event && yume.log.last.look === '→' && yume.log.last.index === 3")
    page.evaluate("scrollTo(0, 0)")


def until(page: Page, expression: str) -> None:
    while not page.evaluate(expression):
        page.wait_for_timeout(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="street", help="a model's name or a folder of weights")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    args = parser.parse_args()
    with Dreamer(WorldModel.load(args.model)) as dreamer, sync_playwright() as playwright:
        dreamer.warm_up()
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, (twin, options) in PICTURES.items():
            address: queue.Queue[str] = queue.Queue()
            lobby = Lobby(dreamer, places=1, start=Start(SEED, twin=twin), twin=twin)
            server = Server(create_app(lobby), "127.0.0.1", 0, address.put)
            thread = threading.Thread(target=server.run)
            thread.start()
            page = browser.new_context(**options).new_page()
            page.goto(address.get())
            walk(page)
            page.screenshot(path=HERE / name)
            page.close()
            server.should_exit = True
            thread.join()
            for session in dreamer.sessions:
                session.close()
        browser.close()


if __name__ == "__main__":
    main()
