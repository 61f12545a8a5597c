"""What chooses the actions of a recording.

random              every action equally likely
sticky, sticky:P    random, but the last action is repeated with probability P (0.75 if not said): what data are best made with
smooth              for boxes: noise that changes slowly, around their middle
keyboard, keyboard:R  a person, R actions a second (10 if not said); keys as in `yume_gym.keyboard`, Esc ends the recording
PATH.zip            a policy that Stable-Baselines3 saved
MODULE:FUNCTION     FUNCTION(env, rng) gives policy(observation) -> action
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from train.recordings.format import RecordingError
from train.recordings.person import Person
from train.recordings.spaces import Actions

Policy = Callable[[Any], Any]  # observation -> action of the environment
PolicyMaker = Callable[[gymnasium.Env, np.random.Generator], Policy]

STICKY = 0.75
RATE = 10.0  # actions a second of a person
_KEEP = 0.9  # of slow noise from one step to the next
# what Stable-Baselines3 keeps of each algorithm and of no other before it in this list
_ALGORITHMS = {
    "clip_range": "PPO",
    "exploration_rate": "DQN",
    "policy_delay": "TD3",
    "target_entropy": "SAC",
    "gae_lambda": "A2C",
}


def policy_maker(name: str) -> PolicyMaker:
    """What makes the policy of an episode. Raises RecordingError for a name that is none of the above."""
    kind, _, rest = name.partition(":")
    if name == "random":
        return sticky(0.0)
    if kind == "sticky":
        return sticky(_probability(rest) if rest else STICKY)
    if name == "smooth":
        return smooth
    if kind == "keyboard":
        return Person(_rate(rest) if rest else RATE)
    if name.endswith(".zip"):
        return stable_baselines(name)
    if kind and rest:
        return _imported(kind, rest)
    raise RecordingError(
        f"unknown policy {name!r}: use random, sticky, sticky:0.9, smooth, keyboard, a .zip of SB3, or module:function"
    )


def sticky(probability: float) -> PolicyMaker:
    """Random actions; the last one is repeated with a `probability`."""

    def make(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
        actions, last = Actions(env.action_space), None

        def act(_: Any) -> Any:
            nonlocal last
            if last is None or rng.random() >= probability:
                last = actions.draw(rng)
            return last

        return act

    return make


def smooth(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
    """Noise that changes slowly, around the middle of a box. Raises RecordingError for other actions."""
    spec = Actions(env.action_space).spec
    if spec.kind != "box":
        raise RecordingError(f"the policy smooth is for actions in a Box, this space is {env.action_space}: use sticky")
    low, high = np.array(spec.low), np.array(spec.high)
    return _slow_noise(env, rng, (low + high) / 2, (high - low) / 3)


def car_racing(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
    """Drives CarRacing roughly along the road: steers to where it is grey ahead, with slow noise on steering, gas and brake."""
    noisy, space = _slow_noise(env, rng, np.array([0.0, 0.2, -0.15]), np.array([0.35, 0.15, 0.2])), env.action_space
    assert isinstance(space, gymnasium.spaces.Box)

    def act(observation: Any) -> Any:
        ahead = observation[54:64].astype(int)  # a little before the car
        grey = (np.ptp(ahead, axis=-1) < 12) & (ahead.mean(axis=-1) < 130)
        aside = float(np.nonzero(grey)[1].mean() - 47.5) / 48 if grey.any() else 0.0
        action = noisy(observation) + np.array([1.5 * aside, 0.0, 0.0], np.float32)
        return np.clip(action, space.low, space.high)

    return act


def stable_baselines(path: str) -> PolicyMaker:
    """The policy in a .zip of Stable-Baselines3; its actions are drawn, not the most likely ones.

    Raises RecordingError where it is not there or not such a file.
    """
    if not Path(path).is_file():
        raise RecordingError(f"no policy at {path!r}: give the path of a .zip that Stable-Baselines3 saved")
    try:
        import stable_baselines3
        from stable_baselines3.common.save_util import load_from_zip_file
        from stable_baselines3.common.utils import set_random_seed
    except ImportError as error:
        raise RecordingError("policies of Stable-Baselines3 need it: pip install 'yume-gym[agents]'") from error
    try:
        data, _, _ = load_from_zip_file(path, device="cpu")
        algorithm = next(name for field, name in _ALGORITHMS.items() if field in (data or {}))
        model = getattr(stable_baselines3, algorithm).load(path, device="cpu")
    except (ValueError, StopIteration, KeyError, AssertionError) as error:
        raise RecordingError(f"{path} is not a policy of Stable-Baselines3 ({error}): give another file") from error

    def make(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
        set_random_seed(int(rng.integers(2**31)))
        return lambda observation: model.predict(observation, deterministic=False)[0]

    return make


def _slow_noise(env: gymnasium.Env, rng: np.random.Generator, middle: np.ndarray, spread: np.ndarray) -> Policy:
    actions = Actions(env.action_space)
    noise = rng.normal(size=middle.shape)

    def act(_: Any) -> Any:
        nonlocal noise
        noise = _KEEP * noise + (1 - _KEEP**2) ** 0.5 * rng.normal(size=middle.shape)
        return actions.given(actions.stored(middle + spread * noise))

    return act


def _imported(module: str, name: str) -> PolicyMaker:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecordingError(
            f"no policy {module}:{name} ({error}): give module:function, importable from here"
        ) from error


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise RecordingError(f"sticky:P needs a probability from 0 to below 1, got {text!r}")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise RecordingError(f"keyboard:R needs actions a second, above 0, got {text!r}")
    return value
