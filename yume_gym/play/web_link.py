"""One connected page: its messages to the session, the session's frames to the page.

The page sends JSON: hello {session}, keys {held, seq}, event {text}, start {seed, text, picture, twin}, restart, pause
{paused}, ack {n, late}. It is sent JSON (welcome, queue, state, note) and, for every frame, one binary message: the length of
a header (uint16), the header (JSON), and the pictures (JPEG).

A frame is sent only while few enough are on their way: the page acknowledges each, and says how late it was. On a slow line
frames that do not fit are dropped, the oldest first, so that nothing piles up anywhere and what arrives is recent.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from starlette.websockets import WebSocket, WebSocketDisconnect

from yume_gym.play.session import Session
from yume_gym.play.web_lobby import LineFull, Lobby, Player, new_start
from yume_gym.play.web_outbox import Outbox
from yume_gym.play.world import Frame
from yume_gym.street.phrases import EVENT_KINDS

REPLACED, LINE_FULL, FAILED = 4001, 4008, 4011  # close codes
HELLO_WITHIN = 10.0  # seconds
QUALITY = 90  # of JPEG pictures
STATE_EVERY = 0.5  # seconds between two reports of how the session runs
NOTES = 64  # messages that wait for a slow page at most
SEQS = 64  # key changes that are remembered for measuring delays


class Link:
    """Serves one WebSocket; a `Connection` of the lobby."""

    def __init__(self, socket: WebSocket, lobby: Lobby) -> None:
        self._socket, self._lobby = socket, lobby
        config = lobby.config
        self._outbox = Outbox(capacity=config.fps, patience=2 / config.fps)
        self._player: Player | None = None
        self._session: Session | None = None
        self._position = 0  # in the line, as the page knows it; 0 before it waits
        self._notes: deque[dict[str, Any] | tuple[int, str]] = deque(maxlen=NOTES)  # messages, or (code, reason)
        self._noted = asyncio.Event()
        self._pump: asyncio.Task | None = None
        self._pressed: deque[tuple[float, int]] = deque(maxlen=SEQS)  # when key changes came, and their numbers
        self._actions: dict[str, Callable[[dict[str, Any]], Any]] = {
            "keys": self._keys,
            "event": self._event,
            "start": self._start,
            "restart": self._restart,
            "pause": self._pause,
            "ack": self._ack,
        }

    async def run(self) -> None:
        """From the first message to the last. Never raises for what a page does wrong."""
        try:
            hello = await asyncio.wait_for(self._socket.receive_json(), HELLO_WITHIN)
            if not isinstance(hello, dict) or hello.get("type") != "hello":
                raise ValueError("the first message must be hello")
            key = hello.get("session")
            self._player = self._lobby.join(key if isinstance(key, str) else None, self)
        except LineFull as error:
            await self._socket.close(LINE_FULL, str(error))
            return
        except (ValueError, KeyError, TimeoutError, WebSocketDisconnect):
            return
        tasks = [asyncio.create_task(work()) for work in (self._listen, self._tell, self._show)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, self._pump):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._lobby.leave(self._player, self)

    # -- what the lobby says -------------------------------------------------------------------------------------------

    def seated(self, player: Player, session: Session, resumed: bool) -> None:
        config = self._lobby.config
        self._player, self._session = player, session
        self._say(
            "welcome",
            session=player.key,
            resumed=resumed,
            model=config.name,
            fps=config.fps,
            height=config.height,
            width=config.width,
            block=config.frames_per_block / config.fps,
            twin=self._lobby.twin,
            events=[{"kind": kind.name, "phrases": kind.phrases} for kind in EVENT_KINDS],
        )
        self._pump = asyncio.create_task(self._play(session))

    def waiting(self, position: int) -> None:
        if position != self._position:
            self._position = position
            self._say("queue", position=position, places=self._lobby.places)

    def replaced(self) -> None:
        self._put((REPLACED, "this session goes on in another window"))

    def failed(self, message: str) -> None:
        self._put((FAILED, message[:100]))

    # -- what the page says --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._socket.receive_json()
            except (WebSocketDisconnect, RuntimeError):
                return
            except (ValueError, KeyError):  # no JSON, or not a text
                self._note("that message was not understood", bad=True)
                continue
            act = self._actions.get(str(message.get("type"))) if isinstance(message, dict) else None
            if act is None or (self._session is None and act != self._ack):
                continue
            try:
                done = act(message)
                if asyncio.iscoroutine(done):
                    await done
            except (TypeError, ValueError, KeyError, FileNotFoundError) as error:
                self._note(str(error), bad=True)

    def _keys(self, message: dict[str, Any]) -> None:
        self._live.hold(message["held"])
        self._pressed.append((perf_counter(), int(message.get("seq", 0))))

    def _event(self, message: dict[str, Any]) -> None:
        self._live.set_event(message.get("text") or None)

    async def _start(self, message: dict[str, Any]) -> None:
        assert self._player is not None
        start = new_start(self._player, self._live.start, message)
        if start.twin and not self._lobby.twin:
            raise ValueError("this server does not show the street")
        await asyncio.to_thread(self._live.restart, start)
        self._begin_anew()

    async def _restart(self, message: dict[str, Any]) -> None:
        await asyncio.to_thread(self._live.restart)
        self._begin_anew()

    def _begin_anew(self) -> None:
        assert self._player is not None
        self._player.paused = False
        self._outbox.clear()
        self._note("")

    def _pause(self, message: dict[str, Any]) -> None:
        assert self._player is not None
        self._player.paused = bool(message.get("paused"))
        if self._player.paused or message.get("hidden"):
            self._live.pause()
        else:
            self._live.resume()

    def _ack(self, message: dict[str, Any]) -> None:
        self._outbox.acknowledge(int(message["n"]), float(message.get("late", 0)) / 1000)

    # -- what the page is sent -----------------------------------------------------------------------------------------

    async def _play(self, session: Session) -> None:
        """Takes frames when they are due, for as long as the page is connected."""
        reported = 0.0
        while True:
            try:
                frame = session.take()
            except RuntimeError as error:
                self.failed(str(error))
                return
            if frame is not None:
                self._outbox.put((perf_counter(), frame))
            if (now := perf_counter()) - reported > STATE_EVERY:
                reported = now
                self._report(session)
            await asyncio.sleep(0 if frame is not None else max(0.001, session.wait_time()))

    def _report(self, session: Session) -> None:
        stats = session.stats()
        self._say(
            "state",
            seed=stats.seed,
            event=stats.event,
            paused=stats.paused,
            blocks=stats.blocks,
            keys=stats.action.keys,
            look=stats.action.arrows,
            blockTime=stats.block_time,
            players=self._lobby.present,
            dropped=self._outbox.dropped,
            twin=session.start.twin,
            finished=session.finished,
        )

    async def _show(self) -> None:
        """Sends frames as the line permits."""
        while True:
            number, (due, frame) = await self._outbox.get()
            data = await asyncio.to_thread(self._pack, number, due, frame)
            try:
                await self._socket.send_bytes(data)
            except (WebSocketDisconnect, RuntimeError):
                return

    def _pack(self, number: int, due: float, frame: Frame) -> bytes:
        pictures = [jpeg(picture) for picture in (frame.picture, frame.twin) if picture is not None]
        header = {
            "n": number,
            "due": round(1000 * due, 2),
            "sent": round(1000 * perf_counter(), 2),
            "world": frame.world,
            "block": frame.block,
            "index": frame.index,
            "keys": frame.action.keys,
            "look": frame.action.arrows,
            "event": frame.event,
            "streetEvent": frame.street_event,
            "sizes": [len(picture) for picture in pictures],
            "seq": None if frame.delay is None else self._followed(due - frame.delay),
        }
        head = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack(">H", len(head)) + head + b"".join(pictures)

    def _followed(self, changed_at: float) -> int | None:
        """The number of the key change that came at about `changed_at`."""
        nearest = min(list(self._pressed), key=lambda press: abs(press[0] - changed_at), default=None)
        return nearest[1] if nearest is not None and abs(nearest[0] - changed_at) < 0.05 else None

    async def _tell(self) -> None:
        """Sends messages, one after another; ends the connection when asked to."""
        while True:
            while not self._notes:
                self._noted.clear()
                await self._noted.wait()
            note = self._notes.popleft()
            try:
                if isinstance(note, tuple):
                    await self._socket.close(*note)
                    return
                await self._socket.send_json(note)
            except (WebSocketDisconnect, RuntimeError):
                return

    def _say(self, kind: str, **more: Any) -> None:
        self._put({"type": kind, **more})

    def _put(self, note: dict[str, Any] | tuple[int, str]) -> None:
        self._notes.append(note)
        self._noted.set()

    def _note(self, text: str, bad: bool = False) -> None:
        self._say("note", text=text, bad=bad)

    @property
    def _live(self) -> Session:
        assert self._session is not None
        return self._session


def jpeg(picture: np.ndarray) -> bytes:
    """`picture`, uint8 [H, W, 3], as a JPEG file without loss of colour resolution."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
