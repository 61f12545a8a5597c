"""Writes docs/environment.md, the page of the environments: their docstrings, and nothing else.

python docs/environment.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

import gymnasium

import yume_gym  # noqa: F401  (registers the environments)

PAGE = Path(__file__).with_name("environment.md")
ENVIRONMENTS = ("YumeWorld-v0", "YumeStreet-v0")
HEADER = "<!-- Written by docs/environment.py from the docstrings: edit those. -->\n"


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEADER]
    for name in ENVIRONMENTS:
        env_class = gymnasium.envs.registration.load_env_creator(gymnasium.spec(name).entry_point)
        parts.append(f"# {name}\n\n{_with_fences(inspect.getdoc(env_class) or '')}\n")
    return "\n".join(parts)


def _with_fences(text: str) -> str:
    """Examples (paragraphs that begin with >>>) as code: Markdown would take them for quotations."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{part}\n```" if part.startswith(">>>") else part for part in paragraphs)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
