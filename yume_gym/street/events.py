"""Events by their words: which kind a text means, and when the texts of an episode begin and end.

A world model reads any text; the ground-truth street draws one of the kinds below. `EVENTS` holds their phrasings,
`match_event` reads free text, and `EventSchedule` is the timetable that both environments keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from unicodedata import category

import numpy as np

from yume_gym.street.keywords import best_match, normalise
from yume_gym.street.phrases import EVENT_KINDS, EventKind

EVENTS: dict[str, EventKind] = {kind.name: kind for kind in EVENT_KINDS}

MAX_TEXT_LENGTH = 500  # characters
LIST_INTERVAL = 8  # steps between the events of a plain list


def sample_phrase(kind: str, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """One phrasing of `kind`, drawn with `rng`. Raises KeyError for an unknown kind."""
    phrases = EVENTS[kind].held_out if held_out else EVENTS[kind].phrases
    return phrases[int(rng.integers(len(phrases)))]


def match_event(text: str) -> str | None:
    """The kind of event that `text` tells of, or None.

    A known phrasing is recognised exactly (whatever its case, spacing and punctuation); any other text by its
    keywords: the kind with the most keyword words in it wins, and of equals the first in `EVENTS`.
    """
    exact = _kind_of_phrase().get(normalise(text))
    return exact or best_match(text, {name: kind.keywords for name, kind in EVENTS.items()})


def require_event(text: str) -> str:
    """`match_event`, with a ValueError that names the kinds, each with an example, where nothing matches."""
    kind = match_event(text)
    if kind is None:
        examples = "; ".join(f"{name} ({event.phrases[0]!r})" for name, event in EVENTS.items())
        raise ValueError(f"the street cannot draw the event {text!r}; it knows these kinds: {examples}")
    return kind


def check_text(text: object, what: str = "text") -> str:
    """`text` stripped of outer space.

    Raises TypeError unless it is a str, ValueError where it is empty, longer than `MAX_TEXT_LENGTH` characters, or holds control
    characters or lone surrogates.
    `what` names it in the message.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, got {type(text).__name__}: {_short(text)}")
    stripped = text.strip()
    if not stripped:
        raise ValueError(f"{what} is empty: give a sentence such as 'a heavy rainstorm begins'")
    if len(stripped) > MAX_TEXT_LENGTH:
        raise ValueError(f"{what} has {len(stripped)} characters, at most {MAX_TEXT_LENGTH} are accepted: shorten it")
    for number, character in enumerate(stripped):
        if category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise ValueError(
                f"{what} has the character {character!r} at {number}, which is no part of a text: leave control characters "
                "and lone surrogates out"
            )
    return stripped


def check_event(text: object, what: str = "event") -> str | None:
    """Like `check_text`, but None and "" mean "no event" and give None."""
    return None if text is None or (isinstance(text, str) and not text) else check_text(text, what)


@dataclass(frozen=True)
class EventSchedule:
    """When which event text is active: sorted (step, text) pairs, each valid until the next; text None is no event.

    Immutable: a text triggered during an episode makes a new schedule (`with_event`).
    """

    entries: tuple[tuple[int, str | None], ...] = ()

    @classmethod
    def parse(cls, events: object) -> EventSchedule:
        """The schedule that ``options["events"]`` asks for.

        - None: no event,
        - a str: that event from step 0 on,
        - a list of str: one after another, a new one every `LIST_INTERVAL` (8) steps from step 0 on,
        - a mapping {step: str}: from those steps on; keys are integers >= 0, or such numbers as strings as JSON gives.

        None or "" as a text ends the event before it. Raises TypeError or ValueError for anything else.
        """
        pairs: list[tuple[int, str | None]]
        if events is None:
            return cls()
        if isinstance(events, str):
            pairs = [(0, check_text(events, "options['events']"))]
        elif isinstance(events, Mapping):
            pairs = [(_step(key), check_event(text, f"options['events'][{key!r}]")) for key, text in events.items()]
        elif isinstance(events, Sequence) and not isinstance(events, (bytes, bytearray)):
            pairs = [(LIST_INTERVAL * k, check_event(text, f"options['events'][{k}]")) for k, text in enumerate(events)]
        else:
            raise TypeError(
                f"options['events'] must be a str, a list of str or a mapping of steps to str, "
                f"got {type(events).__name__}: {_short(events)}"
            )
        steps = [step for step, _ in pairs]
        if len(set(steps)) < len(steps):
            raise ValueError(f"options['events'] names a step twice: {sorted(steps)}")
        return cls(tuple(sorted(pairs)))

    @staticmethod
    def check(schedule: object) -> None:
        """Raises TypeError or ValueError for what is no schedule, as pickles of elsewhere may hold."""
        if not isinstance(schedule, EventSchedule):
            raise TypeError(f"its events must be an EventSchedule, got {_short(schedule)}")
        entries = vars(schedule).get("entries")
        if not isinstance(entries, tuple) or any(not isinstance(one, tuple) or len(one) != 2 for one in entries):
            raise ValueError(f"its events must be (step, text) pairs, got {_short(entries)}")
        steps = [_step(step) for step, _ in entries]
        for _, text in entries:
            check_event(text)
        if steps != sorted(set(steps)):
            raise ValueError(f"its events must be in order of their steps, got {steps}")

    def at(self, step: int) -> str | None:
        """The text active during step number `step` (the first step of an episode is 0), or None."""
        active = None
        for start, text in self.entries:
            if start > step:
                break
            active = text
        return active

    def changes_at(self, step: int) -> bool:
        """Whether an event begins or ends exactly with step number `step`."""
        return any(start == step for start, _ in self.entries)

    def with_event(self, step: int, text: str | None) -> EventSchedule:
        """This schedule with `text` from `step` on, until its next entry; an entry at that very step is replaced."""
        kept = [entry for entry in self.entries if entry[0] != step]
        return EventSchedule(tuple(sorted([*kept, (step, text)], key=lambda entry: entry[0])))

    def as_dict(self) -> dict[int, str | None]:
        """{step: text} in order of steps; a fresh dict."""
        return dict(self.entries)


def _step(key: object) -> int:
    if (
        isinstance(key, bool)
        or not isinstance(key, (int, np.integer, str))
        or (isinstance(key, str) and not key.strip().isdecimal())
    ):
        raise TypeError(f"options['events'] has the key {_short(key)}: keys are steps, integers >= 0")
    step = int(key)
    if step < 0:
        raise ValueError(f"options['events'] has the step {step}: steps count from 0")
    return step


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _kind_of_phrase() -> dict[str, str]:
    table = {normalise(name): name for name in EVENTS}
    return table | {normalise(phrase): kind.name for kind in EVENT_KINDS for phrase in kind.phrases + kind.held_out}
