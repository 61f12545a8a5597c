"""The independent control measure: right on the street, where the truth is known, and chance on nonsense."""

from __future__ import annotations

import itertools
import json
import math

import gymnasium
import numpy as np
import pytest
from scipy import ndimage

from train import control
from train.control import TOURS, WISHES, Trial, Wish, score, table, tour_of, verdict, walk_tour
from train.judge.motion import LUMA, CameraMotion, block_motion, camera_motion, optical_flow
from world_model.actions import Action
from world_model.camera import CameraConfig, commanded_motion
from yume_gym.street.simulator import StreetSimulator

CAMERA = CameraConfig()
SECONDS = 0.5  # of a block


@pytest.fixture(scope="module")
def street_trials() -> list[Trial]:
    """A tour on the street, without blocks in which a wall stood in the way."""
    return [trial for trial, info in walk_tour(gymnasium.make(control.STREET), 0) if not info["blocked"]]


def true_flow(street: StreetSimulator, frames: np.ndarray, action: Action) -> tuple[np.ndarray, np.ndarray]:
    """Where still things go from one frame to the next, by depth and pose; and where that stays in the picture."""
    height, width = frames.shape[1:3]
    intrinsics, before = street.intrinsics, street.pose
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.linalg.inv(intrinsics) @ np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    rays /= np.linalg.norm(rays, axis=0)
    points = before[:3, :3] @ (rays * street.depth().ravel()) + before[:3, 3:]
    after = street.step(action).poses[0]
    x, y, z = intrinsics @ (after[:3, :3].T @ (points - after[:3, 3:]))
    flow = np.stack([x / z - columns.ravel(), y / z - rows.ravel()]).reshape(2, height, width)
    ends = flow + np.stack([columns, rows])
    return flow, (ends[0] > 2) & (ends[0] < width - 2) & (ends[1] > 2) & (ends[1] < height - 2)


@pytest.mark.parametrize("action", [Action.from_keys("W"), Action.from_keys("", "→"), Action.from_keys("S", "↑")])
def test_flow_agrees_with_depth_and_pose(action: Action) -> None:
    street = StreetSimulator()
    first = street.reset(np.random.default_rng(3))
    state = street.get_state()
    frames = np.stack([first, street.step(action).frames[0]])
    street.set_state(state)
    expected, inside = true_flow(street, frames, action)
    flow, weight = optical_flow(frames[0] @ LUMA, frames[1] @ LUMA)
    trusted = inside & (weight > 0.3)
    error, size = np.hypot(*(flow - expected))[trusted], np.hypot(*expected)[trusted]
    assert error.size > 500
    assert np.median(error) < min(0.5, 0.7 * np.median(size))


def test_flow_of_a_shifted_picture() -> None:
    picture = ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 255, (80, 110)), 1.5)
    picture = np.interp(picture, (picture.min(), picture.max()), (0, 255))
    rows, columns = np.mgrid[8:72, 7:103].astype(float)
    shifted = ndimage.map_coordinates(picture, [rows - 1.25, columns + 3.5], order=3)
    flow, weight = optical_flow(picture[8:72, 7:103], shifted)
    across, down = (np.average(part, weights=weight) for part in flow)
    assert (across, down) == pytest.approx((-3.5, 1.25), abs=0.05)


def test_motion_of_a_true_turn_and_walk() -> None:
    street = StreetSimulator()
    focal = CAMERA.focal(96)
    first = street.reset(np.random.default_rng(1))
    for keys, arrows, turn, tilt in (("", "→", 22.5, 0), ("", "↑←", -22.5, 15), ("", "↓", 0, -15)):
        block = street.step(Action.from_keys(keys, arrows))
        motion = block_motion(np.concatenate([first[None], block.frames]), focal)
        first = block.frames[-1]
        assert motion.turn == pytest.approx(turn, abs=1.5)
        assert motion.tilt == pytest.approx(tilt, abs=1.5)
        assert abs(motion.zoom) < 0.02


def test_nothing_moves_where_nothing_is_seen() -> None:
    grey = np.full((64, 96, 3), 128, np.uint8)
    assert camera_motion(grey, grey, 48.0) == CameraMotion(0, 0, 0)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert camera_motion(picture, picture, 48.0) == CameraMotion(0, 0, 0)


def test_the_street_obeys(street_trials: list[Trial]) -> None:
    rows = {row.held: row for row in score(street_trials, SECONDS)}
    assert rows.keys() == WISHES.keys()
    for row in rows.values():
        assert row.right is not None and row.right >= 0.95, row
        assert row.other_keys is not None and row.other_keys < 0.6, row
    assert rows["look right"].median.turn == pytest.approx(22.5, abs=0.5)
    assert rows["look down"].median.tilt == pytest.approx(-15, abs=0.5)


