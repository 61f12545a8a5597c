"""Events that are known already, for train.events to go on from: more kinds are learnt beside them, and they look as they did.

How texts are read is no part of it: which of more kinds one tells of is another question. The words that a kind is heard as are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.engine.checkpoints import load_network, stage_metadata
from world_model.config import ModelConfig
from world_model.priors.config import EventsConfig, events_of, with_scene
from world_model.priors.events import Events

WEIGHTS = "events.safetensors"
_READING = ("kind.", "phrasings", "phrasing_kind", "middle")


@dataclass(frozen=True)
class Known:
    """How many kinds, the first of all, are known; what is known of their things; how well they were painted."""

    kinds: int
    tensors: dict[str, Tensor]
    painted: dict[str, float]

    def with_painted(self, figures: dict[str, float]) -> dict[str, float]:
        """`figures` of new kinds and those of the known ones, which hold still; "painted" is the mean of all."""
        parts = {**self.painted, **{name: share for name, share in figures.items() if name.startswith("painted/")}}
        return {**figures, **parts, "painted": sum(parts.values()) / len(parts)}


def load_events(events: Events, folder: Path | None) -> None:
    """Puts the weights of a run of train.events, or of a folder of weights, into `events`. FileNotFoundError without them,
    ValueError for unfitting ones."""
    load_network(
        events, folder, WEIGHTS, "a model that knows events needs --events, a run of train.events", "the events"
    )


def known_in(folder: Path, config: ModelConfig) -> Known:
    """What a run of train.events, or a folder of weights, knows of the first kinds of `config`. ValueError where its kinds are
    others, or as many."""
    before = ModelConfig.from_json((folder / "config.json").read_text())
    old, new = events_of(before) or EventsConfig(()), events_of(config) or EventsConfig(())
    kinds = old.kinds
    if not kinds or old != dataclasses.replace(new, kinds=new.kinds[: len(kinds)]):
        names = ", ".join(name for name, *_ in kinds) or "no events"
        raise ValueError(f"{folder} knows {names}: {config.name} must begin with these and learn more after them")
    if len(kinds) == len(new.kinds):
        raise ValueError(f"{folder} knows all events of {config.name}: there is nothing to learn")
    events = Events(with_scene(config, events=old))
    load_events(events, folder)
    tensors = {name: value for name, value in events.state_dict().items() if not name.startswith(_READING)}
    if all(how != "street" for *_, how in kinds):
        del tensors["lanes"]  # nothing went along the streets yet
    facts = stage_metadata(folder, "events")
    return Known(len(kinds), tensors, {name: share for name, share in facts.items() if name.startswith("painted/")})


@torch.no_grad()
def keep(events: Events, known: Known) -> None:
    """Makes the first kinds of `events`, and all that kinds share, what is known.

    New kinds come last in every tensor, and in the light's, which all share, they are further columns of the first layer.
    """
    own = events.state_dict()
    for name, value in known.tensors.items():
        own[name][tuple(slice(side) for side in value.shape)] = value
