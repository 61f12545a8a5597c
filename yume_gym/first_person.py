"""What every environment of blocks does alike, dreamed or true: actions, observations, events, rendering, state.

A subclass brings the world itself in two methods, `_begin` and `_advance`, that take and return the world as a value
and change nothing else. All that an environment holds between calls is therefore one immutable `EpisodeState`: a call that
fails leaves it alone, and saving or restoring is handing it over.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from world_model.checks import check_choice
from world_model.config import ModelConfig
from world_model.presets import get_preset
from yume_gym.episode import EnvState, EpisodeState, Outcome, check_state, read_options
from yume_gym.keyboard import action_meanings, action_space, check_action, keyboard
from yume_gym.rewards import EpisodeReward, Reward, begin_reward, restore_reward, step_reward
from yume_gym.street.events import EventSchedule, check_event
from yume_gym.window import Window


class FirstPersonEnv(gym.Env[np.ndarray, Any], ABC):
    """Base of `YumeWorldEnv` and `YumeStreetEnv`; their docstrings are the specification.

    Actions are those of `config.action`: the 81 first-person ones, or those of a recorded environment.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array", "rgb_array_list", "human"],
        "render_fps": get_preset("street").fps,
        "frames_per_step": get_preset("street").frames_per_block,
    }
    accepted_options: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        config: ModelConfig,
        *,
        reward: Reward | None,
        render_mode: str | None,
        frames: Literal["last", "block"],
    ) -> None:
        modes = self.metadata["render_modes"]
        check_choice("render_mode", render_mode, (None, *modes))
        check_choice("frames", frames, ("last", "block"), " (one picture, or all pictures of a step)")
        if isinstance(reward, EpisodeReward) and reward.needs_model:
            raise ValueError(
                f"the reward {reward!r} compares pictures in the latents of a model, and this world has none: "
                "give it one with its method bind(model), as in Novelty().bind(WorldModel.load('street'))"
            )
        self.metadata = {  # type: ignore[misc]
            **self.metadata,
            "render_fps": config.fps,
            "frames_per_step": config.frames_per_block,
        }
        channels = 3 if frames == "last" else 3 * config.frames_per_block
        self.observation_space = gym.spaces.Box(0, 255, (config.height, config.width, channels), np.uint8)
        self.action_space = action_space(config.action)
        self.render_mode = render_mode
        self._config = config
        self.observes_block = frames == "block"
        self.reward_fn = reward
        self._episode: EpisodeState | None = None
        self._unseen: list[np.ndarray] = []  # frames that rgb_array_list has yet to hand out
        self._window = Window(type(self).__name__, config.height, config.width, config.fps)

    # -- the world, brought by a subclass ------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, options: Mapping[str, Any], rng: np.random.Generator) -> Outcome:
        """A new world as `options` ask (known keys only, none of them None); `frames` is one picture, [1, H, W, 3]."""

    @abstractmethod
    def _advance(self, world: Any, action: Any, event: str | None, event_begins: bool) -> Outcome:
        """The block after `world` under `action` and the active `event`; `event_begins` when that changes just now."""

    @abstractmethod
    def _check_world(self, world: Any) -> None:
        """Raise ValueError for what no world of this environment can be, as states of elsewhere may hold."""

    def _check_event(self, text: str) -> None:
        """Raise ValueError where this world cannot show the event `text`."""

    # -- Gymnasium's methods -------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode. See the class for `options`. A call that raises changes nothing."""
        wanted = self._read_options(options)
        schedule = EventSchedule.parse(wanted.pop("events", None))
        for _, text in schedule.entries:
            if text is not None:
                self._check_event(text)
        random_before = copy.deepcopy((self._np_random, self._np_random_seed))
        started = time.perf_counter()
        try:
            super().reset(seed=seed)
            begun = self._begin(wanted, self.np_random)
            now = EpisodeState.begin(begun.world, begun.frames, self._config.frames_per_block, schedule)
            now = replace(now, reward_state=begin_reward(self.reward_fn, now.frames))
        except BaseException:
            self._np_random, self._np_random_seed = random_before
            raise
        self._episode = now
        self._unseen.clear()
        self._show(begun.frames)
        info = now.info(self._config.action.noop, schedule.at(0), started, begun.info)
        return now.observation(self.observes_block), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold `action` for one block. See the class for what comes back. A call that raises changes nothing.

        Raises ResetNeeded before the first reset, TypeError or ValueError for what is not in the action space.
        """
        now = self._current("step")
        held = check_action(self._config.action, action)
        event = now.schedule.at(now.step)
        started = time.perf_counter()
        outcome = self._advance(now.world, held, event, now.schedule.changes_at(now.step))
        reward, terminated, remembered = outcome.reward, outcome.terminated, None
        if self.reward_fn is not None:
            reward, terminated, remembered = step_reward(
                self.reward_fn, now.reward_state, now.frames, held, outcome.frames
            )
        self._episode = then = now.after(outcome.world, outcome.frames, remembered)
        self._show(outcome.frames)
        info = then.info(held, event, started, outcome.info)
        return then.observation(self.observes_block), reward, terminated, outcome.truncated, info

    def render(self) -> np.ndarray | list[np.ndarray] | None:  # type: ignore[override]
        """What `render_mode` asks for.

        "rgb_array": the latest frame, uint8 [H, W, 3]; "rgb_array_list": every frame since the last call (a reset
        forgets those before it); "human": None, the window has shown the frames already.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render() without a render_mode: pass one to gymnasium.make, such as render_mode='rgb_array'"
            )
            return None
        now = self._current("render")
        if self.render_mode == "rgb_array":
            return now.frames[-1].copy()
        if self.render_mode == "rgb_array_list":
            frames, self._unseen = self._unseen, []
            return frames
        return None

    def close(self) -> None:
        """Close the window. The environment can still be used, and closed again."""
        self._window.close()

    # -- beyond Gymnasium ----------------------------------------------------------------------------------------------

    def trigger_event(self, text: str | None) -> None:
        """Begin the event `text` with the next step; None or "" ends the active one. Later scheduled events stay.

        Raises ResetNeeded before the first reset; TypeError or ValueError for a text that is not a str, blank, or
        longer than 500 characters, or an event that this world cannot show.
        """
        now = self._current("trigger_event")
        event = check_event(text)
        if event is not None:
            self._check_event(event)
        self._episode = replace(now, schedule=now.schedule.with_event(now.step, event))

    def get_state(self) -> EnvState:
        """The whole state, immutable and picklable; continuing from it gives the same frames, bit by bit on a CPU."""
        episode = self._current("get_state")
        random = copy.deepcopy(self.np_random)
        return EnvState(self._kind, self._block_shape, episode, random, self._np_random_seed)

    def set_state(self, state: EnvState) -> None:
        """Continue where `state` was taken; it may come from another environment with the same arguments.

        A reward that remembers the episode goes on, too; where the state was taken without one, it begins at the state's frames.
        Raises TypeError for what is no such state, ValueError for one of another kind or size of environment, one taken with
        another such reward, or one that was changed into what no environment gives.
        """
        self._episode = self.restored(state)
        self._np_random, self._np_random_seed = copy.deepcopy(state.random), state.seed
        self._unseen.clear()

    def restored(self, state: EnvState) -> EpisodeState:
        """Where `set_state` continues. Raises what it raises, and changes nothing."""
        check_state(state, self._kind, self._block_shape)
        now = state.episode
        self._check_world(now.world)
        return replace(now, reward_state=restore_reward(self.reward_fn, now.reward_state, now.frames))

    def get_action_meanings(self) -> list[str]:
        """Names of the actions in order: of the 81, such as "W+A →", the first is "noop". Of spaces that do not count
        their actions, the range of each component."""
        return action_meanings(self._config.action)

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Sorted key codes held -> action, for `gymnasium.utils.play` (`yume_gym.keyboard` lists the keys).

        Opposite keys cancel each other. Holding nothing is not in it: that is `play`'s noop, `config.action.noop`.
        """
        return keyboard(self._config.action).table()

    # -- within --------------------------------------------------------------------------------------------------------

    @property
    def _kind(self) -> str:
        """Which environments may exchange states."""
        return type(self).__name__

    @property
    def _block_shape(self) -> tuple[int, ...]:
        config = self._config
        return (config.frames_per_block, config.height, config.width, 3)

    def _current(self, what: str) -> EpisodeState:
        if self._episode is None:
            raise ResetNeeded(f"call reset() before {what}()")
        return self._episode

    def _read_options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        return read_options(options, self.accepted_options)

    def _show(self, frames: np.ndarray) -> None:
        if self.render_mode == "rgb_array_list":
            self._unseen.extend(frame.copy() for frame in frames)
        elif self.render_mode == "human":
            self._window.show(frames)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_window", "_unseen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        config = self._config
        self._unseen = []
        self._window = Window(type(self).__name__, config.height, config.width, config.fps)
