"""The street in words: an exact caption of what surrounds the viewer, and the way back from a text to a street.

`scene_caption` says only what is true: district, place, light, weather and things in sight come from the simulator's
facts; chance decides the wording alone. `parse_text` reads the same facts out of any text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yume_gym.street.keywords import best_match


def _table(keywords: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(words.split("; ")) for name, words in keywords.items()}


# How each fact is said. First forms are the plainest; all forms of a fact are equally likely.
DISTRICT_WORDS: dict[str, tuple[str, ...]] = {
    "old brick": (
        "an old brick quarter",
        "a street of old brick houses",
        "a red brick neighbourhood",
        "a district of old brick buildings",
    ),
    "glass towers": (
        "a district of glass towers",
        "a modern downtown of glass towers",
        "a business district with glass skyscrapers",
        "a street between glass office towers",
    ),
    "pastel old town": (
        "a pastel old town",
        "an old town of pastel houses",
        "a street of colourful pastel houses",
        "a picturesque old town in pastel colours",
    ),
    "shops": (
        "a shopping street with awnings and signs",
        "a street of little shops with awnings",
        "a shopping district with bright signs",
        "a lively shopping street",
    ),
    "park": (
        "a green park with lawns",
        "the edge of a city park",
        "a city park with a lawn",
        "a street along a green park",
    ),
}
LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in bright daylight", "in the daytime", "at midday"),
    "overcast": ("under an overcast sky", "under grey clouds", "on a cloudy grey day", "in flat overcast light"),
    "golden": ("at golden hour", "in golden evening light", "at sunset", "in the warm light of a low sun"),
    "night": ("at night", "on a dark night", "at night with lit windows", "after dark"),
}
WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("in clear weather", "the air is clear", "dry and clear", "with clear air"),
    "rain": ("in heavy rain", "rain is falling", "in pouring rain", "rain on a wet road"),
    "snow": ("in falling snow", "snow is falling", "in a snowfall", "snow covers the ground"),
    "fog": ("in thick fog", "fog hangs in the street", "in dense fog", "fog hides the distance"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "crossing": ("at a crossing", "at an intersection", "near a street crossing", "where two streets meet"),
    "mid-street": ("along the street", "in the middle of a block", "down a straight street", "between two crossings"),
    "park": ("inside the park", "in the middle of the park", "among lawns and paths", "off the street, in the park"),
}
MAX_THINGS = 5  # things in sight that a caption names, those that fill the most of the view first
_VIEW_WORDS = ("First-person view of", "A walk through", "Walking through", "A view of")
_AROUND_WORDS = ("{things} around", "with {things} in sight", "{things} can be seen", "around: {things}")

# What betrays each fact in a text that somebody wrote, in the notation of `keywords.best_match`, separated by "; ".
# Things that can merely stand around ("glass towers", "shops", "trees") count little beside a district's own name.
_DISTRICT_KEYWORDS = _table(
    {
        "old brick": "brick*; old brick; red brick; industrial; victorian",
        "glass towers": "glass*; skyscraper*; district of glass towers; glass skyscrapers; glass office towers; "
        "downtown; modern downtown; office*; business; business district; modern; high-rise*; financial",
        "pastel old town": "pastel*; old town; pastel houses; pastel colours; picturesque; colourful houses; village",
        "shops": "shop*; shopping; shopping street; shopping district; little shops; with awnings; store*; market*; "
        "mall; boutique*; cafe*; bright signs",
        "park": "park; parks; green park; city park; with lawns; lawn; garden*; meadow*; grass*",
    }
)
_LIGHT_KEYWORDS = _table(
    {
        "night": "night*; dark*; midnight; moon*; starry; lit windows; neon",
        "golden": "golden*; golden hour; sunset; sunrise; dusk; dawn; evening; low sun; warm light",
        "overcast": "overcast; cloud*; grey; gray; grey clouds; gloomy; dull; flat overcast light; cloudy grey day",
        "day": "day; daylight; daytime; midday; noon; morning; afternoon; sun; sunny; sunshine; blue sky",
    }
)
_WEATHER_KEYWORDS = _table(
    {
        "rain": "rain; rainy; raining; rains; rainstorm*; pour*; wet; storm*; thunder*; drizzl*; downpour*; shower*",
        "snow": "snow*; blizzard*; winter*; flurr*; icy",
        "fog": "fog*; mist*; haze; hazy; smog",
        "clear": "clear*; dry; sunny; cloudless; blue sky",
    }
)


def scene_caption(surroundings: Mapping[str, Any], rng: np.random.Generator) -> str:
    """One or two English sentences that describe `surroundings` exactly; `rng` chooses the wording.

    `surroundings` is what `StreetSimulator.surroundings()` returns: ``district``, ``place``, ``light`` and ``weather``
    are keys of the tables above, ``visible`` lists things in sight, of which the first two to five are named.
    Raises KeyError for a fact that no table knows.
    """

    def one_of(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    district = one_of(DISTRICT_WORDS[str(surroundings["district"])])
    light = one_of(LIGHT_WORDS[str(surroundings["light"])])
    weather = one_of(WEATHER_WORDS[str(surroundings["weather"])])
    place = one_of(PLACE_WORDS[str(surroundings["place"])])
    visible = [str(thing) for thing in surroundings["visible"]]
    named = visible[: int(rng.integers(2, MAX_THINGS + 1))]
    order = [_with_article(named[k]) for k in rng.permutation(len(named))]
    sentences = [f"{one_of(_VIEW_WORDS)} {district} {light}, {weather}"]
    tail = [place] + ([one_of(_AROUND_WORDS).format(things=_listed(order))] if order else [])
    sentences.append(", ".join(tail))
    if rng.random() < 0.3:  # the same facts, what is near first
        sentences.reverse()
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def parse_text(text: str) -> tuple[str | None, str | None, str | None]:
    """(light, weather, district) that `text` speaks of, each None where it says nothing of them."""
    return (
        best_match(text, _LIGHT_KEYWORDS),
        best_match(text, _WEATHER_KEYWORDS),
        best_match(text, _DISTRICT_KEYWORDS),
    )


def _with_article(thing: str) -> str:
    return thing if thing.endswith("s") else f"a {thing}"


def _listed(things: Sequence[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
