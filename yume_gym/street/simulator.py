"""`StreetSimulator`: walk through the town, one block of frames per action."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from world_model.actions import Action
from world_model.camera import CameraConfig, commanded_motion, pose_matrix
from yume_gym.street import atmosphere as air
from yume_gym.street import primitives as P
from yume_gym.street.atmosphere import LIGHTS, WEATHERS, Atmosphere
from yume_gym.street.courses import KINDS, event_shapes
from yume_gym.street.event_state import Course
from yume_gym.street.layout import PITCH
from yume_gym.street.motion import WALL_MARGIN, slide
from yume_gym.street.render import depth_map, render, sight
from yume_gym.street.surroundings import describe
from yume_gym.street.town import Town, build_town

EVENTS = tuple(KINDS)

_GLANCES = tuple(math.radians(turn) for turn in (-36, -27, -18, -9, 0, 9, 18, 27, 36))
_FACING = (-math.pi / 2, math.pi / 2, math.pi, 0.0)  # the direction that each side of a building faces

_town = lru_cache(maxsize=4)(build_town)


@dataclass(frozen=True)
class StreetBlock:
    """What one step shows."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    poses: np.ndarray  # float64 [T, 4, 4] camera-to-world, OpenCV axes
    blocked: bool  # whether something solid stood in the way


@dataclass(frozen=True)
class StreetState:
    """Everything that changes, immutable. Angles in radians; places in metres, not wrapped around the torus."""

    frame: int
    x: float
    z: float
    yaw: float
    pitch: float
    light: str
    weather: str
    blend: Atmosphere
    courses: tuple[Course, ...] = ()
    beacon: tuple[float, float] | None = None


