"""What texts tell of a town: fits which view, and which light and weather, `world_model/priors/places.py` takes a text for.

descriptions.json holds fragments of sentences about streets: openings ("view"), each "light", "weather" and "district" in forty
ways (before a noun where they end in "_"), and places that are none ("place"). They were written without sight of the street's own
captions and of the sentences that they are tested with.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from train.data.corpus import Corpus, town_start
from train.street.routes import open_start
from train.street.walks import ATMOSPHERES, known_street, plan_walk
from world_model.config import ModelConfig
from world_model.priors.places import Places
from world_model.rollout import generator
from world_model.text import build_text_encoder, mean_token, scaled
from yume_gym.street.captions import scene_caption
from yume_gym.street.simulator import LIGHTS, WEATHERS, StreetSimulator
from yume_gym.street.surroundings import describe

Error = Callable[[Tensor, Tensor], Tensor]  # of what is painted, beside the truth

FRAGMENTS = Path(__file__).with_suffix(".json")
SECTORS = 12  # of a view, for what fills it
CLOSE = 5.0  # metres: what is nearer hides what a view is of
SILENT = 0.5  # of sentences leave out what goes without saying: clear weather, and ...
USUAL = {"rain": "overcast"}  # ... this light, or day
SIGHTS = 40  # walks of each light and weather
SKY_STEPS, SKY_BATCH, SKY_RATE = 200, 32, 0.03


def sentence(facts: Mapping[str, str | None], rng: np.random.Generator) -> str:
    """One English sentence about a street with given "light", "weather" and "district", each None where nothing is said of it."""
    fragments = _fragments()

    def one_of(items: list[str]) -> str:
        return items[int(rng.integers(len(items)))]

    noun = one_of(fragments["district"][facts["district"]] if facts["district"] else fragments["place"])
    before: list[str] = []
    after: list[str] = []
    for name in ("light", "weather"):
        if facts[name] is not None:
            words = one_of(fragments[name][facts[name]])
            (before if words.endswith("_") else after).append(words.rstrip("_"))
    article, _, rest = noun.partition(" ")
    if before:
        article = ("an" if before[0][0] in "aeiou" else "a") if article in ("a", "an") else article
        noun = f"{article} {', '.join(before)} {rest}"
    if after and rng.random() < 0.2:
        return f"{', '.join(after)}: {noun}"
    if rng.random() < 0.5:
        after.reverse()
    told = ", ".join([f"{one_of(fragments['view'])} {noun}".strip(), *after])
    return f"{told[0].upper()}{told[1:]}." if rng.random() < 0.5 else told


@cache
def _fragments() -> dict:
    return json.loads(FRAGMENTS.read_text())


def learn_views(places: Places, config: ModelConfig, seed: int, town: int, candidates: int, captions: int) -> None:
    """Draws `candidates` views of a known town (its number), keeps typical and open ones of every district, and fits
    `places.where`: which view of all known towns a text describes (softmax regression on so many `captions` of each, and as many
    sentences)."""
    rng, own = np.random.default_rng([seed, 3]), places.choices(town)
    poses, facts = typical_views(places, config, rng, town, candidates)
    places.views[own] = poses
    numbers, texts = [], []
    for other in range(len(places.config.towns)):
        if other != town and not places.known(other):
            continue
        rows = places.choices(other)
        seen = facts if other == town else facts_of(config, other, places.views[rows])
        for number, surroundings in enumerate(seen, start=rows.start):
            for sort in range(2 * captions):
                plan = plan_walk(rng, 1)
                told = {**surroundings, "light": plan.light, "weather": plan.weather}
                texts.append(sentence(told, rng) if sort % 2 else scene_caption(told, rng))
                numbers.append(number)
    places.where.bias.data[own].clamp_(min=-1.0)
    _regress(places.where, _means(config, texts), torch.tensor(numbers)[:, None], rate=0.3, decay=0.1)


def typical_views(
    places: Places, config: ModelConfig, rng: np.random.Generator, town: int, candidates: int
) -> tuple[Tensor, list[dict]]:
    """Poses [n, 3] (x, z; metres in the town; yaw, radians) of so many `candidates`, one for each of a town's choices, and what
    they show."""
    street = known_street(config, town)
    seen: list[tuple[float, list[float], dict]] = []
    for _ in tqdm(range(candidates), desc="views", mininterval=5):
        open_start(street, rng, "day", "clear")
        facts = street.surroundings()
        seen.append((filled(street, facts["district"]), [*street.position, street.yaw], facts))
    poses = torch.tensor([pose for _, pose, _ in seen], dtype=torch.float64)
    poses[:, :2] += torch.from_numpy(town_start(config, town))
    lost = hidden(places, poses).tolist()
    drawn: dict[str, list[tuple[float, list[float], dict]]] = {}
    for (share, pose, facts), less in zip(seen, lost, strict=True):
        drawn.setdefault(facts["district"], []).append((share - less, pose, facts))
    ranked = [sorted(views, key=lambda view: -view[0]) for views in drawn.values()]
    turns = [view for row in itertools.zip_longest(*ranked) for view in row if view is not None]
    own = places.choices(town)
    kept = turns[: own.stop - own.start]
    return torch.tensor([pose for _, pose, _ in kept]), [facts for *_, facts in kept]


def facts_of(config: ModelConfig, town: int, views: Tensor) -> list[dict]:
    """What poses [n, 3] (x, z; metres in the town; yaw, radians) of a known town show."""
    street, shown = known_street(config, town), []
    for x, z, yaw in views.tolist():
        street.reset(np.random.default_rng(0), position=(x, z), yaw=yaw)
        shown.append(street.surroundings())
    return shown


def filled(street: StreetSimulator, district: str) -> float:
    """The share of narrow sectors of the view from where `street` stands that show a district."""
    people, (x, z), fov = np.zeros((0, 2)), street.position, street.camera.horizontal_fov
    turns = math.radians(fov) * ((np.arange(SECTORS) + 0.5) / SECTORS - 0.5)
    seen = [describe(street.town, people, x, z, street.yaw + float(turn), fov / SECTORS)["district"] for turn in turns]
    return seen.count(district) / SECTORS


@torch.no_grad()
def hidden(places: Places, poses: Tensor) -> Tensor:
    """The share [n] of the upper halves of views from poses [n, 3] (x, z; metres; yaw, radians) that something `CLOSE` fills."""
    away = places.clear_sight(poses[:, None, :2], poses[:, 2:], torch.zeros_like(poses[:, 2:]))
    return (away[..., : away.shape[-2] // 2, :] < CLOSE).float().mean(dim=(1, 2, 3))


def learn_skies(places: Places, corpus: Corpus, error: Error, seed: int) -> None:
    """Sets `places.skies`, sky by sky, to the light and weather in which walks look as they begin: first to the mean of what their
    pictures tell, then by descent of the `error` of what is painted. Skies that no walk begins in keep what they have."""
    config, stream = corpus.config, generator("skies", seed)
    walks: dict[tuple, list[int]] = {}
    for walk in range(len(corpus)):
        info = corpus.info(walk)
        if info.event_at(1) is None:
            walks.setdefault((info.light, info.weather), []).append(walk)
    rows: list[tuple[int, int]] = []
    for light, weather, _ in ATMOSPHERES:
        own = walks.get((light, weather), [])[:SIGHTS]
        number = LIGHTS.index(light) * len(WEATHERS) + WEATHERS.index(weather)
        rows += [(walk, number) for walk in own]
        if own:
            seen, known = torch.stack([corpus.block(walk, 0) for walk in own]), torch.ones(len(own), dtype=torch.bool)
            with torch.no_grad():
                look = places.looks(seen[:, :, 0], seen[:, :, -1], known, torch.zeros(len(own), 1, config.text.dim))
            places.skies.flatten(0, 1)[number] = look.mean(dim=0)
    if not rows:
        return
    numbers, sky = [walk for walk, _ in rows], torch.tensor([number for _, number in rows])
    motion = corpus.motion(numbers, [0] * len(rows))
    start = torch.tensor([corpus.position(walk, 0) for walk in numbers], dtype=torch.float64)
    truth = torch.stack([corpus.block(walk, 0)[:, -1:] for walk in numbers])
    view = (start[:, None] + motion.displacement[:, -1:], motion.yaw[:, -1:], motion.pitch[:, -1:])
    skies = places.skies.flatten(0, 1).clone().requires_grad_()
    optimizer = torch.optim.Adam([skies], lr=SKY_RATE)
    for step in range(SKY_STEPS):
        chosen = torch.randint(len(rows), (min(SKY_BATCH, len(rows)),), generator=stream)
        painted = places(*(part[chosen] for part in view), skies[sky[chosen]])
        optimizer.zero_grad()
        (skies.grad,) = torch.autograd.grad(error(painted, truth[chosen]), skies)
        for group in optimizer.param_groups:
            group["lr"] = SKY_RATE * (1 - step / SKY_STEPS)
        optimizer.step()
    places.skies.copy_(skies.detach().view_as(places.skies))


def learn_sky_words(places: Places, config: ModelConfig, seed: int, texts: int) -> dict[str, float]:
    """Fits `places.sky`: which light and which weather a text tells of (two softmax regressions on so many `texts` of each sky,
    half of them captions of the first known town). Returns the share of texts left out that are read rightly."""
    rng = np.random.default_rng([seed, 5])
    street, told = known_street(config), []
    for light, weather, _ in ATMOSPHERES:
        for number in range(texts):
            if number % 2:
                street.reset(rng, light=light, weather=weather)
                told.append(scene_caption(street.surroundings(), rng))
            else:
                told.append(sentence(_some_facts(light, weather, rng), rng))
    sky = torch.tensor([[LIGHTS.index(light), WEATHERS.index(weather)] for light, weather, _ in ATMOSPHERES])
    means, label = scaled(_means(config, told)), sky.repeat_interleave(texts, dim=0)
    kept = torch.arange(len(means)) // 2 % 5 == 0
    _regress(places.sky, means[~kept], label[~kept], rate=0.01, decay=1.0)
    parts = places.sky(means[kept]).split((len(LIGHTS), len(WEATHERS)), dim=1)
    read = torch.stack([part.argmax(dim=-1) for part in parts], dim=1)
    return {"skies": float((read == label[kept]).all(dim=1).float().mean())}


def _some_facts(light: str, weather: str, rng: np.random.Generator) -> dict[str, str | None]:
    """Facts of a sentence about a sky: what goes without saying is left out now and then, and any district or none is named."""
    districts = [None, None, *_fragments()["district"]]
    dry = weather == "clear" and rng.random() < SILENT
    usual = light == USUAL.get(weather, "day") and rng.random() < SILENT
    district = districts[int(rng.integers(len(districts)))]
    return {"light": None if usual else light, "weather": None if dry else weather, "district": district}


def _means(config: ModelConfig, texts: Sequence[str]) -> Tensor:
    """Mean tokens [n, D] of texts."""
    encoder, told = build_text_encoder(config.text), tqdm(texts, desc="texts", mininterval=5)
    return torch.cat([mean_token(encoder.encode(text, config.text.event_tokens)[None]) for text in told])


def _regress(layer: nn.Linear, text: Tensor, label: Tensor, rate: float, decay: float) -> None:
    """Fits the softmax regressions `layer` from texts [n, D] to labels [n, m], which share its outputs evenly."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=decay)
    for _ in range(300):
        outputs = layer(text).chunk(label.shape[1], dim=1)
        torch.stack([F.cross_entropy(*one) for one in zip(outputs, label.unbind(1))]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
