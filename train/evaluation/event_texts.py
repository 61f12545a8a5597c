"""Why are texts of events hard for the head `text_goal`? `python -m train.evaluation.event_texts [--model street] [--views 375]`

Says how much of a view each event changes, and how well the head tells events: on views and texts that it was trained on, and on
new ones. What is right on neither was not learnt; what is right on the first alone was learnt by heart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from train.evaluation.picture_heads import text_measures
from train.picture_heads import Encoder, Settings
from train.street.towns import REPORT_TOWNS, TRAINING_TOWNS
from train.street.views import EVENT_STEPS, LIGHTS, WEATHERS, Facts, event_facts, fits, texts, told_views
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.model import WorldModel
from world_model.picture_heads import TEXT_GOAL, PictureHead, encode_text, load_picture_head
from world_model.weights import find_weights
from yume_gym.street.event_kinds import KINDS
from yume_gym.street.simulator import StreetSimulator

CHANGED = 24  # grey levels by which a pixel differs
SEEN = 0.01  # of the pixels, from which an event counts as seen
OWN_KINDS = tuple(kind for kind in KINDS if set(event_facts(kind)) == {"event"})  # others are told by light and weather


def changed_shares(config: ModelConfig, towns: Sequence[int], kind: str, views: int, seed: int) -> np.ndarray:
    """Share of the pixels [views] that an event changes, of views as `told_views` makes them."""
    rng, shares = np.random.default_rng([seed, 6]), []
    streets = [StreetSimulator.like(config, town) for town in towns]
    for number in range(views):
        street = streets[number % len(streets)]
        street.reset(rng, light=str(rng.choice(LIGHTS)), weather=str(rng.choice(WEATHERS)))
        begun, steps, pictures = street.get_state(), int(rng.integers(*EVENT_STEPS)), []
        for event in (None, kind):
            street.set_state(begun)
            street.set_event(event)
            for _ in range(steps):
                street.set_state(street.ahead(Action.from_keys("", ""))[0][-1])
            pictures.append(street.render().astype(np.int16))
        shares.append((np.abs(pictures[1] - pictures[0]).max(axis=-1) >= CHANGED).mean())
    return np.array(shares)


def named_right(likeness: np.ndarray, told: Sequence[Facts], shown: Sequence[Facts]) -> tuple[int, float]:
    """(views with an event that some text tells, share of them whose own event's texts are the likest on average)."""
    kinds = np.array([facts["event"] for facts in told])
    names = sorted(set(kinds))
    means = np.stack([likeness[:, kinds == name].mean(axis=1) for name in names], axis=1)
    right = [names[int(row.argmax())] == facts["event"] for row, facts in zip(means, shown) if facts["event"] in names]
    return len(right), float(np.mean(right)) if right else float("nan")


def report(model: WorldModel, head: PictureHead, views: int, shown: int, settings: Settings) -> str:
    """Both tables as Markdown. `views`: of each group; those of training are the first of the first town."""
    config, rng = model.config, np.random.default_rng(0)
    lines = ["| event | pixels that it changes (median) | seen in |", "|---|---:|---:|"]
    for kind in OWN_KINDS:
        shares = changed_shares(config, REPORT_TOWNS[:2], kind, shown, settings.seed)
        lines.append(f"| {kind} | {np.median(shares):.1%} | {(shares >= SEEN).mean():.0%} |")
    lines += ["", f"| views | texts | average precision | one of {len(OWN_KINDS)} named right |", "|---|---|---:|---:|"]
    encode, (trained, held_out) = Encoder(model, settings), texts(settings.sentences, settings.seed)
    groups = {
        "of training": told_views(config, TRAINING_TOWNS[:1], views, settings.seed),
        "new": told_views(config, REPORT_TOWNS[:1], views, settings.seed + 3),
    }
    for name, group in groups.items():
        latents = encode(group.pictures)
        for kind, bank in (("of training", trained), ("new", held_out)):
            told = [(text, facts) for text, facts in bank if set(facts) == {"event"}]
            with torch.no_grad():
                likeness = head.likeness(latents, torch.stack([encode_text(config, text) for text, _ in told]))
            labels = fits([facts for _, facts in told], group.facts)
            precision = text_measures(head, likeness, labels, [facts for _, facts in told], rng)[
                "all/average_precision"
            ]
            count, share = named_right(likeness.numpy(), [facts for _, facts in told], group.facts)
            lines.append(f"| {name} | {kind} | {precision:.2f} | {share:.0%} of {count} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a name or a folder of weights, with the head text_goal")
    parser.add_argument("--views", type=int, default=375, help="of each group (375 of a town were trained on)")
    parser.add_argument("--shown", type=int, default=16, help="views of each event")
    given = parser.parse_args(argv)
    model = WorldModel.load(given.model, device="cpu", dtype="float32")
    head = load_picture_head(find_weights(given.model), TEXT_GOAL)
    print(report(model, head, given.views, given.shown, Settings()))


if __name__ == "__main__":
    main()
