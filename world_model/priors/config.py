"""Numbers of priors: frozen dataclasses, one kind of config for each kind of prior (registry.py).

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar


@dataclass(frozen=True)
class PlacesConfig:
    """What towns look like from anywhere in them, learnt by heart (places.py)."""

    towns: tuple[int, ...] = (0,)  # which, by their seeds in YumeStreet
    period: float = 80.0  # metres: side of a town's torus
    cell: float = 0.5  # metres: side of a voxel
    height: float = 46.0  # metres that voxels reach up
    fine: int = 1  # parts each way of voxels at surfaces, 1 to 4
    bricks: int = 0  # how many voxels at surfaces there may be, in all towns
    # (voxel size in metres, log2 of entries, width) of each hashed table of a town
    tables: tuple[tuple[float, int, int], ...] = ((1.0, 15, 8), (0.5, 17, 8), (0.25, 18, 4))
    rays: int = 2  # along each side of a token
    width: int = 128  # channels of the network
    look: int = 24  # channels of light and weather

    def __post_init__(self) -> None:
        if not self.towns or len(set(self.towns)) < len(self.towns):
            raise ValueError(f"places.towns must be different seeds, at least one, got {self.towns}")
        if self.fine not in range(1, 5) or (self.fine > 1) != (self.bricks > 0):
            raise ValueError("places.fine must be 1 to 4, and places.bricks more than 0 where it is more than 1")


@dataclass(frozen=True)
class EventsConfig:
    """Events known by heart (events.py)."""

    # each kind's name, the metres ahead at which it takes place (0: it changes light or weather only), and where: in the "open",
    # before a "facade", or along the "street"
    kinds: tuple[tuple[str, float, str], ...] = ()
    looks: int = 10  # pictures that are mixed
    width: int = 32  # channels of the network of light


@dataclass(frozen=True)
class SceneConfig:
    """The scene prior (scene.py): the last picture warped, and what is known by heart for what that does not show."""

    depth: int  # channels of the network that says how far away things in the picture are
    album: int = 0  # earlier pictures that fill in what the last one does not show
    places: PlacesConfig | None = None  # towns known by heart, for what neither shows
    events: EventsConfig | None = None  # known ones, which take place in those towns
    kind: Literal["scene"] = "scene"

    def __post_init__(self) -> None:
        if self.depth < 1 or self.album < 0:
            raise ValueError(
                f"a scene prior needs depth of 1 or more and album of 0 or more, got {self.depth}, {self.album}"
            )
        if self.events and not self.places:
            raise ValueError("events of a scene prior take place somewhere; they need places")


PriorConfig = SceneConfig  # a union once there are several
KINDS: dict[str, type[PriorConfig]] = {"scene": SceneConfig}  # by what config.json calls them


class HasPriors(Protocol):
    """A `ModelConfig`, which is built from the configs here: all that these functions need of it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def priors(self) -> tuple[PriorConfig, ...]: ...


Model = TypeVar("Model", bound=HasPriors)


def scene_of(config: HasPriors) -> SceneConfig | None:
    """The scene prior of a model, if it has one."""
    return next((prior for prior in config.priors if isinstance(prior, SceneConfig)), None)


def places_of(config: HasPriors) -> PlacesConfig | None:
    """The towns that a model knows by heart, if it knows any."""
    scene = scene_of(config)
    return scene.places if scene is not None else None


def events_of(config: HasPriors) -> EventsConfig | None:
    """The events that a model knows by heart, if it knows any."""
    scene = scene_of(config)
    return scene.events if scene is not None else None


def with_scene(config: Model, **changes: Any) -> Model:
    """A model with another scene prior: `changes` are fields of its `SceneConfig`."""
    priors = [dataclasses.replace(p, **changes) if isinstance(p, SceneConfig) else p for p in config.priors]
    return dataclasses.replace(config, priors=tuple(priors))
