"""What events are called: fits how `world_model/priors/events.py` reads texts, for train.events.

phrasings.json holds more phrasings of each kind than the street itself ("phrases"), some that are never trained on ("fresh"), and
texts of no known event ("other"), one in UNSEEN of which is kept for testing. All were written without sight of the street's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.street.walks import plan_walk
from world_model.config import ModelConfig
from world_model.priors.events import Events
from world_model.text import build_text_encoder, mean_token, scaled
from yume_gym.street.captions import scene_caption
from yume_gym.street.events import EVENTS
from yume_gym.street.simulator import StreetSimulator

PHRASINGS, UNSEEN = Path(__file__).with_suffix(".json"), 5


def learn_words(
    events: Events, config: ModelConfig, street: StreetSimulator, captions: int, seed: int
) -> dict[str, float]:
    """Fits `events.kind`, and keeps each kind's wording: of its phrasings the one nearest to their mean. So many `captions` of
    places in `street` are texts of no event. Returns the share of phrasings, captions and other texts that are read rightly."""
    encoder, length, rng = build_text_encoder(config.text), config.text.event_tokens, np.random.default_rng(seed)
    more = json.loads(PHRASINGS.read_text())

    def tokens(texts: Sequence[str]) -> Tensor:
        return torch.stack([encoder.encode(text, length) for text in texts])

    def described(count: int) -> tuple[str, ...]:
        written = []
        for _ in range(count):
            plan = plan_walk(rng, 1)
            street.reset(rng, light=plan.light, weather=plan.weather)
            written.append(scene_caption(street.surroundings(), rng))
        return tuple(written)

    def read_as_told(phrasings: Callable[[str], Sequence[str]]) -> float:
        return float(
            torch.cat([events.read(tokens(phrasings(name))) == i for i, name in enumerate(kinds)]).float().mean()
        )

    kinds = [name for name, *_ in events.config.kinds]
    told = [tokens(EVENTS[name].phrases) for name in kinds]
    for number, phrasings in enumerate(told):
        means = F.normalize(mean_token(phrasings), dim=-1)
        events.wording[number] = phrasings[(means @ means.mean(dim=0)).argmax()]
    others = [text for number, text in enumerate(more["other"]) if number % UNSEEN]
    texts = [torch.cat([part, tokens(more["phrases"][name])]) for part, name in zip(told, kinds)]
    texts.append(tokens([*described(captions), *others]))
    told_mean = torch.cat([mean_token(part) for part in texts])
    label = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(part) for part in texts]))
    events.keep_phrasings(told_mean, label)
    means = scaled(told_mean)
    weight = 1 / torch.bincount(label)[label] / len(texts)
    optimizer = torch.optim.AdamW(events.kind.parameters(), lr=0.02, weight_decay=3.0)
    for _ in range(300):
        optimizer.zero_grad()
        (F.cross_entropy(events.kind(means), label, reduction="none") * weight).sum().backward()
        optimizer.step()
    return {
        "phrasings": read_as_told(lambda name: EVENTS[name].phrases),
        "unseen_phrasings": read_as_told(lambda name: EVENTS[name].held_out),
        "fresh_phrasings": read_as_told(lambda name: more["fresh"][name]),
        "captions": float((events.read(tokens(described(60))) < 0).float().mean()),
        "other_texts": float((events.read(tokens(more["other"][::UNSEEN])) < 0).float().mean()),
    }
