"""Sessions and the loop that dreams ahead of them, on the small world and in real time."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator

import imageio.v3 as iio
import numpy as np
import pytest

from world_model.actions import Action
from yume_gym.env import YumeWorldEnv
from yume_gym.play.dreamer import Dreamer, SessionsFull, collate_states, split_states
from yume_gym.play.session import Session
from yume_gym.play.start import Start
from yume_gym.play.world import Frame
from yume_gym.street.env import YumeStreetEnv


@pytest.fixture
def dreamer(fast_model) -> Iterator[Dreamer]:
    with Dreamer(fast_model, max_sessions=3) as dreamer:
        yield dreamer


def watch(session: Session, frames: int, before: Callable[[Frame], None] = lambda frame: None) -> list[Frame]:
    """The next frames; `before` is called with each one as it is shown. Gives up after 20 s."""
    seen: list[Frame] = []
    end = time.monotonic() + 20
    while len(seen) < frames:
        assert time.monotonic() < end, f"{len(seen)} of {frames} frames in 20 s: {session.stats()}"
        frame = session.take()
        if frame is None:
            time.sleep(session.wait_time())
        else:
            seen.append(frame)
            before(frame)
    return seen


def same(first: list[Frame], second: list[Frame]) -> bool:
    return len(first) == len(second) and all((a.picture == b.picture).all() for a, b in zip(first, second))


def test_frames_are_those_of_the_environment(dreamer, fast_model) -> None:
    """Whatever was held when: the blocks are those that YumeWorld-v0 dreams under the same actions and events."""
    session = dreamer.open(Start(seed=5))
    moves = {1: "W", 9: ("W", "→"), 17: ""}

    def play(frame: Frame) -> None:
        number = 4 * frame.block + frame.index
        if number in moves:
            session.hold(moves[number])
        if number == 13:
            session.set_event("night falls")

    frames = watch(session, 1 + 4 * 8, play)
    assert [(f.block, f.index) for f in frames] == [(-1, 0), *((b, i) for b in range(8) for i in range(4))]
    env = YumeWorldEnv(model=fast_model)
    picture, _ = env.reset(seed=5)
    assert (frames[0].picture == picture).all()
    assert {f.action.meaning for f in frames} == {"noop", "W", "W →"}
    assert {f.event for f in frames} == {None, "night falls"}
    for block in range(8):
        shown = frames[1 + 4 * block : 5 + 4 * block]
        env.trigger_event(shown[0].event)
        _, _, _, _, info = env.step(shown[0].action.index)
        assert (np.stack([f.picture for f in shown]) == info["frames"]).all()


def test_what_nobody_takes_is_not_dreamt(dreamer) -> None:
    session = dreamer.open()
    watch(session, 3)
    while session.stats().frames.queued <= 4 or session._busy:
        time.sleep(0.01)
    dreamt = session.stats().blocks
    time.sleep(0.2)
    assert session.stats().blocks == dreamt and session.stats().frames.queued <= 2 * 4


def test_pause_holds_everything_and_changes_nothing(dreamer) -> None:
    session, other = dreamer.open(Start(seed=1)), dreamer.open(Start(seed=1))
    whole = watch(other, 25)
    first = watch(session, 10)
    session.pause()
    assert session.paused and session.take() is None
    while session._busy:  # a block that was begun before is kept
        time.sleep(0.01)
    queued = session.stats().frames.queued
    time.sleep(0.2)
    assert session.take() is None and session.stats().frames.queued == queued
    session.resume()
    assert same(first + watch(session, 15), whole)


def test_restart_is_the_same_start_or_another(dreamer, pictures) -> None:
    session = dreamer.open(Start(seed=2))
    first = watch(session, 9)
    session.set_event("night falls")
    session.restart()
    again = watch(session, 9)
    assert same(first, again) and {f.world for f in again} == {1} and {f.event for f in again} == {None}
    session.restart(Start(seed=2, image=pictures[1]))
    assert (watch(session, 1)[0].picture == pictures[1]).all()
    assert session.start.seed == 2 and (np.asarray(session.start.image) == pictures[1]).all()
    session.restart(Start(seed=2, text="a snowy street"))
    assert not same(watch(session, 1), first[:1])
    for wrong, error in (
        (Start(seed=-1), ValueError),
        (Start(image="none.png"), FileNotFoundError),
        (Start(text=" "), ValueError),
        (Start(seed=1.5), TypeError),
    ):
        with pytest.raises(error):
            session.restart(wrong)
    assert watch(session, 1)[0].world == 3  # the world goes on


def test_bad_input_is_refused(dreamer) -> None:
    session = dreamer.open()
    with pytest.raises(ValueError, match="unknown key"):
        session.press("q")
    with pytest.raises(TypeError):
        session.set_event(3)
    with pytest.raises(ValueError, match="500"):
        session.set_event("x" * 501)
    with pytest.raises(ValueError, match="leave out the image"):
        session.restart(Start(image=np.zeros((32, 32, 3), np.uint8), twin=True))


def test_several_players_share_the_model_without_touching_each_other(dreamer, fast_model) -> None:
    alone = watch(dreamer.open(Start(seed=7)), 21)
    players = [*dreamer.sessions, dreamer.open(Start(seed=7)), dreamer.open(Start(seed=8))]
    with pytest.raises(SessionsFull, match="all 3 places"):
        dreamer.open()
    players[2].hold("S")
    shown: dict[Session, list[Frame]] = {session: [] for session in players}
    while len(shown[players[1]]) < 21:
        for session in players:
            shown[session] += [f for f in [session.take()] if f is not None]
        time.sleep(0.002)
    assert same(shown[players[1]][:21], alone)
    assert len(shown[players[2]]) > 10 and len(shown[players[0]]) > 10
    players[1].close()
    assert players[1].closed and len(dreamer.sessions) == 2
    with pytest.raises(RuntimeError, match="closed"):
        players[1].take()
    dreamer.open().close()


def test_states_join_and_split(fast_model, pictures) -> None:
    states = [fast_model.start([pictures[i]], ["rain"], [i]) for i in range(3)]
    states[1], _ = fast_model.step(states[1], [Action.from_keys("W")])
    again = split_states(collate_states(states))
    for one, other in zip(states, again):
        assert (one.seeds, one.steps, one.texts) == (other.seeds, other.steps, other.texts)
        assert (fast_model.step(one, [Action()])[1] == fast_model.step(other, [Action()])[1]).all()


def test_twin_walks_the_street_under_the_same_keys(dreamer, config) -> None:
    session = dreamer.open(Start(seed=4, twin=True))
    session.hold("W")
    session.set_event("a zebra proves a theorem")  # nothing the street can draw
    frames = watch(session, 13, lambda f: session.set_event("night falls") if f.block == 0 and f.index == 0 else None)
    street = YumeStreetEnv(preset=config.name, light="day", weather="clear")
    picture, _ = street.reset(seed=4)
    assert (frames[0].picture == picture).all() and (frames[0].twin == picture).all()
    for block in range(3):
        shown = frames[1 + 4 * block : 5 + 4 * block]
        if shown[0].event == "night falls":
            street.trigger_event("night falls")
        assert shown[0].street_event == (shown[0].event == "night falls")
        _, _, _, _, info = street.step(shown[0].action.index)
        assert (np.stack([f.twin for f in shown]) == info["frames"]).all()
    assert frames[-1].event == "night falls"
    session.restart(Start(seed=4))
    assert watch(session, 6)[-1].twin is None


@pytest.mark.parametrize("twin", [False, True])
def test_snapshot_goes_on_frame_by_frame(dreamer, twin) -> None:
    session = dreamer.open(Start(seed=6, twin=twin))
    session.hold({"W", "←"})
    first = watch(session, 11)
    snapshot = pickle.loads(pickle.dumps(session.snapshot()))
    on = watch(session, 14)
    other = dreamer.open(Start(seed=9))
    other.hold({"W", "←"})
    other.restore(snapshot)
    there = watch(other, 14)
    assert same(on, there) and [f.block for f in on] == [f.block for f in there]
    if twin:
        assert all((a.twin == b.twin).all() for a, b in zip(on, there))
    assert other.start.seed == 6 and len(first) == 11


def test_clip_is_what_was_shown(dreamer, tmp_path, config) -> None:
    session = dreamer.open()
    with pytest.raises(ValueError, match="nothing was shown"):
        session.save_clip(tmp_path / "none.mp4")
    frames = watch(session, 14)
    film = iio.imread(session.save_clip(tmp_path / "clips" / "clip.mp4", hud=False))
    assert film.shape == (14, 256, 384, 3)
    small = film.reshape(14, config.height, 256 // config.height, config.width, 384 // config.width, 3).mean((2, 4))
    errors = np.array([[np.abs(f.picture - s).mean() for s in small] for f in frames])
    assert (errors.argmin(1) == np.arange(14)).all() and errors[0, 0] < 6
    assert len(iio.imread(session.save_clip(tmp_path / "short.mp4", seconds=5 / config.fps))) >= 5
    assert [p.name for p in tmp_path.rglob("*.part*")] == []


def test_failures_reach_the_player(fast_model, monkeypatch) -> None:
    with Dreamer(fast_model) as dreamer:
        session = dreamer.open()
        watch(session, 2)
        monkeypatch.setattr(fast_model, "step", lambda *a, **k: (_ for _ in ()).throw(MemoryError("too small")))
        with pytest.raises(RuntimeError, match="the dream stopped: too small"):
            watch(session, 40)


def test_memory_is_bounded(dreamer, fast_model) -> None:
    """All that a session keeps has a limit, but for its list of blocks, in which equal ones share one object."""
    session = dreamer.open()
    session.hold("W")
    watch(session, 30)
    recorder, world = session._recorder, session._world
    assert recorder.ring._kept.maxlen == 30 * fast_model.config.fps
    assert len({id(block) for block in world.segment.blocks}) <= 2
    assert session._meter._times.maxlen and session._meter._delays.maxlen
    assert all(times.maxlen for times in dreamer._forecast._rounds.values())


def test_closing_ends_the_thread(fast_model) -> None:
    dreamer = Dreamer(fast_model)
    session = dreamer.open()
    dreamer.close()
    dreamer.close()
    assert session.closed and not any(t is dreamer._thread for t in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        dreamer.open()
