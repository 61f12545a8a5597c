"""What events change in a picture, and whether a head tells them: the figures behind docs/rewards.md."""

from __future__ import annotations

import numpy as np

from train.evaluation.event_texts import OWN_KINDS, changed_shares, main, named_right
from world_model.presets import get_preset


def test_an_event_that_fills_the_view_changes_more_than_a_passing_one():
    fire, car = (changed_shares(get_preset("street"), (2000,), kind, 6, 0) for kind in ("fire", "car"))
    assert fire.shape == (6,) and np.median(fire) > 0.03 > np.median(car)
    assert "night" not in OWN_KINDS and "dinosaur" in OWN_KINDS


def test_the_event_whose_texts_are_likest_is_named():
    told = [{"event": "fire"}, {"event": "fire"}, {"event": "ufo"}]
    shown = [{"event": "fire"}, {"event": "ufo"}, {"event": None}, {"event": "tram"}]
    likeness = np.array([[0.9, 0.1, 0.4], [0.9, 0.9, 0.2], [1, 1, 1], [1, 1, 1]])
    assert named_right(likeness, told, shown) == (2, 0.5)


def test_both_tables_are_printed(capsys):
    main(["--views", "48", "--shown", "1"])
    printed = capsys.readouterr().out
    assert all(f"| {kind} |" in printed for kind in OWN_KINDS)
    assert printed.count(" of ") >= 4 and "| new | of training |" in printed
