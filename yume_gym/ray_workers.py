"""Worlds on several processes or machines as one `VecEnv` of Stable-Baselines3, on Ray: `pip install 'yume-gym[ray]'`.

    envs = yume_gym.sb3.make_vec_env("YumeWorld-v0", n_envs=16, workers="ray", num_workers=2)

Ray starts the workers where it has room: on this machine, or on the cluster that `ray.init(address=...)` joined before.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

try:
    import ray
    from ray.exceptions import RayActorError
except ImportError as error:
    raise ImportError("workers='ray' needs Ray: pip install 'yume-gym[ray]'") from error
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

Make = Callable[[int], VecEnv]  # so many worlds of one worker
Stepped = tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]


class Worker:
    """What one Ray actor holds: one model and `count` worlds of it."""

    def __init__(self, make: Make, count: int, threads: int) -> None:
        """threads: that it may compute with, where the machine has so many cores."""
        import torch

        torch.set_num_threads(
            min(threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads)
        )
        self.envs = make(count)

    def process(self) -> int:
        """Its process id on its machine."""
        return os.getpid()

    def facts(self) -> tuple[gym.Space, gym.Space, str | None, dict[str, Any]]:
        """(observation space, action space, render mode, metadata)."""
        envs = self.envs
        return envs.observation_space, envs.action_space, envs.render_mode, dict(envs.metadata)

    def reset(self, seed: int | None, options: list[dict] | None) -> tuple[VecEnvObs, list[dict]]:
        """First observations and infos; world i is seeded with `seed` + i."""
        if seed is not None:
            self.envs.seed(seed)
        if options is not None:
            self.envs.set_options(options)
        return self.envs.reset(), list(self.envs.reset_infos)

    def step(self, actions: np.ndarray) -> tuple[Stepped, list[dict]]:
        """What SB3's `step` returns, and the infos of the worlds' latest resets."""
        return self.envs.step(actions), list(self.envs.reset_infos)

    def call(self, method: str, *given: Any, **named: Any) -> Any:
        """A method of the worker's `VecEnv`."""
        return getattr(self.envs, method)(*given, **named)


