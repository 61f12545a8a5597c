"""The benchmark of play reports what was seen."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from yume_gym.play import benchmark
from yume_gym.play.dreamer import Dreamer
from yume_gym.play.pace import SMOOTH

pytest.importorskip("pygame", reason="the play window needs pygame: pip install 'yume-gym[play]'")


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(benchmark, "WARM_UP", 0.5)


def test_table_of_one_and_of_two_players(weights_folder, tmp_path, capsys) -> None:
    path = tmp_path / "flow.json"
    benchmark.main(["--model", str(weights_folder), "--seconds", "4", "--players", "1", "2", "--json", str(path)])
    table = capsys.readouterr().out
    assert "| | 1 player, window | 2 players, loop |" in table
    assert re.search(rf"frames within {SMOOTH} periods of the one before \| [\d.]+% \| [\d.]+% \|", table)
    window, loop = json.loads(path.read_text())
    for flow in (window, loop):
        display, latency = flow["display"], flow["latency"]
        assert 0 < display["frames"] <= 4 * 8 + 4
        assert 0 < display["fps"] < 9 and 0 <= display["smooth"] <= 1
        assert 0 < latency["median"] <= latency["p95"] <= latency["longest"]
        assert flow["memory"]["begin"] and flow["memory"]["end"]


def test_flow_is_of_the_player_who_fared_worst(fast_model) -> None:
    even, uneven = benchmark.Seen(), benchmark.Seen()
    period = 1 / fast_model.config.fps
    even.times = list(np.arange(100) * period)
    uneven.times = list(np.cumsum([period] * 60 + [2 * period] * 20))
    even.delays = [0.25]
    memory = benchmark._MemoryAt(0.0)
    with Dreamer(fast_model, max_sessions=2) as dreamer:
        flow = benchmark._flow(dreamer, "loop", 1.0, [even, uneven], memory, dreamer.open(), dreamer.open())
    display = flow.display
    assert (flow.players, display.frames, flow.latency.longest) == (2, 80, 0.25)
    assert display.smooth == pytest.approx(59 / 79) and display.longest == pytest.approx(2 * period)
    assert display.fps == pytest.approx(79 / (99 * period), rel=0.01)
    assert "59" not in benchmark.report([flow], "head") and "74.68%" in benchmark.report([flow], "head")


@pytest.mark.parametrize("arguments", [["--players", "0"], ["--seconds", "0"]])
def test_benchmark_refuses(arguments, capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert "must be positive" in capsys.readouterr().err
