"""Free text against tables of keywords: which of several things does a sentence speak of?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def normalise(text: str) -> str:
    """Lower-case words separated by single spaces; inner hyphens and apostrophes stay, other punctuation goes."""
    return " ".join(_WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))


def best_match(text: str, table: Mapping[str, Sequence[str]]) -> str | None:
    """The key of `table` whose keywords occur in `text` with the most words; of equals the first; None without any.

    A keyword is one whole word or several in sequence; ``*`` at the end of a word stands for any ending.
    """
    words = normalise(text)
    scores = {name: sum(_words_found(keyword, words) for keyword in keywords) for name, keywords in table.items()}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] else None


def _words_found(keyword: str, words: str) -> int:
    pattern, weight = _pattern(keyword)
    return weight if pattern.search(words) else 0


@cache
def _pattern(keyword: str) -> tuple[re.Pattern[str], int]:
    """A keyword's pattern and its number of words."""
    parts = [
        re.escape(word.rstrip("*")) + (r"[\w-]*" if word.endswith("*") else "") for word in keyword.lower().split()
    ]
    return re.compile(rf"(?<![\w-]){' '.join(parts)}(?![\w-])"), len(parts)
