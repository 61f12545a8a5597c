"""How good picture heads are (`python -m train.picture_heads`): figures on views that nothing was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from train.generator.measures import average_precision, calibration_error
from train.street.views import BeaconViews, Facts
from world_model.picture_heads import ARRIVED, DISTANCE, SEEN, PictureHead

SEVERAL = "several facts"
KINDS = ("light", "weather", "district", "event", SEVERAL)  # of texts


def beacon_measures(head: PictureHead, found: Tensor, views: BeaconViews) -> dict[str, float]:
    """Average precision and calibration error of both probabilities, and the median error of distances in view, by distance.

    `found` [N, 3] is what the head says of the views.
    """
    measured = {"views": float(len(views.seen))}
    for number, name, labels in ((SEEN, "seen", views.seen), (ARRIVED, "arrived", views.arrived)):
        probability = head.probability(found[:, number], number).numpy()
        measured[f"{name}/share"] = float(labels.mean())
        measured[f"{name}/average_precision"] = average_precision(probability, labels)
        measured[f"{name}/calibration_error"] = calibration_error(probability, labels)
    error = (found[:, DISTANCE].expm1().numpy() - views.distance).__abs__()
    for low, high in ((0, 5), (5, 20), (20, 60)):
        own = views.seen & (views.distance >= low) & (views.distance < high)
        if own.any():
            measured[f"distance error/{low} to {high} m"] = float(np.median(error[own]))
    return {name: round(value, 4) for name, value in measured.items()}


def kinds_of(told: Sequence[Facts]) -> np.ndarray:
    """One of `KINDS` for each text: what it tells of."""
    return np.array([next(iter(facts)) if len(facts) == 1 else SEVERAL for facts in told])


def half_and_half(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(views, texts) of all fitting pairs of labels [views, texts], and of as many drawn others."""
    fitting, others = np.argwhere(labels), np.argwhere(~labels)
    drawn = others[rng.choice(len(others), size=min(len(fitting), len(others)), replace=False)]
    views, told = np.concatenate([fitting, drawn]).T
    return views, told


def text_measures(
    head: PictureHead, likeness: Tensor, labels: np.ndarray, told: Sequence[Facts], rng: np.random.Generator
) -> dict[str, float]:
    """Of half fitting, half other pairs, average precision and calibration error of all texts; of texts of one kind of fact,
    average precision and how many there are."""
    measured = {"texts": float(len(told)), "views": float(len(labels))}
    groups = {name: np.flatnonzero(kinds_of(told) == name) for name in KINDS}
    for name, own in {"all": np.arange(len(told)), **groups}.items():
        if not len(own) or not labels[:, own].any():
            continue
        rows, columns = half_and_half(labels[:, own], rng)
        probability, wanted = head.probability(likeness[:, own][rows, columns]).numpy(), labels[:, own][rows, columns]
        measured[f"{name}/average_precision"] = average_precision(probability, wanted)
        measured[f"{name}/right"] = float(((probability >= 0.5) == wanted).mean())
        if name == "all":
            measured["calibration_error"] = calibration_error(probability, wanted)
    return {name: round(value, 4) for name, value in measured.items()}
