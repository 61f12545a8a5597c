"""The text file beside a clip: `Field: value` lines, of the whole clip or of a stretch of it.

Keys: W                     of the whole clip
Keys 97-160: W+A            of the frames 97 to 160 of this video, counted from 1, both included
Event 97-160: rain sets in
"""

from __future__ import annotations

import re
from pathlib import Path

from world_model.actions import Action

_STRETCH = re.compile(r"(Keys|Mouse|Event) (\d+)-(\d+)")
Change = tuple[int, str | None]  # a source frame counted from 0, and what holds from there on


class ClipError(ValueError):
    """One clip that cannot be used; the message names the file and the field."""


def read_fields(path: Path) -> dict[str, str]:
    """Fields and values, checked where they are numbers. Raises ClipError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClipError(f"{path}: not a readable text file ({error})") from error
    fields = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    frames = {}
    for field in ("Start Frame", "End Frame", "Duration"):
        number = fields.get(field, "0").removesuffix("frames").strip()
        if not number.isdecimal():
            raise ClipError(f"{path}: field {field!r} is {fields[field]!r}, expected a whole number")
        frames[field] = int(number)
    if all(frames.values()) and frames["End Frame"] - frames["Start Frame"] + 1 != frames["Duration"]:
        raise ClipError(f"{path}: field 'Duration' is {fields['Duration']!r}, Start Frame and End Frame say otherwise")
    return fields


def changes(fields: dict[str, str], name: str, path: Path) -> list[Change]:
    """What the field `name` says from which frame on, in order of frames; outside of stretches it is what the whole clip's field
    says, None without. Empty where the file says nothing of it. Raises ClipError for stretches that overlap or end before they
    begin."""
    whole = fields.get(name) or None
    found = []
    for field, value in fields.items():
        match = _STRETCH.fullmatch(field)
        if match and match[1] == name:
            first, last = int(match[2]) - 1, int(match[3])
            if not 0 <= first < last:
                raise ClipError(f"{path}: field {field!r} must name frames from 1 on, the first before the last")
            found.append((first, last, value))
    if not found:
        return [(0, whole)] if name in fields else []
    held: dict[int, str | None] = {0: whole}
    end = 0
    for first, last, value in sorted(found):
        if first < end:
            raise ClipError(f"{path}: stretches of {name!r} overlap at frame {first + 1}")
        held[first], held[last], end = value, whole, last
    return sorted(held.items())


def held_at(found: list[Change], frame: int) -> str | None:
    """What holds at a source frame."""
    return next((value for start, value in reversed(found) if start <= frame), None)


def labelled(keys: str, mouse: str, path: Path) -> Action:
    """The action of a file's or folder's words. Raises ClipError."""
    try:
        return Action.from_keys(keys, mouse)
    except (ValueError, KeyError) as error:
        raise ClipError(f"{path}: fields Keys {keys!r} and Mouse {mouse!r} are no action: {error}") from error


def action_changes(fields: dict[str, str], path: Path) -> list[tuple[int, Action]]:
    """Actions by the source frame from which they are held; empty where the file does not tell keys and mouse. A clip that tells
    one of both in stretches may leave the other out: nothing is held. Raises ClipError."""
    keys, mouse = (changes(fields, name, path) for name in ("Keys", "Mouse"))
    stretches = any(_STRETCH.fullmatch(field) for field in fields if not field.startswith("Event"))
    if not (keys and mouse) and not stretches:
        return []
    starts = sorted({start for start, _ in (*keys, *mouse)})
    return [(start, labelled(held_at(keys, start) or "", held_at(mouse, start) or "", path)) for start in starts]
