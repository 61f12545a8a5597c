"""The loop that dreams ahead of its players: one thread, one model, any number of sessions.

A block is begun as late as still keeps up: when the frames a session has left to show last about as long as its next block
will take. Sessions that are due together are dreamt in one batch.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import torch

from world_model.actions import Action
from world_model.model import WorldModel, WorldState
from world_model.threads import set_threads
from world_model.worlds import collate_worlds, split_worlds
from yume_gym.first_person import EnvState
from yume_gym.play.pace import Forecast
from yume_gym.play.replay import Replay, replay_header
from yume_gym.play.scheduled_session import Job
from yume_gym.play.session import Session
from yume_gym.play.start import Origin, Start, prepare
from yume_gym.play.world import Frame

WARM_UP = 4  # blocks; the first is not representative
WARM_UP_EVENT = "a heavy rainstorm begins"
_NEVER = float("inf")


class SessionsFull(RuntimeError):
    """All places are taken. The message says how many there are."""


class Dreamer:
    """Owns the model and the thread that dreams. Use it as a context manager, or call `close`.

    model: shared by all sessions. max_sessions: `open` raises `SessionsFull` beyond. steps: sampler steps (None: the model's).
    clock, thread: another clock (seconds), and no thread: the caller calls `pump`.
    """

    def __init__(
        self,
        model: WorldModel,
        max_sessions: int = 1,
        steps: int | None = None,
        clock: Callable[[], float] = perf_counter,
        thread: bool = True,
    ) -> None:
        if max_sessions < 1:
            raise ValueError(f"max_sessions must be 1 or more, got {max_sessions}")
        self._model, self._steps, self._clock = model, steps, clock
        self._max_sessions = max_sessions
        self._header = replay_header(model, steps)
        self._changed = threading.Condition()
        self._forecast = Forecast()
        self._sessions: list[Session] = []
        self._opened = 0
        self._closed = False
        self._computing = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="dreamer", daemon=True) if thread else None
        if self._thread is not None:
            self._thread.start()

    @property
    def model(self) -> WorldModel:
        return self._model

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The open sessions, oldest first."""
        with self._changed:
            self._sessions = [session for session in self._sessions if not session.closed]
            return tuple(self._sessions)

    def open(self, start: Start | None = None) -> Session:
        """A new session; its world begins at once. Raises SessionsFull, or what is wrong with the start."""
        return self._admit(prepare(self._model, start or Start()), None)

    def replay(self, replay: Replay) -> Session:
        """A session that plays a `replay.Replay`: keys and events come from it, the player's own are ignored.

        Raises ValueError for a replay of other weights or sampler steps, which would show something else; SessionsFull.
        """
        if replay.header != self._header:
            raise ValueError(
                f"the replay was made with {replay.header}, this is {self._header}: use the same weights and sampler steps"
            )
        return self._admit(prepare(self._model, replay.segments[0].start), replay)

    def warm_up(self) -> None:
        """Load the text encoder and dream a few blocks of a throwaway world, so that the first event does not stutter.

        Returns when it is done, after some seconds.
        """
        with ThreadPoolExecutor(1, initializer=set_threads, initargs=(self._computing,)) as passing:
            # the caller is not to dream itself (world_model.threads)
            passing.submit(self._dream_a_little).result()

    def _dream_a_little(self) -> None:
        size = (self._model.config.height, self._model.config.width, 3)
        config = self._model.config
        noop, event = config.action.noop, WARM_UP_EVENT if config.text.kind != "none" else None
        state = self._model.start([np.zeros(size, np.uint8)], [None], [0])
        for block in range(WARM_UP):
            begun = self._clock()
            state, _ = self._model.step(state, [noop], [event], steps=self._steps)
            if block:
                with self._changed:
                    self._forecast.add(1, self._clock() - begun)

    def close(self) -> None:
        """End all sessions and the thread; waits for the block that is being dreamt. Closing again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for session in self.sessions:
            session.close()

    def __enter__(self) -> Dreamer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def pump(self) -> bool:
        """Dream what is due now, if anything; whether there was something. The thread does nothing else."""
        with self._changed:
            jobs = self._due_jobs()
        if not jobs:
            return False
        try:
            self._dream(jobs)
        except Exception as error:  # whatever happens, the players are told and the thread lives on
            with self._changed:
                for job in jobs:
                    job.session.fail(error)
        return True

    # -- within; the lock is held where nothing is dreamt --------------------------------------------------------------

    def _admit(self, origin: Origin, replay: Replay | None) -> Session:
        with self._changed:
            if self._closed:
                raise RuntimeError("this dreamer is closed: make another one")
            if len(self.sessions) >= self._max_sessions:
                raise SessionsFull(f"all {self._max_sessions} places are taken: wait until somebody leaves")
            session = Session(self._opened, self._model, self._header, origin, self._changed, self._clock, replay)
            self._opened += 1
            self._sessions.append(session)
            self._changed.notify_all()
            return session

    def _run(self) -> None:
        set_threads(self._computing)
        while not self._closed:
            if self.pump():
                continue
            with self._changed:
                moment = min(self._due().values(), default=_NEVER)
                wait = moment - self._clock()
                if wait > 0 and not self._closed:
                    self._changed.wait(None if moment == _NEVER else wait)

    def _due(self) -> dict[Session, float]:
        lead = self._lead()
        return {session: session.due_at(lead) for session in self.sessions}

    def _due_jobs(self) -> list[Job]:
        """What is due now, begun."""
        due, now = self._due(), self._clock()
        first = min(due.values(), default=_NEVER)
        if first > now or self._closed:
            return []
        # who would be late by waiting for this round comes along; starts go alone, they take longer
        soon = -_NEVER if first == -_NEVER else now + (self._forecast.typical(1) or 0.0)
        return [job for session, moment in due.items() if moment <= soon for job in self._begun(session)]

    def _begun(self, session: Session) -> list[Job]:
        try:
            job = session.begin()
        except (ValueError, OSError) as error:  # a replay's start may not fit this model
            session.fail(error)
            return []
        return [] if job is None else [job]

    def _dream(self, jobs: Sequence[Job]) -> None:
        begun = self._clock()
        starts = [job for job in jobs if job.order is None]
        for job in starts:
            origin = job.world.origin
            assert origin is not None
            state = self._model.start([origin.picture], [origin.text], [origin.seed])
            picture = self._model.preview(state)[0]
            with self._changed:
                job.session.finish(self._period(), self._forecast.typical(1))
                job.world.started(state, picture)  # a world that was left meanwhile is shown to nobody
                self._changed.notify_all()
        blocks = [(job, job.order) for job in jobs if job.order is not None]
        if not blocks:
            return
        states = collate_states([job.state for job, _ in blocks if job.state is not None])
        actions, events = [order.action.index for _, order in blocks], [order.event for _, order in blocks]
        threads = 1 if len(blocks) > 1 and self._model.device.type == "cpu" else None
        after, frames = self._model.step(states, actions, events, self._steps, threads)
        streets = [self._street(job) for job, _ in blocks]
        with self._changed:
            self._forecast.add(len(blocks), self._clock() - begun)
            for (job, order), state, video, (street, street_frames) in zip(
                blocks, split_states(after), frames, streets
            ):
                job.session.finish(self._period(), self._forecast.typical(len(blocks)))
                job.world.dreamt(order, state, video, street, street_frames)
            self._changed.notify_all()

    def _street(self, job: Job) -> tuple[EnvState | None, np.ndarray | None]:
        """The twin's next block, where there is a twin."""
        if (
            job.street is None
            or job.world.twin is None
            or job.order is None
            or not isinstance(job.order.action, Action)
        ):
            return None, None
        return job.world.twin.advance(job.street, job.order.action, job.order.event)

    def _lead(self) -> float:
        """Seconds before it is needed that a block is begun. Without experience: at once."""
        lead = self._forecast.lead(self._players())
        return _NEVER if lead is None else lead

    def _period(self) -> float:
        """Seconds between two frames that can be kept up now."""
        round_time = self._forecast.typical(self._players())
        return 0.0 if round_time is None else round_time / self._model.config.frames_per_block

    def _players(self) -> int:
        return max(1, sum(session.active for session in self._sessions))


def replay_frames(model: WorldModel, replay: Replay) -> Iterator[Frame]:
    """All frames of a replay, as fast as they can be dreamt. Raises ValueError for a replay of other weights."""
    seconds = itertools.count()
    with Dreamer(model, steps=replay.header.steps, clock=lambda: float(next(seconds)), thread=False) as dreamer:
        session = dreamer.replay(replay)
        while not session.finished:
            dreamer.pump()
            while (frame := session.take()) is not None:
                yield frame


def collate_states(states: Sequence[WorldState]) -> WorldState:
    """One batch of several."""
    return WorldState(
        collate_worlds([state.worlds for state in states]),
        tuple(seed for state in states for seed in state.seeds),
        tuple(step for state in states for step in state.steps),
        tuple(text for state in states for text in state.texts),
        tuple(outcome for state in states for outcome in state.outcomes),
    )


def split_states(state: WorldState) -> list[WorldState]:
    """The worlds of a batch, each a batch of one."""
    return [
        WorldState(world, (seed,), (step,), (text,), state.outcomes[number : number + 1])
        for number, (world, seed, step, text) in enumerate(
            zip(split_worlds(state.worlds), state.seeds, state.steps, state.texts)
        )
    ]
