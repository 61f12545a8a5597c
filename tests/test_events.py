"""Phrasings, keywords, schedules and captions: text only, no world is built."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from yume_gym.street import captions, events
from yume_gym.street.events import EVENTS, EventSchedule, match_event
from yume_gym.street.keywords import best_match, normalise

KINDS = {"heavy_rain", "snow", "fog", "night", "sun", "sunset", "ufo", "fireworks"}
KINDS |= {"ghost", "fire", "crowd", "car", "balloon"}
KINDS |= {"tornado", "dinosaur", "tram", "bubbles"}
ALL_PHRASES = [(name, phrase) for name, kind in EVENTS.items() for phrase in kind.phrases + kind.held_out]
FILLER = {
    "a",
    "an",
    "the",
    "and",
    "of",
    "in",
    "on",
    "to",
    "is",
    "it",
    "with",
    "over",
    "from",
    "for",
    "up",
    "down",
    "my",
}
FILLER |= {"me", "by", "at", "into", "has", "there", "are"}


def content(phrase: str) -> set[str]:
    return set(normalise(phrase).split()) - FILLER


def test_every_kind_has_enough_phrasings_of_sensible_length():
    assert set(EVENTS) == KINDS
    for kind in EVENTS.values():
        assert len(kind.phrases) >= 12
        assert len(kind.held_out) == 6
    assert all(2 <= len(phrase.split()) <= 14 for _, phrase in ALL_PHRASES)


def test_no_phrase_occurs_twice():
    texts = [normalise(phrase) for _, phrase in ALL_PHRASES]
    assert len(set(texts)) == len(texts)


def test_held_out_phrasings_are_worded_unlike_the_training_ones():
    for kind in EVENTS.values():
        for held_out, trained in itertools.product(kind.held_out, kind.phrases):
            shared = content(held_out) & content(trained)
            assert len(shared) <= len(content(held_out)) / 3, (held_out, trained)


@pytest.mark.parametrize(("name", "phrase"), ALL_PHRASES)
def test_keywords_alone_recognise_every_phrasing(name, phrase):
    assert best_match(phrase, {kind.name: kind.keywords for kind in EVENTS.values()}) == name
    assert match_event(f"  {phrase.upper()}!") == name


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Night falls", "night"),
        ("it starts snowing", "snow"),
        ("please, some rain", "heavy_rain"),
        ("two UFOs race each other at night", "ufo"),
        ("the house is burning", "fire"),
        ("fireworks in the snow", "fireworks"),
        ("the rain stops", "sun"),
        ("a tornado in a thunderstorm", "tornado"),
        ("a tramp with a trampoline", None),
        ("T. rex!", "dinosaur"),
        ("heavy_rain", "heavy_rain"),
        ("a rainbow over a carpet", None),
        ("zzz", None),
        ("", None),
    ],
)
def test_free_text_is_matched_by_its_keywords(text, kind):
    assert match_event(text) == kind


def test_unknown_event_names_every_kind():
    with pytest.raises(ValueError, match="zebra") as error:
        events.require_event("a zebra")
    assert all(name in str(error.value) for name in KINDS)


def test_sampled_phrases_cover_both_sets():
    rng = np.random.default_rng(0)
    trained = {events.sample_phrase("ufo", rng) for _ in range(300)}
    held_out = {events.sample_phrase("ufo", rng, held_out=True) for _ in range(300)}
    assert trained == set(EVENTS["ufo"].phrases)
    assert held_out == set(EVENTS["ufo"].held_out)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        (" rain ", {0: "rain"}),
        (["rain", "", "snow"], {0: "rain", 8: None, 16: "snow"}),
        ({5: "rain", 2: "snow", 9: None}, {2: "snow", 5: "rain", 9: None}),
        ({"3": "rain"}, {3: "rain"}),
        ({np.int64(4): "rain"}, {4: "rain"}),
        ([], {}),
    ],
)
def test_schedule_of_every_accepted_form(given, expected):
    assert EventSchedule.parse(given).as_dict() == expected
    assert list(EventSchedule.parse(given).as_dict()) == sorted(expected)


def test_schedule_survives_json():
    schedule = EventSchedule.parse({3: "rain", 11: "snow"})
    assert EventSchedule.parse(json.loads(json.dumps(schedule.as_dict()))) == schedule


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (7, TypeError, "int"),
        ("   ", ValueError, "empty"),
        ("", ValueError, "empty"),
        ("x" * 10_000, ValueError, "10000"),
        (["rain", 3], TypeError, r"\[1\]"),
        ({"soon": "rain"}, TypeError, "soon"),
        ({True: "rain"}, TypeError, "True"),
        ({1.5: "rain"}, TypeError, "1.5"),
        ({-1: "rain"}, ValueError, "-1"),
        ({1: "rain", "1": "snow"}, ValueError, "twice"),
        ({1: "  "}, ValueError, "empty"),
        (b"rain", TypeError, "bytes"),
    ],
)
def test_schedule_refuses_everything_else(given, error, words):
    with pytest.raises(error, match=words):
        EventSchedule.parse(given)


def test_active_event_is_the_latest_begun():
    schedule = EventSchedule.parse({2: "rain", 5: "", 7: "snow"})
    assert [schedule.at(step) for step in range(9)] == [None, None, "rain", "rain", "rain", None, None, "snow", "snow"]
    assert [step for step in range(9) if schedule.changes_at(step)] == [2, 5, 7]


def test_a_triggered_event_yields_to_the_next_scheduled_one():
    schedule = EventSchedule.parse({2: "rain", 7: "snow"})
    triggered = schedule.with_event(4, "fog").with_event(2, "night")
    assert triggered.as_dict() == {2: "night", 4: "fog", 7: "snow"}
    assert schedule.as_dict() == {2: "rain", 7: "snow"}
    assert EventSchedule().with_event(0, None).at(5) is None


ALL_VISIBLE = ("pedestrians", "street lamps", "pond", "checkered tower", "parked cars", "striped tower", "trees")
FACTS = list(
    itertools.product(captions.DISTRICT_WORDS, captions.LIGHT_WORDS, captions.WEATHER_WORDS, captions.PLACE_WORDS)
)


@pytest.mark.parametrize(("district", "light", "weather", "place"), FACTS)
def test_captions_tell_the_facts_they_were_made_from(district, light, weather, place):
    rng = np.random.default_rng(7)
    visible = ["trees", "shops", "glass towers", "striped tower", "park"]
    facts = {"district": district, "light": light, "weather": weather, "place": place}
    written = {captions.scene_caption({**facts, "visible": visible[:k]}, rng) for k in (0, 1, 3, 5) for _ in range(5)}
    assert len(written) > 10
    for caption in written:
        assert captions.parse_text(caption) == (light, weather, district), caption
        assert not any(thing in caption for thing in set(ALL_VISIBLE) - set(visible))
    two = captions.scene_caption({**facts, "visible": visible[:2]}, rng).lower()
    assert visible[0] in two
    assert visible[1] in two


def test_caption_wording_is_the_generators_choice_alone():
    facts = {"district": "park", "light": "day", "weather": "fog", "place": "mid-street", "visible": ["trees"]}
    once, again, other = (captions.scene_caption(facts, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert once == again != other
    with pytest.raises(KeyError, match="dawn"):
        captions.scene_caption({**facts, "light": "dawn"}, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a snowy night in the old town", ("night", "snow", "pastel old town")),
        ("Rainy downtown with skyscrapers", (None, "rain", "glass towers")),
        ("a foggy park at sunset", ("golden", "fog", "park")),
        ("shops on a sunny day", ("day", "clear", "shops")),
        ("something else entirely", (None, None, None)),
    ],
)
def test_people_can_ask_for_a_street_in_a_text(text, expected):
    assert captions.parse_text(text) == expected
