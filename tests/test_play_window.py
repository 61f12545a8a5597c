"""The play window under SDL's dummy driver, with synthetic keys, and the example that opens it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from test_examples import load_script

from world_model.actions import Action
from yume_gym.hud import enlarge, write_lines
from yume_gym.play.controls import Command, Controls
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.session import Session
from yume_gym.play.start import Start
from yume_gym.play.web_lobby import Lobby
from yume_gym.play.window import PlayWindow
from yume_gym.play.world import Frame

pygame = pytest.importorskip("pygame", reason="the play window needs pygame: pip install 'yume-gym[play]'")


@pytest.fixture(autouse=True)
def dummy_driver(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture
def controls() -> Iterator[Controls]:
    pygame.display.init()
    yield Controls(pygame)
    pygame.quit()


@pytest.fixture
def session(fast_model) -> Iterator[Session]:
    with Dreamer(fast_model) as dreamer:
        yield dreamer.open(Start(seed=1))


def key(name: int, down: bool = True) -> pygame.event.Event:
    return pygame.event.Event(pygame.KEYDOWN if down else pygame.KEYUP, key=name, unicode="", mod=0)


def text(what: str) -> pygame.event.Event:
    return pygame.event.Event(pygame.TEXTINPUT, text=what)


def play(
    session: Session, script: dict[tuple[int, int], list[pygame.event.Event]], seconds: float = 120, **window
) -> tuple:
    """Plays with events posted when the frame (block, index) is on the screen. Returns the window, frames and pictures."""
    frames: list[Frame] = []
    pictures: list[np.ndarray] = []

    def on_frame(frame: Frame) -> None:
        frames.append(frame)
        assert shows.picture is not None
        pictures.append(shows.picture)
        for event in script.pop((frame.block, frame.index), []):
            pygame.event.post(event)

    shows = PlayWindow(session, on_frame=on_frame, **window)
    shows.run(seconds)
    assert not script, f"never came to {list(script)}"
    return shows, frames, pictures


def quit_event() -> pygame.event.Event:
    return pygame.event.Event(pygame.QUIT)


def test_keys_walk_and_an_event_is_typed_while_walking(session) -> None:
    script = {
        (-1, 0): [key(pygame.K_w), key(pygame.K_RIGHT)],
        (3, 0): [key(pygame.K_RETURN), text("night "), key(pygame.K_w, False), text("fallsx"), key(pygame.K_BACKSPACE)],
        (7, 0): [key(pygame.K_RETURN)],
        (11, 0): [quit_event()],
    }
    _, frames, pictures = play(session, script)
    meanings = [frame.action.meaning for frame in frames]
    assert "W →" in meanings
    assert frames[-1].event == "night falls" and frames[-1].action.meaning == "→"  # W was let go of while typing
    typed = next(i for i, frame in enumerate(frames) if frame.block == 6)
    assert frames[typed].action.meaning == "W →"  # but the walk went on until Enter
    height, width = pictures[0].shape[:2]
    assert height == 512 and width == 768
    begun = next(i for i, frame in enumerate(frames) if frame.event)
    banner = pictures[begun][:24].astype(int) - pictures[begun - 1][:24]
    assert (np.abs(banner).max(-1) > 100).sum() > 200  # the event is written at the top


def test_commands(session, tmp_path) -> None:
    script = {
        (2, 0): [key(pygame.K_f)],
        (3, 0): [key(pygame.K_TAB), key(pygame.K_d), key(pygame.K_d, False)],
        (4, 0): [key(pygame.K_TAB)],
        (5, 0): [key(pygame.K_n)],
    }

    def then(frame: Frame) -> None:
        if frame.world == 1 and frame.block == 0 and frame.index == 1:
            pygame.event.post(key(pygame.K_r))
        if frame.world == 2 and frame.block == 1 and frame.index == 0:
            pygame.event.post(key(pygame.K_ESCAPE))

    frames: list[Frame] = []
    window = PlayWindow(session, clips=tmp_path / "clips")

    def on_frame(frame: Frame) -> None:
        frames.append(frame)
        for event in script.pop((frame.block, frame.index), []) if frame.world == 0 else []:
            pygame.event.post(event)
        then(frame)

    window._on_frame = on_frame
    window.run(30)
    assert [frame.world for frame in frames] == sorted(frame.world for frame in frames)
    assert frames[-1].world == 2 and session.start.seed == 2
    assert any(frame.action == Action.from_keys("D") for frame in frames if frame.block > 3)  # a tap within one turn
    end = time.monotonic() + 20
    while not list((tmp_path / "clips").glob("yume-*.mp4")) or list((tmp_path / "clips").glob("*.part.*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    (clip,) = (tmp_path / "clips").iterdir()
    assert len(iio.imread(clip)) >= 8


def test_pause_and_hud_are_seen(session) -> None:
    window = PlayWindow(session)
    window._open()
    window._notice = ""
    while window._frame is None or window._frame.block < 1:
        window._turn()
    session.pause()

    def now() -> np.ndarray:
        window._turn()
        assert window.picture is not None
        return window.picture.astype(int)

    hud = now()
    pygame.event.post(key(pygame.K_TAB))
    plain = now()
    keys, facts, middle = (
        (slice(456, 512), slice(0, 90)),
        (slice(30, 120), slice(0, 180)),
        (slice(240, 280), slice(340, 430)),
    )
    assert all(np.abs(hud - plain)[part].mean() > 10 for part in (keys, facts))
    assert (hud == plain)[middle].all()  # "paused"
    pygame.event.post(key(pygame.K_p))
    while window._frame.block < 3:
        window._turn()
    shown = now()  # a turn may bring the next frame
    assert (shown == enlarge(window._frame.picture, 16)).all() and not session.paused
    pygame.quit()


def test_a_dropped_picture_starts_a_world(session, tmp_path, pictures) -> None:
    iio.imwrite(tmp_path / "start.png", pictures[3])
    (tmp_path / "text.png").write_text("no picture")
    drop = [pygame.event.Event(pygame.DROPFILE, file=str(tmp_path / name)) for name in ("text.png", "start.png")]
    frames: list[Frame] = []

    def on_frame(frame: Frame) -> None:
        frames.append(frame)
        if (frame.world, frame.block, frame.index) == (0, 1, 0):
            pygame.event.post(drop[0])
        if (frame.world, frame.block, frame.index) == (0, 2, 0):
            assert "not a readable picture" in window._notice  # and the world goes on
            pygame.event.post(drop[1])
        if frame.world == 1:
            pygame.event.post(quit_event())

    window = PlayWindow(session, on_frame=on_frame)
    window.run(30)
    assert (frames[-1].picture == pictures[3]).all()


def test_twin_side_by_side_and_the_toggle(world_model) -> None:
    with Dreamer(world_model) as dreamer:
        session = dreamer.open(Start(seed=1, twin=True))
        _, frames, pictures = play(
            session, {(-1, 0): [key(pygame.K_t)], (0, 1): [key(pygame.K_t)], (1, 0): [quit_event()]}
        )
    by_block = {(frame.block, frame.index): picture for frame, picture in zip(frames, pictures)}
    both, dream, street = by_block[-1, 0], by_block[0, 0], by_block[1, 0]
    assert both.shape[1] == 2 * 12 * 48 and dream.shape[1] == street.shape[1] == 16 * 48
    assert frames[-1].twin is not None


def test_a_gamepad_walks_and_looks(controls) -> None:
    def move(axis: int, value: float) -> None:
        controls.handle(pygame.event.Event(pygame.JOYAXISMOTION, instance_id=0, axis=axis, value=value))

    move(1, -0.9)
    move(2, 0.7)
    assert controls.held == {"W", "→"}
    move(1, 0.1)  # near the middle: nothing
    move(3, -1.0)
    assert controls.held == {"→", "↑"}
    move(2, 0.0)
    move(3, 0.0)
    controls.handle(pygame.event.Event(pygame.JOYHATMOTION, instance_id=0, hat=0, value=(-1, 1)))
    assert controls.held == {"A", "W"}
    controls.handle(pygame.event.Event(pygame.JOYDEVICEREMOVED, instance_id=0))
    assert controls.held == set()
    assert controls.handle(pygame.event.Event(pygame.JOYBUTTONDOWN, instance_id=0, button=7)) == Command("pause")


def test_losing_the_focus_lets_go_of_everything(controls) -> None:
    controls.handle(key(pygame.K_w))
    assert controls.held == {"W"}
    controls.handle(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    assert controls.held == set()


def test_typing_can_be_left_and_letters_are_no_commands(controls) -> None:
    controls.handle(key(pygame.K_RETURN))
    assert controls.typing == ""
    assert controls.handle(key(pygame.K_r)) is None and controls.handle(key(pygame.K_SPACE)) is None
    assert controls.handle(key(pygame.K_w)) is None and controls.held == set()
    controls.handle(text("x" * 600))
    assert controls.typing is not None and len(controls.typing) == 500
    assert controls.handle(key(pygame.K_ESCAPE)) is None and controls.typing is None
    controls.handle(key(pygame.K_RETURN))
    assert controls.handle(key(pygame.K_RETURN)) == Command("event", "")


def test_lines_are_written_and_broken() -> None:
    grey = np.full((120, 300, 3), 90, np.uint8)
    top = (write_lines(grey, ["one"], "top") != grey).any(-1)
    assert top[:60, :100].any() and not top[60:].any() and not top[:, 150:].any()
    long = (write_lines(grey, ["many words in one long line, which is broken"], "middle") != grey).any(-1)
    assert np.flatnonzero(long.any(1)).size > 40 and np.flatnonzero(long.any(0)).size <= 300


# ---- the example ----------------------------------------------------------------------------------------------------------

human_play = load_script(Path(__file__).parent.parent / "examples" / "human_play.py")


def test_human_play_records_and_replays(weights_folder, tmp_path, capsys) -> None:
    model = ["--model", str(weights_folder)]
    film = tmp_path / "new" / "out.mp4"
    human_play.main([*model, "--seconds", "3", "--record", str(film), "--seed", "4"])
    assert re.search(r"\d+ frames, [\d.-]+%? of them within 1.5 frame periods", capsys.readouterr().out)
    again = tmp_path / "again.mp4"
    human_play.main([*model, "--replay", str(film.with_suffix(".replay")), "--record", str(again)])
    first, second = iio.imread(film), iio.imread(again)
    assert len(first) >= 3 and (first == second).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--twin", "--image", "a.png"], "leave out --image"),
        (["--replay", "none.replay"], "no such replay"),
        (["--image", "none.png"], "no such picture"),
        (["--model", "none"], "unknown model"),
        (["--seed", "-1"], "seed must be 0 or more"),
    ],
)
def test_human_play_refuses(weights_folder, arguments, message, capsys) -> None:
    model = [] if "--model" in arguments else ["--model", str(weights_folder)]
    with pytest.raises(SystemExit):
        human_play.main([*model, *arguments])
    assert message in capsys.readouterr().err


def test_without_a_display_the_browser_is_named(monkeypatch, capsys) -> None:
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        human_play.main([])
    assert "use --web" in capsys.readouterr().err


def test_web_serves_what_was_asked_for(weights_folder, monkeypatch) -> None:
    web = pytest.importorskip("yume_gym.play.web", reason="the browser front needs: pip install 'yume-gym[play]'")
    served: list[tuple[Lobby, dict[str, object]]] = []
    monkeypatch.setattr(web, "serve", lambda lobby, **more: served.append((lobby, more)))
    monkeypatch.delenv("SDL_VIDEODRIVER")  # no display is needed
    common = ["--model", str(weights_folder), "--web", "--players", "2"]
    human_play.main([*common, "--port", "0", "--record", "out.mp4", "--twin"])
    lobby, address = served.pop()
    assert (lobby.places, lobby.twin, lobby._record) == (2, True, Path("out.mp4"))
    assert lobby._start is None and lobby._replay is None
    assert (address["host"], address["port"], address["token"]) == ("127.0.0.1", 0, None)
    human_play.main([*common, "--seed", "5"])
    start = served.pop()[0]._start
    assert start is not None and start.seed == 5
