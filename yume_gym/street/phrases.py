"""The words of events: for each kind the phrasings a model is trained on, others kept for tests, and its keywords.

They stand in phrases.json and are read by `yume_gym.street.events`. The phrasings under "held_out" share no wording with the
training ones on purpose: they ask whether a model understands an event rather than remembers its text. The keywords are whole
words, or several in sequence, for matching free text; a trailing ``*`` stands for any ending. Events with a place come before
weather and light: of equally good matches the first one wins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EventKind:
    """One kind of event."""

    name: str  # its id
    phrases: tuple[str, ...]  # training phrasings
    held_out: tuple[str, ...]  # phrasings for tests
    keywords: tuple[str, ...]


def _read(path: Path) -> tuple[EventKind, ...]:
    kinds = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        EventKind(kind["name"], *(tuple(kind[key]) for key in ("phrases", "held_out", "keywords"))) for kind in kinds
    )


EVENT_KINDS = _read(Path(__file__).with_name("phrases.json"))
