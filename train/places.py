"""Learns a town by heart (`world_model/priors/places.py`):
`python -m train.places street --data DIR --vae RUN --out RUN [--minutes 20]`.

First where things stand: true distances of many views are counted into voxels, and walkers mark where one can walk. Then what they
look like: latents of the walks in DIR from their true poses, in the light and weather of the picture before. Resumable. Writes
`places.safetensors` (the EMA) and `places.json` (config, steps, errors on walks not trained on).

The walks say which of the model's towns (`PlacesConfig.towns`) is learnt. A further one goes on from `--places` that know the
first: its field and tables are its own, and the network, light and weather stay as they are.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from safetensors.torch import save_file
from torch import Tensor

from train.data.clips import open_corpus
from train.data.corpus import Corpus
from train.data.latents import load_vae
from train.data.shards import HELD_OUT, TrajectoryInfo
from train.engine.arguments import read_arguments
from train.engine.checkpoints import load_network, stage_metadata
from train.engine.loop import Networks, Run, prepare_cpu
from train.evaluation.sheet import to_pictures
from train.street.descriptions import learn_skies, learn_sky_words, learn_views
from train.street.voxels import Survey, count_bricks, count_voxels, distance_field, mark_walks
from train.street.walks import rephrased
from train.vae import psnr
from world_model.config import ModelConfig
from world_model.priors.config import places_of
from world_model.priors.distance_field import PARTLY
from world_model.priors.places import Places
from world_model.rollout import generator
from world_model.vae import VideoVAE

WEIGHTS = "places.safetensors"


@dataclass(frozen=True)
class Drift:
    """How what a block is told of its past differs from the truth, as in a dream, whose light drifts and comes late."""

    mixed: float = 0.3  # share of blocks whose picture before has some of the light of another
    outdated: float = 0.4  # share of blocks whose picture before is an earlier one: a dream's light is late
    unheard: float = 0.25  # share of a text's tokens that are left out: other words are to be understood too


@dataclass(frozen=True)
class Settings(Survey):
    """Numbers of this stage."""

    batch: int = 16  # blocks a step
    lr: float = 2e-3
    table_lr: float = 2e-2
    whole: float = 10.0  # weight of the error of a block's mean, beside that of its tokens
    drift: Drift = Drift()
    candidates: int = 9000  # views, of which the most typical of each district are kept for texts to choose from
    captions: int = 8  # of each view that a text can choose, and as many sentences
    texts: int = 120  # of each light and weather
    ema: float = 0.995


def see(
    places: Places, corpus: Corpus, blocks: list[tuple[int, int]], stream: torch.Generator, drift: Drift | None = None
) -> tuple[Tensor, Tensor]:
    """Learnt and true latents [B, C, K, h, w] of blocks (walk, number from 1 on).

    With `drift` the picture before differs from the truth as it says; events are then told in any phrasing, tokens left out.
    """
    stride = corpus.config.vae.temporal_stride
    truth = torch.stack([corpus.block(w, b) for w, b in blocks])
    late = torch.rand(len(blocks), generator=stream) < (drift.outdated if drift else 0.0)
    before = [(w, _any(b, stream) if old else b - 1) for (w, b), old in zip(blocks, late.tolist())]
    shown = torch.stack([corpus.block(w, b)[:, -1] for w, b in before])
    starts = [_start(corpus.info(w), b, stream) for w, b in blocks]
    first = torch.stack([corpus.block(w, b)[:, 0] for (w, _), b in zip(blocks, starts)])
    words = []
    for walk, block in blocks:
        info = corpus.info(walk)
        event = info.event_at(block)
        told = event is None and float(torch.rand((), generator=stream)) < 0.4
        words.append(corpus.text(info.caption if told else rephrased(info, block, stream) if drift else event))
    context = torch.stack(words)
    if drift:
        shown = mixed(shown, drift.mixed, stream)
        context = context * (torch.rand(context.shape[:2], generator=stream) >= drift.unheard)[..., None]
    look = places.looks(first, shown, torch.ones(len(blocks), dtype=torch.bool), context)
    walks, numbers = zip(*blocks)
    motion, last = corpus.motion(walks, numbers), slice(stride - 1, None, stride)
    start = torch.tensor([corpus.position(w, b) for w, b in blocks], dtype=torch.float64)
    stand = start[:, None] + motion.displacement[:, last]
    return places(stand, motion.yaw[:, last], motion.pitch[:, last], look), truth


def error_of(found: Tensor, truth: Tensor, whole: float) -> Tensor:
    """Mean squared error of latents [B, C, K, h, w], and `whole` times that of each block's mean: light and weather are a small
    part of the first and all of the second."""
    error = found - truth
    return error.square().mean() + whole * error.mean(dim=(2, 3, 4)).square().mean()


def _start(info: TrajectoryInfo, block: int, stream: torch.Generator) -> int:
    """A block before `block` at which a world that is there now may have begun: without an event, if there is one."""
    calm = [b for b in range(block) if info.event_at(b) is None] or list(range(block))
    return calm[_any(len(calm), stream)]


def _any(count: int, stream: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=stream))


def settled(info: TrajectoryInfo, block: int, blocks: int) -> int:
    """`block`, or the next if the text in force changes there: light and weather take time, and `Places` is to know what comes."""
    return block if info.event_at(block) == info.event_at(block - 1) else min(block + 1, blocks - 1)


def mixed(pictures: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """A `share` of latents [B, C, h, w], each mixed with up to 0.6 of a random other one."""
    amount = 0.6 * torch.rand(len(pictures), 1, 1, 1, generator=stream)
    amount = amount * (torch.rand(len(pictures), 1, 1, 1, generator=stream) < share)
    return torch.lerp(pictures, pictures[torch.randperm(len(pictures), generator=stream)], amount)


@torch.no_grad()
def errors(places: Places, corpus: Corpus, vae: VideoVAE) -> tuple[dict[str, float], list[list[np.ndarray]]]:
    """On held-out walks: PSNR of decoded latents, explained share of the latents' variance; rows of a contact sheet."""
    stream, rows, found, true = torch.Generator().manual_seed(0), [], [], []
    for walk in range(min(HELD_OUT, len(corpus))):
        blocks = [(walk, b) for b in range(1, corpus.blocks, 2)]
        latents, truth = see(places, corpus, blocks, stream)
        videos = [vae.decode(part)[0] for part in (truth, latents)]
        rows += [[to_pictures(v)[-1] for v in video[:12]] for video in videos]
        found.append((latents, videos[1]))
        true.append((truth, videos[0]))
    latents, video = (torch.cat(parts) for parts in zip(*found))
    truth, shown = (torch.cat(parts) for parts in zip(*true))
    figures = {
        "psnr": psnr(video, shown),
        "explained": 1 - float((latents - truth).square().mean() / truth.square().mean()),
    }
    return figures, rows


