"""What a new user runs first works, and what they read first is true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from world_model.actions import Action
from yume_gym.hud import Shot, contact_sheet, draw_hud

ROOT = Path(__file__).parent.parent


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


walk = load_script(ROOT / "examples" / "walk.py")


def test_walk_writes_a_film_and_a_sheet(weights_folder, tmp_path, capsys) -> None:
    walk.main(["--model", str(weights_folder), "--steps", "5", "--zoom", "8", "--out", str(tmp_path / "new")])
    film = iio.imread(tmp_path / "new" / "walk.mp4")
    assert film.shape == (1 + 5 * 4, 8 * 32, 8 * 48, 3)
    assert iio.immeta(tmp_path / "new" / "walk.mp4")["fps"] == 8
    sheet = iio.imread(tmp_path / "new" / "walk.png")
    assert sheet.shape == (3 * (8 * 32 + 4) - 4, 6 * (8 * 48 + 4) - 4, 3)
    printed = capsys.readouterr().out
    assert re.search(r"20 frames dreamed in [\d.]+ s: [\d.]+ frames/s, [\d.]+ x real time", printed)


def test_ground_truth_is_shown_below(weights_folder, tmp_path) -> None:
    walk.main(["--model", str(weights_folder), "--steps", "2", "--zoom", "4", "--twin", "--out", str(tmp_path)])
    film = iio.imread(tmp_path / "walk.mp4")
    assert film.shape[1:] == (2 * 4 * 32, 4 * 48, 3)
    dream, street = np.split(iio.imread(tmp_path / "walk.png")[: 2 * 4 * 32 + 4, : 4 * 48], [4 * 32 + 4])
    assert (dream[: 4 * 32] == street).all()  # both start from the same picture


def test_walk_goes_on_turns_and_begins_again() -> None:
    actions = walk.walk_actions(40)
    assert len(actions) == 40
    assert sum(action.walk[0] == 1 for action in actions) >= 20
    assert {action.turn[0] for action in actions} == {-1, 0, 1}
    assert walk.walk_actions(120)[80:] == actions
    assert walk.walk_actions(3) == [Action.from_keys("W")] * 3


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--twin", "--text", "a street"]])
def test_walk_refuses(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        walk.main(arguments)
    assert "error:" in capsys.readouterr().err


def test_hud_shows_what_is_held_and_what_happens() -> None:
    frame = np.full((64, 96, 3), 90, np.uint8)
    nothing = draw_hud(Shot(frame))
    assert nothing.shape == (256, 384, 3)
    bright = {}
    for keys, look in (("W", ""), ("A", ""), ("W+D", ""), ("", "→"), ("", "↑→")):
        changed = (draw_hud(Shot(frame, keys, look)) != nothing).any(-1)
        assert changed[:180].sum() == 0  # keys are drawn at the bottom
        sides = changed[:, :192].sum(), changed[:, 192:].sum()
        assert [count > 0 for count in sides] == [bool(keys), bool(look)]
        bright[keys + look] = changed.sum()
    assert bright["W+D"] > 1.5 * bright["W"] and bright["↑→"] > 1.5 * bright["→"]
    event = (draw_hud(Shot(frame, event="night falls")) != nothing).any(-1)
    assert event[:30].sum() > 1000 and event[30:].sum() == 0


def test_contact_sheet_places_pictures() -> None:
    pictures = [np.full((3, 5, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet([pictures[:2], pictures[2:]], gap=2)
    assert sheet.shape == (8, 12, 3)
    assert (sheet[:3, :5] == 10).all() and (sheet[:3, 7:] == 20).all() and (sheet[5:, :5] == 30).all()
    assert (sheet[3:5] == 255).all() and (sheet[5:, 5:] == 255).all()


def test_environment_page_is_the_docstrings() -> None:
    script = load_script(ROOT / "docs" / "environment.py")
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "the docstrings changed: run `make docs`"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_usage_runs(weights_folder) -> None:
    """The first Python block of the README, on the small world."""
    code = python_blocks(ROOT / "README.md")[0]
    small = code.replace('"YumeWorld-v0"', f'"YumeWorld-v0", model="{weights_folder}"')
    assert small != code
    exec(compile(small, "README.md", "exec"), {})


def test_readme_ppo_runs(tmp_path, monkeypatch) -> None:
    """The second, on the street, whose pictures are as large as those of the model `street`; one rollout, one update."""
    code = python_blocks(ROOT / "README.md")[1]
    short = code.replace('"YumeWorld-v0"', '"YumeStreet-v0"').replace("64", "8").replace("256", "8")
    assert "PPO(" in short and short.count("YumeStreet-v0") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(short, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "ppo.zip").exists()


def test_page_of_use_runs(weights_folder, tmp_path, monkeypatch) -> None:
    """All its Python blocks one after another, on the small world; but for the agent, which the README trains."""
    code = "\n".join(block for block in python_blocks(ROOT / "docs" / "use.md") if "PPO" not in block)
    small = code.replace('"YumeWorld-v0"', f'"YumeWorld-v0", model="{weights_folder}"')
    assert small.count(str(weights_folder)) == 3
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "use.md", "exec"), {})
