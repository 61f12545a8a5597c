"""Endless first-person worlds as Gymnasium environments. Importing this package registers them:

- ``YumeWorld-v0``: a world dreamed by a neural network (`yume_gym.env.YumeWorldEnv`; many in one batch with
  `gymnasium.make_vec`: `yume_gym.vector_env.YumeWorldVectorEnv`),
- ``YumeStreet-v0``: the procedural town it learnt from (`yume_gym.street.env.YumeStreetEnv`),
- ``YumeStreetBeacon-v0``: that town with a task, to reach a pillar of light within 60 steps.

Classes are imported when an environment is made; importing the package alone loads neither torch nor numba.
"""

from gymnasium.envs.registration import register

register(
    id="YumeWorld-v0",
    entry_point="yume_gym.env:YumeWorldEnv",
    vector_entry_point="yume_gym.vector_env:YumeWorldVectorEnv",
)
register(id="YumeStreet-v0", entry_point="yume_gym.street.env:YumeStreetEnv")
register(
    id="YumeStreetBeacon-v0",
    entry_point="yume_gym.street.env:YumeStreetEnv",
    kwargs={"reward": "beacon"},
    max_episode_steps=60,
)