def test_other_actions_score_by_chance(street_trials: list[Trial]) -> None:
    """Motions handed to keys that had nothing to do with them: as often right as the control column says."""
    random = np.random.default_rng(0)
    order = [random.permutation(len(street_trials)) for _ in range(20)]
    mixed = [
        Trial(trial.held, trial.switch, street_trials[i].motion)
        for permutation in order
        for trial, i in zip(street_trials, permutation, strict=True)
    ]
    truth = {row.held: row for row in score(street_trials, SECONDS)}
    for row in score(mixed, SECONDS):
        base = sum(verdict(WISHES[row.held][1], trial.motion, SECONDS) for trial in street_trials) / len(street_trials)
        assert row.right == pytest.approx(base, abs=0.2)
        assert row.right < truth[row.held].right - 0.3


def test_time_reversed_is_wrong() -> None:
    street = StreetSimulator()
    first = street.reset(np.random.default_rng(0))
    for name, back in (("look right", "look left"), ("W", "S")):
        action, wish = WISHES[name]
        frames = np.concatenate([first[None], street.step(action).frames])
        first = frames[-1]
        assert verdict(wish, block_motion(frames, 48.0), SECONDS)
        reversed_motion = block_motion(frames[::-1], 48.0)
        assert not verdict(wish, reversed_motion, SECONDS)
        assert verdict(WISHES[back][1], reversed_motion, SECONDS)
        assert not verdict(WISHES["still"][1], reversed_motion, SECONDS)


def test_noise_obeys_nobody() -> None:
    noise = np.random.default_rng(0).normal(size=(31, 64, 96, 3))
    noise = ndimage.gaussian_filter(noise, (0, 1, 1, 0))
    noise = np.interp(noise, (noise.min(), noise.max()), (0, 255)).astype(np.uint8)
    motions = [camera_motion(before, after, 48.0) for before, after in itertools.pairwise(noise)]
    for name in ("look right", "look left", "W", "S", "still"):
        assert sum(verdict(WISHES[name][1], motion, SECONDS) for motion in motions) <= 0.75 * len(motions)


@pytest.mark.parametrize(
    ("wish", "motion", "expected"),
    [
        (Wish(turn=1), CameraMotion(3, -9, 9), True),
        (Wish(turn=1), CameraMotion(2, 0, 0), False),  # under a tenth of what was commanded
        (Wish(turn=-1), CameraMotion(3, 0, 0), False),
        (Wish(turn=1, zoom=1), CameraMotion(3, 0, 0.01), False),
        (Wish(turn=0, tilt=0, zoom=0), CameraMotion(2, -1, 0.01), True),
        (Wish(turn=0, tilt=0, zoom=0), CameraMotion(0, 2, 0), False),
    ],
)
def test_verdict(wish: Wish, motion: CameraMotion, expected: bool) -> None:
    assert verdict(wish, motion, SECONDS) is expected


@pytest.mark.parametrize("tour", TOURS, ids=str)
def test_every_tour_turns_back(tour: tuple) -> None:
    yaw = pitch = 0.0
    place = np.zeros(2)
    farthest = 0.0
    for held, steps in tour:
        for _ in range(steps):
            yaws, pitches, way = commanded_motion(WISHES[held][0], yaw, pitch, 4, 8, CAMERA)
            yaw, pitch, place = yaws[-1], pitches[-1], place + way[-1]
            farthest = max(farthest, float(np.hypot(*place)))
    assert math.isclose(yaw, 0, abs_tol=1e-9) and math.isclose(pitch, 0, abs_tol=1e-9)
    assert farthest <= 3.75 and np.hypot(*place) <= 2.6


def test_tours_depend_on_the_seed_alone() -> None:
    assert tour_of(4) == tour_of(4) != tour_of(5)
    assert sorted(tour_of(4)) != []
    assert {held for held, _ in tour_of(4)} == WISHES.keys()
    assert any(switch for _, switch in tour_of(4)) and not all(switch for _, switch in tour_of(4))


def test_command_prints_both_tables(weights_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(control, "TOURS", TOURS[:1])
    control.main(["--model", str(weights_folder), "--seeds", "1", "--json", str(tmp_path / "scores.json")])
    printed = capsys.readouterr().out
    assert "YumeWorld-v0" in printed and "YumeStreet-v0" in printed
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [row["held"] for row in scores["YumeStreet-v0"]] == ["look right", "look left"]
    assert [row["right"] for row in scores["YumeStreet-v0"]] == [1, 1]
    assert sum(row["blocks"] for row in scores["YumeWorld-v0"]) == 6
    assert "| look right | 100% |" in printed


def test_table_leaves_out_what_was_not_held() -> None:
    trials = [Trial("W", True, CameraMotion(0, 0, 0.1)), Trial("S", True, CameraMotion(0, 0, 0.1))]
    lines = table(score(trials, SECONDS)).splitlines()
    assert lines[2:] == [
        "| W | 100% | 100% |  | 100% | +0.0° | +0.0° | +10.0% | 1 |",
        "| S | 0% | 0% |  | 0% | +0.0° | +0.0° | +10.0% | 1 |",
    ]


def test_bad_seeds_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        control.main(["--seeds", "0"])
    assert "--seeds must be 1 or more" in capsys.readouterr().err
