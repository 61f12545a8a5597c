"""Rewards of YumeStreet-v0: the beacon task, rewards of pictures, and functions of one's own."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from street_env import FORWARD, RIGHT, env_fixture  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.presets import get_preset
from yume_gym.street.beacon import ARRIVAL_BONUS, ARRIVAL_RADIUS, beacon_distance
from yume_gym.street.env import YumeStreetEnv


def test_beacon_pays_for_progress_and_ends_on_arrival():
    env = gym.make("YumeStreetBeacon-v0", preset="debug").unwrapped
    config = get_preset("debug")
    metres_per_step = config.camera.walk_speed * config.frames_per_block / config.fps
    arrivals = 0
    for seed in range(6):
        _, info = env.reset(seed=seed)
        assert 10 <= info["beacon_distance"] <= 60
        for _ in range(240):
            before = info["beacon_distance"]
            _, reward, terminated, _, info = env.step(towards_beacon(env))
            gained = (before - info["beacon_distance"]) / metres_per_step
            assert reward == pytest.approx(gained + ARRIVAL_BONUS * terminated)
            assert -1.001 <= gained <= 1.001
            assert terminated == (info["beacon_distance"] <= ARRIVAL_RADIUS)
            if terminated:
                arrivals += 1
                break
    assert arrivals >= 4


def towards_beacon(env) -> int:
    """Turn to the beacon, then walk; a wall in the way is slid along."""
    street, world = env._simulator(0), env.get_state().episode.world
    size = street.town.size
    dx, dz = (math.remainder(b - p, size) for b, p in zip(world.beacon, street.position))
    off = math.remainder(math.atan2(dx, dz) - street.yaw, math.tau)
    return Action.from_keys("W" if abs(off) < 0.8 else "", "" if abs(off) < 0.25 else "→" if off > 0 else "←").index


def test_beacon_is_mostly_in_view_and_makes_a_difference_to_the_picture():
    env = YumeStreetEnv(preset="debug", reward="beacon", light="day", weather="clear")
    in_view = []
    for seed in range(40):
        env.reset(seed=seed)
        street, world = env._simulator(0), env.get_state().episode.world
        bearing = math.atan2(world.beacon[0] - street.position[0], world.beacon[1] - street.position[1]) - street.yaw
        in_view.append(abs(math.remainder(bearing, math.tau)) < math.radians(45))
        assert beacon_distance(street, world.beacon) >= 10
    assert 0.55 <= np.mean(in_view) <= 0.95
    env.reset(seed=in_view.index(True))
    street = env._simulator(0)
    with_beacon = street.render()
    street.beacon(None)
    assert not np.array_equal(with_beacon, street.render())


def test_picture_rewards_and_own_functions():
    seen = []

    def own(previous, action, current):
        seen.append((previous.copy(), action, current.copy()))
        return len(seen), len(seen) == 2

    env = YumeStreetEnv(preset="debug", reward=own)
    first, _ = env.reset(seed=0)
    steps = [env.step(FORWARD), env.step(RIGHT)]
    assert [step[1:3] for step in steps] == [(1.0, False), (2.0, True)]
    assert all(np.array_equal(frame, first) for frame in seen[0][0])
    assert np.array_equal(seen[1][0], steps[0][4]["frames"])
    assert np.array_equal(seen[1][2], steps[1][4]["frames"])
    assert seen[1][1] == Action.from_index(RIGHT)

    env = YumeStreetEnv(preset="debug", reward="motion", light="day", weather="clear")
    _, info = env.reset(seed=0)
    before = info["frames"][-1].astype(float)
    _, reward, _, _, info = env.step(RIGHT)
    changes = [np.abs(b - a).mean() for a, b in zip([before, *info["frames"][:-1].astype(float)], info["frames"])]
    assert reward == pytest.approx(np.mean(changes) / 255)

    env = YumeStreetEnv(preset="debug", reward=lambda previous, action, current: 3)
    env.reset(seed=0)
    with pytest.raises(TypeError, match="terminated"):
        env.step(0)
    assert env.get_state().episode.step == 0
