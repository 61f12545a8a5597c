"""Sekai-style clips: folders named after the keys held, one video per file, of any length.

    Keys_W_A_Mouse_Right/<id>.mp4     the pictures
    Keys_W_A_Mouse_Right/<id>.txt     Start Frame, End Frame (both counted from 1, both included), Duration, Keys, Mouse
    Keys_W_A_Mouse_Right/<id>.npy     optional camera-to-world poses [frames, 4, 4], x right, y down, z forward

Our writer adds the lines Caption and Event where it knows them; other readers skip what they do not know. Keys, Mouse and Event may
be told by stretches of frames (labels.py). The reader takes actions from the text file, else from the folder's name, else from the
poses, frame by frame. A video in any other folder counts as a clip where a text or poses lie beside it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.labels import Change, ClipError, action_changes, changes, held_at, labelled, read_fields
from train.data.poses import PUBLISHED, Thresholds, decode_steps, most_held, pose_angles
from train.data.shards import Header, Trajectory, TrajectoryInfo
from train.data.video import VideoError, read_video, write_video
from world_model.actions import Action
from world_model.camera import CameraConfig, commanded_motion, pose_matrix

_ARROW_WORDS = {"→": "Right", "←": "Left", "↑": "Up", "↓": "Down"}
_NO_KEYS, _NO_MOUSE = "None", "·"
UNTOLD = "A first-person walk."  # caption of a clip that brings none


@dataclass(frozen=True)
class Clip:
    """One labelled clip; the video is not read yet. Actions and events hold from a frame of the video on (counted from 0)."""

    video: Path
    actions: list[tuple[int, Action]]
    poses: np.ndarray | None  # float64 [frames, 4, 4]
    caption: str
    events: list[Change]

    @property
    def action(self) -> Action:
        """What is held at the start: in most clips from beginning to end."""
        return self.actions[0][1]

    @property
    def event(self) -> str | None:
        """The event at the start."""
        return held_at(self.events, 0)

    def actions_of(self, frames: np.ndarray) -> Action:
        """Of move and look, what is held in most of the given frames."""
        starts = [start for start, _ in self.actions]
        held = [self.actions[bisect_right(starts, int(frame)) - 1][1] for frame in frames]
        return most_held(held)

    def words(self, indices: np.ndarray, size: int) -> TrajectoryInfo:
        """Caption and events by block; `indices` are the frames of all blocks of `size`."""
        told = [held_at(self.events, int(block[len(block) // 2])) for block in indices.reshape(-1, size)]
        begun = [b for b, text in enumerate(told) if text != (told[b - 1] if b else None)]
        return TrajectoryInfo(self.caption, tuple((block, told[block], None) for block in begun))


# ---------------------------------------------------------------- writing


def folder_name(action: Action) -> str:
    """As in "Keys_W_A_Mouse_Up_Right"; "None" and "·" stand for nothing held."""
    mouse = "_".join(_ARROW_WORDS[arrow] for arrow in action.arrows) or _NO_MOUSE
    return f"Keys_{action.keys.replace('+', '_') or _NO_KEYS}_Mouse_{mouse}"


def write_walk(
    root: str | os.PathLike, name: str, walk: Trajectory, header: Header, camera: CameraConfig
) -> list[Path]:
    """Cuts a walk where action or event change and writes each stretch as a clip with poses; returns the videos.

    `name` must be the walk's own. A clip that stands there already is kept.
    """
    texts = [walk.info.event_at(block) for block in range(header.blocks_per_walk)]
    kinds = list(zip(walk.action.tolist(), texts, strict=True))
    cuts = [b for b in range(len(kinds)) if b == 0 or kinds[b] != kinds[b - 1]]
    videos = []
    for first, stop in zip(cuts, [*cuts[1:], len(kinds)], strict=True):
        start, end = first * header.frames_per_block, stop * header.frames_per_block
        action = Action.from_index(kinds[first][0])
        stem = Path(root) / folder_name(action) / f"{name}_frames_{start + 1:05d}-{end:05d}"
        video = stem.with_suffix(".mp4")
        videos.append(video)
        if stem.with_suffix(".txt").is_file():
            continue
        stem.parent.mkdir(parents=True, exist_ok=True)
        angles = zip(walk.position[start:end], walk.yaw[start:end], walk.pitch[start:end], strict=True)
        poses = [pose_matrix(x, z, yaw, pitch, camera.eye_height) for (x, z), yaw, pitch in angles]
        write_video(video, walk.frames[start:end], header.fps)
        np.save(stem.with_suffix(".npy"), np.array(poses))
        lines = {
            "Start Frame": start + 1,
            "End Frame": end,
            "Duration": f"{end - start} frames",
            "Keys": action.keys or _NO_KEYS,
            "Mouse": action.arrows or _NO_MOUSE,
            "Caption": walk.info.caption,
        } | ({"Event": texts[first]} if texts[first] else {})
        text = "\n".join(f"{field}: {value}" for field, value in lines.items())
        stem.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    return videos


# ---------------------------------------------------------------- reading


def find_clips(root: str | os.PathLike) -> list[Path]:
    """All videos in folders `Keys_*_Mouse_*` below `root`, and those with a text or poses beside them, in order. Raises
    FileNotFoundError where there are none."""
    videos = sorted(video for video in Path(root).rglob("*.mp4") if _is_clip(video))
    if not videos:
        raise FileNotFoundError(
            f"no Sekai-style clips in {str(root)!r}: expected folders such as Keys_W_Mouse_Left/<id>.mp4, or <id>.txt or "
            "<id>.npy beside the videos"
        )
    return videos


def _is_clip(video: Path) -> bool:
    return video.parent.name.startswith("Keys_") or any(video.with_suffix(s).is_file() for s in (".txt", ".npy"))


def read_clip(video: Path, thresholds: Thresholds = PUBLISHED) -> Clip:
    """The labels of one clip. Raises ClipError naming file and field where they are missing, broken or contradictory."""
    label = video.with_suffix(".txt")
    fields = read_fields(label) if label.is_file() else {}
    poses = _read_poses(video.with_suffix(".npy"))
    actions = action_changes(fields, label)
    named = _from_folder(video.parent)
    if named and len(actions) == 1 and actions[0][1] != named:
        raise ClipError(f"{label}: Keys and Mouse say {actions[0][1].meaning!r}, its folder says {named.meaning!r}")
    if not actions and named:
        actions = [(0, named)]
    if not actions:
        if poses is None:
            raise ClipError(
                f"{video}: no Keys and Mouse in {label.name}, none in the folder's name, and no poses to tell them"
            )
        try:
            actions = _steps(poses, thresholds)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise ClipError(f"{video.with_suffix('.npy')}: poses tell no action: {error}") from error
    return Clip(video, actions, poses, fields.get("Caption") or UNTOLD, changes(fields, "Event", label))


def _steps(poses: np.ndarray, thresholds: Thresholds) -> list[tuple[int, Action]]:
    """Actions of poses by the frame from which they are held. Raises ValueError where there is no step."""
    steps = decode_steps(poses, thresholds)
    if not steps:
        raise ValueError(f"{len(poses)} poses hold no step of {thresholds.stride} frames")
    return [(i * thresholds.stride, a) for i, a in enumerate(steps) if not i or a != steps[i - 1]]


def read_walks(
    root: str | os.PathLike,
    header: Header,
    camera: CameraConfig,
    thresholds: Thresholds = PUBLISHED,
    on_clip: Callable[[str | None], None] = lambda problem: None,
) -> Iterator[Trajectory]:
    """Streams the clips below `root` as walks of the header's size, rate and length; a long clip gives several.

    Angles and positions are those of the poses where a clip has some (positions in the poses' own unit), else the
    commanded motion from (0, 0). After each clip `on_clip` is called with None, or with what was wrong with it: such a
    clip is skipped.
    """
    for video in find_clips(root):
        try:
            clip = read_clip(video, thresholds)
            walks = walks_of(clip, header, camera)
        except (ClipError, VideoError) as problem:
            on_clip(str(problem))
            continue
        yield from walks
        on_clip(None)


def walks_of(clip: Clip, header: Header, camera: CameraConfig) -> list[Trajectory]:
    """All whole walks of a clip, one after another. Raises ClipError where it is shorter than one."""
    frames, indices, count = read_video(clip.video, header.height, header.width, header.fps)
    check_poses(clip, count)
    length = header.frames_per_walk
    if len(frames) < length:
        raise ClipError(f"{clip.video}: {len(frames)} frames at {header.fps} fps, a walk needs {length}")
    return [
        walk_of(clip, frames[start : start + length], indices[start : start + length], header, camera)
        for start in range(0, len(frames) - length + 1, length)
    ]


def check_poses(clip: Clip, count: int) -> None:
    """Raises ClipError unless a clip's poses, if it has some, are as many as its frames."""
    if clip.poses is not None and len(clip.poses) != count:
        raise ClipError(f"{clip.video.with_suffix('.npy')}: {len(clip.poses)} poses for {count} frames")


def walk_of(clip: Clip, frames: np.ndarray, indices: np.ndarray, header: Header, camera: CameraConfig) -> Trajectory:
    """Whole blocks of a clip as one walk: `frames` (all of them, or as many pictures as the caller wants to keep), and which frames
    of the video its blocks are, `indices` [T].

    Angles and positions are those of the poses where a clip has some, else the commanded motion from (0, 0).
    """
    size = header.frames_per_block
    blocks = indices.reshape(-1, size)
    actions = [clip.actions_of(block) for block in blocks]
    if clip.poses is not None:
        yaw, pitch = pose_angles(clip.poses[indices])
        position = clip.poses[indices][:, [0, 2], 3]
    else:
        yaw, pitch, position = _commanded(actions, header, camera)
    return Trajectory(
        frames=frames,
        action=np.array([action.index for action in actions], np.uint8),
        yaw=yaw.astype(np.float32),
        pitch=pitch.astype(np.float32),
        position=position.astype(np.float32),
        blocked=np.zeros(len(blocks), np.uint8),
        info=clip.words(indices, size),
    )


def _commanded(actions: list[Action], header: Header, camera: CameraConfig) -> tuple[np.ndarray, ...]:
    """Yaw, pitch [T] and position [T, 2] of a walk that does what its keys say, from the origin."""
    parts, yaw, pitch, place = [], 0.0, 0.0, np.zeros(2)
    for action in actions:
        yaws, pitches, moves = commanded_motion(action, yaw, pitch, header.frames_per_block, header.fps, camera)
        parts.append((yaws, pitches, place + moves))
        yaw, pitch, place = float(yaws[-1]), float(pitches[-1]), place + moves[-1]
    return tuple(np.concatenate(part) for part in zip(*parts))


def _read_poses(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        poses = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ClipError(f"{path}: not a readable array of poses ({error})") from error
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise ClipError(f"{path}: poses must be finite numbers [frames, 4, 4], got shape {list(poses.shape)}")
    return poses.astype(np.float64)


def _from_folder(folder: Path) -> Action | None:
    keys, separator, mouse = folder.name.removeprefix("Keys_").partition("_Mouse_")
    if not separator:
        return None
    return labelled(keys.replace("_", "+"), mouse.replace("_", "+"), folder)
