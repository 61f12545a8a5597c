"""`YumeStreet-v0`: the procedural town, ground truth for everything that is dreamed, as a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from einops import repeat

from world_model.actions import Action
from world_model.checks import check_choice, check_whole
from world_model.presets import PRESETS, get_preset
from yume_gym.first_person import FirstPersonEnv, Outcome
from yume_gym.rewards import Reward, find_reward
from yume_gym.street.atmosphere import LIGHTS, WEATHERS
from yume_gym.street.beacon import ARRIVAL_BONUS, ARRIVAL_RADIUS, beacon_distance, place_beacon
from yume_gym.street.captions import scene_caption
from yume_gym.street.events import require_event
from yume_gym.street.reset_options import FARTHEST, start_of_pose, wishes_of_text
from yume_gym.street.simulator import StreetSimulator, StreetState

BEACON = "beacon"
_TRIES = 200  # draws of a place that meets a wish before giving up


@dataclass(frozen=True, eq=False)
class StreetWorld:
    """A street as a value: which town, the simulator's state, the wording of captions, and where the beacon stands."""

    town_seed: int
    state: Any
    wording: int
    beacon: tuple[float, float] | None


class YumeStreetEnv(FirstPersonEnv):
    """Walk through a small procedural town: the true world that `YumeWorld-v0` dreams of.

    ## Description

    The town is a torus of B x B blocks of 40 m: who walks straight on comes round again. Streets with pavements and
    crossings, blocks of several districts (old brick, glass towers, pastel old town, shops, a park), trees, lamps,
    parked cars and pedestrians. Light (day, overcast, golden, night) and weather (clear, rain, snow, fog) are drawn
    with the seed or chosen; seventeen kinds of events have their onset, course and end in the world: rain, snow, fog,
    night, sunset and sun; fireworks, a fire, a UFO, a ghost, a balloon, a crowd, a car, a tornado, a dinosaur, a tram
    and soap bubbles. Buildings and water stop a walker, who slides along them. Everything is computed by a ray caster
    on the CPU, without a display.

    One step is one block of frames, as in `YumeWorld-v0`: 4 frames at 8 frames a second, half a second, in which a held
    walking key means 1.25 m and a held arrow key 22.5 degrees to a side or 15 up or down, to at most 35 from level.
    Code written for one environment runs on the other.

    ## Action Space

    `Discrete(81)`: 9 moves x 9 looks, `index = 9 * move + look`. Action 0 stands still.

    | Num | Move (keys)               | Look (arrows)      |
    |-----|---------------------------|--------------------|
    | 0   | none                      | none               |
    | 1   | forward (W)               | right (→)          |
    | 2   | backward (S)              | left (←)           |
    | 3   | left (A)                  | up (↑)             |
    | 4   | right (D)                 | down (↓)           |
    | 5   | forward and left (W+A)    | up and right (↑→)  |
    | 6   | forward and right (W+D)   | up and left (↑←)   |
    | 7   | backward and left (S+A)   | down and right (↓→)|
    | 8   | backward and right (S+D)  | down and left (↓←) |

    `world_model.actions.Action.from_keys("W+A", "→").index` names an action by its keys.

    ## Observation Space

    `frames="last"`: `Box(0, 255, (64, 96, 3), uint8)`, the last frame of the block.

    `frames="block"`: `Box(0, 255, (64, 96, 3 * T), uint8)`, all T frames of the block stacked along the channels, the
    oldest first; `info["frames"]` holds the same as (T, H, W, 3). After a reset all T frames are the first picture.

    ## Rewards

    0.0, unless the argument `reward` asks for one: `"beacon"`, a picture reward of `yume_gym.rewards` by name, an
    `EpisodeReward` of that module, or a function `(previous_frames, action, current_frames) -> (reward, terminated)`.
    Rewards in the latents of a model need one: `Novelty().bind(WorldModel.load("street"))`.

    With `"beacon"` a pillar of light stands within 60 m, three times out of four in plain sight and otherwise just out
    of it. The reward is progress towards it in units of the farthest a step can go, so -1..1 (the shortest way round
    the torus counts), plus 10 on arrival within 3 m.

    ## Starting State

    A free place on a street, looking along it, drawn with the seed; or what the options of `reset` ask for.

    ## Episode End

    With `"beacon"`, arrival terminates. Nothing truncates by itself; `YumeStreetBeacon-v0` is this environment with
    `reward="beacon"` and `max_episode_steps=60`.

    ## Information

    Every object in `info` is fresh, as is the observation.

    | Key               | Value                                                                               |
    |-------------------|-------------------------------------------------------------------------------------|
    | `frames`          | uint8 (T, H, W, 3): the block; after a reset, the first picture T times             |
    | `keys`            | walking keys held, such as "W+A"; "" for none                                       |
    | `look`            | arrow keys held, such as "↑→"; "" for none                                          |
    | `event`           | the event text active in this step, or None                                         |
    | `events`          | the schedule, {step: text or None}, triggered events included                       |
    | `step`            | steps taken since the reset                                                         |
    | `latency_ms`      | milliseconds that the call took (readings compare equal, see `WallClock`)           |
    | `pose`            | float64 (T, 4, 4): camera-to-world per frame, OpenCV axes (x right, y down, z ahead)|
    | `intrinsics`      | float64 (3, 3): the pinhole matrix in pixels                                        |
    | `caption`         | what surrounds the viewer, in English                                               |
    | `blocked`         | True where a wall shortened the way                                                 |
    | `beacon_distance` | metres to the beacon (only with `reward="beacon"`)                                  |

    ## Arguments

    | Argument      | Default    | Meaning                                                                            |
    |---------------|------------|------------------------------------------------------------------------------------|
    | `blocks`      | `2`        | blocks along a side of the torus, 2 or more                                        |
    | `town_seed`   | `0`        | which town; None builds a fresh one at every reset                                 |
    | `reward`      | `None`     | None, `"beacon"`, the name of a picture reward, or a function                      |
    | `render_mode` | `None`     | `"rgb_array"`, `"rgb_array_list"` (every frame since the last call) or `"human"`   |
    | `frames`      | `"last"`   | `"last"` or `"block"`: what is observed                                            |
    | `light`       | `None`     | `"day"`, `"overcast"`, `"golden"` or `"night"`; None draws one at every reset      |
    | `weather`     | `None`     | `"clear"`, `"rain"`, `"snow"` or `"fog"`; None draws one at every reset            |
    | `preset`      | `"street"` | the model whose picture size, frame rate, block length and camera are used         |

    `reset(seed=..., options=...)` takes these options, all optional:

    | Option   | Value                                                                                             |
    |----------|---------------------------------------------------------------------------------------------------|
    | `text`   | light, weather and district by keywords, as in "a snowy night in the old town"                    |
    | `events` | str (from the first step), list of str (a new one every 8 steps) or {step: str}; "" ends an event |
    | `pose`   | (4, 4) camera-to-world matrix as in `info["pose"]`, at a free place; its height is not used       |

    An `image` is refused: the street is ground truth and cannot become a picture. An event text has to tell of one of
    the seventeen kinds; ValueError names them. `trigger_event(text)`, `get_state()`, `set_state(state)` and exceptions
    are as in `YumeWorld-v0`.

    ## Example

    >>> import gymnasium, yume_gym
    >>> from world_model.actions import Action
    >>> env = gymnasium.make("YumeStreet-v0", light="night", render_mode="rgb_array")
    >>> observation, info = env.reset(seed=0, options={"events": "a UFO flies by"})
    >>> observation, reward, terminated, truncated, info = env.step(Action.from_keys("W").index)
    >>> info["pose"].shape
    (4, 4, 4)

    ## Version History

    * v0: first version
    """

    accepted_options = ("text", "events", "pose")

    def __init__(
        self,
        blocks: int = 2,
        town_seed: int | None = 0,
        reward: str | Reward | None = None,
        render_mode: str | None = None,
        frames: Literal["last", "block"] = "last",
        light: str | None = None,
        weather: str | None = None,
        preset: str = "street",
    ) -> None:
        blocks = check_whole("blocks", blocks, least=2)
        town_seed = None if town_seed is None else check_whole("town_seed", town_seed)
        self._light = check_choice("light", light, (None, *LIGHTS))
        self._weather = check_choice("weather", weather, (None, *WEATHERS))
        check_choice("preset", preset, tuple(PRESETS))
        self._blocks, self._town_seed = blocks, town_seed
        self._has_beacon = isinstance(reward, str) and reward == BEACON
        self._street: tuple[int, StreetSimulator] | None = None
        picture_reward = None if self._has_beacon else find_reward(reward)
        super().__init__(get_preset(preset), reward=picture_reward, render_mode=render_mode, frames=frames)

    def _read_options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        if isinstance(options, Mapping) and options.get("image") is not None:
            raise ValueError(
                "option 'image': the street is ground truth and cannot start from a picture; "
                f"accepted are {', '.join(self.accepted_options)} (YumeWorld-v0 takes pictures)"
            )
        return super()._read_options({} if options is None else options)

    def _check_event(self, text: str) -> None:
        require_event(text)

    def _begin(self, options: Mapping[str, Any], rng: np.random.Generator) -> Outcome:
        drawn_town, wording, light, weather = (int(n) for n in rng.integers(2**31, size=4))
        wishes = wishes_of_text(options.get("text"))
        light_name = wishes[0] or self._light or LIGHTS[light % len(LIGHTS)]
        weather_name = wishes[1] or self._weather or WEATHERS[weather % len(WEATHERS)]
        town_seed = drawn_town if self._town_seed is None else self._town_seed
        street = self._simulator(town_seed)
        for _ in range(_TRIES):
            first = street.reset(rng, light=light_name, weather=weather_name, **start_of_pose(options.get("pose")))
            if wishes[2] is None or street.surroundings()["district"] == wishes[2]:
                break
        else:
            raise ValueError(f"found no place in the district {wishes[2]!r} to start from: ask for another in 'text'")
        beacon = place_beacon(street, rng) if self._has_beacon else None
        if beacon is not None:
            street.beacon(beacon)
            first = street.render()
        world = StreetWorld(town_seed, street.get_state(), wording, beacon)
        poses = repeat(street.pose, "i j -> t i j", t=self._config.frames_per_block)
        return Outcome(world, first[None], self._info(street, world, poses.copy(), blocked=False))

    def _advance(self, world: StreetWorld, action: Action, event: str | None, event_begins: bool) -> Outcome:
        street = self._simulator(world.town_seed)
        street.set_state(world.state)
        if event_begins:
            street.set_event(None if event is None else require_event(event))
        before = beacon_distance(street, world.beacon)
        block = street.step(action)
        after = beacon_distance(street, world.beacon)
        arrived = after <= ARRIVAL_RADIUS
        progress = (before - after) / self._farthest_step if world.beacon is not None else 0.0
        next_world = StreetWorld(world.town_seed, street.get_state(), world.wording, world.beacon)
        info = self._info(street, next_world, block.poses.copy(), block.blocked)
        return Outcome(next_world, block.frames, info, progress + ARRIVAL_BONUS * arrived, arrived)

    def _check_world(self, world: Any) -> None:
        wanted = "not a state that get_state() gives: its world must be {}; take it again with get_state()"
        if not isinstance(world, StreetWorld) or not isinstance(getattr(world, "state", None), StreetState):
            raise ValueError(wanted.format("a StreetWorld"))
        lacking = [f.name for one in (world, world.state) for f in fields(one) if not hasattr(one, f.name)]
        if lacking:
            raise ValueError(wanted.format(f"whole, and lacks its {lacking[0]}"))
        now, beacon = world.state, world.beacon
        places: list[Any] = [now.x, now.z, *(beacon or ()), now.yaw, now.pitch]
        if not all(isinstance(number, int | np.integer) for number in (world.town_seed, world.wording, now.frame)):
            raise ValueError(wanted.format("of whole seeds and frames"))
        if not all(isinstance(p, int | float | np.number) and abs(float(p)) <= FARTHEST for p in places):
            raise ValueError(wanted.format(f"at places and angles within {FARTHEST:g}"))
        if abs(now.pitch) > math.pi / 2 or now.light not in LIGHTS or world.town_seed < 0 or now.frame < 0:
            raise ValueError(wanted.format("one that can be drawn"))

    @property
    def _kind(self) -> str:
        return f"{super()._kind} of {self._blocks} x {self._blocks} blocks"

    @property
    def _farthest_step(self) -> float:
        """Metres that a held walking key means in one step."""
        config = self._config
        return config.camera.walk_speed * config.frames_per_block / config.fps

    def _simulator(self, town_seed: int) -> StreetSimulator:
        """The simulator of a town; the latest town is kept, since laying one out takes a while."""
        if self._street is None or self._street[0] != town_seed:
            config = self._config
            street = StreetSimulator(
                height=config.height,
                width=config.width,
                fps=config.fps,
                frames_per_block=config.frames_per_block,
                camera=config.camera,
                town_seed=town_seed,
                blocks=self._blocks,
            )
            self._street = (town_seed, street)
        return self._street[1]

    def _info(self, street: StreetSimulator, world: StreetWorld, poses: np.ndarray, blocked: bool) -> dict[str, Any]:
        info = {
            "pose": poses,
            "intrinsics": street.intrinsics.copy(),
            "caption": scene_caption(street.surroundings(), np.random.default_rng(world.wording)),
            "blocked": bool(blocked),
        }
        if world.beacon is not None:
            info["beacon_distance"] = beacon_distance(street, world.beacon)
        return info

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_street": None}  # a town is laid out again from its seed
