"""Teaches what pictures of the street show, for rewards: `python -m train.picture_heads --model street`.

Two heads on the latents of a model's autoencoder: `beacon` (is a pillar of light in view, how far is it, is it reached) and
`text_goal` (does a text fit the picture). Both learn from rendered views of training towns, are calibrated on other towns, and
measured on a third group. Writes them into the folder of weights, with starting pictures that show a beacon.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import trange

from train.depth import degrade
from train.evaluation.picture_heads import KINDS, beacon_measures, half_and_half, kinds_of, text_measures
from train.evaluation.sheet import to_video
from train.generator.heads import best_threshold
from train.street.towns import REPORT_TOWNS, TRAINING_TOWNS, VALIDATION_TOWNS
from train.street.views import beacon_view, beacon_views, fits, texts, told_views
from world_model.config import ModelConfig
from world_model.model import WorldModel
from world_model.picture_heads import (
    ARRIVED,
    BEACON,
    DISTANCE,
    SEEN,
    TEXT_GOAL,
    PictureHead,
    PictureHeadConfig,
    autoencoder_of,
    encode_text,
    save_picture_head,
)
from world_model.priors.config import places_of
from world_model.rollout import generator
from world_model.weights import find_weights, list_files
from yume_gym.street.simulator import LIGHTS, WEATHERS, StreetSimulator

STARTS = "starts"  # in --heads: no head, the starting pictures alone


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage; views are of each head, held-out ones of each of the two other groups of towns."""

    views: int = 6000
    held_out: int = 1200
    towns: int = 16  # of training; the other groups have a quarter as many
    steps: int = 2500
    batch: int = 128
    lr: float = 2e-3
    blurred: float = 0.4  # share of pictures that are blurred and noised, as generated ones are
    sentences: int = 1500
    starts: int = 16  # starting pictures with a beacon
    start_distances: tuple[float, float] = (8.0, 22.0)  # metres to these beacons
    # starting pictures in any light and weather, the beacon anywhere in view; else a clear view by day
    varied: bool = False
    seed: int = 0

    def groups(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        few = max(1, self.towns // 4)
        return TRAINING_TOWNS[: self.towns], VALIDATION_TOWNS[:few], REPORT_TOWNS[:few]


class Encoder:
    """Pictures as latents of one model, some of them blurred first."""

    def __init__(self, model: WorldModel, settings: Settings) -> None:
        self._model, self._settings = model, settings

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray, blurred: bool = False) -> Tensor:
        """Latents [N, C, h, w] of pictures uint8 [N, H, W, 3]."""
        share, stream = self._settings.blurred if blurred else 0.0, generator("blur", self._settings.seed)
        found = []
        for part in np.array_split(pictures, math.ceil(len(pictures) / 64)):
            video = degrade(to_video(part[:, None])[:, :, 0], share, stream)[:, :, None]
            stride = self._model.config.vae.temporal_stride
            video = video.expand(-1, -1, stride, -1, -1).to(self._model.device)
            found.append(self._model.vae.encode(video)[:, :, 0].float().cpu())
        return torch.cat(found)


def learn(head: PictureHead, count: int, loss_of, settings: Settings, name: str) -> None:
    """Descends `loss_of(numbers of a batch)` out of `count` items."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=0.1)
    stream = generator(name, settings.seed)
    for _ in trange(settings.steps, desc=name, mininterval=5):
        loss = loss_of(torch.randint(count, (min(settings.batch, count),), generator=stream))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    head.eval()


def platt(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """(scale, offset) that make sigmoid(scale * logits + offset) the likeliest probabilities of labels [N] (Platt 1999)."""
    pair = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer, wanted = torch.optim.LBFGS([pair], max_iter=100), torch.from_numpy(labels).float()

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(pair[0] * logits + pair[1], wanted) + 1e-4 * pair[0].square()
        found.backward()
        return found

    optimizer.step(loss)
    scale, offset = pair.tolist()
    return scale, offset


def train_beacon(config: ModelConfig, encode: Encoder, autoencoder: str, settings: Settings) -> PictureHead:
    """The head `beacon`, calibrated and measured."""
    trained, checked, reported = settings.groups()
    views = beacon_views(config, trained, settings.views, settings.seed)
    latents, seen = encode(views.pictures, blurred=True), torch.from_numpy(views.seen)
    arrived, distance = torch.from_numpy(views.arrived), torch.from_numpy(views.distance).log1p()
    head = PictureHead(PictureHeadConfig(config.dit.latent_channels, 3, autoencoder))

    def loss_of(rows: Tensor) -> Tensor:
        found, visible = head(latents[rows]), seen[rows]
        loss = F.binary_cross_entropy_with_logits(found[:, SEEN], visible.float())
        loss = loss + F.binary_cross_entropy_with_logits(found[:, ARRIVED], arrived[rows].float())
        return loss + (found[visible, DISTANCE] - distance[rows][visible]).abs().sum() / len(rows)

    learn(head, len(latents), loss_of, settings, BEACON)
    views = beacon_views(config, checked, settings.held_out, settings.seed + 1)
    with torch.no_grad():
        found = head(encode(views.pictures))
    pairs = (platt(found[:, SEEN], views.seen), platt(found[:, ARRIVED], views.arrived))
    head.config = replace(head.config, calibration=pairs)
    threshold = best_threshold(head.probability(found[:, ARRIVED], ARRIVED).numpy(), views.arrived)
    views = beacon_views(config, reported, settings.held_out, settings.seed + 2)
    with torch.no_grad():
        found = head(encode(views.pictures))
    head.config = replace(head.config, threshold=threshold, measured=beacon_measures(head, found, views))
    return head


def train_text_goal(config: ModelConfig, encode: Encoder, autoencoder: str, settings: Settings) -> PictureHead:
    """The head `text_goal`, calibrated and measured on texts that nothing was trained on."""
    (trained, checked, reported), s = settings.groups(), settings
    bank, new = texts(s.sentences, s.seed)
    words = torch.stack([encode_text(config, text) for text, _ in bank])
    views = told_views(config, trained, s.views, s.seed)
    latents, labels = encode(views.pictures, blurred=True), fits([told for _, told in bank], views.facts)
    kinds = kinds_of([told for _, told in bank])
    sizes = PictureHeadConfig(config.dit.latent_channels, 64, autoencoder, text=words.shape[1], width=48, hidden=128)
    head = PictureHead(sizes)
    sharp = torch.nn.Parameter(torch.tensor([10.0, -5.0]))
    head.register_parameter("sharp", sharp)
    rng = np.random.default_rng([s.seed, 4])

    def loss_of(rows: Tensor) -> Tensor:
        said = drawn_texts(labels[rows.numpy()], kinds, rng)
        logits = sharp[0] * head.likeness(latents[rows], words[said]) + sharp[1]
        wanted = torch.from_numpy(labels[rows.numpy()][:, said]).float()
        return balanced(logits, wanted)

    learn(head, len(latents), loss_of, s, TEXT_GOAL)
    del head.sharp
    fresh = torch.stack([encode_text(config, text) for text, _ in new])

    @torch.no_grad()
    def compared(towns: Sequence[int], seed: int) -> tuple[Tensor, np.ndarray]:
        shown = told_views(config, towns, s.held_out, seed)
        return head.likeness(encode(shown.pictures), fresh), fits([told for _, told in new], shown.facts)

    likeness, labels_checked = compared(checked, s.seed + 1)
    rows, columns = half_and_half(labels_checked, rng)
    pair = platt(likeness[rows, columns], labels_checked[rows, columns])
    head.config = replace(head.config, calibration=(pair,))
    measured = text_measures(head, *compared(reported, s.seed + 2), [told for _, told in new], rng)
    head.config = replace(head.config, threshold=0.8, measured=measured)
    return head


def drawn_texts(labels: np.ndarray, kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of as many texts as there are views in labels [views, texts]. All kinds of texts come equally often, and half of
    the texts fit the view of the same place where there is such a text."""
    by_kind = [np.flatnonzero(kinds == kind) for kind in KINDS]
    said = np.empty(len(labels), int)
    for row, fitting in enumerate(labels):
        own = by_kind[int(rng.integers(len(KINDS)))]
        among = own[fitting[own]] if row % 2 else own
        said[row] = rng.choice(among if len(among) else own)
    return said


def balanced(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy in which fitting and unfitting pairs weigh the same."""
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (loss * wanted).sum() / wanted.sum().clamp(min=1) + (loss * (1 - wanted)).sum() / (1 - wanted).sum().clamp(
        min=1
    )


def beacon_starts(config: ModelConfig, towns: Sequence[int], settings: Settings) -> np.ndarray:
    """Starting pictures uint8 [settings.starts, H, W, 3] with a beacon: near the middle of a clear view by day, or varied."""
    rng, s = np.random.default_rng([settings.seed, 5]), settings
    found: list[np.ndarray] = []
    streets = [StreetSimulator.like(config, town) for town in towns]
    lights, weathers, off = (LIGHTS, WEATHERS, 0.5) if s.varied else (("day", "overcast", "golden"), ("clear",), 0.25)
    while len(found) < s.starts:
        street = streets[len(found) % len(streets)]
        _, _, distance = beacon_view(street, rng)
        now, light = street.get_state(), str(rng.choice(lights))
        weather = str(rng.choice(weathers)) if s.varied else "clear"
        street.set_state(replace(now, light="day", weather="clear", pitch=0.0))
        street.reset(rng, light=light, weather=weather, position=(now.x, now.z), yaw=now.yaw)
        bare = street.render()
        street.beacon(now.beacon)
        picture = street.render()
        changed = np.abs(picture.astype(np.int16) - bare).max(axis=-1) >= 40
        columns = np.flatnonzero(changed.any(axis=0))
        whole = changed.any(axis=1).mean() > 0.5  # from the sky to the ground
        near = s.start_distances[0] <= distance <= s.start_distances[1]
        if near and whole and len(columns) and abs(columns.mean() / config.width - 0.5) < off:
            found.append(picture)
    return np.stack(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a name or a folder of weights")
    parser.add_argument("--views", type=int, default=Settings.views)
    parser.add_argument("--held-out", type=int, default=Settings.held_out)
    parser.add_argument("--towns", type=int, default=Settings.towns)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--starts", type=int, default=Settings.starts, help="starting pictures with a beacon")
    parser.add_argument(
        "--start-distances", type=float, nargs=2, default=Settings.start_distances, metavar=("LEAST", "MOST"), help="m"
    )
    parser.add_argument("--varied", action="store_true", help="starting pictures in any light and weather")
    parser.add_argument(
        "--heads",
        nargs="+",
        choices=(BEACON, TEXT_GOAL, STARTS),
        default=[BEACON, TEXT_GOAL],
        help=f"{BEACON} writes {STARTS}",
    )
    given = vars(parser.parse_args(argv))
    given["start_distances"] = tuple(given["start_distances"])
    folder, heads = find_weights(given.pop("model")), given.pop("heads")
    try:
        train_heads(folder, heads, Settings(**given))
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def train_heads(folder: Path, heads: Sequence[str], settings: Settings) -> None:
    """Trains these heads of a weights folder and writes them into it. Raises ValueError for a model of another world than the
    street, or one without texts where texts are to be compared."""
    torch.manual_seed(settings.seed)
    model = WorldModel.load(folder, device="cpu", dtype="float32")
    if model.config.action.kind != "first_person":
        raise ValueError(f"{model.config.name!r} is no model of the street: its rewards come with its recording")
    encode, autoencoder = Encoder(model, settings), autoencoder_of(folder)
    if TEXT_GOAL in heads and model.config.text.kind == "none":
        raise ValueError(f"{model.config.name!r} was trained without text: --heads {BEACON}")
    if BEACON in heads or STARTS in heads:
        places = places_of(model.config)  # towns that the model knows, if it knows any
        towns = settings.groups()[1] if places is None else places.towns
        pictures = beacon_starts(model.config, towns, settings)
        Image.fromarray(pictures.reshape(-1, *pictures.shape[2:])).save(folder / "beacon.png", optimize=True)
        list_files(folder)
    for name in [name for name in heads if name != STARTS]:
        head = {BEACON: train_beacon, TEXT_GOAL: train_text_goal}[name](model.config, encode, autoencoder, settings)
        save_picture_head(folder, name, head)
        print(name, json.dumps(head.config.measured, indent=1))


if __name__ == "__main__":
    main()
