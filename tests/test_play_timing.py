"""When blocks are begun and frames shown: the real loop and sessions, in a time of their own that no other program disturbs."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from world_model.actions import Action
from world_model.model import WorldModel
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.session import Session
from yume_gym.play.world import Frame

TICK = 0.005  # seconds, unless a test takes longer ones


class Theatre(WorldModel):
    """A model whose blocks take `seconds` a world of a time of its own, in which players play on while it dreams.

    `play` is called every few milliseconds; `shown` has every frame that any session showed, with its time.
    """

    seconds = 0.0
    tick = TICK

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.now = 0.0
        self.shown: list[tuple[float, Session, Frame]] = []
        self.play: Callable[[], None] = lambda: None
        self.begun: list[float] = []

    def clock(self) -> float:
        return self.now

    def step(self, state, actions, events=None, steps=None, threads=None):
        self.begun.append(self.now)
        self.pass_time(self.seconds * len(state))
        config = self.config
        frames = np.zeros((len(state), config.frames_per_block, config.height, config.width, 3), np.uint8)
        return dataclasses.replace(state, steps=tuple(step + 1 for step in state.steps)), frames

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / self.tick)):
            self.now += self.tick
            self.play()
            for session in self.dreamer.sessions:
                frame = session.take()
                if frame is not None:
                    self.shown.append((self.now, session, frame))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            if not self.dreamer.pump():
                self.pass_time(self.tick)

    def times(self, session: Session, blocks_from: int = 3) -> np.ndarray:
        return np.array([time for time, who, frame in self.shown if who is session and frame.block >= blocks_from])


@pytest.fixture
def theatre(world_model) -> Theatre:
    """8 frames a second, blocks of 4 frames: 0.5 s."""
    model = Theatre(world_model.config, world_model.dit, world_model.vae, world_model.conditioning, world_model.starts)
    model.dreamer = Dreamer(model, max_sessions=4, clock=model.clock, thread=False)
    return model


def delays(theatre: Theatre) -> list[float]:
    return [frame.delay for _, _, frame in theatre.shown if frame.delay is not None]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_every_frame_is_on_time_while_the_next_block_is_dreamt(theatre, share) -> None:
    theatre.seconds = share * 0.5
    session = theatre.dreamer.open()
    theatre.run(20)
    intervals = np.diff(theatre.times(session))
    assert len(intervals) > 130
    assert np.abs(intervals - 1 / 8).max() <= 2 * TICK
    stats = session.stats()
    smooth = stats.frames.smooth
    assert smooth is not None and smooth > 0.98  # the very first blocks are begun without experience
    assert stats.frames.fps == pytest.approx(8, rel=0.01) and stats.block_time == pytest.approx(theatre.seconds)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_keys_are_sampled_as_late_as_keeps_up(theatre, share) -> None:
    """A key change is seen after at most one block's duration, one block's dreaming and a small margin."""
    theatre.seconds = share * 0.5
    session = theatre.dreamer.open()
    random = np.random.default_rng(0)
    change = [2.0]

    def play() -> None:
        if theatre.now >= change[0]:
            session.hold("W" if session.stats().action.keys == "" else "")
            change[0] += 0.9 + random.random()

    theatre.play = play
    theatre.run(30)
    seen = delays(theatre)
    assert len(seen) >= 15
    assert max(seen) <= 0.5 + theatre.seconds + 0.05
    assert min(seen) <= theatre.seconds + 0.15
    assert session.stats().latency.median == pytest.approx(np.median(seen))


def test_only_changes_that_a_block_follows_are_measured(theatre) -> None:
    theatre.seconds = 0.1
    session = theatre.dreamer.open()
    session.hold("WS")  # cancel each other: nothing will change
    theatre.run(3)
    assert delays(theatre) == []
    session.hold("W")
    theatre.run(3)
    assert len(delays(theatre)) == 1
    session.hold("")  # and back again before anybody looked
    session.hold("W")
    theatre.run(3)
    assert len(delays(theatre)) == 1


def test_a_world_slower_than_life_is_shown_slower_but_evenly(theatre) -> None:
    theatre.seconds = 1.6 * 0.5
    session = theatre.dreamer.open()
    theatre.run(20)
    intervals = np.diff(theatre.times(session))
    assert np.abs(intervals - 1.6 / 8).max() <= 0.02
    theatre.seconds = 0.1  # the machine is free again: full pace
    theatre.run(30)
    assert session.stats().frames.fps == pytest.approx(8, rel=0.02)


def test_noise_in_block_times_is_absorbed(theatre) -> None:
    """Blocks of 50% of their duration on average, one in four of 80%."""
    session = theatre.dreamer.open()
    random = np.random.default_rng(1)
    begun = len(theatre.begun)

    def play() -> None:
        nonlocal begun
        if len(theatre.begun) > begun:
            begun = len(theatre.begun)
            theatre.seconds = 0.4 if random.random() < 0.25 else 0.2

    theatre.play = play
    theatre.run(40)
    intervals = np.diff(theatre.times(session))
    assert (intervals < 1.5 / 8).mean() >= 0.99


def test_two_players_both_keep_pace_and_four_share_what_there_is(theatre) -> None:
    theatre.seconds = 0.2
    players = [theatre.dreamer.open()]
    theatre.run(0.7)
    players.append(theatre.dreamer.open())
    theatre.run(20)
    for player in players:
        intervals = np.diff(theatre.times(player, 10))
        assert (intervals < 1.5 / 8).mean() >= 0.99
    players += [theatre.dreamer.open(), theatre.dreamer.open()]
    theatre.run(20)
    for player in players:
        assert player.stats().frames.fps == pytest.approx(8 * 0.5 / (4 * 0.2), rel=0.15)
    for player in players[1:]:
        player.close()
    theatre.run(10)
    assert players[0].stats().frames.fps == pytest.approx(8, rel=0.02)


def test_a_paused_player_costs_nothing(theatre) -> None:
    theatre.seconds = 0.1
    session = theatre.dreamer.open()
    theatre.run(3)
    session.pause()
    theatre.run(0.5)
    blocks = len(theatre.begun)
    theatre.run(10)
    assert len(theatre.begun) == blocks
    session.resume()
    theatre.run(5)
    assert len(theatre.begun) >= blocks + 9
    stats = session.stats()
    assert stats.frames.smooth is not None and stats.frames.smooth > 0.95  # ten seconds' pause is no stutter


def test_restart_shows_the_new_world_at_once_and_drops_the_block_in_flight(theatre) -> None:
    theatre.seconds = 0.3
    session = theatre.dreamer.open()
    theatre.run(3)

    def restart_while_dreaming() -> None:
        if theatre.begun and theatre.now - theatre.begun[-1] > 0.1 and theatre.now > 4 and session._world.number == 0:
            session.restart()

    theatre.play = restart_while_dreaming
    theatre.run(4)
    worlds = [frame.world for _, _, frame in theatre.shown]
    assert worlds == sorted(worlds) and set(worlds) == {0, 1}
    first = worlds.index(1)
    assert [frame.block for _, _, frame in theatre.shown[first : first + 6]] == [-1, 0, 0, 0, 0, 1]
    assert theatre.shown[first][2].action == Action()


def test_playing_on_takes_no_memory(theatre) -> None:
    """Half a minute fills all that has a limit; five minutes after that add a reference a block and nothing else."""
    theatre.seconds, theatre.tick = 0.125, 0.125
    session = theatre.dreamer.open()
    random = np.random.default_rng(0)
    keys = ["", "W", "A", "↑", "W→"]

    def play() -> None:
        theatre.shown.clear()
        theatre.begun.clear()
        if random.random() < 0.1:
            session.hold(keys[random.integers(len(keys))])
            session.set_event(f"event {random.integers(3)}")

    theatre.play = play
    theatre.run(33)
    tracemalloc.start()
    theatre.run(2)
    before, _ = tracemalloc.get_traced_memory()
    theatre.run(300)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert session.stats().blocks > 450
    # what was there before tracing and has been replaced since is counted too: the ring of the last 30 seconds
    ring = sum(len(jpeg) for jpeg, _, _, _ in session._recorder.ring._kept)
    assert after - before < ring + 100_000
