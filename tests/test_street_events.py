"""The ground-truth street's light, weather, events and walkers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from street_world import FORWARD, STILL, street_fixture, tiny_fixture  # noqa: F401  (fixtures, too)

from train.street.walks import LATER_EVENTS
from world_model.priors.events import FADED, MOMENTS
from yume_gym.street import primitives as P
from yume_gym.street.event_kinds import KINDS
from yume_gym.street.event_objects import ROUND
from yume_gym.street.event_state import EventState
from yume_gym.street.simulator import EVENTS, LIGHTS, WEATHERS, StreetSimulator
from yume_gym.street.walker import LONGEST_HOLD, Walker


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("weather", WEATHERS)
def test_every_light_and_weather_has_its_appearance(light: str, weather: str) -> None:
    street = StreetSimulator()

    def look(a: str, b: str) -> np.ndarray:
        return street.reset(np.random.default_rng(0), light=a, weather=b, position=(0.8, 15.0), yaw=0.0).astype(float)

    here = look(light, weather)
    by_weather = [np.abs(here - look(light, other)).mean() for other in WEATHERS if other != weather]
    by_light = [np.abs(here - look(other, weather)).mean() for other in LIGHTS if other != light]
    assert min(by_weather) > 5
    assert min(by_light) > (4 if weather == "clear" else 1), "day and overcast are much alike in the rain"
    assert here.std() > 8, "still a picture"


@pytest.mark.parametrize("kind", EVENTS)
def test_events_come_and_go(kind: str) -> None:
    """Within two blocks the world differs from its twin without the event; a second after the end it is the same."""
    light, weather = ("overcast", "rain") if kind == "sun" else ("day", "clear")
    pair = [StreetSimulator(), StreetSimulator()]
    for simulator in pair:
        simulator.reset(np.random.default_rng(1), light=light, weather=weather, position=(0.8, 15.0), yaw=0.0)
    eventful = pair[0]
    eventful.set_event(kind)
    assert eventful.event == kind and eventful.surroundings()["event"] == kind
    changes = []
    for _ in range(3):
        a, b = (simulator.step(STILL).frames.astype(float) for simulator in pair)
        changes.append(np.abs(a - b).mean(axis=(1, 2, 3)))
    assert changes[1].max() > 0.1 and np.abs(a - b).max() > 40
    assert changes[0][0] < changes[1].max(), "it fades in"
    eventful.set_event(None)
    assert eventful.event is None
    for _ in range(3):
        a, b = (simulator.step(STILL).frames for simulator in pair)
    assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", LATER_EVENTS)
def test_later_events_repeat_themselves(kind: str) -> None:
    """As often as memorised events do; in between they move."""
    state, draw = EventState(kind, 0.0, (3.0, 20.0), 0.4), KINDS[kind].draw
    now, soon, again = (np.array(draw(state, age, 1.0)) for age in (4.3, 4.8, 4.3 + ROUND))
    np.testing.assert_allclose(now, again, atol=1e-6)
    assert np.abs(soon - now).max() > 0.05
    assert (MOMENTS - FADED) / StreetSimulator().fps == ROUND


def test_a_tram_goes_where_cars_go() -> None:
    """Down its lane of the street towards the viewer, whichever way he looks."""
    for heading in (0.1, 1.5, 3.0, -1.6):
        x, z, along_z, direction = EventState("tram", 0.0, (41.0, 79.0), heading).in_lane(5.0)
        toward = math.cos(heading) if along_z else math.sin(heading)
        assert direction * toward < 0 and along_z == (heading in (0.1, 3.0))
        assert abs((x if along_z else z) - (40.0 if along_z else 80.0)) == pytest.approx(1.2)
        assert ((z - 79.0) if along_z else (x - 41.0)) == pytest.approx(5.0 * direction)
        shapes = KINDS["tram"].draw(EventState("tram", 0.0, (41.0, 79.0), heading), 5.0, 1.0)
        assert np.mean([row[P.X] for row in shapes]) == pytest.approx(x, abs=1.0)


def test_an_event_follows_another(street: StreetSimulator) -> None:
    street.set_event("night")
    street.step(STILL)
    street.set_event("sunset")
    for _ in range(3):
        street.step(STILL)
    seen = street.surroundings()
    assert seen["light"] == "golden" and street.base_light == "day" and len(street.get_state().events) == 1


def test_a_walker_explores_and_does_not_stare(tiny: StreetSimulator) -> None:
    counts, stares, longest, moved = np.zeros(81, int), 0, 0, 0.0
    for seed in range(50):
        rng = np.random.default_rng([7, seed])
        tiny.reset(rng)
        walker, stared, before = Walker(rng, tiny), 0, np.array(tiny.position)
        for _ in range(32):
            action = walker.act()
            counts[action.index] += 1
            tiny.step(action)
            stared = stared + 1 if tiny.free_distance(tiny.yaw) < 2.5 else 0
            stares, longest = stares + (stared > 0), max(longest, stared)
        moved += float(np.linalg.norm(np.array(tiny.position) - before)) / 50
    total = counts.sum()
    assert (counts > 0).sum() >= 70 and counts[0] / total < 0.15
    assert counts[FORWARD.index] == counts.max() and counts[FORWARD.index] / total > 0.12
    assert stares / total < 0.06 and longest <= LONGEST_HOLD and moved > 8


def test_a_walker_is_decided_by_its_generator(tiny: StreetSimulator) -> None:
    def actions() -> list[int]:
        rng = np.random.default_rng(11)
        tiny.reset(rng)
        walker, chosen = Walker(rng, tiny), []
        for _ in range(30):
            chosen.append(walker.act())
            tiny.step(chosen[-1])
        return [action.index for action in chosen]

    assert actions() == actions()
