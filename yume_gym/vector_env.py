"""`YumeWorld-v0` many times over: N worlds that go through the network as one batch (`gymnasium.make_vec`)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from world_model.checks import check_choice, check_flag, check_seed, check_whole, short
from world_model.model import WorldModel
from world_model.state import WorldState
from yume_gym.env import YumeWorldEnv
from yume_gym.episode import EnvState
from yume_gym.slots import Slot, read_actions, read_reset, read_seeds
from yume_gym.street.events import check_event
from yume_gym.world_batch import EpisodeBatch, Step


class YumeWorldVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """N worlds of `YumeWorldEnv`, dreamed as one batch. What that class says of one world holds for each of these.

    ## Description

    `gymnasium.make_vec("YumeWorld-v0", num_envs=8, vectorization_mode="vector_entry_point")` makes it; `make_vec` without
    a mode does, too. The worlds may differ in age, seed, start and events. Each has the noise that it has alone. A batched
    matrix product rounds differently: frames of the first step are within one grey level of those of `YumeWorldEnv`, but for
    up to 1% of values, and later ones drift apart. With `batch_invariant=True` they are equal bit by bit, at the speed of
    one after another.

    ## Spaces

    `single_action_space` and `single_observation_space` are those of `YumeWorldEnv`; `action_space` and
    `observation_space` are N of them. Rewards are float64 (N,), terminations and truncations bool (N,).

    ## Episode End

    `autoreset_mode` is one of Gymnasium's three (`gymnasium.vector.AutoresetMode`, or its value as a str):

    - `NEXT_STEP` (default): the step after an end begins the next episode, whatever its action; its reward is 0.
    - `SAME_STEP`: the step that ends an episode returns the next one's first observation; `infos["final_obs"]` and
      `infos["final_info"]` have what the step saw.
    - `DISABLED`: `reset(options={"reset_mask": ended})` begins new ones; a step of an ended world raises ResetNeeded.

    ## Information

    `infos` has the keys of `YumeWorldEnv`, each with a mask `_key` bool (N,), as Gymnasium's vector environments have it.

    ## Arguments

    | Argument            | Default     | Meaning                                                                       |
    |---------------------|-------------|-------------------------------------------------------------------------------|
    | `num_envs`          | 1           | N, worlds in the batch                                                        |
    | `autoreset_mode`    | `NEXT_STEP` | see above                                                                     |
    | `batch_invariant`   | False       | whether worlds are equal to single ones bit by bit (one goes after another)   |
    | `threads`           | None        | CPU threads; None takes all that torch may use. With priors, each dreams a part |
    | `max_episode_steps` | None        | steps after which an episode is truncated                                     |
    | others              |             | those of `YumeWorldEnv`; `render_mode` is None or `"rgb_array"`               |

    ## Methods beyond Gymnasium's

    `reset(seed=..., options=...)`: seeds are None, one int (world i has seed + i) or N of them. Options are those of
    `YumeWorldEnv` and are for all worlds; `options["each"]`, a list of N dicts or None, adds to them for one world;
    `options["reset_mask"]`, bool (N,), says which worlds begin anew. `trigger_event`, `get_state`, `set_state` and `fork`
    work on worlds by their number. States are those of `YumeWorldEnv`: either environment continues the other's.
    What cannot be done raises as there, and all worlds are then as they were before the call.

    ## Example

    >>> import gymnasium, yume_gym
    >>> envs = gymnasium.make_vec("YumeWorld-v0", num_envs=2, vectorization_mode="vector_entry_point")
    >>> observations, infos = envs.reset(seed=0, options={"each": [{"events": "snow falls"}, None]})
    >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    >>> observations.shape
    (2, 64, 96, 3)
    """

    metadata: ClassVar[dict[str, Any]] = {**YumeWorldEnv.metadata, "render_modes": ["rgb_array"]}  # type: ignore[misc]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        batch_invariant: bool = False,
        threads: int | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self.num_envs = check_whole("num_envs", num_envs, least=1)
        self.autoreset_mode = _mode(autoreset_mode)
        invariant = check_flag("batch_invariant", batch_invariant)
        at_once = None if threads is None else check_whole("threads", threads, least=1)
        self._longest = math.inf
        if max_episode_steps is not None:
            self._longest = check_whole("max_episode_steps", max_episode_steps, least=1)
        self.render_mode = check_choice("render_mode", render_mode, (None, "rgb_array"), " for a vector environment")
        self.single_env = YumeWorldEnv(**arguments)
        self.metadata = {  # type: ignore[misc]
            **self.single_env.metadata,
            "render_modes": ["rgb_array"],
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = self.single_env.observation_space
        self.single_action_space = self.single_env.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._batch = EpisodeBatch(self.single_env, self.num_envs, invariant, at_once)

    @property
    def model(self) -> WorldModel:
        """The network that dreams, for sharing it with other environments."""
        return self.single_env.model

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random numbers of every world."""
        return tuple(slot.random for slot in self._batch.slots("np_random"))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of every world's random numbers; None where another call than the last reset gave it."""
        return tuple(slot.seed for slot in self._batch.slots("np_random_seed"))

    # -- Gymnasium's methods -------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes: (observations, infos). See the class for `seed` and `options`. A call that raises changes nothing."""
        started = time.perf_counter()
        wanted, which = read_reset(options, self.num_envs, self.single_env.accepted_options)
        seeds = read_seeds(seed, self.num_envs)
        if len(which) < self.num_envs:
            self._batch.slots("reset(options={'reset_mask': ...}")
        begun, worlds = self._batch.begin(which, [wanted[i] for i in which], [seeds[i] for i in which])
        self._batch.commit(dict(zip(which, begun)), [(which, worlds)])
        infos: dict[str, Any] = {}
        for number in which:
            infos = self._add_info(infos, self._first_info(self._batch.slot(number, "step"), started), number)
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Hold each world's action for one block: (observations, rewards, terminations, truncations, infos).

        A call that raises changes nothing. Raises ResetNeeded before the first reset, or where an ended world has to be
        reset by the caller; TypeError or ValueError for what are no N actions of `single_action_space`.
        """
        observations, steps, final = self.step_each(actions)
        infos: dict[str, Any] = {}
        for number, (*_, info) in enumerate(steps):
            if number in final:
                infos = self._add_info(infos, final[number], number)
            infos = self._add_info(infos, info, number)
        rewards, terminations, truncations, _ = zip(*steps)
        return observations, np.array(rewards, np.float64), np.array(terminations), np.array(truncations), infos

    def step_each(self, actions: Any) -> tuple[np.ndarray, list[Step], dict[int, dict[str, Any]]]:
        """`step` with an info for each world: (observations, [(reward, terminated, truncated, info)], {world: final}).

        final: of worlds that ended and began anew within this step (SAME_STEP), their "final_obs" and "final_info".
        """
        started = time.perf_counter()
        before = self._batch.slots("step")
        ended = [number for number, slot in enumerate(before) if slot.ended]
        if ended and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of worlds {ended} have ended: reset them with options={{'reset_mask': ...}} before step()"
            )
        anew = [number for number, slot in enumerate(before) if slot.ended]
        going = [number for number, slot in enumerate(before) if not slot.ended]
        held = read_actions(self.model.config.action, actions, self.num_envs, going)
        slots: dict[int, Slot] = {}
        parts: list[tuple[list[int], WorldState]] = []
        steps: dict[int, Step] = {}
        if going:
            worlds, frames = self._batch.advance(going, held)
            parts.append((going, worlds))
            for i, number in enumerate(going):
                slots[number], steps[number] = self._batch.judge(
                    before[number], held[i], worlds, i, frames[i], started, self._longest
                )
        final: dict[int, dict[str, Any]] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            anew = [number for number, slot in slots.items() if slot.ended]
            for number in anew:
                seen = slots[number].episode.observation(self.single_env.observes_block)
                final[number] = {"final_obs": seen, "final_info": steps[number][3]}
        if anew:
            begun, worlds = self._batch.begin(anew, [{}] * len(anew), [None] * len(anew))
            parts.append((anew, worlds))
            slots |= zip(anew, begun)
            for number, slot in zip(anew, begun):
                steps[number] = (*steps.get(number, (0.0, False, False))[:3], self._first_info(slot, started))
        self._batch.commit(slots, parts)
        return self._observations(), [steps[number] for number in range(self.num_envs)], final

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The latest frame of every world, N times uint8 [H, W, 3]; None and a warning without a render_mode."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: pass render_mode='rgb_array' to gymnasium.make_vec")
            return None
        return tuple(slot.episode.frames[-1].copy() for slot in self._batch.slots("render"))

    # -- beyond Gymnasium ----------------------------------------------------------------------------------------------

    def trigger_event(self, text: str | None, slots: Iterable[int] | None = None) -> None:
        """`YumeWorldEnv.trigger_event` in the worlds of these numbers, or in all."""
        event = check_event(text)
        if event is not None:
            self.single_env._check_event(event)
        chosen = range(self.num_envs) if slots is None else [self._number(number) for number in slots]
        changed = {}
        for number in chosen:
            slot = self._batch.slot(number, "trigger_event")
            episode = replace(slot.episode, schedule=slot.episode.schedule.with_event(slot.episode.step, event))
            changed[number] = replace(slot, episode=episode)
        self._batch.commit(changed, [])

    def get_state(self, slot: int) -> EnvState:
        """The whole state of one world, as `YumeWorldEnv.get_state` gives it."""
        number = self._number(slot)
        now = self._batch.slot(number, "get_state")
        world = self._batch.worlds.rows([number])
        episode = replace(now.episode, world=world, frames=now.episode.frames.copy())
        return EnvState(
            self.single_env._kind, self.single_env._block_shape, episode, copy.deepcopy(now.random), now.seed
        )

    def set_state(self, slot: int, state: EnvState) -> None:
        """Continue one world where `state` was taken, here or in a `YumeWorldEnv` of the same model.

        Raises ResetNeeded before the first reset, else what `YumeWorldEnv.set_state` raises.
        """
        number = self._number(slot)
        self._batch.slots("set_state")
        kept = Slot(replace(self.single_env.restored(state), world=None), copy.deepcopy(state.random), state.seed)
        self._batch.commit({number: kept}, [([number], state.episode.world)])

    def fork(self, slot: int, into: Sequence[int], seeds: Sequence[int] | None = None) -> None:
        """Put copies of one world in place of others; events and the random numbers of resets are copied, too.

        Copies under the same actions dream the same; with `seeds`, one for each, they dream on differently.
        """
        number = self._number(slot)
        targets = [self._number(target) for target in into]
        now = self._batch.slot(number, "fork")
        if seeds is not None and len(seeds) != len(targets):
            raise ValueError(f"{len(targets)} worlds to fork into need as many seeds, got {len(seeds)}")
        if not targets:
            return
        worlds = self._batch.worlds.rows([number] * len(targets))
        if seeds is not None:
            worlds = replace(worlds, seeds=tuple(check_seed(seed) for seed in seeds))
        self._batch.commit(
            {target: replace(now, random=copy.deepcopy(now.random)) for target in targets}, [(targets, worlds)]
        )

    # -- within --------------------------------------------------------------------------------------------------------

    def _observations(self) -> np.ndarray:
        slots = self._batch.slots("observe")
        return np.stack([slot.episode.observation(self.single_env.observes_block) for slot in slots])

    def _first_info(self, slot: Slot, started: float) -> dict[str, Any]:
        return slot.episode.info(
            self.model.config.action.noop, slot.episode.schedule.at(0), started, dict(slot.start_info)
        )

    def _number(self, slot: object) -> int:
        return check_whole("the number of a world", slot, most=self.num_envs - 1)


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(f"{one} or {one.value!r}" for one in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {known}; got {short(mode)}") from None