def train(
    config: ModelConfig,
    data: Path,
    vae_folder: Path,
    out: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
    before: Path | None = None,
) -> None:
    """Trains until `steps` or `minutes`, from the weights of the run `before` if given, evaluates and writes the weights."""
    torch.manual_seed(settings.seed)
    if places_of(config) is None:
        raise ValueError(f"{config.name} learns no places: its scene prior has none")
    vae, _ = load_vae(config, vae_folder)
    corpus = open_corpus(config, data, vae)
    if len(corpus.towns) > 1:
        raise ValueError(f"{data} holds walks of several towns: learn one after the other")
    (town,) = corpus.towns
    if town and before is None:
        raise ValueError(f"{data} holds walks of town number {town}: pass --places that know the first")
    places = _begin(config, before)
    if not (out / "checkpoint").exists():
        learn_map(places, config, settings, town)
        learn_views(places, config, settings.seed, town, settings.candidates, settings.captions)
    optimizers = _optimizers(places, settings, town)
    run = Run("places", config, settings, out, Networks({"places": places}, optimizers, {"places": settings.ema}))
    average = run.averaged("places", Places)
    losses: list[float] = []
    for step in run.steps(steps, minutes):
        losses.append(_step(run, places, corpus, settings, step, run.rate(steps, minutes, 50, 0.4, 0.03)))
        if step % 100 == 99:
            run.log({"loss": float(np.mean(losses[-100:]))})
        if step % 500 == 499:
            figures, rows = errors(average, corpus, vae)
            run.log(figures)
            run.sheet("places", rows)
            run.save()
    run.finish()
    words = {}
    if not town:
        learn_skies(average, corpus, partial(error_of, whole=settings.whole), settings.seed)
        words = learn_sky_words(places, config, settings.seed, settings.texts)
        average.sky.load_state_dict(places.sky.state_dict())
    figures, rows = errors(average, corpus, vae)
    run.sheet("places", rows)
    save_file({k: v.contiguous() for k, v in average.state_dict().items()}, out / WEIGHTS)
    earlier = stage_metadata(before, "places") if before is not None else {}
    metadata = _metadata(average, town, run.progress.step, {**figures, **words}, earlier)
    facts = {**json.loads(config.to_json()), "places_training": metadata}
    (out / "places.json").write_text(json.dumps(facts, indent=1))


def _begin(config: ModelConfig, before: Path | None) -> Places:
    """The network that training begins with: fresh, or with the weights of the run `before`."""
    known = places_of(config)
    assert known is not None
    places = Places(known, config.camera, config.latent_size, config.dit.latent_channels, config.text.dim)
    if before is not None:
        load_places(places, before)
    return places


