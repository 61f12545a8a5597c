"""The Sekai-style folder layout: labels, pose decoding, videos, and the way from shards to clips and back."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from train.data import sekai
from train.data.poses import Thresholds, decode_action, decode_steps, pose_angles
from train.data.shards import Header, Trajectory, TrajectoryInfo
from train.data.video import read_video, write_video
from world_model.actions import ALL_ACTIONS, Action
from world_model.camera import CameraConfig, commanded_motion, pose_matrix

# imageio-ffmpeg leaves the pipes of a finished decoder to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

FIXTURES = Path(os.environ.get("YUME_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
CONTROLS = FIXTURES / "controls" / "controls.json"
CAMERA = CameraConfig()
HEADER = Header("debug", 32, 48, 8, 4, 4, 0, {"world": "test"})
METRIC = Thresholds(translation=0.1, rotation=0.03)


@pytest.fixture(scope="module")
def controls() -> dict:
    if not CONTROLS.is_file():
        pytest.skip("the published clips' poses are not part of the repository (set YUME_FIXTURES)")
    return json.loads(CONTROLS.read_text(encoding="utf-8"))


def commanded_poses(action: Action, frames: int = 9, yaw: float = 0.4, pitch: float = 0.0) -> np.ndarray:
    yaws, pitches, moves = commanded_motion(action, yaw, pitch, frames, 8, CAMERA)
    return np.stack([pose_matrix(x, z, a, b, CAMERA.eye_height) for (x, z), a, b in zip(moves, yaws, pitches)])


def moving_walk(actions: list[Action], event: tuple = (), seed: int = 0) -> Trajectory:
    """Flat colours that differ from frame to frame, one action a block."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 256, (4 * len(actions), 1, 1, 3)), 32, axis=1).repeat(48, axis=2)
    yaw, pitch, positions, place = [0.3], [0.0], [], np.zeros(2)
    for action in actions:
        yaws, pitches, moves = commanded_motion(action, yaw[-1], pitch[-1], 4, 8, CAMERA)
        yaw, pitch, positions = [*yaw, *yaws], [*pitch, *pitches], [*positions, *(place + moves)]
        place = positions[-1]
    return Trajectory(
        frames=frames.astype(np.uint8),
        action=np.array([action.index for action in actions], np.uint8),
        yaw=np.array(yaw[1:], np.float32),
        pitch=np.array(pitch[1:], np.float32),
        position=np.array(positions, np.float32),
        blocked=np.zeros(len(actions), np.uint8),
        info=TrajectoryInfo("A street of test pictures.", event, "day", "clear"),
    )


# ---------------------------------------------------------------- poses -> keys


@pytest.mark.parametrize("stride", [1, 4])
def test_published_clips_decode_step_by_step(controls: dict, stride: int) -> None:
    thresholds = Thresholds(stride=stride)
    for clip in controls["clips"]:
        expected = clip[f"stride{stride}"]
        poses = np.array(clip["poses"]).reshape(-1, 4, 4)
        steps = [Action.from_keys(*step) for step in zip(expected["keys"], expected["mouse"], strict=True)]
        assert decode_steps(poses, thresholds) == steps, clip["name"]
        assert decode_action(poses, thresholds) == Action.from_keys(clip["keys"], clip["mouse"]), clip["name"]


def test_signs_and_strict_thresholds(controls: dict) -> None:
    for case in controls["synthetic"]:
        poses = np.stack([np.eye(4), np.array(case["relative_pose"]).reshape(4, 4)])
        assert decode_steps(poses) == [Action.from_keys(case["keys"], case["mouse"])], case["name"]


def test_decoding_does_not_depend_on_where_the_world_is(controls: dict) -> None:
    clip = controls["clips"][0]
    elsewhere = pose_matrix(30.0, -7.0, 2.0, 0.3, 5.0)
    poses = np.array(clip["poses"]).reshape(-1, 4, 4)
    assert decode_action(elsewhere @ poses) == decode_action(poses)


@pytest.mark.parametrize("action", ALL_ACTIONS, ids=lambda action: action.meaning)
def test_every_commanded_motion_is_decoded_from_its_poses(action: Action) -> None:
    assert decode_action(commanded_poses(action), METRIC) == action


def test_poses_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, 4, 4\]"):
        decode_steps(np.zeros((5, 3, 4)))
    with pytest.raises(ValueError, match="no step"):
        decode_action(np.eye(4)[None])


def test_pose_angles_invert_pose_matrix() -> None:
    yaw = np.linspace(-7.0, 7.0, 60)
    pitch = np.linspace(-0.6, 0.6, 60)
    found = pose_angles(np.stack([pose_matrix(1.0, 2.0, a, b, 1.65) for a, b in zip(yaw, pitch)]))
    np.testing.assert_allclose(found[0] - found[0][0], yaw - yaw[0], atol=1e-9)
    np.testing.assert_allclose(found[1], pitch, atol=1e-9)


# ---------------------------------------------------------------- folders and labels


