"""A walker that explores the town as people do, for data and demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from world_model.actions import ALL_ACTIONS, LOOKS, MOVES, Action, Look, Move
from yume_gym.street import primitives as P
from yume_gym.street.layout import PITCH
from yume_gym.street.simulator import StreetSimulator
from yume_gym.street.town import Town

LONGEST_HOLD = 8  # blocks
_STARE = 3.0  # metres of sight that count as looking at a wall
_LANE = 1.5  # metres from a street's middle where no parked car stands
_MOVE_OF = {direction: move for move, (_, _, direction) in MOVES.items()}
_LOOK_OF = {direction: look for look, (_, _, direction) in LOOKS.items()}

Segment = tuple[Action, int]


class Walker:
    """Chooses the next action from where the simulator's walker stands; each is held 1 to 8 blocks.

    Mostly it walks forward along streets and turns at crossings; it looks aside and back, up and down and back to
    level, stops, sidesteps and walks backwards. Every so often a segment is drawn from all 81 actions. It turns away
    from walls. Its only randomness is `rng`.
    """

    def __init__(self, rng: np.random.Generator, simulator: StreetSimulator) -> None:
        self._rng, self._simulator = rng, simulator
        self._plan: list[Segment] = []
        self._stared = 0
        self._obstacles = obstacles(simulator.town)
        camera, seconds = simulator.camera, simulator.frames_per_block / simulator.fps
        self._turn = math.radians(camera.turn_speed) * seconds  # radians a block
        self._tilt = math.radians(camera.tilt_speed) * seconds
        self._habits: tuple[tuple[float, Callable[[], list[Segment]]], ...] = (
            (0.42, self._anything),
            (0.04, self._stop),
            (0.14, self._look_aside),
            (0.08, self._look_up_or_down),
            (0.05, self._walk_back),
            (0.07, self._sidestep),
            (0.25, self._walk),
        )

    def act(self) -> Action:
        """The action to hold during the next block."""
        self._stared = self._stared + 1 if self._simulator.free_distance(self._simulator.yaw) < _STARE else 0
        if self._stared >= 2:
            self._plan, self._stared = self._turn_away(), 0
        while not self._plan:
            self._plan = self._next()
        if self._plan[0][0].walk[0] > 0 and self._rng.random() < 0.9:
            self._step_around()
        action, blocks = self._plan.pop(0)
        if blocks > 1:
            self._plan.insert(0, (action, blocks - 1))
        return action

    def _next(self) -> list[Segment]:
        if abs(self._simulator.pitch) > 0.5 * self._tilt and self._rng.random() < 0.8:
            return self._level(self._rng.random() < 0.5)
        weights = np.array([weight for weight, _ in self._habits])
        return self._habits[int(self._rng.choice(len(weights), p=weights / weights.sum()))][1]()

    def _hold(self, most: int = LONGEST_HOLD) -> int:
        return int(self._rng.integers(1, most + 1))

    def _anything(self) -> list[Segment]:
        return [(ALL_ACTIONS[int(self._rng.integers(len(ALL_ACTIONS)))], self._hold(4)) for _ in range(self._hold(2))]

    def _stop(self) -> list[Segment]:
        return [(Action(), self._hold(5))]

    def _look_aside(self) -> list[Segment]:
        """Turn away, perhaps wait, and turn back as far; sometimes while walking."""
        right = int(self._rng.choice([-1, 1]))
        blocks, wait = self._hold(8), int(self._rng.integers(0, 3))
        walk = Move.FORWARD if blocks <= 3 and self._rng.random() < 0.3 else Move.STILL
        plan = [
            (Action(walk, _LOOK_OF[right, 0]), blocks),
            (Action(), wait),
            (Action(walk, _LOOK_OF[-right, 0]), blocks),
        ]
        return [segment for segment in plan if segment[1]]

    def _look_up_or_down(self) -> list[Segment]:
        up = int(self._rng.choice([-1, 1]))
        walk = Move.FORWARD if self._rng.random() < 0.5 else Move.STILL
        return [(Action(walk, _LOOK_OF[0, up]), self._hold(3)), (Action(walk), self._hold(2))]

    def _level(self, walking: bool) -> list[Segment]:
        """Tilt back to the horizon."""
        pitch = self._simulator.pitch
        blocks = max(1, min(3, round(abs(pitch) / self._tilt)))
        return [(Action(Move.FORWARD if walking else Move.STILL, _LOOK_OF[0, -1 if pitch > 0 else 1]), blocks)]

    def _walk_back(self) -> list[Segment]:
        return [(Action(Move.BACKWARD), self._hold(4))]

    def _sidestep(self) -> list[Segment]:
        move = Move.LEFT if self._rng.random() < 0.5 else Move.RIGHT
        return [(Action(move), self._hold(3))]

    def _walk(self) -> list[Segment]:
        """Go on along the street, in the lane; at a crossing perhaps turn."""
        simulator = self._simulator
        x, z = simulator.position
        off_x, off_z = x - PITCH * round(x / PITCH), z - PITCH * round(z / PITCH)
        if abs(off_x) < 5 and abs(off_z) < 5 and self._rng.random() < 0.5:
            right = int(self._rng.choice([-1, 1]))
            walk = Move.FORWARD if self._rng.random() < 0.5 else Move.STILL
            return [
                (Action(walk, _LOOK_OF[right, 0]), max(1, round(math.pi / 2 / self._turn))),
                (Action(Move.FORWARD), self._hold()),
            ]
        bend = self._best_turn()
        if bend:
            walk = Move.FORWARD if simulator.free_distance(simulator.yaw) > 8 else Move.STILL
            return [
                (Action(walk, _LOOK_OF[1 if bend > 0 else -1, 0]), abs(bend)),
                (Action(Move.FORWARD), self._hold(5)),
            ]
        return [
            (Action(_MOVE_OF[1, self._correction(off_x, off_z)]), self._hold(3)),
            (Action(Move.FORWARD), self._hold()),
        ]

    def _best_turn(self) -> int:
        """Blocks of turning to the right (negative: left) that open the longest way; 0 if ahead is good."""
        yaw, free = self._simulator.yaw, self._simulator.free_distance
        reach = {k: min(40.0, free(yaw + k * self._turn)) - 1.5 * abs(k) for k in (0, 1, -1, 2, -2, 3, -3, 4, -4)}
        best = max(reach, key=lambda k: reach[k])
        return best if reach[best] > reach[0] + 6.0 else 0

    def _correction(self, off_x: float, off_z: float) -> int:
        """-1, 0 or 1: which way to step aside to walk in the lane, where no car is parked."""
        yaw = self._simulator.yaw
        along_z = abs(math.cos(yaw)) > abs(math.sin(yaw))
        # how far right of the street's middle the walker stands
        aside = off_x * math.copysign(1.0, math.cos(yaw)) if along_z else -off_z * math.copysign(1.0, math.sin(yaw))
        if abs(aside) < _LANE or abs(aside) > 12:
            return 0
        return -1 if aside > 0 else 1

    def _step_around(self) -> None:
        """Pass cars, posts and trunks in the way on the side that is nearer."""
        simulator, size = self._simulator, self._simulator.town.size
        x, z = simulator.position
        sin, cos = math.sin(simulator.yaw), math.cos(simulator.yaw)
        dx = (self._obstacles[:, 0] - x + size / 2) % size - size / 2
        dz = (self._obstacles[:, 1] - z + size / 2) % size - size / 2
        ahead, aside, radius = dx * sin + dz * cos, dx * cos - dz * sin, self._obstacles[:, 2]
        near = np.flatnonzero((ahead > 0) & (ahead < 3.5 + radius) & (abs(aside) < 0.5 + radius))
        if len(near):
            first = near[np.argmin(ahead[near] - radius[near])]
            self._plan[0] = (
                Action(_MOVE_OF[1 if ahead[first] > 1.5 + radius[first] else 0, -1 if aside[first] > 0 else 1]),
                1,
            )

    def _turn_away(self) -> list[Segment]:
        """Turn from a wall to the side that opens sooner, then go on."""
        yaw, free = self._simulator.yaw, self._simulator.free_distance
        for blocks in range(1, 9):
            for right in self._rng.permutation([-1, 1]):
                if free(yaw + right * blocks * self._turn) > 12:
                    walk = Move.BACKWARD if self._rng.random() < 0.2 else Move.STILL
                    return [(Action(walk, _LOOK_OF[int(right), 0]), blocks), (Action(Move.FORWARD), self._hold(5))]
        return [(Action(Move.STILL, Look.RIGHT), 4)]


def obstacles(town: Town) -> np.ndarray:
    """[N, 3] x, z and radius (m) of what stands on the ground at eye height or below."""
    shapes = town.shapes
    cars = shapes[shapes[:, P.MATERIAL] == P.CAR]
    posts = shapes[shapes[:, P.KIND] == P.CYLINDER]
    radius = np.concatenate([np.full(len(cars), 1.6), posts[:, P.A]])
    return np.column_stack([np.concatenate([cars[:, [P.X, P.Z]], posts[:, [P.X, P.Z]]]), radius])
