"""What a person sees wrong: each figure on pictures of which it is known, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from street_judge import judge_fixture  # noqa: F401  (a fixture)

from train import evaluate as evaluation
from train.evaluation import defect_figures as figures
from train.evaluation import defect_rows, defect_trials, defects
from train.evaluation.defect_rows import Town, table
from train.evaluation.defect_trials import NOTHING, OTHERS, UNDERSTOOD, Part, Plan, roll_out, scripts, told
from train.evaluation.worlds import Frozen, Scene
from train.judge.data import THINGS
from train.judge.network import Judge
from train.street.towns import REPORT_TOWNS
from world_model.actions import Action
from yume_gym.street.simulator import LIGHTS, WEATHERS

BLOCK, HEIGHT, WIDTH = 4, 32, 48
SHORT = Plan(before=1.0, text=1.0, event=1.5, after=0.5, still=3.0, walk=1.0, wall=1.5, picture=0.5)


def grey(levels: np.ndarray) -> np.ndarray:
    """Pictures uint8 [T, H, W, 3] of levels that broadcast to [T, H, W]."""
    levels = np.asarray(levels, float)
    shape = (len(levels), HEIGHT, WIDTH)
    return (
        np.broadcast_to(levels.reshape(len(levels), *(levels.shape[1:] or (1, 1))), shape)[..., None]
        .repeat(3, -1)
        .astype(np.uint8)
    )


def chequered(height: float) -> np.ndarray:
    """[H, W]: +height and -height from pixel to pixel."""
    return height * (1 - 2.0 * (np.indices((HEIGHT, WIDTH)).sum(axis=0) % 2))


class TestFigures:
    def test_pulse_at_block_borders(self):
        levels = [100]
        for _ in range(3):  # 6 up at the border, then 2 down three times
            levels += [levels[-1] + 6, levels[-1] + 4, levels[-1] + 2, levels[-1]]
        border, inside = figures.border_changes(grey(np.array(levels)), BLOCK)
        assert (border, inside) == (pytest.approx(6, abs=1e-3), pytest.approx(2, abs=1e-3))

    def test_grid(self):
        slope, step = 2.0, 3.0
        across, down = np.arange(WIDTH), np.arange(HEIGHT)
        columns = slope * across + step * (across // 8)
        assert figures.grid_energy(grey(np.broadcast_to(columns, (1, HEIGHT, WIDTH)))) > 1
        both = grey((columns[None] + slope * down[:, None] + step * (down // 8)[:, None])[None] / 1.0)
        assert figures.grid_energy(both) == pytest.approx((slope + step) / slope, rel=1e-4)
        even = grey((slope * across[None] + slope * down[:, None])[None])
        assert figures.grid_energy(even) == pytest.approx(1, rel=1e-4)
        assert np.isnan(figures.grid_energy(grey(np.array([7]))))

    def test_rain_is_fine_and_a_change_of_brightness_is_not(self):
        assert figures.fine_change(grey(np.array([10, 60, 110]))) == pytest.approx(0, abs=1e-4)
        # a chequerboard that turns over: its blur is nothing but at the edges
        drops = grey(np.stack([100 + chequered(h) for h in (5, -5, 5)]))
        assert figures.fine_change(drops) == pytest.approx(10, rel=0.02)

    def test_stuck_counts_free_blocks_only(self):
        change, free = np.array([0.0, 0.5, 2.0, 9.0, 0.0]), np.array([True, True, True, True, False])
        assert figures.stuck(change, free) == 0.5
        assert np.isnan(figures.stuck(change, np.zeros(5, bool)))

    def test_how_long_a_start_is_kept(self):
        # 15 dB is an error of 45.3 grey levels
        assert figures.kept(grey(np.array([100, 120, 145, 146, 100])), fps=8) == 3 / 8
        assert figures.kept(grey(np.array([100, 120, 140])), fps=8) == 2 / 8

    def test_deviations(self):
        assert figures.deviations(grey(np.stack([100 + chequered(7)]))) == pytest.approx([7], rel=1e-4)


class Answering:
    """An environment that knows the first of the texts, refuses the second, and says of the others that it knows none."""

    def reset(self, *, seed, options):
        self.event = None

    def trigger_event(self, text):
        if text == OTHERS[1]:
            raise ValueError("cannot be drawn")
        self.event = text

    def step(self, action):
        return None, 0.0, False, False, {UNDERSTOOD: self.event == OTHERS[0]}


def test_what_is_told_of_texts():
    assert told(Answering(), {}) == [False, True, True, True, True]


@pytest.fixture
def town(config, judge):
    """A dream with known defects beside a street without any; pictures of one size, all blocks of `SHORT`."""
    lengths = {name: 1 + BLOCK * sum(p.blocks for p in parts) for name, parts in scripts(SHORT, config).items()}
    begin = BLOCK * 2

    def rollout(pictures: np.ndarray, moved: float) -> dict[str, np.ndarray]:
        blocks = (len(pictures) - 1) // BLOCK
        return {
            "pictures": pictures,
            "change": figures.changes(pictures),
            "deviation": figures.deviations(pictures[1:]),
            "moved": np.full(blocks, moved),
        }

    def make(dream: bool) -> dict[str, dict[str, np.ndarray]]:
        pattern, made = chequered(20.0), {}
        for name, length in lengths.items():
            time = np.arange(length)
            level = 100.0 + 2.0 * (time % 2)  # people move: every picture differs by 2
            contrast = np.full(length, 1.0)
            if dream and name in ("text_0", "text_1"):
                level[begin + 1 :] += 10  # a jump besides
                contrast[begin + 1 :] = 0.5
            if dream and name == "event_fog":
                level += 7 * (time > begin)
            if dream and name == "turn":
                level += 25.5 * (time > BLOCK)
            if dream and name in ("walk", "still"):
                contrast[:] = 0.5
            if name == "wall":
                level = 100.0 + (0 if dream else 6.0) * (time % 2)
                contrast[:] = 0.1 if dream else 1.0
            if name == "event_heavy_rain":
                contrast = 1 + (0.05 if dream else 0.2) * (time % 2)
            made[name] = rollout(grey(level[:, None, None] + contrast[:, None, None] * pattern), 1.25)
        return made

    start = {"pictures": grey(np.array([100, 120, 200, 100, 100])), "seconds": np.array(3.0)}
    return Town(
        rollouts={"dream": make(True), "street": make(False)},
        starts={defect_trials.SMOOTH: start, defect_trials.PHOTOGRAPH: start},
        answers={"dream": [False, True], "street": [True, True]},
        plan=SHORT,
        config=config,
        judge=judge,
    )


def test_rows_of_known_figures(town):
    values = {
        row.name: tuple(row.figure(town, world) for world in defects.WORLDS)
        for row in table(SHORT)
        if row.name != "unasked"
    }
    known = {
        "not_understood": (0.5, 1.0),
        # pixels of +20 and -20 become +10 and -10, and the level rises by 12: 12 over 2 levels without a text
        "text_jump": (6.0, 1.0),
        "text_sharpness": (0.5, 1.0),
        # 7 levels brighter, on pixels of +20 and -20 where the one that stands still has +10 and -10: (17 + 3) / 2
        "ended_fog": (10.0, 0.0),
        "ended_night": (10.0, 0.0),
        "sharp_walk": (0.5, 1.0),
        "sharp_still": (0.5, 1.0),
        "border": (2.0, 2.0),
        "inside": (2.0, 2.0),
        "unsteadiness": (1.0, 1.0),
        "stuck": (1.0, 0.0),
        "wall_change": (0.0, 1.0),
        "uniform": (1.0, 0.0),
        "reset": (3.0, np.nan),
        "kept_smooth": (2 / 8, np.nan),
        "kept_photograph": (2 / 8, np.nan),
        "falling_rain": (0.25, 1.0),
    }
    for name, pair in known.items():
        assert values[name] == pytest.approx(pair, rel=0.03, abs=0.02, nan_ok=True), name
    assert values["turn"] == (pytest.approx(20, abs=0.2), 60.0)  # 25 of 255 levels are 20 dB


class SeesGhosts:
    """A judge that sees a ghost in a bright picture, and fog on an overcast day always."""

    def read(self, frames: np.ndarray) -> SimpleNamespace:
        things = np.zeros((len(frames), len(THINGS)))
        things[frames[:, -1].mean(axis=(1, 2, 3)) > 150, THINGS.index("ghost")] = 1.0
        light, weather = (np.full(len(frames), k) for k in (LIGHTS.index("overcast"), WEATHERS.index("fog")))
        return SimpleNamespace(things=things, light=light, weather=weather)


def test_events_that_were_not_asked_for(town):
    """A ghost is seen with three of the five other texts; the fog is there without a text, too."""
    bright = {f"text_{len(NOTHING) + k}": grey(np.full(1 + BLOCK * 4, 200)) for k in (0, 2, 3)}
    dream = {**town.rollouts["dream"], **{name: {"pictures": pictures} for name, pictures in bright.items()}}
    seen = replace(town, judge=SeesGhosts(), rollouts={**town.rollouts, "dream": dream})
    assert defect_rows.seen_kinds(seen, "dream", "still") == {"fog"}
    assert (defect_rows.unasked(seen, "dream"), defect_rows.unasked(seen, "street")) == (pytest.approx(0.6), 0.0)


def test_a_rollout_has_the_scene_first(config):
    picture = grey(np.array([9]))[0]
    arrays = roll_out(Frozen(BLOCK), Scene(None, picture, 0), [Part(Action(), 2, "night"), Part(Action(), 1)])
    assert arrays["pictures"].shape == (13, HEIGHT, WIDTH, 3) and (arrays["pictures"] == 9).all()
    assert (arrays["change"] == 0).all() and len(arrays["change"]) == 12 and np.isnan(arrays["moved"]).all()
    assert not len(roll_out(Frozen(BLOCK), Scene(None, picture, 0), [Part(Action(), 1)], keep=False)["pictures"])


def test_a_plan_has_something_to_compare_with():
    with pytest.raises(ValueError, match=r"still is 3.0 s, shorter than .* \(7.0 s\).*make it longer"):
        Plan(still=3.0)


def test_intervals_are_over_towns_that_have_a_figure():
    assert defects.interval([1.0, 3.0, np.nan])[0] == 2.0
    value, low, _ = defects.interval([np.nan, 4.0])
    assert value == 4.0 and np.isnan(low)


def test_the_command(weights_folder, config, tmp_path, monkeypatch, capsys):
    """It writes a page and its figures, and goes on from what is stored."""
    torch.manual_seed(0)
    accuracy = dict.fromkeys(("joint", "move", "look", "light", "weather", "district"), 0.0)
    weights, out = tmp_path / "judge.safetensors", tmp_path / "out"
    Judge.of(config).eval().save(weights, {"training": [], "tested_on": {"blocks": 0}, "accuracy": accuracy})
    monkeypatch.setattr(defect_trials, "QUICK", SHORT)
    monkeypatch.setattr(defects, "TOWN_BLOCKS", 2)  # a small town is built sooner
    words = [str(weights_folder), "--towns", "report", "--defects", "--quick", "--count", "1", "--out", str(out)]
    evaluation.main([*words, "--judge", str(weights)])
    page = (out / "defects.md").read_text()
    assert page in capsys.readouterr().out and page.count("\n") == 5 + len(table(SHORT))
    report = json.loads((out / "defects.json").read_text())
    assert report["not_understood"]["street"][0] == 1.0 and report["turn"]["street"][0] > 15
    assert report["sharp_walk"]["street"][0] == report["falling_snow"]["street"][0] == 1.0
    parts = out / f"town_{REPORT_TOWNS[0]}" / "parts"
    times = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    monkeypatch.setattr(defect_trials, "roll_out", lambda *_, **__: pytest.fail("rolled out twice"))
    evaluation.main([*words, "--judge", str(weights)])
    assert (out / "defects.md").read_text() == page and times == {p: p.stat().st_mtime_ns for p in parts.iterdir()}
    monkeypatch.setattr(defect_trials, "QUICK", replace(SHORT, wall=1.0))
    with pytest.raises(SystemExit):
        evaluation.main([*words, "--judge", str(weights)])
    assert "another plan" in capsys.readouterr().err


def test_unseen_towns_are_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluation.main(["street", "--defects", "--out", str(tmp_path)])
    assert "--towns report" in capsys.readouterr().err
