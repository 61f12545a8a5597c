"""A model of a memorised town with event objects and random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from towns import streets

from train.street.voxels import distance_field
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.priors.config import scene_of
from world_model.text import build_text_encoder, scaled
from yume_gym.street.events import EVENTS

UFO, FIRE, SNOW = (EVENTS[name].phrases[0] for name in ("ufo", "fire", "snow"))
STILL = Action()


@pytest.fixture(name="event_dit", scope="module")
def event_dit_fixture(event_config, make_dit) -> DiT:
    """Random weights in a town of streets. A text is taken for the kind whose first phrasing is most like it."""
    dit = make_dit(event_config).requires_grad_(False)
    solid, walkable = streets(event_config)
    dit.priors[0].places.stand(distance_field(solid, scene_of(event_config).places))
    dit.priors[0].places.walkable.copy_(walkable)
    encoder, length = build_text_encoder(event_config.text), event_config.text.event_tokens
    dit.priors[0].events.extent.copy_(torch.tensor([8.0, 5.0, 8.0]))
    dit.priors[0].events.kind.weight.zero_()
    dit.priors[0].events.kind.bias.zero_()
    for number, (name, *_) in enumerate(scene_of(event_config).events.kinds):
        tokens = encoder.encode(EVENTS[name].phrases[0], length)
        dit.priors[0].events.wording[number] = tokens
        dit.priors[0].events.kind.weight[number] = scaled(tokens[(tokens != 0).any(dim=1)].mean(dim=0))
    dit.priors[0].events.kind.bias[-1] = 12.0
    dit.priors[0].events.looks[:, 0, 3] = 1.0
    return dit


def text_tokens(config: ModelConfig, *texts: str) -> Tensor:
    encoder = build_text_encoder(config.text)
    return torch.stack([encoder.encode(text, config.text.event_tokens) for text in texts])
