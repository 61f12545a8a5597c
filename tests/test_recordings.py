"""The format of recordings: a round trip, going on after a stop, and every way in which a folder can be wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
from dataclasses import fields

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.recordings import (
    Episode,
    EpisodeWriter,
    Provenance,
    Recording,
    RecordingError,
    open_episodes,
    read_recording,
)
from world_model.action_spaces import ActionSpec

SPACES = {
    "first_person": ActionSpec(),
    "discrete": ActionSpec("discrete", (3,), meanings=("stay", "left", "right")),
    "multi_discrete": ActionSpec("multi_discrete", (3, 4)),
    "multi_binary": ActionSpec("multi_binary", (2, 2, 2)),
    "box": ActionSpec("box", low=(-1.0, 0.0), high=(1.0, 0.5)),
}


def recording(kind: str = "discrete", **changes) -> Recording:
    values = {
        "env": "Tiny-v0",
        "height": 8,
        "width": 16,
        "fps": 7.5,
        "action": SPACES[kind],
    }
    made = {"policy": "random", "seed": 3, "source": {"by": "test"}}
    made |= {part.name: changes.pop(part.name) for part in fields(Provenance) if part.name in changes}
    return Recording(**values | changes, provenance=Provenance(**made))


def test_the_description_on_disk_is_flat(tmp_path):
    """As recordings that exist have it: what is grouped in memory stands side by side there."""
    EpisodeWriter(tmp_path, recording())
    values = json.loads((tmp_path / "dataset.json").read_text())
    assert list(values) == [
        "env",
        "height",
        "width",
        "fps",
        "action",
        "frames_per_step",
        "frame_skip",
        "resize",
        "original_size",
        "policy",
        "seed",
        "source",
        "format",
    ]
    assert (values["original_size"], values["seed"], values["source"], values["format"]) == (
        [0, 0],
        3,
        {"by": "test"},
        1,
    )
    assert read_recording(tmp_path) == recording()


def episode(about: Recording, steps: int = 4, seed: int = 0, **words) -> Episode:
    rng, spec = np.random.default_rng(seed), about.action
    if spec.kind == "box":
        action = rng.uniform(spec.low, spec.high, (steps, *spec.shape)).astype(np.float32)
    else:
        action = rng.integers(0, spec.sizes or 81, (steps, *(spec.shape or (1,)))).reshape(steps, *spec.shape)
    end = np.zeros(steps, np.uint8)
    end[-1] = 1
    return Episode(
        frames=rng.integers(0, 256, (about.frames_of(steps), about.height, about.width, 3), np.uint8),
        action=action,
        reward=rng.normal(size=steps).astype(np.float32),
        terminated=end,
        truncated=np.zeros(steps, np.uint8),
        **words,
    )


def assert_equal(found: Episode, wanted: Episode) -> None:
    for name in ("frames", "action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
    assert (found.caption, found.texts, found.info) == (wanted.caption, wanted.texts, wanted.info)
    assert found.extra.keys() == wanted.extra.keys()
    for name in found.extra:
        np.testing.assert_array_equal(found.extra[name], wanted.extra[name])


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("frames_per_step", [1, 4])
def test_what_is_written_is_read(tmp_path, kind, frames_per_step):
    about = recording(kind, frames_per_step=frames_per_step, resize="crop", original_size=(20, 30))
    extra = {"yaw": np.arange(about.frames_of(5), dtype=np.float32)}
    given = [
        episode(about, 5, seed, caption="a town", texts=((0, "rain"), (3, None)), info={"seed": seed}, extra=extra)
        for seed in range(5)
    ]
    with EpisodeWriter(tmp_path, about, bytes_per_file=2 * given[0].frames.nbytes) as writer:
        for one in given:
            writer.add(one)
        assert (writer.episodes, writer.steps) == (5, 25)
    files = open_episodes(tmp_path)
    assert files.recording == about and len(files) == 5 and len(files.paths) == 3 and files.extras == ("yaw",)
    assert files.lengths.tolist() == [5] * 5 and files.starts.tolist() == [0, 5, 10, 15, 20] and files.has_text
    for found, wanted in zip(files, given):
        assert_equal(found, wanted)
    np.testing.assert_array_equal(files.frames(3, 1, 1 + frames_per_step), given[3].frames[1 : 1 + frames_per_step])
    assert [files.text_at(2, step) for step in range(5)] == ["rain", "rain", "rain", None, None]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(files)).frames(4), given[4].frames)


def test_a_stop_in_the_middle_loses_one_file_and_the_rest_goes_on(tmp_path):
    about = recording()
    given = [episode(about, 3 + seed, seed) for seed in range(4)]
    with EpisodeWriter(tmp_path, about, bytes_per_file=1) as writer:
        for one in given[:3]:
            writer.add(one)
    (tmp_path / "episodes_00002.json").unlink()  # as if stopped before it was whole
    (tmp_path / "episodes_00003.safetensors.unfinished").write_bytes(b"half")
    assert len(open_episodes(tmp_path)) == 2
    with EpisodeWriter(tmp_path, about, bytes_per_file=1) as writer:
        assert (writer.episodes, writer.steps) == (2, 7)
        assert sorted(path.name for path in tmp_path.iterdir() if "00002" in path.name or "unf" in path.name) == []
        for one in given[2:]:
            writer.add(one)
    for found, wanted in zip(open_episodes(tmp_path), given):
        assert_equal(found, wanted)


def test_episodes_that_wait_are_written_when_recording_is_interrupted(tmp_path):
    about = recording()
    with pytest.raises(KeyboardInterrupt), EpisodeWriter(tmp_path, about) as writer:
        writer.add(episode(about))
        raise KeyboardInterrupt
    assert len(open_episodes(tmp_path)) == 1 and not open_episodes(tmp_path).has_text


def test_another_recording_is_not_continued(tmp_path):
    with EpisodeWriter(tmp_path, recording()) as writer:
        writer.add(episode(recording()))
    for changes in ({"seed": 4}, {"height": 24}, {"action": SPACES["box"]}, {"source": {}}):
        with pytest.raises(RecordingError, match=f"with {next(iter(changes))} .*use another folder"):
            EpisodeWriter(tmp_path, recording(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((4, 8, 16, 3), np.uint8)}, r"frames of this episode is uint8 \(4, .* asks for uint8 \(5,"),
        ({"frames": np.zeros((5, 16, 16, 3), np.uint8)}, "frames of this episode"),
        ({"frames": np.zeros((5, 8, 16, 3), np.float32)}, "frames of this episode is float32"),
        ({"reward": np.zeros(3, np.float32)}, "reward of this episode"),
        ({"action": np.array([0, 1, 2, 3])}, "outside of its discrete space: accepted is 0 to 2"),
        ({"action": np.zeros(0, np.int64)}, "at least one step"),
        ({"texts": ((2, "b"), (1, "a"))}, "in order"),
        ({"extra": {"yaw": np.zeros(4)}}, "'yaw' has 4 values for 5 pictures"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, change, message):
    about = recording()
    writer = EpisodeWriter(tmp_path, about)
    with pytest.raises(RecordingError, match=message):
        writer.add(dataclasses.replace(episode(about), **change))
    assert writer.episodes == 0


def test_extra_arrays_are_the_same_in_all_episodes(tmp_path):
    about, yaw = recording(), {"yaw": np.zeros(5, np.float32)}
    with EpisodeWriter(tmp_path, about) as writer:
        writer.add(episode(about, extra=yaw))
    with pytest.raises(RecordingError, match="extra arrays"):
        EpisodeWriter(tmp_path, about).add(episode(about))
    with pytest.raises(RecordingError, match="no extra array 'pitch'"):
        open_episodes(tmp_path).extra("pitch", 0)


def test_bad_descriptions_are_refused():
    for changes in ({"fps": 0}, {"height": -8}, {"frames_per_step": 0}, {"fps": float("nan")}):
        with pytest.raises(RecordingError, match=f"{next(iter(changes))} .* must be above 0"):
            recording(**changes)


@pytest.fixture
def two_files(tmp_path):
    with EpisodeWriter(tmp_path, recording(), bytes_per_file=1) as writer:
        writer.add(episode(recording(), seed=0))
        writer.add(episode(recording(), seed=1))
    return tmp_path


def _rewrite(path, **tensors) -> None:
    kept = {name: array for name, array in (load_file(path) | tensors).items() if array is not None}
    save_file(kept, path)


def _json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


TAMPERED = {
    "no dataset.json": (lambda at: (at / "dataset.json").unlink(), "no recording in .* make one"),
    "damaged dataset.json": (lambda at: (at / "dataset.json").write_text("{"), "damaged"),
    "field missing": (lambda at: (at / "dataset.json").write_text('{"format": 1}'), "damaged"),
    "newer format": (lambda at: _json(at / "dataset.json", format=2), "format 2, this version reads 1"),
    "bad action space": (lambda at: _json(at / "dataset.json", action={"kind": "discrete"}), "damaged"),
    "other size": (lambda at: _json(at / "dataset.json", height=24), "'frames' is U8"),
    "other actions": (
        lambda at: _json(at / "dataset.json", action={"kind": "box", "low": [0], "high": [1]}),
        "'action'",
    ),
    "pictures per step": (
        lambda at: _json(at / "dataset.json", frames_per_step=2),
        "'frames' has 5 entries, .* ask for 9",
    ),
    "file cut short": (lambda at: _cut(at / "episodes_00001.safetensors"), "damaged"),
    "file missing": (lambda at: (at / "episodes_00001.safetensors").unlink(), "missing, though its .json exists"),
    "first file missing": (lambda at: (at / "episodes_00000.json").unlink(), "is not whole, though episodes_00001"),
    "damaged words": (lambda at: (at / "episodes_00000.json").write_text('{"episodes": [1]}'), "damaged"),
    "fewer words": (lambda at: (at / "episodes_00000.json").write_text('{"episodes": []}'), "'length' has 1 entries"),
    "no reward": (lambda at: _rewrite(at / "episodes_00000.safetensors", reward=None), "lacks the tensor 'reward'"),
    "no pictures": (lambda at: _rewrite(at / "episodes_00000.safetensors", frames=None), "lacks the tensor 'frames'"),
    "lengths": (
        lambda at: _rewrite(at / "episodes_00000.safetensors", length=np.array([5])),
        "4 entries, .* ask for 5",
    ),
    "empty episode": (lambda at: _rewrite(at / "episodes_00000.safetensors", length=np.array([0])), "has 0 steps"),
    "sizes mixed": (
        lambda at: _rewrite(at / "episodes_00001.safetensors", frames=np.zeros((5, 24, 16, 3), np.uint8)),
        "'frames' is",
    ),
    "extra in one": (
        lambda at: _rewrite(at / "episodes_00001.safetensors", **{"extra.yaw": np.zeros(5, np.float32)}),
        "different extra",
    ),
}


def _cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("how", TAMPERED)
def test_a_damaged_recording_says_what_is_wrong(two_files, how):
    tamper, message = TAMPERED[how]
    tamper(two_files)
    with pytest.raises(RecordingError, match=message):
        open_episodes(two_files)


def test_a_recording_without_episodes_says_so(tmp_path):
    EpisodeWriter(tmp_path, recording())
    assert read_recording(tmp_path) == recording()
    with pytest.raises(RecordingError, match="no whole file"):
        open_episodes(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with EpisodeWriter(tmp_path, recording()) as writer:
        writer.add(episode(recording()))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(RecordingError, match="without their dataset"):
        EpisodeWriter(tmp_path, recording())


def test_only_pictures_and_episodes_that_exist_are_read(two_files):
    files = open_episodes(two_files)
    with pytest.raises(IndexError, match=r"episodes 0\.\.1, asked for 2"):
        files.frames(2)
    with pytest.raises(IndexError, match=r"pictures 0\.\.4, asked for 0 up to 6"):
        files.frames(0, 0, 6)
