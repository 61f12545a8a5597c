"""Hundreds of wrong values at every door: each is refused with words that help, and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from world_model.model import WorldModel
from yume_gym.env import YumeWorldEnv
from yume_gym.street.env import YumeStreetEnv
from yume_gym.vector_env import YumeWorldVectorEnv

REFUSALS = (TypeError, ValueError, FileNotFoundError, gym.error.Error)
PICTURE = np.zeros((32, 48, 3), np.uint8)
JUNK: dict[str, Any] = {
    "none": None, "true": True, "zero": 0, "three": 3, "minus": -1, "huge": 10**30, "half": 2.5, "nan": float("nan"),
    "inf": float("inf"), "complex": 1j, "empty": "", "word": "abacus", "control": "a\x00bell \x07", "surrogate": "half \ud83d",
    "long": "x" * 501, "bytes": b"rain", "object": object(), "list": [], "mixed": [1, "a", None], "dict": {"a": 1},
    "numbers": {3: 4}, "tuple": (1, 2), "set": {1}, "function": lambda *_: 0, "type": int, "array": np.array([1.0, np.nan]),
    "picture": PICTURE, "float picture": PICTURE / 2, "flat": PICTURE[..., 0], "tensor": torch.zeros(3), "ellipsis": ...,
    "numpy int": np.int64(2), "path": Path("no/such/place"), "generator": (x for x in "ab"), "slice": slice(2),
}  # fmt: skip


@dataclass(frozen=True)
class Doors:
    """What is knocked at: environments that stand somewhere, and where they stand."""

    folder: str
    model: WorldModel
    env: YumeWorldEnv
    envs: YumeWorldVectorEnv
    street: YumeStreetEnv

    def held(self) -> list[int]:
        """What a call that raises must leave as it is."""
        slots = [slot for slot in self.envs._batch._slots]
        return [id(self.env._episode), *map(id, slots), id(self.envs._batch._worlds), id(self.street._episode)]

    def drawn(self) -> list[Any]:
        generators = [self.env.np_random, *self.envs.np_random, self.street.np_random]
        return [copy.deepcopy(one.bit_generator.state) for one in generators]


@pytest.fixture(scope="module")
def doors(weights_folder, world_model) -> Doors:
    env, envs, street = (
        YumeWorldEnv(world_model),
        YumeWorldVectorEnv(2, model=world_model),
        YumeStreetEnv(preset="debug"),
    )
    for one in (env, envs, street):
        one.reset(seed=0)
    return Doors(str(weights_folder), world_model, env, envs, street)


def mask(value: Any) -> dict[str, Any]:
    return {"reset_mask": value}


# name: (call, words of the message, names of JUNK that are good there)
Call = Callable[[Doors, Any], Any]
DOORS: dict[str, tuple[Call, str, str]] = {
    "model": (lambda d, v: YumeWorldEnv(model=v), "model|folder|weights", ""),
    "device": (lambda d, v: YumeWorldEnv(model=d.folder, device=v), "device", ""),
    "dtype": (lambda d, v: YumeWorldEnv(model=d.folder, dtype=v), "dtype", ""),
    "size": (lambda d, v: YumeWorldEnv(model=d.folder, size=v), "size|only|multiple|height", "none"),
    "load_options": (lambda d, v: YumeWorldEnv(model=d.folder, load_options=v), "load_options|option", "none"),
    "steps": (lambda d, v: YumeWorldEnv(d.model, steps=v), "steps", "none,three,huge,numpy int"),
    "frames": (lambda d, v: YumeWorldEnv(d.model, frames=v), "frames.*'last'", ""),
    "render_mode": (lambda d, v: YumeWorldEnv(d.model, render_mode=v), "render_mode", "none"),
    "reward": (lambda d, v: YumeWorldEnv(d.model, reward=v), "reward", "none,function,type"),
    "reset seed": (lambda d, v: d.env.reset(seed=v), "(?i)seed|int", "none,true,zero,three,huge"),
    "options": (lambda d, v: d.env.reset(options=v), "option", "none"),
    "image": (lambda d, v: d.env.reset(options={"image": v}), "image|picture", "none,picture"),
    "text": (lambda d, v: d.env.reset(options={"text": v}), "text", "none,word"),
    "events": (lambda d, v: d.env.reset(options={"events": v}), "events", "none,list,word"),
    "event of a step": (lambda d, v: d.env.reset(options={"events": {2: v}}), "events", "none,empty,word"),
    "events in a list": (lambda d, v: d.env.reset(options={"events": [v]}), "events", "none,empty,word"),
    "triggered": (lambda d, v: d.env.trigger_event(v), "event", "none,empty,word"),
    "action": (lambda d, v: d.env.step(v), "action", "zero,three,numpy int"),
    "state": (lambda d, v: d.env.set_state(v), "get_state|cannot continue", ""),
    "num_envs": (lambda d, v: YumeWorldVectorEnv(v, model=d.model), "num_envs", "three,numpy int,huge"),
    "autoreset_mode": (lambda d, v: YumeWorldVectorEnv(1, model=d.model, autoreset_mode=v), "autoreset_mode", ""),
    "batch_invariant": (lambda d, v: YumeWorldVectorEnv(1, model=d.model, batch_invariant=v), "batch_invariant", "true"),
    "threads": (lambda d, v: YumeWorldVectorEnv(1, model=d.model, threads=v), "threads", "none,three,numpy int,huge"),
    "max_episode_steps": (
        lambda d, v: YumeWorldVectorEnv(1, model=d.model, max_episode_steps=v), "max_episode_steps", "none,three,numpy int,huge",
    ),
    "vector render_mode": (lambda d, v: YumeWorldVectorEnv(1, model=d.model, render_mode=v), "render_mode", "none"),
    "vector seed": (lambda d, v: d.envs.reset(seed=v), "seed", "none,zero,three,huge,numpy int,tuple"),
    "vector seeds": (lambda d, v: d.envs.reset(seed=[0, v]), "seed", "none,zero,three,huge,numpy int"),
    "vector options": (lambda d, v: d.envs.reset(options=v), "option", "none"),
    "each": (lambda d, v: d.envs.reset(options={"each": v}), "each", "none"),
    "each of them": (lambda d, v: d.envs.reset(options={"each": [None, v]}), "option", "none"),
    "reset_mask": (lambda d, v: d.envs.reset(options=mask(v)), "reset_mask", "none"),
    "vector actions": (lambda d, v: d.envs.step(v), "action", "tuple"),
    "vector action": (lambda d, v: d.envs.step([1, v]), "action", "zero,three,numpy int"),
    "slot": (lambda d, v: d.envs.get_state(v), "number of a world", "zero"),
    "fork": (lambda d, v: d.envs.fork(0, [v]), "number of a world", "zero"),
    "fork seeds": (lambda d, v: d.envs.fork(0, [1], seeds=[v]), "seed", "zero,three,huge,numpy int"),
    "slot state": (lambda d, v: d.envs.set_state(0, v), "get_state|cannot continue", ""),
    "vector event": (lambda d, v: d.envs.trigger_event(v), "event", "none,empty,word"),
    "blocks": (lambda d, v: YumeStreetEnv(blocks=v), "blocks", "three,numpy int,huge"),
    "town_seed": (lambda d, v: YumeStreetEnv(town_seed=v), "town_seed", "none,zero,three,huge,numpy int"),
    "light": (lambda d, v: YumeStreetEnv(light=v), "light", "none"),
    "weather": (lambda d, v: YumeStreetEnv(weather=v), "weather", "none"),
    "preset": (lambda d, v: YumeStreetEnv(preset=v), "preset", ""),
    "street reward": (lambda d, v: YumeStreetEnv(reward=v), "reward", "none,function,type"),
    "pose": (lambda d, v: d.street.reset(options={"pose": v}), "pose", "none"),
    "street text": (lambda d, v: d.street.reset(options={"text": v}), "text", "none"),
    "street event": (lambda d, v: d.street.trigger_event(v), "event", "none,empty"),
    "street state": (lambda d, v: d.street.set_state(v), "get_state", ""),
    "start picture": (lambda d, v: d.model.start([v], [""], [0]), "picture", "none,picture"),
    "start text": (lambda d, v: d.model.start([None], [v], [0]), "text", "none,empty,word,control,long,surrogate"),
    "start seed": (lambda d, v: d.model.start([None], [""], [v]), "seed", "zero,three,minus,huge,numpy int"),
    "model event": (
        lambda d, v: d.model.step(d.model.start([PICTURE], [""], [0]), [0], [v]), "text", "none,empty,word,control,long,surrogate"
    ),
    "model steps": (
        lambda d, v: d.model.step(d.model.start([PICTURE], [""], [0]), [0], steps=v), "steps", "none,three,numpy int,huge",
    ),
    "batch_size": (
        lambda d, v: d.model.step(d.model.start([PICTURE], [""], [0]), [0], batch_size=v), "batch", "three,numpy int,huge"
    ),
}  # fmt: skip
KNOCKS = [(door, junk) for door, (_, _, good) in DOORS.items() for junk in JUNK if junk not in good.split(",")]


def refused(doors: Doors, door: str, value: Any) -> str:
    """The message with which a door refuses a value; nothing may have changed."""
    call, words, _ = DOORS[door]
    held, drawn = doors.held(), doors.drawn()
    with pytest.raises(REFUSALS, match=f"(?s){words}") as caught:
        call(doors, value)
    assert doors.held() == held and doors.drawn() == drawn
    return str(caught.value)


def test_there_are_enough_of_them():
    assert len(KNOCKS) > 1500


@pytest.mark.parametrize("door", DOORS)
def test_wrong_values_are_refused_with_words_that_help(doors, door):
    for name in [junk for own, junk in KNOCKS if own == door]:
        message = refused(doors, door, JUNK[name])
        assert len(message) > 25, (name, message)
        assert len(message) < 900, (name, message)


@pytest.mark.parametrize("device", ["mps", "meta", "xpu", "cuda:99", "cpu:x", "vulkan", torch.device("meta")])
def test_devices_that_models_do_not_run_on(doors, device):
    assert "'auto'" in refused(doors, "device", device)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "~/weights", "a/b", Path("nowhere")])
def test_a_missing_path_is_no_unknown_name(path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        YumeWorldEnv(path)


def test_options_of_loading_are_known_ones(doors):
    for options in ({"colour": 1}, {3: 4}, {"quantize": "int2"}, {"compile": 3}, {"text": ["cpu"]}, {"offload": None}):
        with pytest.raises((TypeError, ValueError), match=r"known|use|must be"):
            YumeWorldEnv(doors.folder, load_options=options)


FAR = np.eye(4)
FAR[0, 3] = 1e9
BAD_POSES = {
    "far": FAR, "complex": np.eye(4) * (1 + 0j), "nan": np.full((4, 4), np.nan), "strings": np.full((4, 4), "1"),
    "bools": np.eye(4) > 0, "objects": np.full((4, 4), None), "long ray": 3 * np.eye(4), "ragged": [[1, 0], [0]],
    "inf": np.eye(4) + np.inf,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_POSES)
def test_poses_that_nobody_stands_at(doors, name):
    refused(doors, "pose", BAD_POSES[name])


def _with(state: Any, path: str, value: Any) -> Any:
    """A state with one of its parts replaced, however deep."""
    name, _, rest = path.partition(".")
    if name.isdigit():
        parts = list(state)
        parts[int(name)] = _with(parts[int(name)], rest, value) if rest else value
        return tuple(parts)
    return dataclasses.replace(state, **{name: _with(getattr(state, name), rest, value) if rest else value})


def _without(state: Any, path: str) -> Any:
    """A state that lacks one of its fields, as a pickle of another version may."""
    name, _, rest = path.partition(".")
    bare = object.__new__(type(state))
    bare.__dict__.update({key: value for key, value in state.__dict__.items() if key != name or rest})
    if rest:
        bare.__dict__[name] = _without(getattr(state, name), rest)
    return bare


WORLD = "episode.world"
FORGED = {
    "episode": [None, 3, "x"], "random": [None, 3, np.random.RandomState(0)], "seed": [-1, 1.5, "x", True], "kind": ["x", None],
    "shape": [(1, 2), None], "episode.step": [-1, None, 2.5, float("nan")], "episode.schedule": [None, {}, [(0, "rain")]],
    "episode.schedule.entries": [None, [], ((0, 3),), ((-1, "x"),), ((3, "a"), (1, "b")), ((0, "\x00a"),), ((0,),)],
    "episode.frames": [None, PICTURE, PICTURE[None].astype(float), np.zeros((9, 32, 48, 3), np.uint8)],
    WORLD: [None, 3, {"a": 1}], f"{WORLD}.seeds": [(), (1, 2), None, ("a",), (1.5,), (True,)],
    f"{WORLD}.steps": [(-1,), (), ("a",), None, (2.5,)], f"{WORLD}.texts": [(3,), (), (None,), "x"],
    f"{WORLD}.worlds": [None, 3], f"{WORLD}.outcomes": [(1,), None],
    f"{WORLD}.worlds.yaw": [None, torch.zeros(2).double(), torch.zeros(1), torch.full((1,), torch.nan).double()],
    f"{WORLD}.worlds.frame": [torch.tensor([-1]), torch.zeros(1), 3],
    f"{WORLD}.worlds.picture": [torch.zeros(1, 3, 2, 2), torch.full((1, 3, 32, 48), 9.0), torch.full((1, 3, 32, 48), torch.inf)],
    f"{WORLD}.worlds.history": [None, "x"], f"{WORLD}.worlds.history.latents": [torch.zeros(1, 2, 3, 4, 5)],
    f"{WORLD}.worlds.memory": [None, 3], f"{WORLD}.worlds.cache": [(), None, (torch.zeros(1),)],
    f"{WORLD}.worlds.priors": [(), (3,), None], f"{WORLD}.worlds.priors.0.place": [torch.full((1, 2), torch.nan).double(), 3],
}  # fmt: skip
LACKING = [path for path in FORGED if path not in (WORLD + ".worlds.priors.0.place",)]


@pytest.mark.parametrize("path", FORGED)
def test_forged_states_are_refused(doors, path):
    state = doors.env.get_state()
    doors.env.set_state(state)
    for value in FORGED[path]:
        forged = _with(state, path, value)
        for door in ("state", "slot state"):
            refused(doors, door, forged)


@pytest.mark.parametrize("path", LACKING)
def test_states_with_fields_missing_are_refused(doors, path):
    state = doors.env.get_state()
    for door in ("state", "slot state"):
        assert "take it again" in refused(doors, door, _without(state, path))


@pytest.mark.parametrize(
    ("path", "values"),
    {
        "episode.world": [None, 3],
        "episode.world.state": [None, "x"],
        "episode.world.town_seed": [None, -1, "x"],
        "episode.world.state.x": [float("nan"), 1e9, 1j, None],
        "episode.world.state.pitch": [2.0, float("inf")],
        "episode.world.state.light": ["dawn", None],
        "episode.world.state.frame": [-1, 1.5],
    }.items(),
)
def test_forged_streets_are_refused(doors, path, values):
    state = doors.street.get_state()
    doors.street.set_state(state)
    for value in values:
        refused(doors, "street state", _with(state, path, value))
    if path.count(".") > 1:
        refused(doors, "street state", _without(state, path))


def writes(previous: np.ndarray, action: Any, current: np.ndarray) -> tuple[float, bool]:
    current[:] = 0
    return 1.0, False


REWARDS = {
    "nan": (lambda *_: (float("nan"), False), "finite"), "inf": (lambda *_: (-float("inf"), False), "finite"),
    "number as end": (lambda *_: (1.0, 1), "terminated"), "none as end": (lambda *_: (1.0, None), "terminated"),
    "word": (lambda *_: ("1", False), "reward"), "complex": (lambda *_: (1j, False), "reward"), "alone": (lambda *_: 1.0, "reward"),
    "three": (lambda *_: (1.0, False, {}), "reward"), "none": (lambda *_: None, "reward"), "writes": (writes, "read-only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_that_are_none_stop_the_step_and_change_nothing(doors, name):
    function, words = REWARDS[name]
    env = YumeWorldEnv(doors.model, reward=function)
    envs = YumeWorldVectorEnv(2, model=doors.model, reward=function, autoreset_mode="SameStep")
    for made, action in ((env, 1), (envs, [1, 2])):
        made.reset(seed=0)
        before = made.get_state(0) if made is envs else made.get_state()
        with pytest.raises((TypeError, ValueError), match=words):
            made.step(action)
        after = made.get_state(0) if made is envs else made.get_state()
        assert after.episode.step == before.episode.step == 0
        np.testing.assert_array_equal(after.episode.frames, before.episode.frames)
        assert after.episode.frames.any()
