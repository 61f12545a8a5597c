"""Teaches what events are (`world_model/priors/events.py`): `python -m train.events street --vae RUN --places RUN --out RUN`.

Words: a softmax regression from texts' mean tokens to kinds, on phrasings of training and texts of nothing known, all of which are
kept to compare with. Things: the same walk is rendered with an event and without (once, to `pairs.safetensors`), and the painter
learns what turns one into the other.
With `--events` (a run of this stage, or a folder of weights) kinds that are known there keep their looks
(train/street/growth.py), only others are learnt; words are read among all.
Resumable. Writes `events.safetensors` (the EMA) and `events.json` (config, steps, errors on walks not trained on).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.data.event_pairs import Pairs, as_float, render_pairs
from train.data.latents import load_vae
from train.engine.arguments import read_arguments
from train.engine.loop import Networks, Run, prepare_cpu
from train.evaluation.sheet import to_pictures
from train.places import load_places
from train.street.growth import WEIGHTS, keep, known_in
from train.street.phrasings import learn_words
from world_model.config import ModelConfig
from world_model.priors.config import events_of, places_of
from world_model.priors.events import BLUR, MOMENTS, Events, moments
from world_model.priors.places import Places
from world_model.retrieval import View
from world_model.rollout import generator
from world_model.vae import VideoVAE
from yume_gym.street.simulator import StreetSimulator

PAIRS = "pairs.safetensors"
HELD_OUT = 42  # walks
WITHIN = 0.985  # share of what a thing changes that its billboard holds


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 16  # blocks a step
    lr: float = 1e-2
    pairs: Pairs = Pairs()
    captions: int = 250  # texts of nothing known, that phrasings are told from
    ema: float = 0.995
    seed: int = 0


def learn_lanes(events: Events, pairs: dict[str, Tensor]) -> None:
    """Sets `events.lanes`: where across the town things went along its streets, for each heading."""
    moves = torch.tensor([how == "street" for *_, how in events.config.kinds])
    courses = pairs["course"][moves[pairs["kind"]]]
    turns = (courses[:, 2] / (math.pi / 2)).round().long() % 4
    for turn in range(4):
        own = courses[turns == turn, 1 if turn % 2 else 0]
        found = torch.remainder(own, events.period).round(decimals=1).unique()[: events.lanes.shape[1]]
        events.lanes[turn] = torch.inf
        events.lanes[turn, : len(found)] = found.to(events.lanes.dtype)


@torch.no_grad()
def learn_extent(events: Events, pairs: dict[str, Tensor]) -> None:
    """Sets `events.extent` to metres from things' middles within which WITHIN of what they change is seen."""
    for kind in pairs["kind"].unique().tolist():
        part = {key: value[torch.nonzero(pairs["kind"] == kind)[::3, 0]] for key, value in pairs.items()}
        size = (part["with"].shape[-2], part["with"].shape[-1])
        viewers = View(part["yaw"], part["pitch"], part["place"])
        at = events.across(part["kind"], viewers, part["course"], part["age"], size, part["centre"])
        changed = (as_float(part["with"]) - as_float(part["without"])).square().mean(dim=1) * (at.nearest > BLUR)
        away, order = torch.maximum(at.beside.abs(), at.above.abs()).flatten().sort()
        total = changed.flatten()[order].double().cumsum(dim=0)
        if total[-1] > 0:
            events.extent[kind] = away[torch.searchsorted(total, WITHIN * total[-1])]


def learn_path(events: Events, pairs: dict[str, Tensor]) -> None:
    """Sets `events.path` to where things are on the mean at each moment; a moment that nobody saw is as the one before it."""
    row = (pairs["kind"][:, None] * MOMENTS + moments(pairs["age"])).flatten()
    total, count = torch.zeros(events.path.shape[0] * MOMENTS, 3), torch.zeros(events.path.shape[0] * MOMENTS, 1)
    total.index_add_(0, row, pairs["centre"].float().flatten(0, 1))
    count.index_add_(0, row, torch.ones(len(row), 1))
    mean = (total / count).unflatten(0, (-1, MOMENTS))
    for moment in range(1, MOMENTS):
        mean[:, moment] = torch.where(mean[:, moment].isnan(), mean[:, moment - 1], mean[:, moment])
    events.path.copy_(mean.nan_to_num())


@torch.no_grad()
def changes(events: Events, pairs: dict[str, Tensor]) -> Tensor:
    """[kinds]: mean squared change of pixels by each kind of event, and on top that of all, so that small things count more."""
    energy = torch.zeros(len(events.config.kinds))
    for kind in pairs["kind"].unique():
        rows = torch.nonzero(pairs["kind"] == kind)[:, 0][::7]
        energy[kind] = (as_float(pairs["with"][rows]) - as_float(pairs["without"][rows])).square().mean()
    return energy + energy[energy > 0].mean()


