"""Replays give the same frames, bit by bit; files that are none say so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from configs import with_video

from world_model.model import WorldModel
from yume_gym.play.dreamer import Dreamer, replay_frames
from yume_gym.play.replay import (
    Block,
    Replay,
    ReplayHeader,
    ReplaySegment,
    fingerprint,
    read_replay,
    replay_header,
    write_replay,
)
from yume_gym.play.session import Session
from yume_gym.play.start import Start
from yume_gym.play.world import Frame


def shown(session: Session, until) -> list[Frame]:
    """Takes frames until `until(frame)` is true of one; that one is the last."""
    frames: list[Frame] = []
    end = time.monotonic() + 30
    while not frames or not until(frames[-1]):
        assert time.monotonic() < end
        frame = session.take()
        if frame is not None:
            frames.append(frame)
        elif session.finished:
            return frames
        else:
            time.sleep(session.wait_time())
    return frames


def same(first: list[Frame], second: list[Frame]) -> bool:
    return len(first) == len(second) and all(
        (a.picture == b.picture).all()
        and (a.world, a.block, a.index, a.action, a.event) == (b.world, b.block, b.index, b.action, b.event)
        for a, b in zip(first, second)
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, world_model, pictures) -> tuple[WorldModel, Path, list[Frame]]:
    """A session with keys, events, a pause, a restart in the middle of a block and a start from a picture; all its frames."""

    config = with_video(world_model.config, fps=64)
    model = WorldModel(config, world_model.dit, world_model.vae, world_model.conditioning, world_model.starts)
    path = tmp_path_factory.mktemp("recorded") / "out" / "walk.mp4"
    with Dreamer(model) as dreamer:
        session = dreamer.open(Start(seed=11))
        assert session.record(path) == path.with_suffix(".replay")
        with pytest.raises(ValueError, match="recorded already"):
            session.record(path)
        frames = shown(session, lambda f: (f.block, f.index) == (0, 2))
        session.hold({"W", "→"})
        frames += shown(session, lambda f: f.block == 2)
        session.set_event("night falls")
        session.pause()
        session.resume()
        frames += shown(session, lambda f: (f.block, f.index) == (4, 1))
        session.hold("A")
        session.restart(Start(seed=3, image=pictures[2]))
        frames += shown(session, lambda f: (f.block, f.index) == (2, 3))
        session.restart()
        session.restart(Start(seed=5))  # a world that nobody saw is no part of it
        frames += shown(session, lambda f: (f.block, f.index) == (1, 0))
        session.close()
    return model, path, frames


def test_replay_shows_the_same_frames_bit_by_bit(recorded) -> None:
    model, path, frames = recorded
    assert {f.world for f in frames} == {0, 1, 3} and {f.event for f in frames} == {None, "night falls"}
    replay = read_replay(path.with_suffix(".replay"))
    assert [segment.start.seed for segment in replay.segments] == [11, 3, 5]
    numbered = {world: number for number, world in enumerate(sorted({f.world for f in frames}))}
    again = list(replay_frames(model, replay))
    assert [(f.world, f.block, f.index) for f in again] == [(numbered[f.world], f.block, f.index) for f in frames]
    assert all((a.picture == b.picture).all() for a, b in zip(frames, again))
    assert [(f.action, f.event) for f in again] == [(f.action, f.event) for f in frames]


def test_replay_in_real_time_ends_and_can_begin_again(recorded) -> None:
    model, path, frames = recorded
    replay = read_replay(path.with_suffix(".replay"))
    with Dreamer(model) as dreamer:
        session = dreamer.replay(replay)
        session.hold("S")  # has no say
        first = shown(session, lambda f: False)
        assert session.finished and session.take() is None and len(first) == len(frames)
        assert all((a.picture == b.picture).all() for a, b in zip(frames, first))
        with pytest.raises(ValueError, match="its own starts"):
            session.restart(Start(seed=1))
        session.restart()
        assert not session.finished
        assert len(shown(session, lambda f: f.block == 1)) == 6


def test_film_has_every_frame_and_replay_is_text(recorded) -> None:
    _, path, frames = recorded
    film = iio.imread(path)
    assert len(film) == len(frames)
    lines = [json.loads(line) for line in path.with_suffix(".replay").read_text().splitlines()]
    assert lines[0]["replay"] == 1 and [list(line) for line in lines[1:3]] == [["start"], ["block"]]
    assert [p.name for p in path.parent.iterdir() if "part" in p.name] == []


def test_a_replay_of_the_twin(world_model, tmp_path) -> None:
    with Dreamer(world_model) as dreamer:
        session = dreamer.open(Start(seed=2, twin=True))
        session.hold("W")
        frames = shown(session, lambda f: f.block == 2)
        replay = read_replay(session.save_replay(tmp_path / "twin.replay"))
    again = list(replay_frames(world_model, replay))
    assert same(frames, again)
    assert all((a.twin == b.twin).all() for a, b in zip(frames, again))


def test_other_weights_are_refused(recorded, make_dit) -> None:
    model, path, _ = recorded
    other = WorldModel(model.config, make_dit(model.config, 5), model.vae, model.conditioning, model.starts)
    assert fingerprint(other) != fingerprint(model)
    replay = read_replay(path.with_suffix(".replay"))
    for changed, steps in ((other, None), (model, 2)):
        with (
            Dreamer(changed, steps=steps) as dreamer,
            pytest.raises(ValueError, match="same weights and sampler steps"),
        ):
            dreamer.replay(replay)
    assert replay_header(model, None) == replay.header


def test_files_come_back_as_written(tmp_path) -> None:
    image = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)
    segments = (
        ReplaySegment(Start(1, image, 'a street; "quoted", ü'), [Block(80, "rain", 4), Block(0, None, 2)]),
        ReplaySegment(Start(2)),
    )
    replay = Replay(ReplayHeader("debug", "00ff", 3, 4, 8), segments)
    back = read_replay(write_replay(tmp_path / "a.replay", replay))
    assert back.header == replay.header and [segment.blocks for segment in back.segments] == [
        segment.blocks for segment in segments
    ]
    assert (np.asarray(back.segments[0].start.image) == image).all()
    assert [(t.start.seed, t.start.text, t.start.twin) for t in back.segments] == [
        (1, 'a street; "quoted", ü', False),
        (2, None, False),
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [],
        lambda lines: lines[:1],
        lambda lines: ["{", *lines[1:]],
        lambda lines: [lines[0].replace('"replay": 1', '"replay": 2'), *lines[1:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [*lines[:2], '{"block": [81, null, 4]}'],
        lambda lines: [*lines[:2], '{"block": [0, null, 5]}'],
        lambda lines: [*lines[:2], '{"block": [0, 7, 4]}'],
        lambda lines: [*lines[:2], '{"start": {"seed": 1, "text": null, "twin": false, "image": "AAAA"}}'],
        lambda lines: [*lines[:2], "[]"],
    ],
)
def test_files_that_are_no_replays(tmp_path, spoil) -> None:
    path = tmp_path / "b.replay"
    write_replay(
        path, Replay(ReplayHeader("debug", "00ff", None, 4, 8), (ReplaySegment(Start(1), [Block(3, None, 4)]),))
    )
    lines = path.read_text().splitlines()
    assert read_replay(path).segments[0].blocks == [Block(3, None, 4)]
    path.write_text("\n".join(spoil(lines)))
    with pytest.raises(ValueError, match="replay"):
        read_replay(path)


def test_missing_replay() -> None:
    with pytest.raises(FileNotFoundError, match="no such replay"):
        read_replay("nowhere.replay")
