"""The benchmark measures what it says, leaves the worlds alone and prints every figure."""

from __future__ import annotations

import json

import pytest

from yume_gym import benchmark
from yume_gym.benchmark import Age, Result, Setup, Times, report, time_parts
from yume_gym.env import YumeWorldEnv
from yume_gym.street.env import YumeStreetEnv


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "REPEATS", 2)
    monkeypatch.setattr(benchmark, "STREET_BLOCKS", 3)


def result(**changes) -> Result:
    values = dict(
        setup=Setup("a machine", "debug", frames_per_block=4, fps=8),
        blocks=300,
        block=Times(100.0, 120.0),
        frames_per_second=40.0,
        real_time=5.0,
        young=Age(20, Times(100.0, 110.0), Times(200.0, 210.0), 2**30),
        old=Age(300, Times(102.0, 110.0), Times(201.0, 210.0), 2**30),
        parts={"denoising": 60.0},
        street_frames_per_second=160.0,
        block_times=(100.0,) * 300,
    )
    return Result(**{**values, **changes})


def test_command_prints_and_writes_all_figures(small, weights_folder, tmp_path, capsys) -> None:
    path = tmp_path / "figures.json"
    benchmark.main(["--model", str(weights_folder), "--blocks", "6", "--json", str(path)])
    printed = capsys.readouterr().out
    figures = json.loads(path.read_text())
    assert "Model debug, batch 1, 4 frames a block at 8 frames/s, 6 blocks." in printed
    assert (figures["young"]["blocks"], figures["old"]["blocks"]) == (3, 6)
    assert len(figures["block_times"]) == 6
    assert figures["block"]["p90"] >= figures["block"]["median"] > 0
    assert figures["frames_per_second"] == pytest.approx(4000 / figures["block"]["median"])
    assert figures["real_time"] == pytest.approx(figures["frames_per_second"] / 8)
    assert figures["street_frames_per_second"] > 0
    assert len(figures["parts"]) == 3 and all(value > 0 for value in figures["parts"].values())


def test_report_compares_old_and_young() -> None:
    text = report(result())
    assert "| old to young, time | +2.0% |" in text
    assert "| old to young, processor time | +0.5% |" in text
    assert "| x real time | 5.00 |" in text
    assert "| memory after 300 blocks | 1024.0 MiB |" in text
    assert "not known here" in report(result(old=Age(300, Times(1.0, 1.0), Times(1.0, 1.0), None)))


def test_parts_leave_the_world_alone(monkeypatch, world_model, pictures) -> None:
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    state = world_model.start([pictures[0]], [None], [0])
    before = state.worlds.history.latents.clone()
    time_parts(world_model, state)
    assert (state.worlds.history.latents == before).all()
    assert state.steps == (0,)


def test_memory_grows_with_what_is_held() -> None:
    before = benchmark.memory_in_use()
    if before is None:
        pytest.skip("this system does not tell a process's memory")
    held = bytearray(b"x") * 2**26
    after = benchmark.memory_in_use()
    assert after is not None and after - before > len(held) / 2


def test_plot_is_a_picture(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    benchmark.plot(result(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_too_few_blocks_are_refused(weights_folder, capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--blocks", "1"])
    assert "--blocks must be 2 or more" in capsys.readouterr().err
    with pytest.raises(ValueError, match="blocks must be 2 or more, got 1"):
        benchmark.benchmark(YumeWorldEnv(model=weights_folder), YumeStreetEnv(), 1)
