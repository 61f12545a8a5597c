"""The browser front in a real Chromium: a person's session from the first picture to the clip that is kept of it.

Needs Debian's package chromium (or CHROMIUM=/path/to/it) and Playwright's Python package. Where they are missing the tests are
skipped and say so; with YUME_REQUIRE_BROWSER=1, as continuous integration sets it, that is a failure.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from train.judge.motion import CameraMotion, block_motion
from world_model.camera import CameraConfig
from world_model.model import WorldModel
from yume_gym.play.start import Twin

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 180_000  # ms that a busy machine may take
TOKEN = "the-right-token"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

# the next `count` frames that appear and have what `wanted` says in their headers, as the canvas shows them, in the model's size
WATCH = """async ([count, width, height, wanted]) => {
  const frames = [], canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  let last = yume.log.last?.n;
  while (frames.length < count) {
    await new Promise(requestAnimationFrame);
    const header = yume.log.last;
    if (!header || header.n === last) continue;
    last = header.n;
    if (Object.entries(wanted).some(([name, value]) => header[name] !== value)) continue;
    context.imageSmoothingQuality = "high";
    context.drawImage(document.getElementById("dream"), 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height).data;
    frames.push([header, btoa(Array.from(pixels, (value) => String.fromCharCode(value)).join(""))]);
  }
  globalThis.watched = true;
  return frames;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = "the package chromium (apt-get install chromium)" if not CHROMIUM else ""
    if importlib.util.find_spec("playwright") is None:
        missing = "Playwright (pip install -e '.[dev]')"
    if missing:
        if os.environ.get("YUME_REQUIRE_BROWSER"):
            pytest.fail(f"the browser front cannot be tested without {missing}")
        pytest.skip(f"the browser front is not tested: {missing} is missing")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """visit(address, **context): a page in a context of its own that has it open. No page may have had errors."""
    contexts, errors = [], []

    def open_page(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 700}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [error for error in errors if "status of 4" not in error] == []


def start_watching(page: Any, count: int, size: tuple[int, int] = (64, 96), **wanted: Any) -> None:
    """Keeps the next `count` frames shown, of those whose headers have what is `wanted`, for `seen`."""
    start = f"wish => {{ globalThis.watched = false; globalThis.seen = ({WATCH})(wish); }}"
    page.evaluate(start, [count, size[1], size[0], wanted])
    page.watched_size = size


def seen(page: Any) -> tuple[list[dict], np.ndarray]:
    """(headers, frames uint8 [count, H, W, 3]), as soon as they were shown."""
    found = page.evaluate("globalThis.seen")
    pixels = [np.frombuffer(base64.b64decode(data), np.uint8) for _, data in found]
    return [header for header, _ in found], np.stack([p.reshape(*page.watched_size, 4)[..., :3] for p in pixels])


def watch(page: Any, count: int, **wanted: Any) -> tuple[list[dict], np.ndarray]:
    start_watching(page, count, **wanted)
    return seen(page)


def motion(frames: np.ndarray) -> CameraMotion:
    return block_motion(frames, CameraConfig().focal(frames.shape[2]))


def shows(page: Any, selector: str, words: str) -> None:
    page.locator(selector).filter(has_text=re.compile(words, re.DOTALL)).wait_for()


def until(page: Any, expression: str, seconds: float = PATIENCE / 1000) -> None:
    """Waits until the page's `expression` holds. (Playwright's own way needs eval, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"in vain: {expression}; last frame {page.evaluate('yume.log.last')}"
        page.wait_for_timeout(20)


def is_live(page: Any) -> None:
    shows(page, "#link", "^live")
    until(page, "yume.log.last !== undefined")


# ---- the shipped model --------------------------------------------------------------------------------------------------


def test_the_street_answers_to_keys_and_events(serve_play, visit):
    with serve_play(WorldModel.load("street", device="cpu", dtype="float32")) as address:
        page = visit(address)
        is_live(page)
        page.keyboard.down("w")
        headers, frames = watch(page, 6, keys="W", look="")
        assert motion(frames).zoom > 0, "walking forward, things come closer"
        page.keyboard.down("ArrowRight")
        turned = watch(page, 5, keys="W", look="→")[1]
        assert motion(turned).turn > 5, "looking to the right, the picture moves left"
        shows(page, "#hud-delay", r"\d+ ms")

        page.keyboard.press("Enter")
        page.keyboard.type("night falls")  # whose letters are no keys to walk with, while W and the arrow are held
        page.keyboard.press("Enter")
        shows(page, "#event-now", "night falls")
        headers, _ = watch(page, 1)
        assert (headers[0]["keys"], headers[0]["look"], headers[0]["event"]) == ("W", "→", "night falls")

        page.keyboard.up("w")
        page.keyboard.up("ArrowRight")
        page.keyboard.down("ArrowLeft")
        assert motion(watch(page, 5, keys="", look="←")[1]).turn < -5
        page.close()


# ---- a small world, for all that does not depend on what is dreamt ------------------------------------------------------


def test_what_players_type_is_text(site, visit):
    page = visit(site)
    is_live(page)
    markup = "<img src=x onerror=document.title='hacked'><b>fog</b>"
    page.fill("#event-box", markup)
    page.keyboard.press("Enter")
    shows(page, "#event-text", re.escape(markup))
    assert page.locator("#event-now img, #event-now b").count() == 0 and "hacked" not in page.title()
    page.click("#event-end")
    page.locator("#event-now").wait_for(state="hidden")
    assert page.locator("#phrases option").count() > 100
    page.locator("#chips button", has_text="fireworks").click()
    shows(page, "#event-text", "fireworks")


def test_a_picture_is_where_the_rollout_begins(site, visit, config, tmp_path):
    page = visit(site)
    is_live(page)
    halves = np.zeros((60, 90, 3), np.uint8)
    halves[:, :45, 0] = halves[:, 45:, 2] = 230
    Image.fromarray(halves).save(tmp_path / "halves.png")
    for world in range(1, 10):  # a page that is late skips frames, the one before the first block too
        page.set_input_files("#picture", tmp_path / "halves.png")
        page.fill("#seed", "7")
        start_watching(page, 1, size=(config.height, config.width), world=world, block=-1)
        page.click("#start-form button[type=submit]")
        until(page, f"yume.log.last.world === {world} && yume.log.last.block >= 0")
        if page.evaluate("globalThis.watched"):
            break
    else:
        pytest.fail("the first frame of nine worlds was skipped")
    first = seen(page)[1][0]
    left, right = first[:, :20].mean((0, 1)), first[:, -20:].mean((0, 1))
    assert left[0] > left[2] + 150 and right[2] > right[0] + 150
    shows(page, "#hud-seed", "^7$")


def test_what_is_no_picture_is_refused_in_words(site, visit, tmp_path):
    page = visit(site)
    is_live(page)
    for name, data, words in (
        ("notes.png", b"hello", "choose a PNG, JPEG or WebP"),
        ("large.jpg", b"\xff\xd8\xff" + bytes(9 * 2**20), "larger than 8 MB"),
        ("broken.png", b"\x89PNG\r\n\x1a\n" + bytes(99), "damaged"),
    ):
        (tmp_path / name).write_bytes(data)
        page.set_input_files("#picture", tmp_path / name)
        page.click("#start-form button[type=submit]")
        shows(page, "#message.bad", words)
    before = page.evaluate("yume.log.last.n")
    until(page, f"yume.log.last.n > {before}")  # and the old dream goes on


def test_a_clip_and_a_replay_are_kept(site, visit, config, tmp_path):
    page = visit(site)
    is_live(page)
    watch(page, 6)
    with page.expect_download() as clip:
        page.click("#clip")
    clip.value.save_as(tmp_path / "clip.mp4")
    assert clip.value.suggested_filename.endswith(".mp4")
    with imageio.imopen(tmp_path / "clip.mp4", "r") as file:
        film = file.read()
    assert len(film) >= 6 and film.std() > 1
    page.click("summary")
    with page.expect_download() as replay:
        page.click("#replay")
    assert Path(replay.value.path()).stat().st_size > 50


def test_two_fingers_walk_and_look(site, visit):
    page = visit(site, **PHONE)
    is_live(page)
    boxes = [page.locator(f"[data-key='{key}']").bounding_box() for key in ("W", "→")]
    fingers = [
        {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "id": i} for i, box in enumerate(boxes)
    ]
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers[:1]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers})
    until(page, "yume.log.last.keys === 'W' && yume.log.last.look === '→'")
    fingers[1]["y"] -= boxes[1]["height"]  # the finger slides upwards, between two arrows
    touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": fingers})
    until(page, "yume.log.last.look === '↑→'")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    until(page, "yume.log.last.keys === '' && yume.log.last.look === ''")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the edge"


def test_full_house_and_a_page_that_closes_abruptly(site, visit):
    first, second = visit(site), visit(site)
    is_live(first)
    is_live(second)
    shows(first, "#link", "2 playing")
    third = visit(site)
    shows(third, "#notice", "Full house.*All 2 places are taken.*next in line")
    assert third.evaluate("yume.log.last") is None
    first.close(run_before_unload=False)
    is_live(third)
    assert third.locator("#notice").is_hidden()


def test_a_broken_line_comes_back_to_the_same_world(site, visit):
    page = visit(site)
    is_live(page)
    page.fill("#seed", "4321")
    page.click("#start-form button[type=submit]")
    until(page, "yume.log.last.world === 1 && yume.log.last.block >= 2")
    block, n = page.evaluate("[yume.log.last.block, yume.log.last.n]")
    page.evaluate("yume.link.socket.close()")
    shows(page, "#message", "same world")
    until(page, f"yume.log.last.n !== {n}")
    page.reload()
    is_live(page)
    shows(page, "#hud-seed", "4321")
    last = page.evaluate("yume.log.last")
    assert last["world"] == 1 and last["block"] >= block


def test_pause_restart_and_the_numbers_by_keyboard(site, visit):
    page = visit(site)
    is_live(page)
    page.keyboard.press("Space")
    shows(page, "#notice", "Paused")
    page.wait_for_timeout(400)
    n = page.evaluate("yume.log.last.n")
    page.wait_for_timeout(600)
    assert page.evaluate("yume.log.last.n") == n
    page.keyboard.press("r")
    until(page, "yume.log.last.world === 1")
    assert page.locator("#notice").is_hidden()
    page.keyboard.press("h")
    assert page.locator("#hud").is_hidden()


def test_the_ground_truth_beside_the_rollout(serve_play, world_model, visit, config):
    Twin(config).begin(0, None)  # compiles the street, where that was never done before
    with serve_play(world_model, twin=True) as address:
        page = visit(address)
        is_live(page)
        page.locator("#street").wait_for()
        until(page, "yume.log.last.block >= 1 && yume.log.last.sizes.length === 2")
        drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 20"
        assert page.locator("#street").evaluate(drawn)
        page.click("#twin")
        page.locator("#street").wait_for(state="hidden")
        page.close()


def test_a_token_is_demanded(serve_play, world_model, visit):
    with serve_play(world_model, token=TOKEN) as address:
        page = visit(address)
        shows(page, "body", "A token is needed")
        page.goto(f"{address}/?token={TOKEN}")
        is_live(page)
        assert "token" not in page.url and TOKEN not in page.evaluate("document.cookie")
        page.close()