class RayVecEnv(VecEnv):
    """All worlds of all workers, those of worker 0 first.

    A worker that dies is replaced: a warning says so, its worlds begin anew, and with the next step their episodes are reported as
    ended: truncated, reward 0, and `infos[i]["worker_died"]`. Worlds of other workers go on as if nothing had happened.
    """

    def __init__(self, make: Make, n_envs: int, num_workers: int) -> None:
        """make: makes so many worlds, in a worker. Raises ValueError for fewer worlds than workers."""
        if not 1 <= num_workers <= n_envs:
            raise ValueError(f"num_workers must be 1 to the number of worlds, which is {n_envs}; got {num_workers}")
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 is Ray's own: any other program then comes first
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        self._make = make
        self.numbers = [part.tolist() for part in np.array_split(np.arange(n_envs), num_workers)]
        self._seed: int | None = None
        self._deaths = 0
        self.workers = [self._start(len(part)) for part in self.numbers]
        observations, actions, render_mode, metadata = ray.get(self.workers[0].facts.remote())
        self.render_mode = render_mode
        super().__init__(n_envs, observations, actions)
        self.metadata = metadata
        self._latest: Any = None  # observations
        self._fresh: set[int] = set()  # workers that were replaced since the last step
        self._doing: dict[int, Any] = {}

    def _start(self, count: int) -> Any:
        """A new worker; a GPU, or its share of one, if the cluster has any."""
        resources, workers = ray.cluster_resources(), len(self.numbers)
        share = min(1.0, resources.get("GPU", 0) / workers)
        cores = resources.get("CPU", 1) / workers
        options = {"num_cpus": int(min(1.0, cores) * 100) / 100, "num_gpus": int(share * 100) / 100}
        return ray.remote(Worker).options(**options).remote(self._make, count, max(1, int(cores)))

    # -- SB3's methods -------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        if self._seeds[0] is not None:
            self._seed = self._seeds[0]
        asked = [
            worker.reset.remote(self._seeds[part[0]], [self._options[i] for i in part])
            for worker, part in zip(self.workers, self.numbers)
        ]
        self._fresh.clear()
        for number, future in enumerate(asked):
            found = self._answer(number, future)
            if found is None:
                self._fresh.discard(number)  # the reset has just begun its worlds
            else:
                self._keep(number, *found)
        self._reset_seeds()
        self._reset_options()
        return self._latest.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self._doing = {
            number: self.workers[number].step.remote(actions[part])
            for number, part in enumerate(self.numbers)
            if number not in self._fresh
        }

    def step_wait(self) -> VecEnvStepReturn:
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        before = self._latest.copy()
        for number, future in self._doing.items():
            found = self._answer(number, future)
            if found is None:
                continue
            (observations, earned, ended, told), begun = found
            part = self.numbers[number]
            rewards[part], dones[part] = earned, ended
            self._keep(number, observations, begun)
            for i, info in zip(part, told):
                if "terminal_observation" in info:  # what Ray hands over is read-only
                    info = {**info, "terminal_observation": np.array(info["terminal_observation"])}
                infos[i] = info
        for number in self._fresh:
            for i in self.numbers[number]:
                dones[i] = True
                infos[i] = {"terminal_observation": before[i], "TimeLimit.truncated": True, "worker_died": True}
        self._fresh.clear()
        return self._latest.copy(), rewards, dones, infos

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._each("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._each("set_attr", indices, attr_name, value, listed=False)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._each("env_method", indices, method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return self._each("env_is_wrapped", indices, wrapper_class)

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self._each("get_images", None, by_world=False)

    # -- within --------------------------------------------------------------------------------------------------------

    def _each(
        self, method: str, indices: VecEnvIndices, *given: Any, by_world: bool = True, listed: bool = True, **named: Any
    ) -> list[Any]:
        """`method` in the workers of these worlds; its answers in the order asked for."""
        wanted: Iterable[int] = self._get_indices(indices)
        order, found = list(wanted), dict[int, Any]()
        for number, part in enumerate(self.numbers):
            own = [i - part[0] for i in order if i in part]
            if not own:
                continue
            more = {**named, "indices": own} if by_world else named
            answer = self._answer(number, self.workers[number].call.remote(method, *given, **more))
            if answer is None and number in self._fresh:  # it died: the new one is asked
                answer = ray.get(self.workers[number].call.remote(method, *given, **more))
            if listed:
                found |= dict(zip((part[0] + i for i in own), answer))
        return [found[i] for i in order] if listed else []

    def _answer(self, number: int, future: Any) -> Any:
        """What a worker answers; None where it has died, and is replaced."""
        try:
            return ray.get(future)
        except RayActorError as error:
            part = self.numbers[number]
            warnings.warn(
                f"worker {number} has died ({type(error).__name__}): another takes its place, and worlds {part[0]} to {part[-1]} "
                "begin anew",
                RuntimeWarning,
                stacklevel=4,
            )
        self._deaths += 1
        self.workers[number] = self._start(len(part))
        seed = None if self._seed is None else self._seed + self._deaths * self.num_envs + part[0]
        self._keep(number, *ray.get(self.workers[number].reset.remote(seed, None)))
        self._fresh.add(number)
        return None

    def _keep(self, number: int, observations: Any, begun: list[dict]) -> None:
        """Keeps the latest observations of a worker's worlds, and the infos of their resets."""
        if self._latest is None:
            self._latest = np.zeros((self.num_envs, *observations.shape[1:]), observations.dtype)
        part = self.numbers[number]
        self._latest[part] = observations
        for i, info in zip(part, begun):
            self.reset_infos[i] = info
