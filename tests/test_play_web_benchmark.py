"""The figures of the browser benchmark, from times that are known."""

from __future__ import annotations

import numpy as np

from yume_gym.play.web_benchmark import Seen, report


def test_a_late_picture_is_a_stutter_and_lowers_the_rate():
    period = 125.0
    even = Seen(np.arange(81) * period, np.array([400.0, 600.0, 500.0]), 0, fps=8, block=0.5)
    assert (even.rate, even.smooth) == (8.0, 1.0)
    late = np.where(np.arange(81) > 40, period, 0.0)  # all from the 41st on come a period later
    once_late = Seen(even.shown + late, even.delays, 0, fps=8, block=0.5)
    assert once_late.smooth == 79 / 80 and once_late.rate < 8
    assert Seen(np.array([5.0]), np.array([]), 0, fps=8, block=0.5).rate == 0
    text = report(once_late, [even, even], (2**20, None), "a machine")
    assert (
        "98.75% of 81" in text and "500 ms, 1.00 blocks" in text and "8.00, 8.00" in text and "1 MiB / unknown" in text
    )
