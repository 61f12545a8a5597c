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
from yume_gym.street.event_kinds import KINDS, event_shapes
from yume_gym.street.event_state import EventState
from yume_gym.street.motion import WALL_MARGIN, slide
from yume_gym.street.placement import place_in_view, place_on_street
from yume_gym.street.render import depth_map, line_of_sight, render
from yume_gym.street.surroundings import describe
from yume_gym.street.town import Town, build_town

EVENTS = tuple(KINDS)

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
    events: tuple[EventState, ...] = ()  # oldest first, those that fade out included
    beacon: tuple[float, float] | None = None

    @property
    def current_event(self) -> EventState | None:
        """The event that goes on; None if there is none (one that fades out has ended)."""
        return next((event for event in reversed(self.events) if event.end is None), None)

    @property
    def target_atmosphere(self) -> tuple[str, str]:
        """The light and weather that the world is fading to."""
        event = self.current_event
        kind = None if event is None else KINDS[event.kind]
        light = self.light if kind is None or kind.light is None else kind.light
        return light, self.weather if kind is None or kind.weather is None else kind.weather


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
            height=view.height,
            width=view.width,
            fps=view.fps,
            frames_per_block=view.frames_per_block,
            camera=view.camera,
            town_seed=town_seed,
            blocks=blocks,
        )

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
        drawn, along = place_on_street(self.town, rng)
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
                blend=state.blend.towards(*state.target_atmosphere, 1.0 / self.fps),
                events=tuple(event for event in state.events if not event.over(time)),
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
        events = tuple(event.ended(self.time) for event in state.events)
        if kind is not None:
            place, wall = place_in_view(self.town, state.x, state.z, state.yaw, KINDS[kind].distance)
            events += (EventState(kind, self.time, place, state.yaw, wall),)
        self._state = replace(state, events=events)

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
        current = self._now.current_event
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
        light, weather = state.target_atmosphere
        seen = describe(
            self.town, self.town.people.places(self.time), state.x, state.z, state.yaw, self.camera.horizontal_fov
        )
        return {**seen, "light": light, "weather": "rain" if weather == "heavy_rain" else weather, "event": self.event}

    def free_distance(self, yaw: float) -> float:
        """Metres of free sight from here in a direction (radians, level), at most 90."""
        return line_of_sight(self.town, self._now.x, self._now.z, yaw)[0]

    @property
    def _now(self) -> StreetState:
        if self._state is None:
            raise RuntimeError("the street has not begun: call reset(rng) first")
        return self._state

    def _air(self) -> np.ndarray:
        vector = self._now.blend.vector()
        for event in self._now.events:
            if event.kind == "fire" and event.wall is not None:
                vector[air.FIRE], vector[air.BURNING] = event.weight(self.time), event.wall[0]
        return vector

    def _shapes(self) -> np.ndarray:
        parts = [self.town.shapes, self.town.people.shapes(self.time)]
        parts += [event_shapes(event, self.time) for event in self._now.events]
        if self._now.beacon is not None:
            x, z = self._now.beacon
            pulse = 0.85 + 0.1 * math.sin(4.0 * self.time)
            parts.append(P.rows([P.shape(P.PILLAR, (x, 15.0, z), (0.8, 15.0, 0.8), (1.0, 0.86, 0.25), alpha=pulse)]))
        return np.concatenate(parts)


__all__ = ["EVENTS", "LIGHTS", "WEATHERS", "StreetBlock", "StreetSimulator", "StreetState"]
