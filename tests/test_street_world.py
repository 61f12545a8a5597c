"""The ground-truth street: geometry against slow independent forms, motion, light, events, state."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from street_world import FORWARD, RIGHT, STILL, street_fixture, tiny_fixture  # noqa: F401  (fixtures, too)

from world_model.actions import ALL_ACTIONS, Action
from yume_gym.street import layout as L
from yume_gym.street import primitives as P
from yume_gym.street.materials import band, pulses
from yume_gym.street.simulator import WALL_MARGIN, StreetSimulator
from yume_gym.street.town import build_town

PLACES = [((0.8, 15.0), 0.0), ((20.0, 0.5), 1.57), ((41.0, 62.0), 0.1), ((60.0, 40.6), 1.6)]


def walk(simulator: StreetSimulator, seed: int, blocks: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    first = simulator.reset(rng)
    frames = [simulator.step(ALL_ACTIONS[int(rng.integers(81))]).frames for _ in range(blocks)]
    return np.concatenate([first[None], *frames])


def test_same_seed_same_frames_other_seed_other_frames() -> None:
    one, two = StreetSimulator(), StreetSimulator()
    a = walk(one, 3, 3)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert a.shape == (13, 64, 96, 3) and a.dtype == np.uint8
    assert np.array_equal(a, walk(two, 3, 3))
    assert not np.array_equal(a, walk(two, 4, 3))
    assert not np.array_equal(a[0], walk(StreetSimulator(town_seed=1), 3, 0)[0])


def test_towns_are_made_of_all_districts_and_are_reproducible() -> None:
    for seed, blocks in ((0, 2), (1, 2), (2, 3)):
        town, again = build_town(seed, blocks), build_town(seed, blocks)
        assert all(np.array_equal(a, b) for a, b in zip(town[:6], again[:6]))
        assert set(np.unique(town.district)) == set(range(len(L.DISTRICTS)))
        assert (town.ground == L.WATER).any() and town.blocks == blocks
        assert not town.solid(0.0, 13.0) and not town.solid(5.0, 20.0), "streets are free"
        walls = town.buildings[:, [L.X0, L.X1, L.Z0, L.Z1]]
        assert np.allclose((walls - L.CELL_OFFSET) % L.CELL, 0)


@pytest.mark.parametrize("turns", [(1, 0), (0, 1), (-2, 3)])
def test_the_torus_closes(street: StreetSimulator, turns: tuple[int, int]) -> None:
    here, state, size = street.render(), street.get_state(), street.town.size
    street.set_state(replace(state, x=state.x + turns[0] * size, z=state.z + turns[1] * size))
    assert np.abs(street.render().astype(int) - here).max() <= 1
    street.set_state(replace(state, x=state.x + 0.5 * size, z=state.z))
    assert np.abs(street.render().astype(int) - here).mean() > 5


def test_walking_straight_on_comes_round(tiny: StreetSimulator) -> None:
    tiny.reset(np.random.default_rng(0), position=(0.0, 10.0), yaw=0.0)
    for _ in range(64):
        assert not tiny.step(FORWARD).blocked
    assert tiny.position == pytest.approx((0.0, 10.0 + tiny.town.size))


def test_walls_stop_and_let_slide(tiny: StreetSimulator) -> None:
    tiny.reset(np.random.default_rng(0), position=(4.9, 15.0), yaw=math.pi / 4)
    assert tiny.town.solid(7.0, 15.0), "this test needs a building here"
    blocks = [tiny.step(FORWARD) for _ in range(4)]
    assert blocks[-1].blocked
    x, z = tiny.position
    assert x == pytest.approx(L.LOT_EDGE - WALL_MARGIN) and z == pytest.approx(15.0 + 5.0 / math.sqrt(2))
    for _ in range(3):
        assert not tiny.step(Action.from_keys("S")).blocked


def test_nobody_jumps_or_enters_walls(tiny: StreetSimulator) -> None:
    fastest = tiny.camera.walk_speed / tiny.fps
    for seed in range(6):
        rng = np.random.default_rng(seed)
        tiny.reset(rng)
        last = np.array(tiny.position)
        for _ in range(60):
            action = Action.from_keys("W", ("", "→", "←")[int(rng.integers(3))])
            for pose in tiny.step(action).poses:
                now = pose[[0, 2], 3]
                assert np.linalg.norm(now - last) <= fastest + 1e-9
                assert tiny.town.free(*now, WALL_MARGIN - 1e-6)
                last = now


def test_poses_and_blocked_follow_the_commanded_motion(street: StreetSimulator) -> None:
    block = street.step(Action.from_keys("W", "↑→"))
    assert block.poses.shape == (4, 4, 4) and not block.blocked
    assert street.yaw == pytest.approx(math.radians(22.5)) and street.pitch == pytest.approx(math.radians(15))
    assert np.allclose(block.poses[-1], street.pose) and np.allclose(street.pose[1, 3], -street.camera.eye_height)
    assert np.array_equal(block.frames[-1], street.render())


def rays(simulator: StreetSimulator) -> np.ndarray:
    """[H, W, 3] unit rays in world axes (y down) from pose and intrinsics alone."""
    v, u = np.mgrid[: simulator.height, : simulator.width] + 0.5
    camera = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(simulator.intrinsics).T
    return camera / np.linalg.norm(camera, axis=-1, keepdims=True) @ simulator.pose[:3, :3].T


@pytest.mark.parametrize("yaw, pitch", [(0.35, 0.0), (0.0, 0.3), (-0.3, -0.25)])
def test_yaw_and_pitch_are_true_rotations(street: StreetSimulator, yaw: float, pitch: float) -> None:
    """Points seen before a turn are found after it where pose and intrinsics say, at the same distance."""
    eye, depth = street.pose[:3, 3], street.depth()
    points = eye + depth[..., None] * rays(street)
    state = street.get_state()
    street.set_state(replace(state, yaw=state.yaw + yaw, pitch=pitch))
    seen = (points[depth < 60] - eye) @ street.pose[:3, :3] @ street.intrinsics.T
    u, v = seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2]
    inside = (seen[:, 2] > 0) & (u > 1) & (u < street.width - 1) & (v > 1) & (v < street.height - 1)
    assert inside.sum() > 1000
    found = street.depth()[v[inside].astype(int), u[inside].astype(int)]
    expected = depth[depth < 60][inside]
    assert np.mean(np.abs(found / expected - 1) < 0.06) > 0.85


def march(simulator: StreetSimulator, ray: np.ndarray, farthest: float, step: float = 0.02) -> float:
    """Distance to the first solid thing, by small steps along the ray, asking at each whether it is inside of one."""
    town, eye = simulator.town, simulator.pose[:3, 3]
    t = np.arange(step, farthest, step)
    x, h, z = eye[0] + t * ray[0], -eye[1] - t * ray[1], eye[2] + t * ray[2]
    n = len(town.cells)
    i, j = (np.floor((a - L.CELL_OFFSET) / L.CELL).astype(int) % n for a in (x, z))
    building = town.cells[i, j]
    solid = (h <= 0) | ((building >= 0) & (h < town.buildings[building, L.HEIGHT]))
    for shape in np.concatenate([town.shapes, town.people.shapes(simulator.time)]):
        dx, dz = ((a - b + town.size / 2) % town.size - town.size / 2 for a, b in ((x, shape[P.X]), (z, shape[P.Z])))
        ax, ah, az = abs(dx) / shape[P.A], abs(h - shape[P.H]) / shape[P.B], abs(dz) / shape[P.C]
        up, slope = h - shape[P.H], shape[P.PARAM]
        match int(shape[P.KIND]):
            case P.ELLIPSOID:
                solid |= ax**2 + ah**2 + az**2 < 1
            case P.CYLINDER:
                solid |= (ax**2 + az**2 < 1) & (ah < 1)
            case P.BOX:
                solid |= (ax < 1) & (ah < 1) & (az < 1)
            case P.ROOF:
                inside = np.minimum(shape[P.A] - abs(dx), shape[P.C] - abs(dz))
                solid |= (up > 0) & (up < slope * inside)
    return float(t[np.argmax(solid)]) if solid.any() else math.inf


@pytest.mark.parametrize("position, yaw", PLACES)
def test_depth_agrees_with_a_slow_ray_marcher(position: tuple[float, float], yaw: float) -> None:
    street = StreetSimulator()
    street.reset(np.random.default_rng(5), position=position, yaw=yaw, pitch=0.15)
    depth, directions = street.depth(), rays(street)
    rng = np.random.default_rng(0)
    close = []
    for _ in range(16):
        row, column = int(rng.integers(street.height)), int(rng.integers(street.width))
        expected = march(street, directions[row, column], 60.0)
        found = depth[row, column]
        close.append(found > 59 if expected == math.inf else abs(found - expected) < 0.05)
    assert np.mean(close) > 0.9, "a ray that grazes an edge may fall between the marcher's steps; others may not"


def test_textures_are_filtered_by_exact_box_integrals() -> None:
    for x, width in ((0.3, 0.1), (-7.7, 2.3), (12.25, 9.0), (3.0, 1e-3)):
        t = x + width * (np.arange(20000) + 0.5) / 20000 - width / 2
        assert pulses(x, 3.0, 0.5, 2.0, width) == pytest.approx(np.mean((t % 3 >= 0.5) & (t % 3 < 2.0)), abs=2e-3)
        assert band(x, -1.0, 4.0, width) == pytest.approx(np.mean((t > -1) & (t < 4)), abs=2e-3)


@pytest.mark.parametrize("event", [None, "fireworks", "snow"])
def test_state_restores_exactly_also_pickled(street: StreetSimulator, event: str | None) -> None:
    street.set_event(event)
    street.beacon((3.0, 40.0))
    street.step(FORWARD)
    state = pickle.loads(pickle.dumps(street.get_state()))
    expected = [street.step(action) for action in (RIGHT, FORWARD)]
    other = StreetSimulator()
    other.set_state(state)
    for block, action in zip(expected, (RIGHT, FORWARD)):
        again = other.step(action)
        assert np.array_equal(block.frames, again.frames) and np.array_equal(block.poses, again.poses)
    assert other.event == event


def test_the_beacon_stands_where_it_was_put(street: StreetSimulator) -> None:
    before = street.render().astype(int)
    place = np.array([2.0, -8.0, 35.0])
    street.beacon((2.0, 35.0))
    lit = np.abs(street.render().astype(int) - before).sum(axis=(0, 2))
    u, _, w = street.intrinsics @ street.pose[:3, :3].T @ (place - street.pose[:3, 3])
    assert abs(int(np.argmax(lit)) + 0.5 - u / w) < 1.5
    street.beacon(None)
    assert np.array_equal(street.render(), before)


def test_surroundings_are_labels(street: StreetSimulator) -> None:
    seen = street.surroundings()
    assert seen["district"] in L.DISTRICTS and seen["place"] == "mid-street" and seen["event"] is None
    assert (seen["light"], seen["weather"]) == ("day", "clear")
    park = np.argwhere(street.town.ground == L.PATH)[0] * L.CELL + L.CELL_OFFSET + L.CELL / 2
    street.reset(np.random.default_rng(0), position=tuple(park), light="night", weather="snow")
    seen = street.surroundings()
    assert seen["place"] == "park" and "park" in seen["visible"]
    assert (seen["light"], seen["weather"]) == ("night", "snow")
    street.reset(np.random.default_rng(0), position=(0.0, 0.0), yaw=0.0)
    assert street.surroundings()["place"] == "crossing"


def test_bad_input_says_what_is_wrong(street: StreetSimulator) -> None:
    rng, state = np.random.default_rng(0), street.get_state()
    for call, error, words in (
        (lambda: street.reset(rng, light="noon"), ValueError, "day, overcast, golden, night"),
        (lambda: street.reset(rng, weather="hail"), ValueError, "clear, rain, snow, fog"),
        (lambda: street.reset(rng, weather="heavy_rain"), ValueError, "clear, rain, snow, fog"),
        (lambda: street.reset(rng, pitch=1.0), ValueError, "35"),
        (lambda: street.reset(rng, position=(8.0, 15.0)), ValueError, "free place"),
        (lambda: street.set_event("earthquake"), ValueError, "fireworks"),
        (lambda: street.set_state({"x": 1}), TypeError, "get_state"),
        (lambda: StreetSimulator(blocks=1), ValueError, "2 x 2"),
        (lambda: StreetSimulator(town_seed=-1), ValueError, "0 or more"),
        (lambda: StreetSimulator(fps=0), ValueError, "fps"),
        (lambda: StreetSimulator().step(STILL), RuntimeError, "reset"),
    ):
        with pytest.raises(error, match=words):
            call()
    assert street.get_state() is state, "a refused call changes nothing"


def test_the_street_needs_no_torch() -> None:
    code = "import sys, yume_gym.street.simulator, yume_gym.street.walker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