def test_folder_names_are_those_of_published_clips_and_unique(controls: dict) -> None:
    for clip in controls["clips"] + controls["clips_without_poses"]:
        assert sekai.folder_name(Action.from_keys(clip["keys"], clip["mouse"])) == clip["folder"]
    assert len({sekai.folder_name(action) for action in ALL_ACTIONS}) == 81


def test_a_walk_becomes_clips_of_one_action_and_event_each(tmp_path: Path) -> None:
    forward, left = Action.from_keys("W"), Action.from_keys("W", "←")
    walk = moving_walk([forward, forward, forward, left], event=((2, "rain sets in", "heavy_rain"),))
    videos = sekai.write_walk(tmp_path, "w0", walk, HEADER, CAMERA)
    assert [str(video.relative_to(tmp_path)) for video in videos] == [
        "Keys_W_Mouse_·/w0_frames_00001-00008.mp4",
        "Keys_W_Mouse_·/w0_frames_00009-00012.mp4",
        "Keys_W_Mouse_Left/w0_frames_00013-00016.mp4",
    ]
    text = videos[2].with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    assert text[:5] == ["Start Frame: 13", "End Frame: 16", "Duration: 4 frames", "Keys: W", "Mouse: ←"]
    assert [sekai.read_clip(video).event for video in videos] == [None, "rain sets in", "rain sets in"]
    before = [video.stat().st_mtime_ns for video in videos]
    assert sekai.write_walk(tmp_path, "w0", walk, HEADER, CAMERA) == videos
    assert [video.stat().st_mtime_ns for video in videos] == before  # kept, not written again


def test_clips_read_back_as_the_walks_they_were(tmp_path: Path) -> None:
    actions = [Action.from_keys("W+A", "↑→"), Action.from_keys("S", "←")]
    header = dataclasses.replace(HEADER, blocks_per_walk=2)
    for k, action in enumerate(actions):
        walk = moving_walk([action, action], event=((0, "snow falls", "snow"),), seed=k)
        sekai.write_walk(tmp_path, f"w{k}", walk, header, CAMERA)
        (found,) = (w for w in sekai.read_walks(tmp_path, header, CAMERA) if w.action[0] == action.index)
        assert found.action.tolist() == walk.action.tolist()
        assert np.abs(found.frames.astype(int) - walk.frames).max() <= 4
        np.testing.assert_allclose(found.yaw, walk.yaw, atol=1e-6)
        np.testing.assert_allclose(found.pitch, walk.pitch, atol=1e-6)
        np.testing.assert_allclose(found.position, walk.position, atol=1e-6)
        assert (found.info.caption, found.info.event_at(0)) == ("A street of test pictures.", "snow falls")


def test_another_size_and_rate_are_cropped_and_resampled(tmp_path: Path) -> None:
    """24 fps at 60x120 -> 8 fps at 32x48: every third picture, the middle 60x90 of it."""
    video = tmp_path / "Keys_D_Mouse_·" / "clip.mp4"
    video.parent.mkdir()
    frames = np.zeros((49, 60, 120, 3), np.uint8)
    frames[..., :15, 0] = frames[..., -15:, 0] = 255  # red margins that the crop takes away
    frames[:, :, 20:100, 1] = (np.arange(49) * 5)[:, None, None]
    write_video(video, frames, 24)
    found, indices, count = read_video(video, 32, 48, 8)
    assert count == 49
    assert indices.tolist() == list(range(0, 49, 3))
    assert found.shape == (17, 32, 48, 3)
    assert found[..., 1:-1, 0].max() < 40
    assert np.abs(found[:, 16, 24, 1].astype(int) - indices * 5).max() <= 5
    walks = list(sekai.read_walks(tmp_path, HEADER, CAMERA))
    assert [walk.action.tolist() for walk in walks] == [[Action.from_keys("D").index] * 4]
    assert walks[0].info.caption == sekai.UNTOLD
    assert walks[0].position[-1, 0] == pytest.approx(CAMERA.walk_speed * 2, rel=1e-5)


def test_a_long_clip_gives_several_walks_and_upsampling_repeats(tmp_path: Path) -> None:
    video = tmp_path / "Keys_W_Mouse_·" / "clip.mp4"
    video.parent.mkdir()
    write_video(video, np.zeros((12, 32, 48, 3), np.uint8), 4)
    _, indices, _ = read_video(video, 32, 48, 8)
    assert len(indices) == 23 and set(np.diff(indices)) == {0, 1}
    assert len(list(sekai.read_walks(tmp_path, dataclasses.replace(HEADER, blocks_per_walk=2), CAMERA))) == 2


def test_unlabelled_clips_get_their_action_from_poses(tmp_path: Path) -> None:
    video = tmp_path / "Keys_unknown" / "26-6-2025_21321_www.bilibili.com.mp4"
    video.parent.mkdir()
    action = Action.from_keys("W", "→")
    write_video(video, np.zeros((16, 32, 48, 3), np.uint8), 8)
    with pytest.raises(sekai.ClipError, match="no poses"):
        sekai.read_clip(video)
    np.save(video.with_suffix(".npy"), commanded_poses(action, 16))
    assert sekai.read_clip(video, METRIC).action == action


