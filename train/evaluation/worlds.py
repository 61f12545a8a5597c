"""The worlds under test, all with one face: the dream, and what it is held against.

    dream      the world model
    street     YumeStreet itself: the ceiling
    decoded    YumeStreet seen through the model's autoencoder: the dream cannot be sharper than this
    frozen     the start picture for ever: the floor, which a measure must not like

A world's states are immutable, so that a state is saved or forked by keeping it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from train.evaluation.sheet import to_pictures, to_video
from world_model.actions import Action
from world_model.model import WorldModel
from yume_gym.street.events import require_event
from yume_gym.street.simulator import StreetSimulator, StreetState


@dataclass(frozen=True)
class Scene:
    """Where a trial begins: a place in the street, its picture uint8 [H, W, 3], what a text start is told, a seed for the dream."""

    state: StreetState
    picture: np.ndarray
    seed: int
    text: str = ""


class World(Protocol):
    """`start` and `step` are pure: places are never changed. Frames are uint8 [K, H, W, 3]."""

    name: str

    def start(self, scene: Scene) -> Any: ...

    def start_from_text(self, scene: Scene) -> np.ndarray:
        """The first picture of a world that is told only `scene.text`, uint8 [H, W, 3]."""

    def step(self, state: Any, action: Action, event: str | None = None) -> tuple[Any, np.ndarray]:
        """One block: `event` is the text in force, a phrasing that the street knows."""


class Dream:
    """A world model; `steps` are sampler steps, its own if None."""

    name = "dream"

    def __init__(self, model: WorldModel, steps: int | None = None) -> None:
        self.model, self.steps = model, steps

    def start(self, scene: Scene) -> Any:
        return self.model.start([scene.picture], [""], [scene.seed])

    def start_from_text(self, scene: Scene) -> np.ndarray:
        return self.model.preview(self.model.start(None, [scene.text], [scene.seed]))[0]

    def step(self, state: Any, action: Action, event: str | None = None) -> tuple[Any, np.ndarray]:
        state, frames = self.model.step(state, [action], [event], self.steps)
        return state, frames[0]


class Street:
    """The ground truth."""

    name = "street"

    def __init__(self, simulator: StreetSimulator) -> None:
        self.simulator = simulator

    def start(self, scene: Scene) -> StreetState:
        return scene.state

    def start_from_text(self, scene: Scene) -> np.ndarray:
        return scene.picture

    def step(self, state: StreetState, action: Action, event: str | None = None) -> tuple[StreetState, np.ndarray]:
        self.simulator.set_state(state)
        self.simulator.set_event(require_event(event) if event else None)
        frames = self.simulator.step(action).frames
        return self.simulator.get_state(), frames


class Decoded:
    """The ground truth after an autoencoder, in a stream as the dream is decoded."""

    name = "decoded"

    def __init__(self, simulator: StreetSimulator, model: WorldModel) -> None:
        self.street, self.vae = Street(simulator), model.vae
        self.start_frames = model.config.start_latents * model.config.vae.temporal_stride

    @torch.inference_mode()
    def start(self, scene: Scene) -> tuple[StreetState, Any]:
        still = to_video(np.repeat(scene.picture[None], self.start_frames, axis=0))
        return scene.state, self.vae.decode(self.vae.encode(still[None]))[1]

    def start_from_text(self, scene: Scene) -> np.ndarray:
        return self.through(np.repeat(scene.picture[None], self.start_frames, axis=0))[-1]

    @torch.inference_mode()
    def through(self, frames: np.ndarray) -> np.ndarray:
        """What the autoencoder makes of a video uint8 [T, H, W, 3]."""
        return to_pictures(self.vae.decode(self.vae.encode(to_video(frames)[None]))[0])[0]

    @torch.inference_mode()
    def step(self, state: tuple[StreetState, Any], action: Action, event: str | None = None) -> tuple[Any, np.ndarray]:
        street, cache = state
        street, frames = self.street.step(street, action, event)
        video, cache = self.vae.decode(self.vae.encode(to_video(frames)[None]), cache)
        return (street, cache), to_pictures(video)[0]


class Frozen:
    """The start picture, whatever is held."""

    name = "frozen"

    def __init__(self, frames_per_block: int) -> None:
        self.frames_per_block = frames_per_block

    def start(self, scene: Scene) -> np.ndarray:
        return scene.picture

    def start_from_text(self, scene: Scene) -> np.ndarray:
        return np.full_like(scene.picture, 128)  # nothing was seen that could be shown

    def step(self, state: np.ndarray, action: Action, event: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        return state, np.repeat(state[None], self.frames_per_block, axis=0)


def town(simulator: StreetSimulator, seed: int) -> StreetSimulator:
    """Another town with the same pictures."""
    return StreetSimulator.like(simulator, seed, simulator.blocks)
