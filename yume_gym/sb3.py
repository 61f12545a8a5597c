"""The batch of worlds for Stable-Baselines3, which takes no Gymnasium vector environment.

    from stable_baselines3 import PPO
    from yume_gym.sb3 import make_vec_env

    envs = make_vec_env("YumeWorld-v0", n_envs=8, seed=0, reward="motion", max_episode_steps=60)
    PPO("CnnPolicy", envs).learn(10_000)

Needs stable-baselines3: ``pip install 'yume-gym[agents]'``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np

try:
    from stable_baselines3.common.env_util import make_vec_env as make_dummy_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
except ImportError as error:
    raise ImportError("yume_gym.sb3 needs stable-baselines3: pip install 'yume-gym[agents]'") from error

from gymnasium.vector import AutoresetMode

import yume_gym  # noqa: F401  (registers the environments)
from world_model.checks import check_choice, check_whole
from yume_gym.vector_env import YumeWorldVectorEnv

PER_WORLD = ("get_state", "set_state", "trigger_event", "render")  # methods that `env_method` calls for one world


def make_vec_env(
    env_id: str = "YumeWorld-v0",
    n_envs: int = 1,
    seed: int | None = None,
    monitor_dir: str | None = None,
    workers: Literal["ray"] | None = None,
    num_workers: int | None = None,
    **arguments: Any,
) -> VecEnv:
    """`n_envs` worlds as a Stable-Baselines3 `VecEnv` with a `VecMonitor`, which writes to `monitor_dir` if that is given.

    `YumeWorld-v0` goes through the network as one batch; environments that have no vector environment of their own
    (`YumeStreet-v0`) are stepped one after another by SB3's `DummyVecEnv`. World i is seeded with `seed` + i. arguments:
    those of the environment, and for `YumeWorld-v0` those of `YumeWorldVectorEnv` but `autoreset_mode`, which SB3 decides.
    workers: "ray" divides the worlds among `num_workers` processes, here or on the machines of a Ray cluster, each with a model of
    its own (`yume_gym.ray_workers`); None keeps all in this process. Raises what these raise.
    """
    if check_choice("workers", workers, (None, "ray")) == "ray":
        from yume_gym.ray_workers import RayVecEnv

        count = check_whole("num_workers", 1 if num_workers is None else num_workers, least=1)
        adapted: VecEnv = RayVecEnv(partial(_worlds, env_id, arguments), n_envs, count)
        if seed is not None:
            adapted.seed(seed)
        return VecMonitor(adapted, monitor_dir)
    if num_workers is not None:
        raise ValueError("num_workers is the number of Ray's workers: give workers='ray', too, or leave it out")
    if gym.spec(env_id).vector_entry_point is None:
        return make_dummy_vec_env(env_id, n_envs, seed, monitor_dir=monitor_dir, env_kwargs=arguments)
    adapted = _worlds(env_id, arguments, n_envs)
    if seed is not None:
        adapted.seed(seed)
    return VecMonitor(adapted, monitor_dir)


def _worlds(env_id: str, arguments: Mapping[str, Any], count: int) -> VecEnv:
    """`count` worlds in this process, without a monitor."""
    if gym.spec(env_id).vector_entry_point is None:
        return make_dummy_vec_env(env_id, count, env_kwargs=dict(arguments))
    envs = gym.make_vec(
        env_id,
        num_envs=count,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP,
        **arguments,
    )
    assert isinstance(envs, YumeWorldVectorEnv)
    return YumeVecEnv(envs)


class YumeVecEnv(VecEnv):
    """A `YumeWorldVectorEnv` in SAME_STEP mode as SB3 wants it: infos in a list, an episode's last observation in
    `infos[i]["terminal_observation"]`, and `infos[i]["TimeLimit.truncated"]` where it was truncated and not terminated."""

    def __init__(self, envs: YumeWorldVectorEnv) -> None:
        """Raises ValueError for a vector environment in another autoreset mode."""
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"Stable-Baselines3 needs autoreset_mode='SameStep', this vector environment has "
                f"{envs.autoreset_mode.value!r}: make it with autoreset_mode='SameStep', or use make_vec_env"
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = {**envs.metadata, **self.metadata}
        self._actions: np.ndarray | None = None

    def reset(self) -> VecEnvObs:
        """Begins episodes with the seeds and options that `seed` and `set_options` left, which are used once."""
        observations, infos = self.envs.reset(seed=self._seeds, options={"each": self._options})
        self.reset_infos = [self._row(infos, number) for number in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        space = self.action_space
        # policies give the bits of a MultiBinary space as floats
        self._actions = actions.astype(space.dtype) if isinstance(space, gym.spaces.MultiBinary) else actions

    def step_wait(self) -> VecEnvStepReturn:
        observations, steps, final = self.envs.step_each(self._actions)
        rewards = np.array([reward for reward, *_ in steps], np.float32)
        dones = np.array([terminated or truncated for _, terminated, truncated, _ in steps])
        infos = []
        for number, (_, terminated, truncated, info) in enumerate(steps):
            if number in final:
                self.reset_infos[number] = info
                info = {**final[number]["final_info"], "terminal_observation": final[number]["final_obs"]}
            infos.append({**info, "TimeLimit.truncated": truncated and not terminated})
        return observations, rewards, dones, infos

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The vector environment's attribute, or that of its single environment, once for each world."""
        return [self._attribute(attr_name) for _ in self._numbers(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the vector environment. Raises ValueError for some worlds only: they share all attributes."""
        if list(self._numbers(indices)) != list(range(self.num_envs)):
            raise ValueError(f"worlds of one batch share their attributes: set {attr_name!r} for all, without indices")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method for each world: one of `PER_WORLD`, or one that asks (`get_action_meanings`)."""
        numbers = list(self._numbers(indices))
        if method_name == "render":
            images = self.get_images()
            return [images[number] for number in numbers]
        if method_name == "trigger_event":
            self.envs.trigger_event(*method_args, **method_kwargs, slots=numbers)  # type: ignore[misc]
            return [None] * len(numbers)
        if method_name in PER_WORLD:
            method = getattr(self.envs, method_name)
            return [method(number, *method_args, **method_kwargs) for number in numbers]
        if not method_name.startswith("get_"):
            raise AttributeError(
                f"{method_name!r} cannot be called for one world of a batch: env_method has {', '.join(PER_WORLD)} and "
                "what only asks (get_...); the vector environment is `.unwrapped.envs`"
            )
        return [self._attribute(method_name)(*method_args, **method_kwargs) for _ in numbers]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False: the worlds of a batch are not wrapped one by one."""
        return [False for _ in self._numbers(indices)]

    def _numbers(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)

    def _attribute(self, name: str) -> Any:
        return getattr(self.envs if hasattr(self.envs, name) else self.envs.single_env, name)

    @staticmethod
    def _row(infos: dict[str, Any], number: int) -> dict[str, Any]:
        """The info of one world out of those of a vector environment."""
        row = {}
        for key, values in infos.items():
            if isinstance(key, str) and key.startswith("_"):
                continue
            if infos[f"_{key}"][number]:
                row[key] = YumeVecEnv._row(values, number) if isinstance(values, dict) else values[number]
        return row
