"""The measurement for a GPU, run whole on a shrunken 5B on the CPU: every figure that it lists is there."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")

from shrunken import SHRUNKEN

from world_model.blocks import Block
from world_model.cost import measure
from world_model.cost.costs import count_block


def test_every_figure_of_the_real_size_is_measured_at_a_tiny_one(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 1)
    compiled = []
    monkeypatch.setattr(Block, "compile", lambda self, **how: compiled.append(how))  # a compiler takes a minute
    config = SHRUNKEN.resized((32, 32))
    (tmp_path / "config.json").write_text(config.to_json())
    given = [str(tmp_path / "config.json"), "--history", "9", "--device", "cpu", "--compile", "no", "inductor"]
    measure.main([*given, "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    told = {(row["attention"], row["compiled"], row["steps"]) for row in found["blocks"]}
    assert told == {(a, c, s) for a in ("joint", "cached") for c in (False, "inductor") for s in (4, 2)}
    joint = next(row for row in found["blocks"] if (row["attention"], row["steps"]) == ("joint", 4))
    assert joint["flops"] == count_block(config, 9).flops
    assert all(row["seconds"] > 0 and row["frames_per_second"] > 0 for row in found["blocks"])
    assert found["decode"]["seconds"] > 0 and found["foundation_step"]["seconds"] > 0
    assert joint["share_of_peak"] is None and joint["bytes"] is None  # a CPU's are not known
    assert compiled == [{"backend": "inductor", "dynamic": True}] * 2 * config.dit.layers
