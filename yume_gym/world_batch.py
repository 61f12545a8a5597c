"""N worlds between two calls of a vector environment, and what its calls do to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from world_model.state import WorldState
from world_model.threads import fair_threads
from yume_gym.env import YumeWorldEnv, judged, start_info, world_start
from yume_gym.episode import EpisodeState
from yume_gym.rewards import begin_reward, step_reward
from yume_gym.slots import Slot
from yume_gym.street.events import EventSchedule

Step = tuple[float, bool, bool, dict[str, Any]]  # reward, terminated, truncated and info of one world


class EpisodeBatch:
    """The slots of `count` worlds and the worlds themselves, which are rows of one `WorldState`.

    `begin`, `advance` and `judge` change nothing; `commit` keeps what they gave.
    """

    def __init__(self, single: YumeWorldEnv, count: int, invariant: bool, threads: int | None) -> None:
        """single: what every world is like. See `YumeWorldVectorEnv` for `invariant` (batch_invariant) and `threads`."""
        self.single, self.count = single, count
        self._invariant, self._threads = invariant, threads
        self._slots: list[Slot | None] = [None] * count
        self._worlds: WorldState | None = None  # of all slots, once each was reset

    @property
    def worlds(self) -> WorldState:
        """All worlds. Raises ResetNeeded before the first reset."""
        if self._worlds is None:
            raise ResetNeeded("call reset() first")
        return self._worlds

    def slot(self, number: int, what: str) -> Slot:
        """One slot, for a call of `what`. Raises ResetNeeded before its first reset."""
        slot = self._slots[number]
        if slot is None:
            raise ResetNeeded(f"call reset() before {what}()")
        return slot

    def slots(self, what: str) -> list[Slot]:
        """All slots, for a call of `what`. Raises ResetNeeded before the first reset."""
        return [self.slot(number, what) for number in range(self.count)]

    def begin(
        self, which: list[int], wanted: list[dict[str, Any]], seeds: list[int | None]
    ) -> tuple[list[Slot], WorldState]:
        """New episodes in worlds `which`, as their options and seeds want them. Changes nothing."""
        slots: list[tuple[EventSchedule, np.random.Generator, int | None]] = []
        starts = []
        for number, options, seed in zip(which, wanted, seeds):
            schedule = EventSchedule.parse(options.pop("events", None))
            for _, text in schedule.entries:
                if text is not None:
                    self.single._check_event(text)
            before = self._slots[number]
            if seed is not None or before is None:
                random, kept = seeding.np_random(seed)
                slots.append((schedule, random, kept))
            else:
                random = copy.deepcopy(before.random)
                slots.append((schedule, random, before.seed))
            starts.append(world_start(self.single.model, options, random, self.single.reward_fn))
        images, texts, numbers = zip(*starts)
        model = self.single.model
        with fair_threads(model.device):
            worlds = model.start(images, texts, numbers)
        length, pictures = model.config.frames_per_block, model.preview(worlds)[:, None]
        begun = []
        for picture, (schedule, random, seed), (image, text, _) in zip(pictures, slots, starts):
            now = EpisodeState.begin(None, picture, length, schedule)
            now = replace(now, reward_state=begin_reward(self.single.reward_fn, now.frames))
            begun.append(Slot(now, random, seed, start_info=start_info(model, image, text)))
        return begun, worlds

    def advance(self, going: list[int], held: list[Any]) -> tuple[WorldState, np.ndarray]:
        """One block of the worlds `going`: those worlds afterwards, and their frames uint8 [n, T, H, W, 3]."""
        worlds = self.worlds if len(going) == self.count else self.worlds.rows(going)
        episodes = [self.slot(number, "step").episode for number in going]
        events = [episode.schedule.at(episode.step) for episode in episodes]
        with fair_threads(self.single.model.device) as cores:
            threads, batch_size = self._share(len(going), cores)
            return self.single.model.step(worlds, held, events, self.single.sampler_steps, threads, batch_size)

    def _share(self, worlds: int, cores: int) -> tuple[int | None, int]:
        """Threads for each batch (None: all, one batch after another) and worlds in a batch."""
        if self._invariant:
            return None, 1
        at_once, model = min(self._threads or cores, cores), self.single.model
        if model.device.type != "cpu" or at_once == cores == 1:
            return None, worlds
        if not len(model.dit.priors):  # one network, whose layers keep all threads busy
            return None if at_once == cores else at_once, worlds
        at_once = min(at_once, worlds)
        return 1, math.ceil(worlds / at_once)

    def judge(
        self, slot: Slot, action: Any, worlds: WorldState, row: int, frames: np.ndarray, started: float, longest: float
    ) -> tuple[Slot, Step]:
        """A world after the block that it dreamt as `row` of `worlds`, and what the step was worth."""
        now = slot.episode
        event = now.schedule.at(now.step)
        outcome = judged(self.single.model, worlds, row, event)
        reward, terminated, remembered = outcome.get("reward", 0.0), outcome.get("terminated", False), None
        if self.single.reward_fn is not None:
            reward, terminated, remembered = step_reward(
                self.single.reward_fn, now.reward_state, now.frames, action, frames
            )
        then = now.after(None, frames, remembered)
        truncated = outcome.get("truncated", False) or then.step >= longest
        info = then.info(action, event, started, outcome["info"])
        after = replace(slot, episode=then, ended=terminated or truncated)
        return after, (reward, terminated, truncated, info)

    def commit(self, slots: Mapping[int, Slot], parts: Sequence[tuple[Sequence[int], WorldState]]) -> None:
        """Keeps new slots, and the worlds of each part in place of those of its numbers."""
        worlds = self._worlds
        for numbers, new in parts:
            whole = worlds is None or list(numbers) == list(range(self.count))
            worlds = new if worlds is None or whole else worlds.replaced(numbers, new)
        for number, slot in slots.items():
            self._slots[number] = slot
        self._worlds = worlds
