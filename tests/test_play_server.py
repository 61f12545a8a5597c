"""The browser front without a browser: who is let in, what may be uploaded, who plays and who waits, what a slow line gets."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import struct
import time
from contextlib import ExitStack, closing, suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from yume_gym.play.replay import read_replay
from yume_gym.play.start import Start
from yume_gym.play.web import create_app
from yume_gym.play.web_guard import MAX_UPLOAD, UploadRefused, is_loopback, read_picture
from yume_gym.play.web_link import REPLACED
from yume_gym.play.web_lobby import Lobby, Player, new_start

TOKEN = "the-right-token"
PATIENCE = 60.0  # seconds that a busy machine may take


@pytest.fixture(scope="module")
def locked_site(serve_play, world_model):
    with serve_play(world_model, token=TOKEN) as address:
        yield address


def ask(address: str, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    with closing(connection):
        return response.status, response.headers, response.read()


class Page:
    """What a page does, without a page."""

    def __init__(self, address: str, session: str | None = None, **headers: str) -> None:
        self._open = ExitStack()
        connected = connect(address.replace("http", "ws") + "/play", additional_headers=headers, open_timeout=PATIENCE)
        self.socket: ClientConnection = self._open.enter_context(connected)
        with suppress(ConnectionClosed):  # who is refused hears so when listening
            self.say(type="hello", session=session)

    def say(self, **message: object) -> None:
        self.socket.send(json.dumps(message))

    def hear(self, kind: str) -> dict:
        """The next message of a kind; the header of the next frame for "frame", which is acknowledged."""
        until = time.monotonic() + PATIENCE
        while True:
            message = self.socket.recv(timeout=until - time.monotonic())
            if isinstance(message, bytes):
                length = struct.unpack(">H", message[:2])[0]
                header = json.loads(message[2 : 2 + length])
                assert len(message) == 2 + length + sum(header["sizes"])
                if kind == "frame":
                    self.say(type="ack", n=header["n"], late=0)
                    return header
            elif (known := json.loads(message))["type"] == kind:
                return known

    def frames_within(self, seconds: float) -> list[int]:
        """Numbers of the frames that come in so many seconds; none is acknowledged."""
        numbers, until = [], time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                message = self.socket.recv(timeout=left)
            except TimeoutError:
                break
            if isinstance(message, bytes):
                numbers.append(json.loads(message[2 : 2 + struct.unpack(">H", message[:2])[0]])["n"])
        return numbers

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def png(height: int, width: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 1).save(file, "PNG")
    return file.getvalue()


# ---- who is let in ------------------------------------------------------------------------------------------------------


def test_page_is_served_with_a_strict_content_policy(site):
    status, headers, body = ask(site)
    assert status == 200 and b"<canvas" in body
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert b"<script>" not in body and b"style=" not in body, "nothing inline"
    assert headers["x-content-type-options"] == "nosniff"
    assert ask(site, "/page/play.js")[0] == 200
    assert ask(site, "/page/../web.py")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "192.168.0.7", "", "127.0.0.1.evil.example"])
def test_a_foreign_name_for_this_machine_reaches_nothing(site, host):
    assert ask(site, Host=host)[0] == 403


def test_only_the_own_page_may_connect(site):
    assert ask(site, "/picture", "POST", b"", Origin="http://evil.example")[0] == 403
    with Page(site, Origin="http://evil.example") as page, pytest.raises(ConnectionClosed) as closed:
        page.hear("welcome")
    assert closed.value.rcvd.code == 4003


def test_token_is_demanded_in_the_address_the_cookie_or_the_header(locked_site):
    for path in ("/", "/page/play.js", "/clip", "/?token=wrong", "/?token="):
        status, _, body = ask(locked_site, path)
        assert status == 401 and b"token" in body, path
    with Page(locked_site) as page, pytest.raises(ConnectionClosed) as closed:
        page.hear("welcome")
    assert closed.value.rcvd.code == 4003
    status, headers, _ = ask(locked_site, f"/?token={TOKEN}")
    assert (status, headers["location"]) == (303, "./"), "the token does not stay in the address"
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert ask(locked_site, Cookie=cookie.partition(";")[0])[0] == 200
    assert ask(locked_site, Authorization=f"Bearer {TOKEN}")[0] == 200
    with Page(locked_site, Cookie=cookie.partition(";")[0]) as page:
        assert page.hear("welcome")["session"]


def test_other_machines_need_a_token(world_model, site):
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
    with pytest.raises(ValueError, match="token"):
        create_app(lobby=None, host="0.0.0.0")


# ---- pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"hello", 415, "PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(100), 415, "PNG, JPEG or WebP"),
        (b"RIFF" + bytes(100), 400, "damaged"),
        (png(64, 64)[:60], 400, "cannot be"),
        (png(8, 64), 400, "at least 16x16"),
        (png(7000, 7000, "1"), 400, "million pixels"),
    ],
    ids=["text", "svg", "gif", "riff", "cut short", "tiny", "huge"],
)
def test_what_is_no_fit_picture_is_refused_with_a_reason(data, status, words):
    with pytest.raises(UploadRefused, match=words) as refused:
        read_picture(data, 32, 48)
    assert refused.value.status == status and "object at" not in str(refused.value)


def test_upload_needs_a_session_and_a_limit(site):
    assert ask(site, "/picture", "POST", png(64, 64))[0] == 404
    assert ask(site, "/clip", X_Session="made-up")[0] == 404
    with Page(site) as page:
        key = page.hear("welcome")["session"]
        assert ask(site, "/picture", "POST", png(64, 64), X_Session=key)[0] == 204
        status, _, body = ask(site, "/picture", "POST", bytes(MAX_UPLOAD + 1), X_Session=key)
        assert status == 413 and "MB" in json.loads(body)["message"]
        status, _, body = ask(site, "/picture", "POST", b"hello", X_Session=key)
        assert status == 415 and "PNG" in json.loads(body)["message"]
        page.say(type="start", seed=5, picture=True)
        assert page.hear("frame")["n"] >= 1


def test_what_a_page_may_ask_a_world_to_start_from():
    player, now = Player("key"), Start(seed=1)
    assert new_start(player, now, {"seed": 7, "text": ""}).text is None
    assert new_start(player, now, {}).seed != new_start(player, now, {}).seed, "no seed is any seed"
    player.picture = np.zeros((32, 48, 3), np.uint8)
    assert new_start(player, now, {"picture": True}).image is player.picture
    for wish in ({"seed": -1}, {"seed": 2**40}, {"seed": "1"}, {"seed": True}, {"text": 3}):
        with pytest.raises((TypeError, ValueError)):
            new_start(player, now, wish)


# ---- who plays and who waits --------------------------------------------------------------------------------------------


def test_third_player_waits_and_gets_the_place_of_who_leaves(site):
    with Page(site) as first, Page(site) as second:
        keys = {page.hear("welcome")["session"] for page in (first, second)}
        assert len(keys) == 2
        with Page(site) as third, Page(site) as fourth:
            assert third.hear("queue") == {"type": "queue", "position": 1, "places": 2}
            assert fourth.hear("queue")["position"] == 2
            first.socket.socket.close()  # no farewell
            assert third.hear("welcome")["resumed"] is False
            assert fourth.hear("queue")["position"] == 1


def test_who_comes_back_finds_the_same_world(site):
    with Page(site) as page:
        key = page.hear("welcome")["session"]
        page.say(type="start", seed=1234)
        while (frame := page.hear("frame"))["block"] < 2 or frame["world"] < 1:
            pass
    with Page(site, session=key) as page:  # the place was still there
        assert page.hear("welcome")["resumed"] is True
        again = page.hear("frame")
        assert (again["world"], again["block"] >= frame["block"]) == (frame["world"], True)
        with Page(site, session=key):
            with pytest.raises(ConnectionClosed) as closed:
                page.hear("never")
            assert closed.value.rcvd.code == REPLACED
    with Page(site) as other, Page(site) as another:  # now both places go to others, and the world is put away
        assert not other.hear("welcome")["resumed"] and not another.hear("welcome")["resumed"]
        with Page(site, session=key) as page:
            assert page.hear("queue")["position"] == 1
            other.socket.close()
            assert page.hear("welcome")["resumed"] is True
            assert page.hear("frame")["block"] >= again["block"]
            assert page.hear("state")["seed"] == 1234


def test_nonsense_is_answered_and_play_goes_on(site):
    with Page(site) as page:
        page.hear("welcome")
        page.socket.send("{")
        assert page.hear("note")["bad"]
        page.say(type="keys", held=["Q"])
        assert "unknown key" in page.hear("note")["text"]
        page.say(type="event", text="x" * 501)
        assert "500" in page.hear("note")["text"]
        page.say(type="start", seed="soon")
        assert "seed" in page.hear("note")["text"]
        for odd in ({"type": "ack", "n": 10**9}, {"type": "what"}, {"type": "keys"}, {}):
            page.say(**odd)
        page.socket.send("[1]")
        page.say(type="keys", held=["W", "→"], seq=9)
        while (frame := page.hear("frame"))["keys"] != "W":
            pass
        assert (frame["look"], frame["seq"]) == ("→", 9)


# ---- a slow line --------------------------------------------------------------------------------------------------------


def test_a_page_that_acknowledges_nothing_gets_a_bounded_number_of_frames(site, config):
    with Page(site) as page:
        page.hear("welcome")
        numbers = page.frames_within(2.5)
        assert 0 < len(numbers) <= config.fps
        page.say(type="ack", n=numbers[-1], late=0)
        assert page.hear("frame")["n"] == numbers[-1] + 1


def test_line_full_message(world_model, serve_play, monkeypatch):
    monkeypatch.setattr("yume_gym.play.web_lobby.LONGEST_LINE", 1)
    with serve_play(world_model) as address, Page(address) as first:
        first.hear("welcome")
        with Page(address) as second, Page(address) as third:
            second.hear("queue")
            with pytest.raises(ConnectionClosed) as closed:
                third.hear("queue")
            assert "waiting already" in closed.value.rcvd.reason


def test_lobby_forgets_who_stays_away(world_model):
    class Silent:
        def seated(self, *arguments, **more): ...
        def waiting(self, position): ...
        def replaced(self): ...
        def failed(self, message): ...

    async def play() -> None:
        from yume_gym.play.dreamer import Dreamer

        now = 0.0
        with Dreamer(world_model) as dreamer:
            lobby, page = Lobby(dreamer, 1, clock=lambda: now), Silent()
            player = lobby.join(None, page)
            while player.session is None:
                await asyncio.sleep(0.01)
            session = player.session
            lobby.leave(player, page)
            assert session.paused and lobby.find(player.key) is player
            now = 1e6
            lobby.tidy()
            while not session.closed:
                await asyncio.sleep(0.01)
            assert lobby.find(player.key) is None and lobby.playing == 0

    asyncio.run(asyncio.wait_for(play(), PATIENCE))


def test_sessions_are_recorded_and_replayed(world_model, serve_play, tmp_path):
    with serve_play(world_model, record=tmp_path / "out.mp4") as address, Page(address) as page:
        page.hear("welcome")
        page.say(type="keys", held=["S", "←"])
        played = [page.hear("frame") for _ in range(12)]
    assert (tmp_path / "out-1.mp4").stat().st_size > 1000
    with serve_play(world_model, replay=read_replay(tmp_path / "out-1.replay")) as address, Page(address) as page:
        page.hear("welcome")
        page.say(type="keys", held=["W"])  # which does nothing here
        shown = [page.hear("frame") for _ in range(12)]
        while not page.hear("state")["finished"]:
            pass
        page.say(type="start", seed=1)
        assert "replay" in page.hear("note")["text"]
    what = ("block", "index", "keys", "look", "event", "sizes")
    assert [[frame[name] for name in what] for frame in shown] == [[frame[name] for name in what] for frame in played]
    assert any(frame["keys"] == "S" for frame in shown)