def draw(events: Events, pairs: dict[str, Tensor], rows: Tensor, taught: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Painted and true pictures of blocks, and those without their event, [B, 3, K, H, W] each; where `taught`, things are where
    they truly were."""
    part = {key: value[rows] for key, value in pairs.items()}
    viewers, names = View(part["yaw"], part["pitch"], part["place"]), ("away", "course", "age", "view")
    things, covered = events(part["kind"], viewers, *(part[name] for name in names), part["centre"] if taught else None)
    plain = as_float(part["without"])
    return torch.lerp(plain, things, covered), as_float(part["with"]), plain


@torch.no_grad()
def errors(events: Events, pairs: dict[str, Tensor]) -> tuple[dict[str, float], list[list[np.ndarray]]]:
    """On held-out walks: the share of what events change that is painted, by kind; rows of a contact sheet, true above painted."""
    held = torch.nonzero(pairs["walk"] < HELD_OUT)[:, 0]
    left: dict[str, float] = {}
    rows: list[list[np.ndarray]] = []
    for kind in pairs["kind"].unique().tolist():
        chosen = held[pairs["kind"][held] == kind]
        painted, truth, view = draw(events, pairs, chosen)
        left[events.config.kinds[kind][0]] = 1 - float(
            (painted - truth).square().mean() / (view - truth).square().mean()
        )
        most = (view - truth).square().flatten(1).mean(dim=1).argsort(descending=True)[:10]
        rows += [[to_pictures(v)[-1] for v in part[most].clamp(-1, 1)] for part in (truth, painted)]
    parts = {f"painted/{name}": share for name, share in left.items()}
    return {"painted": float(np.mean(list(left.values()))), **parts}, rows


def train(
    config: ModelConfig, vae_folder: Path, places_folder: Path, out: Path, settings: Settings, steps: int, minutes: float | None,
    before: Path | None = None,
) -> None:  # fmt: skip
    """Trains until `steps` or `minutes`, evaluates and writes the weights. Kinds that `before` knows are kept as they are."""
    torch.manual_seed(settings.seed)
    towns = places_of(config)
    if events_of(config) is None or towns is None:
        raise ValueError(f"{config.name} learns no events: its scene prior has none")
    vae, _ = load_vae(config, vae_folder)
    places = Places(towns, config.camera, config.latent_size, config.dit.latent_channels, config.text.dim)
    load_places(places, places_folder)
    events = Events(config)
    known = None if before is None else known_in(before, config)
    street = StreetSimulator.like(config, settings.pairs.town_seed, settings.pairs.town_blocks)
    words = learn_words(events, config, street, settings.captions, settings.seed)
    pairs = _pairs(config, places, vae, settings, out, known.kinds if known else 0)
    learn_path(events, pairs)
    learn_extent(events, pairs)
    learn_lanes(events, pairs)
    if known:
        keep(events, known)
    learnt = [events.mixtures, events.sides, events.looks, *events.light.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    run = Run("events", config, settings, out, Networks({"events": events}, [optimizer], {"events": settings.ema}))
    average = run.averaged("events", Events)
    average.kind.load_state_dict(events.kind.state_dict())
    for kept, own in zip(average.buffers(), events.buffers(), strict=True):
        kept.copy_(own)
    energy = changes(events, pairs)
    trained, losses = torch.nonzero(pairs["walk"] >= HELD_OUT)[:, 0], []
    for step in run.steps(steps, minutes):
        chosen = torch.randint(len(trained), (settings.batch,), generator=generator(settings.seed, "events", step))
        blocks = trained[chosen]
        painted, truth, _ = draw(events, pairs, blocks, taught=True)
        error = (painted - truth).square().flatten(1).mean(dim=1)
        loss = (error / energy[pairs["kind"][blocks]]).mean()
        run.accelerator.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * run.rate(steps, minutes, 50, 0.4, 0.03)
        run.optimizers[0].step()
        run.optimizers[0].zero_grad()
        if known:
            keep(events, known)
        run.average("events")
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            run.log({"loss": float(np.mean(losses[-100:]))})
        if step % 1000 == 999:
            figures, rows = errors(average, pairs)
            run.log(figures)
            run.sheet("events", rows)
            run.save()
    run.finish()
    figures, rows = errors(average, pairs)
    run.sheet("events", rows)
    _write(out, config, average, run.progress.step, {**words, **(known.with_painted(figures) if known else figures)})


def _pairs(
    config: ModelConfig, places: Places, vae: VideoVAE, settings: Settings, out: Path, first: int
) -> dict[str, Tensor]:
    """`render_pairs` of kinds from number `first` on, which a run does once and keeps in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / PAIRS).exists():
        pairs = render_pairs(config, places, vae, settings.pairs, settings.seed, first)
        save_file(pairs, out / "new.safetensors")
        (out / "new.safetensors").rename(out / PAIRS)
    return load_file(out / PAIRS)


def _write(out: Path, config: ModelConfig, events: Events, steps: int, figures: dict[str, float]) -> None:
    """events.safetensors and events.json."""
    save_file({k: v.contiguous() for k, v in events.state_dict().items()}, out / WEIGHTS)
    metadata = {"steps": steps, **{k: round(v, 4) for k, v in figures.items()}}
    (out / "events.json").write_text(
        json.dumps({**json.loads(config.to_json()), "events_training": metadata}, indent=1)
    )


def main() -> None:
    prepare_cpu()
    config, settings, a = read_arguments(
        __doc__, Settings, ("batch", "lr", "pairs.walks", "seed"), ("vae", "places"), ("events",)
    )
    train(config, a.vae, a.places, a.out, settings, a.steps, a.minutes, a.events)


if __name__ == "__main__":
    main()