class View(Protocol):
    """What a simulator's pictures are like."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def fps(self) -> int: ...
    @property
    def frames_per_block(self) -> int: ...
    @property
    def camera(self) -> CameraConfig: ...


class StreetSimulator:
    """The ground truth: a seeded town, a walker in it, its light and weather, and what happens there.

    Frames are uint8 [height, width, 3]. The same town seed, starting generator and actions give the same frames.
    """

    def __init__(
        self,
        *,
        height: int = 64,
        width: int = 96,
        fps: int = 8,
        frames_per_block: int = 4,
        camera: CameraConfig | None = None,
        town_seed: int = 0,
        blocks: int = 2,
    ) -> None:
        for name, value in (("height", height), ("width", width), ("fps", fps), ("frames_per_block", frames_per_block)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.height, self.width, self.fps, self.frames_per_block = height, width, fps, frames_per_block
        self.camera = CameraConfig() if camera is None else camera
        self.town_seed, self.blocks = town_seed, blocks
        self.town: Town = _town(town_seed, blocks)
        self._state: StreetState | None = None

    @classmethod
    def like(cls, view: View, town_seed: int = 0, blocks: int = 2) -> StreetSimulator:
        """A town in the picture size, rate, block length and camera of a model's config, or of another simulator."""
        return cls(
            height=view.height, width=view.width, fps=view.fps, frames_per_block=view.frames_per_block,
            camera=view.camera, town_seed=town_seed, blocks=blocks,
        )  # fmt: skip

    def reset(
        self,
        rng: np.random.Generator,
        *,
        light: str = "day",
        weather: str = "clear",
        position: tuple[float, float] | None = None,
        yaw: float | None = None,
        pitch: float = 0.0,
    ) -> np.ndarray:
        """Stand somewhere and return the first frame.

        Without a position (x, z; metres) a free place on a street is drawn; without a yaw (radians) the view is along a
        street for the most part. Raises ValueError for unknown light or weather, a place inside something solid or too
        near to it, or a pitch (radians) beyond the camera's limit.
        """
        blend = Atmosphere.of(light, weather) if weather in WEATHERS else None
        if blend is None:
            raise ValueError(f"unknown weather {weather!r}: use one of {', '.join(WEATHERS)}")
        if abs(pitch) > math.radians(self.camera.max_tilt) + 1e-9:
            raise ValueError(f"pitch must be within +-{self.camera.max_tilt} degrees, got {math.degrees(pitch):.1f}")
        drawn, along = self._place_on_street(rng)
        x, z = drawn if position is None else (float(position[0]), float(position[1]))
        if not self.town.free(x, z, WALL_MARGIN - 1e-6):
            raise ValueError(
                f"position ({x:.2f}, {z:.2f}) is within {WALL_MARGIN} m of a building or water: choose a free place"
            )
        frame = int(rng.integers(0, 100_000))
        yaw = along if yaw is None else float(yaw)
        self._state = StreetState(frame, x, z, yaw, float(pitch), light, weather, blend)
        return self.render()

    def step(self, action: Action) -> StreetBlock:
        """Hold an action for one block of frames."""
        states, blocked = self.ahead(action)
        frames = np.empty((self.frames_per_block, self.height, self.width, 3), np.uint8)
        poses = np.empty((self.frames_per_block, 4, 4))
        for k, state in enumerate(states):
            self._state = state
            frames[k], poses[k] = self.render(), self.pose
        return StreetBlock(frames, poses, blocked)

    def ahead(self, action: Action) -> tuple[tuple[StreetState, ...], bool]:
        """The state of each frame if an action were held for one block, and whether something solid would stand in the way.

        Nothing changes and nothing is drawn: it is for plans.
        """
        state = self._now
        yaws, pitches, moves = commanded_motion(
            action, state.yaw, state.pitch, self.frames_per_block, self.fps, self.camera
        )
        steps = np.diff(moves, axis=0, prepend=np.zeros((1, 2)))
        states = []
        blocked = False
        for k in range(self.frames_per_block):
            x, z = slide(self.town, state.x, state.z, float(steps[k, 0]), float(steps[k, 1]))
            blocked |= math.hypot(x - state.x - steps[k, 0], z - state.z - steps[k, 1]) > 1e-6
            time = (state.frame + 1) / self.fps
            state = replace(
                state,
                frame=state.frame + 1,
                x=x,
                z=z,
                yaw=float(yaws[k]),
                pitch=float(pitches[k]),
                blend=state.blend.towards(*_called_for(state), 1.0 / self.fps),
                courses=tuple(course for course in state.courses if not course.over(time)),
            )
            states.append(state)
        return tuple(states), blocked

    def set_event(self, kind: str | None) -> None:
        """Begin an event ahead of the viewer, or end the current one with None; the one before fades out.

        Raises ValueError for an unknown kind.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"unknown event {kind!r}: use one of {', '.join(EVENTS)}, or None to end it")
        state = self._now
        if kind == self.event:
            return
        courses = tuple(course.ended(self.time) for course in state.courses)
        if kind is not None:
            place, wall = self._place_ahead(KINDS[kind].distance)
            courses += (Course(kind, self.time, place, state.yaw, wall),)
        self._state = replace(state, courses=courses)

    def beacon(self, position: tuple[float, float] | None) -> None:
        """Stand a pillar of light at a place (x, z; metres), or take it away with None. The next frame shows it."""
        place = None if position is None else (float(position[0]), float(position[1]))
        self._state = replace(self._now, beacon=place)

    def render(self) -> np.ndarray:
        """The current frame, uint8 [H, W, 3], a fresh array."""
        focal = self.camera.focal(self.width)
        return render(self.town, self._shapes(), self._air(), self.pose, (self.height, self.width), focal, self.time)

    def depth(self) -> np.ndarray:
        """float32 [H, W]: metres along the ray through each pixel's middle to what is solid; 1000 for the sky."""
        focal = self.camera.focal(self.width)
        return depth_map(self.town, self._shapes(), self._air(), self.pose, (self.height, self.width), focal)

    @property
    def pose(self) -> np.ndarray:
        """[4, 4] float64 camera-to-world of the current frame."""
        state = self._now
        return pose_matrix(state.x, state.z, state.yaw, state.pitch, self.camera.eye_height)

    @property
    def intrinsics(self) -> np.ndarray:
        """[3, 3] float64, pixels."""
        return self.camera.intrinsics(self.height, self.width)

    @property
    def position(self) -> tuple[float, float]:
        """(x, z) in metres, not wrapped around the torus."""
        return self._now.x, self._now.z

    @property
    def yaw(self) -> float:
        """Radians to the right of world z, not wrapped."""
        return self._now.yaw

    @property
    def pitch(self) -> float:
        """Radians above the horizon."""
        return self._now.pitch

    @property
    def base_light(self) -> str:
        """The light the world returns to when no event changes it."""
        return self._now.light

    @property
    def base_weather(self) -> str:
        """The weather the world returns to when no event changes it."""
        return self._now.weather

    @property
    def event(self) -> str | None:
        """Kind of the event that goes on, None if there is none (one that fades out has ended)."""
        current = _current(self._now)
        return None if current is None else current.kind

    @property
    def time(self) -> float:
        """Seconds."""
        return self._now.frame / self.fps

    def get_state(self) -> StreetState:
        """All that changes, immutable and picklable; `set_state` continues from it exactly."""
        return self._now

    def set_state(self, state: StreetState) -> None:
        """Continue from a state of a simulator with the same town. Raises TypeError for anything else."""
        if not isinstance(state, StreetState):
            raise TypeError(f"state must be what get_state() returned, got {type(state).__name__}")
        self._state = state

    def surroundings(self) -> dict:
        """Facts for captions: see `yume_gym.street.surroundings.describe`."""
        state = self._now
        light, weather = _called_for(state)
        seen = describe(
            self.town, self.town.people.places(self.time), state.x, state.z, state.yaw, self.camera.horizontal_fov
        )
        return {**seen, "light": light, "weather": "rain" if weather == "heavy_rain" else weather, "event": self.event}

    def free_distance(self, yaw: float) -> float:
        """Metres of free sight from here in a direction (radians, level), at most 90."""
        return self._sight(yaw)[0]

    @property
    def _now(self) -> StreetState:
        if self._state is None:
            raise RuntimeError("the street has not begun: call reset(rng) first")
        return self._state

    def _air(self) -> np.ndarray:
        vector = self._now.blend.vector()
        for course in self._now.courses:
            if course.kind == "fire" and course.wall is not None:
                vector[air.FIRE], vector[air.BURNING] = course.weight(self.time), course.wall[0]
        return vector

    def _shapes(self) -> np.ndarray:
        parts = [self.town.shapes, self.town.people.shapes(self.time)]
        parts += [event_shapes(course, self.time) for course in self._now.courses]
        if self._now.beacon is not None:
            x, z = self._now.beacon
            pulse = 0.85 + 0.1 * math.sin(4.0 * self.time)
            parts.append(P.rows([P.shape(P.PILLAR, (x, 15.0, z), (0.8, 15.0, 0.8), (1.0, 0.86, 0.25), alpha=pulse)]))
        return np.concatenate(parts)

    def _place_on_street(self, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
        """A free place in a lane or on a pavement, and a direction mostly along the street."""
        along = float(rng.uniform(0, self.town.size))
        off = float(rng.uniform(-1.6, 1.6) if rng.random() < 0.75 else rng.uniform(5.1, 5.4) * rng.choice([-1, 1]))
        street = PITCH * int(rng.integers(self.blocks)) + off
        axis = int(rng.integers(2))  # 0: a street along z
        yaw = (0.0 if axis == 0 else math.pi / 2) + math.pi * int(rng.integers(2))
        yaw += float(rng.normal(0, 0.25)) if rng.random() < 0.8 else float(rng.uniform(-math.pi, math.pi))
        return ((street, along) if axis == 0 else (along, street)), yaw

    def _sight(self, yaw: float) -> tuple[float, int, int]:
        return sight(self.town, self._now.x, self._now.z, yaw)

    def _place_ahead(self, distance: float) -> tuple[tuple[float, float], tuple[int, float, float, float] | None]:
        """A place in view with free sight to it, and a facade in view."""
        state = self._now
        open_to, walls = [], []
        for turn in _GLANCES:
            yaw = state.yaw + turn
            away, building, side = self._sight(yaw)
            open_to.append((min(distance, away - 2.5) - 6.0 * abs(turn), yaw, min(distance, away - 2.5)))
            if building >= 0 and away > 5.0:
                place = (state.x + away * math.sin(yaw), state.z + away * math.cos(yaw))
                walls.append((abs(away - 13.0) + 6.0 * abs(turn), building, *place, _FACING[side]))
        _, yaw, reach = max(open_to)
        reach = max(3.0, reach)
        place = (state.x + reach * math.sin(yaw), state.z + reach * math.cos(yaw))
        return place, min(walls)[1:] if walls else None


def _current(state: StreetState) -> Course | None:
    return next((course for course in reversed(state.courses) if course.end is None), None)


def _called_for(state: StreetState) -> tuple[str, str]:
    """The light and weather the world is on its way to."""
    course = _current(state)
    kind = None if course is None else KINDS[course.kind]
    light = state.light if kind is None or kind.light is None else kind.light
    return light, state.weather if kind is None or kind.weather is None else kind.weather


__all__ = ["EVENTS", "LIGHTS", "WEATHERS", "StreetBlock", "StreetSimulator", "StreetState"]
