"""What the judge learns from: labels are what happened, and trajectories are balanced."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from judge_data import folder_fixture, rng, street_fixture  # noqa: F401  (fixtures, too)

from train.judge import data as judge_data
from train.judge.architecture import FIRST_THINGS
from train.judge.data import THINGS, UNKNOWN, make_walk, motion_between, ruling, seen_things
from train.judge.network import classes_of
from train.street.routes import balanced_route, open_start
from world_model.actions import ALL_ACTIONS, Action
from world_model.camera import commanded_motion


class TestRoutes:
    def test_the_keys_are_the_motion(self, street):
        """Every block of a route moves the camera exactly as commanded."""
        open_start(street, rng())
        begin = street.get_state()
        route = balanced_route(street, rng(1), 60)
        assert street.get_state() == begin
        for action, before, after in zip(route.actions, route.states, route.states[1:]):
            yaws, pitches, moves = commanded_motion(
                action, before.yaw, before.pitch, street.frames_per_block, street.fps, street.camera
            )
            assert (after.yaw, after.pitch) == pytest.approx((yaws[-1], pitches[-1]))
            assert (after.x - before.x, after.z - before.z) == pytest.approx(tuple(moves[-1]), abs=1e-5)
            level = math.degrees(before.pitch) + 30 / 8 * 4 * action.turn[1]
            assert abs(level) <= street.camera.max_tilt + 1e-6

    def test_planned_states_are_those_of_steps(self, street):
        open_start(street, rng(2))
        route = balanced_route(street, rng(3), 6)
        for action, after in zip(route.actions, route.states[1:]):
            street.step(action)
            assert street.get_state() == after

    def test_all_actions_come_equally_often(self, street):
        open_start(street, rng(4))
        route = balanced_route(street, rng(5), 260)
        cards = [a for k, a in enumerate(route.actions) if route.switch[k]]
        assert len(set(cards)) > 70
        assert max(cards.count(action) for action in ALL_ACTIONS) <= 4
        assert 0.4 < np.mean(route.switch) < 0.75

    def test_a_longer_route_begins_like_a_shorter(self, street):
        open_start(street, rng(6))
        assert balanced_route(street, rng(7), 30).actions[:20] == balanced_route(street, rng(7), 20).actions

    def test_switch_is_a_change_of_keys(self, street):
        open_start(street, rng(8))
        route = balanced_route(street, rng(9), 40)
        assert route.switch[0]
        assert all(s == (a != b) for s, a, b in zip(route.switch[1:], route.actions[1:], route.actions))


class TestLabels:
    @pytest.mark.parametrize("keys", [("W", ""), ("A", ""), ("S+D", ""), ("", "→"), ("", "↓←"), ("W", "←"), ("", "")])
    def test_motion_is_what_the_camera_did(self, street, keys):
        action = Action.from_keys(*keys)
        open_start(street, rng())
        before = street.get_state()
        street.step(action)
        motion = np.array([motion_between(before, street.get_state())])
        seconds = street.frames_per_block / street.fps
        move, look = classes_of(motion, (2.5 * seconds, 2.5 * seconds, 45 * seconds, 30 * seconds))
        assert (move[0], look[0]) == (action.move, action.look)

    def test_a_wall_is_not_a_step(self, street):
        """Walking against a wall is labelled as standing, whatever is held."""
        open_start(street, rng())
        state = street.get_state()
        for yaw in np.linspace(-3, 3, 20):
            street.set_state(replace(state, yaw=float(yaw)))
            if street.free_distance(float(yaw)) < 30:
                break
        for _ in range(60):
            before = street.get_state()
            street.step(Action.from_keys("W"))
        assert abs(motion_between(before, street.get_state())[0]) < 0.7 * 2.5 * street.frames_per_block / street.fps

    def test_light_is_unknown_while_it_changes(self, street):
        open_start(street, rng())
        street.set_event("night")
        street.step(Action())
        assert ruling(street.get_state())[0] == UNKNOWN
        for _ in range(3):
            street.step(Action())
        assert ruling(street.get_state()) == (3, 0)

    def test_objects_are_seen_only_in_the_picture(self, street):
        open_start(street, rng())
        street.set_event("ghost")
        for _ in range(3):
            frames = street.step(Action()).frames
        ghost = THINGS.index("ghost")
        assert seen_things(street, frames[-1])[ghost] == 1
        street.set_state(replace(street.get_state(), yaw=street.yaw + math.pi))
        assert not seen_things(street, street.render()).any()

    def test_trajectories_are_reproducible_and_whole(self, street, config):
        walk, same = make_walk(street, rng(12)), make_walk(street, rng(12))
        assert all(np.array_equal(getattr(walk, name), getattr(same, name)) for name in vars(walk))
        assert walk.frames.shape == (1 + judge_data.BLOCKS * config.frames_per_block, config.height, config.width, 3)
        assert walk.things.shape == (judge_data.BLOCKS, len(THINGS))

    def test_later_kinds_come_only_when_asked_for(self, street, monkeypatch):
        """And then often; other walks are as they were without them."""
        often = [make_walk(street, rng(20 + k), blocks=5, later=40) for k in range(6)]
        assert sum((walk.things[:, FIRST_THINGS:] == 1).any() for walk in often) >= 2
        walk = make_walk(street, rng(12))
        monkeypatch.setattr(judge_data, "LATER_EVENTS", ())
        same = make_walk(street, rng(12))
        assert all(np.array_equal(getattr(walk, name), getattr(same, name)) for name in vars(walk))

    def test_finished_towns_are_kept(self, folder, config):
        times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        judge_data.render(config, folder, towns=2, walks=3)
        assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert len(judge_data.load(folder)["motion"]) == 6

    def test_missing_trajectories_are_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train\.judge render"):
            judge_data.load(tmp_path)
