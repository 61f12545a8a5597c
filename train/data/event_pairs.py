"""Walks through events, rendered with the event and without: what `train.events` learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.street.walks import ATMOSPHERES
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.priors.config import events_of
from world_model.priors.events import quarter
from world_model.priors.places import Places
from world_model.vae import VideoVAE
from yume_gym.street.event_kinds import event_shapes
from yume_gym.street.event_state import FADE_SECONDS, EventState
from yume_gym.street.primitives import H, X, Z
from yume_gym.street.simulator import StreetSimulator, StreetState
from yume_gym.street.walker import Walker

# there and back, by those who stay to watch
GLANCES = tuple(
    tuple(Action.from_keys(*keys) for keys in pair)
    for pair in (
        (("", ""), ("", "")),
        (("W", ""), ("S", "")),
        (("A", ""), ("D", "")),
        (("", "←"), ("", "→")),
        (("", "↑"), ("", "↓")),
    )
)


@dataclass(frozen=True)
class Pairs:
    """Which walks are rendered, and in which town."""

    walks: int = 602  # rendered with an event and without, kinds in turns
    staying: float = 0.6  # share of walks that stay and step or look there and back, so that the event is in view
    blocks: int = 8  # of each that are kept ...
    skipped: int = 2  # ... each after up to so many that are not, so that an event is seen at every age
    town_seed: int = 0
    town_blocks: int = 2  # the town is a torus of this many blocks each way


@torch.no_grad()
def render_pairs(
    config: ModelConfig, places: Places, vae: VideoVAE, settings: Pairs, seed: int = 0, first: int = 0
) -> dict[str, Tensor]:
    """Blocks [N, ...] of walks through events, of kinds from number `first` on, those of a walk after each other: pictures with the
    event and without, uint8 [3, K, H, W]; view: latents of those without it, [C, K, h, w] float16; kind, walk; place [K, 2], yaw,
    pitch [K], and away, centre [K, 3], course [3] and age [K] as `Events` takes them."""
    known = events_of(config)
    assert known is not None
    last = slice(config.vae.temporal_stride - 1, None, config.vae.temporal_stride)
    street = StreetSimulator.like(config, settings.town_seed, settings.town_blocks)
    things = [i for i, (_, metres, _) in enumerate(known.kinds) if metres > 0 and i >= first]
    rows: dict[str, list[Tensor]] = {}
    for walk in tqdm(range(settings.walks), desc="walks", mininterval=5):
        rng = np.random.default_rng([seed, walk])
        light, weather, _ = ATMOSPHERES[int(rng.integers(len(ATMOSPHERES)))]
        kind = things[walk % len(things)]
        name, _, how = known.kinds[kind]
        street.reset(rng, light=light, weather=weather)
        walker, stays = Walker(rng, street), rng.random() < settings.staying
        plain = street.get_state()
        street.set_event(name)
        eventful = street.get_state()
        happening = eventful.events[-1]
        stands = _stand(happening, how)
        plan: list[Action] = []
        for _ in range(settings.blocks):
            for _ in range(int(rng.integers(settings.skipped + 1)) + 1):
                street.set_state(plain)
                if stays and not plan:
                    there, back = GLANCES[int(rng.integers(len(GLANCES)))]
                    plan = [there, back] if rng.random() < 0.5 else [back, there]
                action = plan.pop(0) if stays else walker.act()
                without, _ = street.ahead(action)
                street.set_state(eventful)
                with_it, _ = street.ahead(action)
                plain, eventful = without[-1], with_it[-1]
            age = (
                round((with_it[last][0].frame / config.fps - happening.begin) * config.fps / config.vae.temporal_stride)
                - 1
            )
            path = torch.tensor([(s.x, s.z, s.yaw, s.pitch) for s in with_it[last]], dtype=torch.float64)
            place, yaw, pitch = path[:, :2], path[:, 2], path[:, 3]
            still = _pictures(street, without)
            facts = {
                "with": _pictures(street, with_it[last]),
                "without": still[:, last],
                "view": vae.encode(as_float(still)[None])[0].half(),
                "kind": torch.tensor(kind),
                "walk": torch.tensor(walk),
                "place": place,
                "yaw": yaw,
                "pitch": pitch,
                "course": torch.tensor(stands, dtype=torch.float64),
                "away": places.clear_sight(place[None], yaw[None], pitch[None])[0].half(),
                "centre": torch.tensor([_centre(happening, s.frame / config.fps, stands) for s in with_it[last]]),
                "age": torch.arange(age, age + len(path)),
            }
            for key, value in facts.items():
                rows.setdefault(key, []).append(value)
    return {key: torch.stack(values) for key, values in rows.items()}


def _centre(happening: EventState, time: float, stands: Sequence[float]) -> list[float]:
    """Where an event's shapes are on the mean: metres forward, to the right and up from where it stands."""
    x, z, heading = stands
    east, height, north = event_shapes(happening, time)[:, [X, H, Z]].mean(axis=0) - (x, 0, z)
    sin, cos = math.sin(heading), math.cos(heading)
    return [east * sin + north * cos, east * cos - north * sin, height]


def _stand(happening: EventState, how: str) -> tuple[float, float, float]:
    """(x, z; metres; heading, radians) that an event is seen from: its facade, its lane of a street, or where it takes place."""
    if how == "facade" and happening.wall is not None:
        return happening.wall[1:]
    if how != "street":
        return (*happening.place, happening.heading)
    heading = float(quarter(torch.tensor(happening.heading)))
    x, z = event_shapes(happening, happening.begin + FADE_SECONDS)[:, [X, Z]].mean(axis=0).tolist()
    return (happening.place[0], z, heading) if round(heading / (math.pi / 2)) % 2 else (x, happening.place[1], heading)


def _pictures(street: StreetSimulator, states: Sequence[StreetState]) -> Tensor:
    """uint8 [3, K, H, W] at given states."""
    frames = []
    for state in states:
        street.set_state(state)
        frames.append(street.render())
    return torch.from_numpy(np.stack(frames)).movedim(-1, 0)


def as_float(pictures: Tensor) -> Tensor:
    """uint8 pictures in -1..1."""
    return pictures.float() / 127.5 - 1