# ---------------------------------------------------------------- broken clips


LABEL = "Start Frame: 1\n\nEnd Frame: 16\n\nDuration: 16 frames\n\nKeys: W\n\nMouse: ·\n"
BROKEN: dict[str, tuple[str, object, str]] = {
    "unknown key": (".txt", LABEL.replace("Keys: W", "Keys: Q"), r"clip\.txt: fields Keys 'Q'.*W, A, S, D"),
    "contradiction": (".txt", LABEL.replace("Keys: W", "Keys: S"), r"clip\.txt: Keys and Mouse say 'S'.*'W'"),
    "frame number": (".txt", LABEL.replace("16\n", "soon\n", 1), r"clip\.txt: field 'End Frame' is 'soon'"),
    "duration": (".txt", LABEL.replace("16 frames", "9 frames"), r"clip\.txt: field 'Duration'"),
    "not text": (".txt", b"\xff\xfe\x00bad", r"clip\.txt: not a readable text file"),
    "poses' shape": (".npy", np.zeros((16, 3, 4)), r"clip\.npy: poses must be"),
    "poses' count": (".npy", np.stack([np.eye(4)] * 15), r"clip\.npy: 15 poses for 16 frames"),
    "poses not finite": (".npy", np.full((16, 4, 4), np.nan), r"clip\.npy: poses must be finite"),
    "no array": (".npy", b"nothing", r"clip\.npy: not a readable array"),
    "video": (".mp4", b"nothing of the kind", r"clip\.mp4: no readable video"),
    "empty video": (".mp4", b"", r"clip\.mp4: no readable video"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_clip_is_named_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "Keys_W_Mouse_·"
    folder.mkdir()
    for name in ("a", "clip", "z"):
        write_video(folder / f"{name}.mp4", np.zeros((16, 32, 48, 3), np.uint8), 8)
        (folder / f"{name}.txt").write_text(LABEL, encoding="utf-8")
    suffix, content, message = BROKEN[case]
    if isinstance(content, np.ndarray):
        np.save(folder / f"clip{suffix}", content)
    else:
        data = content if isinstance(content, bytes) else str(content).encode()
        (folder / f"clip{suffix}").write_bytes(data)
    told: list[str | None] = []
    walks = list(sekai.read_walks(tmp_path, HEADER, CAMERA, on_clip=told.append))
    assert len(walks) == 2
    assert told[0] is None and told[2] is None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(told[1])


def test_a_short_clip_is_named(tmp_path: Path) -> None:
    video = tmp_path / "Keys_W_Mouse_·" / "clip.mp4"
    video.parent.mkdir()
    write_video(video, np.zeros((15, 32, 48, 3), np.uint8), 8)
    told: list[str | None] = []
    assert not list(sekai.read_walks(tmp_path, HEADER, CAMERA, on_clip=told.append))
    assert told[0] is not None and "15 frames at 8 fps, a walk needs 16" in told[0]


def test_a_folder_without_clips_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "film.mp4").touch()
    with pytest.raises(FileNotFoundError, match="Keys_W_Mouse_Left"):
        sekai.find_clips(tmp_path)


def test_odd_sizes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "x.mp4", np.zeros((2, 33, 48, 3), np.uint8), 8)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- where labels disagree


def test_labels_agree_with_every_step_but_not_with_the_whole_motion(controls: dict) -> None:
    """A clip's label is what is held in each of its steps, at both strides. It is not its first pose against its last: there the
    keys agree in all clips and the arrows in hardly any, since small drifts add up past the thresholds."""
    agreement, clips = controls["agreement"], controls["clips"]
    for stride in (1, 4):
        counted = agreement[f"stride{stride}"]
        thresholds = Thresholds(stride=stride)
        steps = [
            (step, Action.from_keys(clip["keys"], clip["mouse"]))
            for clip in clips
            for step in decode_steps(np.array(clip["poses"]).reshape(-1, 4, 4), thresholds)
        ]
        assert len(steps) == counted["steps"]
        assert sum(step.move == label.move for step, label in steps) == counted["step_keys_agree"]
        assert sum(step.look == label.look for step, label in steps) == counted["step_mouse_agree"]
    ends = [decode_steps(np.array(clip["poses"]).reshape(-1, 4, 4)[[0, -1]])[0] for clip in clips]
    for clip, whole in zip(clips, ends, strict=True):
        assert whole == Action.from_keys(clip["first_to_last"]["keys"], clip["first_to_last"]["mouse"]), clip["name"]
    labels = [Action.from_keys(clip["keys"], clip["mouse"]) for clip in clips]
    assert sum(a.move == b.move for a, b in zip(ends, labels)) == agreement["first_to_last"]["keys_agree"] == 63
    assert sum(a.look == b.look for a, b in zip(ends, labels)) == agreement["first_to_last"]["mouse_agree"] == 2
