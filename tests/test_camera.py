"""The commanded camera: OpenCV axes, right and up positive, walking along the heading of the moment."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from world_model.actions import ALL_ACTIONS, Action
from world_model.camera import CameraConfig, commanded_motion, pose_matrix, rotation

CAMERA = CameraConfig()


def motion(keys="", look="", yaw=0.0, pitch=0.0, frames=8, fps=8.0):
    return commanded_motion(Action.from_keys(keys, look), yaw, pitch, frames, fps, CAMERA)


def test_the_picture_spans_the_field_of_view():
    matrix = CAMERA.intrinsics(64, 96)
    half = math.tan(math.radians(CAMERA.horizontal_fov / 2))
    np.testing.assert_allclose(matrix @ [0, 0, 1], [48, 32, 1])
    np.testing.assert_allclose(matrix @ [half, 0, 1], [96, 32, 1])
    assert matrix[0, 0] == matrix[1, 1] == CAMERA.focal(96)


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (0.3, -0.2), (-2.5, 0.6), (7.0, 0.1)])
def test_rotation_is_a_turn_to_the_right_and_then_a_tilt_up(yaw, pitch):
    matrix = rotation(yaw, pitch)
    np.testing.assert_allclose(matrix, Rotation.from_euler("YX", [yaw, pitch]).as_matrix(), atol=1e-12)
    forward = [math.sin(yaw) * math.cos(pitch), -math.sin(pitch), math.cos(yaw) * math.cos(pitch)]  # y points down
    np.testing.assert_allclose(matrix[:, 2], forward, atol=1e-12)


def test_pose_puts_the_eye_above_the_ground():
    pose = pose_matrix(1.0, 2.0, 0.5, -0.25, 1.65)
    np.testing.assert_allclose(pose @ [0, 0, 0, 1], [1, -1.65, 2, 1])
    np.testing.assert_allclose(pose[:3, :3], rotation(0.5, -0.25))
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("keys", "expected"), [("W", (0, 1)), ("S", (0, -1)), ("D", (1, 0)), ("A", (-1, 0)), ("W+D", (0.5**0.5, 0.5**0.5))]
)
def test_walking_goes_where_the_key_says_and_diagonals_are_no_faster(keys, expected):
    _, _, displacement = motion(keys)
    np.testing.assert_allclose(displacement[-1], np.multiply(expected, CAMERA.walk_speed), atol=1e-12)
    np.testing.assert_allclose(
        np.diff(displacement, axis=0, prepend=[[0, 0]]), displacement[:1].repeat(8, 0), atol=1e-12
    )


def test_walking_follows_the_heading():
    _, _, displacement = motion("W", yaw=math.pi / 2)
    np.testing.assert_allclose(displacement[-1], [CAMERA.walk_speed, 0], atol=1e-12)
    _, _, displacement = motion("D", yaw=math.pi / 2)
    np.testing.assert_allclose(displacement[-1], [0, -CAMERA.walk_speed], atol=1e-12)


def test_walking_in_a_turn_follows_the_arc():
    yaws, _, displacement = motion("W+A", "→", yaw=0.4)
    fine = 4000
    heading = 0.4 + math.radians(CAMERA.turn_speed) * (np.arange(fine) + 0.5) / fine
    step = CAMERA.walk_speed / fine / math.sqrt(2)
    arc = [np.sum(np.sin(heading) - np.cos(heading)) * step, np.sum(np.cos(heading) + np.sin(heading)) * step]
    np.testing.assert_allclose(displacement[-1], arc, atol=5e-3)
    assert yaws[-1] == pytest.approx(0.4 + math.radians(CAMERA.turn_speed))


def test_looking_turns_at_its_speed_and_tilting_stops_at_the_limit():
    yaws, pitches, displacement = motion("", "↑←", frames=16)
    second = np.arange(1, 17) / 8
    np.testing.assert_allclose(yaws, -np.radians(CAMERA.turn_speed) * second)
    np.testing.assert_allclose(pitches, np.radians(np.minimum(CAMERA.tilt_speed * second, CAMERA.max_tilt)))
    assert not displacement.any()


def test_two_blocks_are_one_long_block():
    for action in ALL_ACTIONS:
        whole = commanded_motion(action, 0.2, 0.1, 8, 8, CAMERA)
        first = commanded_motion(action, 0.2, 0.1, 4, 8, CAMERA)
        second = commanded_motion(action, first[0][-1], first[1][-1], 4, 8, CAMERA)
        np.testing.assert_allclose(np.concatenate([first[0], second[0]]), whole[0])
        np.testing.assert_allclose(np.concatenate([first[1], second[1]]), whole[1])
        np.testing.assert_allclose(np.concatenate([first[2], first[2][-1] + second[2]]), whole[2], atol=1e-12)


@pytest.mark.parametrize("keys", ["", "W", "S", "A", "D", "W+A", "S+D"])
@pytest.mark.parametrize("look", ["", "→", "←", "↑", "↓"])
def test_poses_decode_to_the_keys_that_made_them(keys, look):
    """The rule by which clips with camera poses are labelled: relative pose, its translation and its extrinsic x-y-z angles."""
    yaws, pitches, displacement = motion(keys, look, yaw=1.0, pitch=0.05, frames=1)
    before = pose_matrix(0, 0, 1.0, 0.05, CAMERA.eye_height)
    after = pose_matrix(*displacement[0], yaws[0], pitches[0], CAMERA.eye_height)
    relative = np.linalg.inv(before) @ after
    x, z = relative[0, 3], relative[2, 3]
    up, right, _ = Rotation.from_matrix(relative[:3, :3]).as_euler("xyz")
    level = 0.03
    moves = {"W": z > level, "S": z < -level, "D": x > level, "A": x < -level}
    looks = {"→": right > level, "←": right < -level, "↑": up > level, "↓": up < -level}
    held = ("+".join(key for key, on in moves.items() if on), "".join(key for key, on in looks.items() if on))
    assert Action.from_keys(*held) == Action.from_keys(keys, look)