def _optimizers(places: Places, settings: Settings, town: int) -> list[torch.optim.Optimizer]:
    """One of the hash tables and, in the first town only, one of all else, which further towns leave as it is."""
    rest = [p for name, p in places.named_parameters() if not name.startswith("tables")]
    for parameter in rest:
        parameter.requires_grad_(not town)
    tables = torch.optim.Adam(list(places.tables), lr=settings.table_lr, betas=(0.9, 0.99), eps=1e-12)
    return [tables] if town else [tables, torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-4)]


def _step(run: Run, places: Places, corpus: Corpus, settings: Settings, number: int, rate: float) -> float:
    """One update at the share `rate` of the learning rates; returns its loss."""
    stream = generator(settings.seed, "places", number)
    walks = torch.randint(HELD_OUT, len(corpus), (settings.batch,), generator=stream).tolist()
    numbers = torch.randint(1, corpus.blocks, (settings.batch,), generator=stream).tolist()
    blocks = [(w, settled(corpus.info(w), b, corpus.blocks)) for w, b in zip(walks, numbers)]
    found, truth = see(places, corpus, blocks, stream, settings.drift)
    loss = error_of(found, truth, settings.whole)
    run.accelerator.backward(loss)
    for optimizer, lr in zip(run.optimizers, (settings.table_lr, settings.lr)):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        optimizer.step()
        optimizer.zero_grad()
    run.average("places")
    return float(loss.detach())


def _metadata(places: Places, town: int, steps: int, figures: dict[str, float], earlier: dict) -> dict:
    """What a run did in `town`, added to the metadata of the run before it; a further town has an entry of its own."""
    measured = {k: round(v, 4) for k, v in figures.items()}
    if not town:
        return {**earlier, "steps": steps + earlier.get("steps", 0), **measured}
    own = f"town {places.config.towns[town]}"
    return {**earlier, own: {"steps": steps + earlier.get(own, {}).get("steps", 0), **measured}}


def learn_map(places: Places, config: ModelConfig, settings: Settings, town: int) -> None:
    """Counts where things stand in a town and where one can walk, and then its bricks, if places do not know them."""
    own = places.rows(town)
    if not places.known(town):
        places.stand(distance_field(count_voxels(config, settings, town), places.config), None, town)
        places.walkable[own] = mark_walks(config, settings, town)
    if places.bricks is not None and not (places.distance[own] == PARTLY).any():
        solid = (places.distance[own] == 0).numpy()
        partly, bricks = count_bricks(config, settings, solid, town)
        places.stand(distance_field(solid, places.config, partly), bricks, town)


def load_places(places: Places, folder: Path | None) -> None:
    """Puts the weights of a run of this stage into `places`. FileNotFoundError without them, ValueError for unfitting ones."""
    missing = "a model that knows places needs --places, a run of train.places"
    load_network(places, folder, WEIGHTS, missing, "the places", lambda state: grown(state, places))


def grown(state: dict[str, Tensor], places: Places) -> dict[str, Tensor]:
    """Weights of smaller places for `places`: parts of voxels, skies and towns that those lack are as in untrained ones. What one
    ray told, the mean of n x n tells where n times as many each way are followed. Others are returned as they are."""
    fresh = places.state_dict()
    state = {**{k: v for k, v in fresh.items() if k.startswith(("bricks", "sky.", "skies"))}, **state}
    for k, v in state.items():  # towns come one after the other
        if k.startswith(("distance", "walkable", "bricks", "tables.", "views", "where.")) and k in fresh:
            state[k] = torch.cat([v, fresh[k][len(v) :].to(v.dtype)]) if v.shape[1:] == fresh[k].shape[1:] else v
    name, rays, look = "paint.0.weight", places.config.rays, places.config.look
    own, weight = fresh[name], state.get(name)
    if weight is None or weight.shape == own.shape:
        return state
    each = (own.shape[1] - look) // rays**2
    fewer = math.isqrt((weight.shape[1] - look) // each)
    if fewer**2 * each + look != weight.shape[1] or not fewer or rays % fewer:
        return state
    n = rays // fewer
    seen = rearrange(weight[:, :-look], "d (p q c) -> d p q c", p=fewer, q=fewer) / n**2
    finer = repeat(seen, "d p q c -> d (p m) (q n) c", m=n, n=n).flatten(1)
    return {**state, name: torch.cat([finer, weight[:, -look:]], dim=1)}


def main() -> None:
    prepare_cpu()
    config, settings, a = read_arguments(
        __doc__, Settings, ("batch", "lr", "table_lr", "seed"), ("data", "vae"), ("places",)
    )
    train(config, a.data, a.vae, a.out, settings, a.steps, a.minutes, a.places)


if __name__ == "__main__":
    main()
