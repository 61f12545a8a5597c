"""Pictures for people: held keys and the event drawn on a frame, and contact sheets of a walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_KEY = 22  # pixels of a key's side
_GAP = 3
_MARGIN = 8
_HELD, _FREE, _EDGE, _INK = (255, 214, 64), (20, 22, 28), (235, 235, 235), (250, 250, 250)
_TEXT_SIZE = 16

# where each key is drawn: (column, row) in its group; WASD on the left, arrows on the right
_WALKING_KEYS = {"W": (1, 0), "A": (0, 1), "S": (1, 1), "D": (2, 1)}
_ARROWS = {"↑": (1, 0), "←": (0, 1), "↓": (1, 1), "→": (2, 1)}
# the tip's direction: fonts do not all have arrows, so these are drawn
_TIPS = {"↑": (0, -1), "←": (-1, 0), "↓": (0, 1), "→": (1, 0)}


@dataclass(frozen=True)
class Shot:
    """One picture of a walk: frame uint8 [H, W, 3], the keys and arrows held, and the event in force.

    keys: None in worlds without walking keys, which then are not drawn.
    """

    frame: np.ndarray
    keys: str | None = ""
    look: str = ""
    event: str | None = None


def enlarge(frame: np.ndarray, zoom: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [zoom * H, zoom * W, 3], by Lanczos' filter."""
    height, width = frame.shape[:2]
    return np.array(Image.fromarray(frame).resize((zoom * width, zoom * height), Image.Resampling.LANCZOS))


def draw_hud(shot: Shot, zoom: int = 4) -> np.ndarray:
    """The shot `zoom` times as large (Lanczos), with its keys and event on it: uint8 [zoom * H, zoom * W, 3].

    Meant for pictures of at least about 200 x 250 pixels after zooming; on smaller ones the keys cover much.
    """
    image = Image.fromarray(enlarge(shot.frame, zoom))
    draw = ImageDraw.Draw(image)
    group = 3 * _KEY + 2 * _GAP
    held = set((shot.keys or "").split("+")) | set(shot.look)
    groups = [(_ARROWS, image.width - _MARGIN - group)]
    if shot.keys is not None:
        groups.append((_WALKING_KEYS, _MARGIN))
    for keys, left in groups:
        for name, (column, row) in keys.items():
            x = left + column * (_KEY + _GAP)
            y = image.height - _MARGIN - (2 - row) * _KEY - (1 - row) * _GAP
            _draw_key(draw, name, x, y, name in held)
    if shot.event:
        font = _font()
        start = max(4.0, (image.width - draw.textlength(shot.event, font=font)) / 2)
        draw.rectangle((0, 0, image.width, _TEXT_SIZE + 8), fill=_FREE)
        draw.text((start, 3), shot.event, fill=_HELD, font=font)
    return np.array(image)


def write_lines(picture: np.ndarray, lines: Sequence[str], where: Literal["top", "middle"]) -> np.ndarray:
    """`picture` (uint8 [H, W, 3]) with lines of text on a dark ground: at the top left, or across the middle.

    Lines that are wider than the picture are broken.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    font, step = _font(), _TEXT_SIZE + 5
    broken = [part for line in lines for part in _broken(draw, line, image.width - 4 * _MARGIN)]
    width = max(draw.textlength(line, font=font) for line in broken)
    left = _MARGIN if where == "top" else (image.width - width) / 2 - _MARGIN
    top = _TEXT_SIZE + 2 * _MARGIN if where == "top" else (image.height - step * len(broken)) / 2
    draw.rectangle((left, top - 4, left + width + 2 * _MARGIN, top + step * len(broken) + 2), fill=(*_FREE, 150))
    for number, line in enumerate(broken):
        draw.text((left + _MARGIN, top + step * number), line, fill=_INK, font=font)
    return np.array(image)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of uint8 pictures of one size as one picture, `gap` white pixels between them; short rows end in white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            sheet[y : y + height, x : x + width] = picture
    return sheet


def _draw_key(draw: ImageDraw.ImageDraw, name: str, x: int, y: int, held: bool) -> None:
    fill, ink = (_HELD, _FREE) if held else (_FREE, _INK)
    draw.rounded_rectangle((x, y, x + _KEY - 1, y + _KEY - 1), radius=4, fill=fill, outline=_EDGE)
    middle = (x + _KEY / 2, y + _KEY / 2)
    if name in _TIPS:
        dx, dy = _TIPS[name]
        size = _KEY / 4
        corners = [(dx, dy), (-dx - dy, -dy - dx), (-dx + dy, -dy + dx)]  # the tip, and the two ends of the base
        draw.polygon([(middle[0] + size * cx, middle[1] + size * cy) for cx, cy in corners], fill=ink)
    else:
        draw.text(middle, name, fill=ink, font=_font(), anchor="mm")


def _broken(draw: ImageDraw.ImageDraw, line: str, width: float) -> list[str]:
    """`line` as lines of at most `width` pixels, broken between words where there are any."""
    parts = [""]
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}" if parts[-1] else word
        if parts[-1] and draw.textlength(longer, font=_font()) > width:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_SIZE)
