"""Many towns together: figures of known numbers, and the command's page."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from train import evaluate
from train.evaluation import towns
from train.evaluation.parts import Settings
from train.evaluation.towns import Found, town_settings
from train.evaluation.walks import Plan
from train.judge.network import WEIGHTS
from train.street.towns import REPORT_TOWNS, TRAINING_TOWNS, VALIDATION_TOWNS

SECONDS = 0.5


def town(number: int, blocks: int = 20) -> Found:
    """A dream that obeys half of the time, is half as sharp, and whose features are those of the street, shifted."""
    rng = np.random.default_rng(number)
    action = rng.integers(81, size=blocks)
    features = rng.normal(size=(blocks, 4)).astype(np.float32)

    def walk(said: np.ndarray, sharpness: float, shift: float, psnr: float) -> dict[str, np.ndarray]:
        names = {"action": action, "said": said, "sharpness": np.full(blocks, sharpness), "psnr": np.full(blocks, psnr)}
        pictures = np.zeros((2, 2, 8, 8, 3), np.uint8)
        return {**names, "features": features + np.float32(shift), "pictures": pictures}

    half = np.where(np.arange(blocks) % 2, action, (action + 1) % 81)
    walks = {
        "street": walk(action, 10.0, 0.0, 60.0),
        "dream": walk(half, 5.0, 2.0, 20.0 + number),
        "frozen": walk(np.full(blocks, -1), 10.0, 9.0, 15.0),
    }
    near = {"turn_2": {"return": 1.0, "away": 4.0, "unrelated": 5.0}}
    far = {"turn_2": {"return": 3.0, "away": 4.0, "unrelated": 5.0}}
    rows = [
        {
            "kind": "rain",
            "phrasing": p,
            "seen": p == "seen",
            "first_block": 1,
            "gone": None,
            "imagined": False,
            "control": 1.0,
            "control_without": 1.0,
            "return_distance": 0.0,
            "during_distance": 0.0,
        }
        for p in ("seen", "unseen")
    ]
    return Found(
        walks=walks,
        real={"features": rng.normal(size=(60, 4)).astype(np.float32)},
        memory={"street": near, "dream": far, "frozen": near},
        events={name: rows for name in towns.WORLDS} if number else {},
        starts={"dream": {"mean": 0.5}, "street": {"mean": 1.0}},
    )


def test_figures_of_known_numbers(tmp_path):
    found = [town(0), town(2)]
    rows = towns.figures(found, SECONDS)
    value = {what: worlds["dream"][0] for what, worlds in rows.items()}
    assert value["control, share of the street's, first 5 s"] == pytest.approx(0.5)
    assert value["PSNR, block 1, dB"] == 21.0 and value["sharpness, share of the street's, 0 to 10 s"] == 0.5
    assert value["Fréchet distance over the street's, 0 to 10 s"] > 2
    assert value["look away for two blocks and back: score"] == pytest.approx(0.5)
    assert (value["events seen, phrasings of training"], value["events seen, unseen phrasings"]) == (1.0, 0.0)
    assert np.isnan(value["control, at 10 min"]) and np.isnan(rows["text start: light, weather, district"]["frozen"][0])
    low, high = rows["PSNR, block 1, dB"]["dream"][1:]
    assert (low, high) == (20.0, 22.0)
    page = towns.write(tmp_path, "toy", found, SECONDS)
    assert "| PSNR, block 1, dB | >= 26 | 21 (20 to 22) | 60 (60 to 60) |" in page
    assert (tmp_path / "sheets" / "walks.png").exists() and (tmp_path / "towns.md").read_text() == page


def test_towns_are_for_one_purpose_each():
    sets = [set(part) for part in (TRAINING_TOWNS, VALIDATION_TOWNS, REPORT_TOWNS)]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_the_first_towns_are_walked_longer():
    settings = Settings(Plan(horizon=60.0))
    one, other = (town_settings(settings, 3000, number, 1) for number in (0, 1))
    assert (one.walks.horizon, other.walks.horizon, one.walks.count) == (600.0, 60.0, 1) and one.town == 3000


def asked_for(**values) -> argparse.Namespace:
    given = {"model": "nothing", "towns": "validation", "count": 5, "defects": False, "judge": WEIGHTS, "steps": None}
    return argparse.Namespace(**{**given, "horizon": 1.0, "long": 0, "without": None, "out": Path("out"), **values})


def test_workers_share_the_towns(monkeypatch):
    shares = []
    monkeypatch.setattr(evaluate, "load", lambda given: (given.model, {}))
    monkeypatch.setattr(towns, "evaluate_towns", lambda *words: shares.append(list(words[-1])))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for first in range(3):
        evaluate.measure_share(asked_for(workers=3), towns.Plan(Settings(), VALIDATION_TOWNS[:5]), first)
    assert shares == [[0, 3], [1, 4], [2]]


def test_workers_that_fail_are_counted(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 workers failed"):
        evaluate.measure_towns(None, {}, asked_for(workers=2, out=tmp_path), Settings())


def test_workers_are_for_towns(capsys):
    for words in (["--workers", "2"], ["--towns", "report", "--workers", "0"]):
        with pytest.raises(SystemExit):
            evaluate.main(["street", "--out", "out", *words])
        assert "--workers is 1 or more and serves --towns" in capsys.readouterr().err
