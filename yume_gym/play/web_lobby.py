"""Who plays, who waits: as many players as the dreamer takes sessions, a line behind them, and worlds kept for who comes back.

A player is known by a secret. One who goes (a closed tab, a broken line) leaves a paused world behind. The place stays theirs
until somebody waits for it and `RETURN` seconds have passed; the world itself is then kept as a snapshot, and goes on in the
next free place, if they come back within `GRACE` seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from world_model.config import ModelConfig
from yume_gym.play.dreamer import Dreamer, SessionsFull
from yume_gym.play.replay import Replay
from yume_gym.play.session import Session
from yume_gym.play.start import Start
from yume_gym.play.world import Snapshot

log = logging.getLogger(__name__)

RETURN = 8.0  # seconds that an absent player's place is held against those who wait
GRACE = 600.0  # seconds that an absent player's world is kept
LONGEST_LINE = 32
KEPT_WORLDS = 64
SEEDS = 2**31
PACE = 0.5  # seconds between two looks at who has gone


class LineFull(RuntimeError):
    """So many wait already that no more are taken."""


class Connection(Protocol):
    """A page that is connected now."""

    def seated(self, player: Player, session: Session, resumed: bool) -> None:
        """Its world can be shown; `resumed`: it has been before."""

    def waiting(self, position: int) -> None:
        """Its place in the line: 1 is next. Said again whenever the line is looked through."""

    def replaced(self) -> None:
        """The same player has connected again elsewhere; this connection is over."""

    def failed(self, message: str) -> None:
        """Its world could not be begun."""


@dataclass(eq=False)
class Player:
    """One player. At most one of `session` (playing) and `snapshot` (a world kept for later) is set."""

    key: str
    connection: Connection | None = None
    session: Session | None = None
    snapshot: Snapshot | None = None
    start: Start | None = None
    picture: np.ndarray | None = None  # uploaded, uint8 of the model's size
    left: float = 0.0  # when the connection went
    seating: bool = False  # a session is being opened
    saving: bool = False  # a file is being written
    paused: bool = False  # by the player's own wish, not for absence


class Lobby:
    """All players of one dreamer. Its methods belong to one event loop; `keep` has to run in it.

    places: how many play at once; the dreamer has to take as many sessions. start: what a new player's world begins from;
    None draws a seed for each. twin: whether the street can be shown beside the dream. record: records every player's session
    into numbered files of this name. replay: what is shown instead of played worlds. held_for: how long an absent player's
    place is held against those who wait, seconds.
    """

    def __init__(
        self,
        dreamer: Dreamer,
        places: int,
        start: Start | None = None,
        twin: bool = False,
        record: Path | None = None,
        replay: Replay | None = None,
        held_for: float = RETURN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dreamer, self.places, self.twin = dreamer, places, twin
        self.config: ModelConfig = dreamer.model.config
        self._start, self._held_for, self._clock = start, held_for, clock
        self._record, self._replay = record, replay
        self._recordings = itertools.count(1)
        self._players: dict[str, Player] = {}
        self._line: list[Player] = []
        self._seating: set[asyncio.Task] = set()

    @property
    def playing(self) -> int:
        """Places taken, absent players' included."""
        return sum(player.session is not None or player.seating for player in self._players.values())

    @property
    def present(self) -> int:
        """Players who play and are connected."""
        return sum(player.session is not None and player.connection is not None for player in self._players.values())

    def find(self, key: str) -> Player | None:
        """The player with this secret."""
        return self._players.get(key)

    def join(self, key: str | None, connection: Connection) -> Player:
        """A page connects: with a known secret its player comes back, otherwise a new one comes in.

        `connection.seated` or `connection.waiting` is then called, now or later. Raises LineFull.
        """
        player = self._players.get(key or "")
        if player is None:
            if len(self._line) >= LONGEST_LINE:
                raise LineFull(f"{LONGEST_LINE} players are waiting already: try again later")
            player = Player(secrets.token_urlsafe(18))
            self._players[player.key] = player
        if player.connection is not None:
            player.connection.replaced()
        player.connection = connection
        if player.session is not None:
            if not player.paused:
                player.session.resume()
            connection.seated(player, player.session, resumed=True)
        elif not player.seating and player not in self._line:
            self._line.append(player)
        self.tidy()
        return player

    def leave(self, player: Player, connection: Connection) -> None:
        """A page has gone; nothing happens if its player is connected elsewhere by now."""
        if player.connection is not connection:
            return
        player.connection, player.left = None, self._clock()
        if player.session is not None:
            player.session.pause()
        if player in self._line:
            self._line.remove(player)
        if player.session is None and player.snapshot is None and not player.seating:
            self._players.pop(player.key, None)
        self.tidy()

    def tidy(self) -> None:
        """Forget who is away for long, free places that are needed, seat who is next, and tell the others where they stand."""
        now = self._clock()
        away = sorted((p for p in self._players.values() if p.connection is None), key=lambda p: p.left)
        kept = [player for player in away if player.snapshot is not None]
        too_many = set(kept[: max(0, len(kept) - KEPT_WORLDS)])
        for player in away:
            if player in too_many or (now - player.left > GRACE and not player.seating):
                del self._players[player.key]
                if player.session is not None:
                    self._background(asyncio.to_thread(player.session.close))
        absent = [
            p
            for p in away
            if p.session is not None and now - p.left > self._held_for and not p.saving and p.key in self._players
        ]
        needed = len(self._line) - (self.places - self.playing)
        for player in absent[: max(0, needed)]:
            session, player.session, player.seating = player.session, None, True
            assert session is not None
            self._background(self._put_away(player, session))
        while self._line and self.playing < self.places:
            player = self._line.pop(0)
            player.seating = True
            self._background(self._seat(player))
        for position, player in enumerate(self._line, start=1):
            if player.connection is not None:
                player.connection.waiting(position)

    async def keep(self) -> None:
        """Tidy for ever."""
        while True:
            await asyncio.sleep(PACE)
            self.tidy()

    async def _put_away(self, player: Player, session: Session) -> None:
        def put() -> Snapshot | None:
            try:
                return session.snapshot()
            except ValueError:  # it has not begun; it will begin anew
                return None
            finally:
                session.close()

        player.start = session.start
        player.snapshot = await asyncio.to_thread(put)
        player.seating = False
        if player.connection is not None:  # came back meanwhile
            self._line.insert(0, player)
        self.tidy()

    async def _seat(self, player: Player) -> None:
        snapshot = player.snapshot
        start = player.start or self._start or Start(seed=secrets.randbelow(SEEDS), twin=self.twin)

        def open_session() -> Session:
            session = self.dreamer.open(start) if self._replay is None else self.dreamer.replay(self._replay)
            try:
                if snapshot is not None and self._replay is None:
                    session.restore(snapshot)
                if self._record is not None:
                    session.record(self._record.with_stem(f"{self._record.stem}-{next(self._recordings)}"))
            except BaseException:
                session.close()
                raise
            return session

        try:
            session = await asyncio.to_thread(open_session)
        except SessionsFull:  # sessions outside of this lobby
            player.seating = False
            self._line.insert(0, player)
            return
        except Exception as error:  # whatever a world may fail with: this player is told, the others play on
            log.exception("a world could not be begun")
            player.seating = False
            self._players.pop(player.key, None)
            if player.connection is not None:
                player.connection.failed(str(error))
            return
        player.session, player.snapshot, player.seating = session, None, False
        if player.connection is None or player.paused:
            session.pause()
        if player.connection is not None:
            player.connection.seated(player, session, resumed=snapshot is not None)
        self.tidy()

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._seating.add(task)
        task.add_done_callback(self._seating.discard)


def new_start(player: Player, current: Start, wish: dict[str, Any]) -> Start:
    """What a page's "start" message asks for. TypeError or ValueError say what is wrong with it."""
    seed, text, twin = wish.get("seed"), wish.get("text"), wish.get("twin", current.twin)
    if seed is None:
        seed = secrets.randbelow(SEEDS)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ValueError(f"a seed is a whole number from 0 to {SEEDS - 1}")
    if text is not None and not isinstance(text, str):
        raise TypeError("the text must be a text")
    image = player.picture if wish.get("picture") else None
    if wish.get("picture") and image is None:
        raise ValueError("the picture did not arrive: choose it again")
    return replace(current, seed=seed, image=image, text=text or None, twin=bool(twin))
