"""The benchmark of vector environments, on the small world: it measures every kind and writes what it says."""

from __future__ import annotations

import json

import pytest

from yume_gym import process_benchmark, sampler_benchmark, vector_benchmark
from yume_gym.vector_benchmark import ASYNC, BATCH, INVARIANT, SYNC, Result, Row, report


def test_every_kind_is_measured_and_written(weights_folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    vector_benchmark.main(
        [
            "--model",
            str(weights_folder),
            "--worlds",
            "1",
            "2",
            "--rounds",
            "1",
            "--steps",
            "2",
            "--others-up-to",
            "1",
            "--processor",
            "--json",
            str(figures),
            "--plot",
            str(picture),
        ]
    )
    rows = json.loads(figures.read_text())["rows"]
    kinds = {(row["kind"], row["worlds"]) for row in rows}
    assert kinds == {(kind, 1) for kind in (BATCH, INVARIANT, SYNC, ASYNC)} | {(BATCH, 2)}
    assert all(row["steps_per_second"] > 0 and row["ratio"] > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| 2 |" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_number_and_a_gap_where_nothing_was_measured():
    rows = (Row(BATCH, 1, 4.04, 1.0), Row(ASYNC, 1, 3.0, 0.75), Row(BATCH, 8, 12.0, 3.0))
    lines = report(Result("a machine", "street", 3, 4.0, rows)).splitlines()
    assert lines[-2:] == ["| 1 | 4.0 (1.00) | 3.0 (0.75) |", "| 8 | 12.0 (3.00) |  |"]


@pytest.mark.parametrize(("worlds", "rounds"), [([], 1), ([0], 1), ([2], 0)])
def test_nothing_to_measure_is_refused(world_model, worlds, rounds):
    with pytest.raises(ValueError, match="1 or more"):
        vector_benchmark.benchmark(world_model, worlds, rounds)


def test_a_process_is_measured_and_its_threads_told(weights_folder):
    row = process_benchmark.measure(str(weights_folder), processes=1, steps=1, told=True)
    assert row.threads == 1 and row.by_clock > 0 and row.by_processor > 0
    two = process_benchmark.Row(2, True, row.by_clock * 1.6, row.by_processor, 1)
    assert "| 2 | 1 | 1 |" in process_benchmark.report([row, two]) and "| 1.60 |" in process_benchmark.report(
        [row, two]
    )


def test_numbers_of_denoising_steps_are_compared(world_model):
    rows = sampler_benchmark.benchmark(world_model, (1, 2), walks=1, blocks=2)
    assert [row.steps for row in rows] == [1, 2] and all(row.milliseconds > 0 and row.sharpness > 0 for row in rows)
    assert "| 2 |" in sampler_benchmark.report(rows)
    with pytest.raises(ValueError, match="1 or more"):
        sampler_benchmark.benchmark(world_model, (1,), walks=0)
