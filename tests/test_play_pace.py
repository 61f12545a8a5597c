"""Keys, the frame clock, forecasts and measurements of play: all without a model and without waiting."""

from __future__ import annotations

import pytest

from world_model.actions import ALL_ACTIONS, Action
from yume_gym.play.keys import HeldKeys, key_name
from yume_gym.play.pace import MARGIN, Forecast, FrameClock, InputLatency, Meter


def test_every_action_can_be_held() -> None:
    for action in ALL_ACTIONS:
        keys = HeldKeys()
        keys.hold([*action.keys.replace("+", ""), *action.arrows])
        assert keys.action == keys.sample() == keys.sample() == action  # held keys stay


def test_key_names_of_people_and_browsers() -> None:
    assert [key_name(key) for key in ("w", "ArrowUp", "right", "↓", "D")] == ["W", "↑", "→", "↓", "D"]
    with pytest.raises(ValueError, match="unknown key 'q'"):
        key_name("q")


def test_a_short_tap_is_not_lost_and_acts_once() -> None:
    keys = HeldKeys()
    assert keys.hold("W")
    assert not keys.hold("")  # what the next block will do has not changed
    assert keys.sample() == Action.from_keys("W")
    assert keys.sample() == Action()


def test_opposite_keys() -> None:
    keys = HeldKeys()
    keys.hold("WS")
    assert keys.action == Action()  # both held: they cancel
    keys.hold("")
    keys.sample()
    keys.hold("A")
    keys.hold("D")
    assert keys.action == Action.from_keys("D")  # one after the other: the later is meant


def test_frame_clock_keeps_time_through_small_delays_and_moves_with_large_ones() -> None:
    frame_clock = FrameClock(0.1, now=0.0)
    shown = []
    for now in (0.0, 0.13, 0.2, 0.34, 0.35, 0.4, 0.44, 0.5):
        if frame_clock.is_due(now):
            frame_clock.shown(now)
            shown.append(now)
    # 0.13 is late, the clock stays; 0.34 is late by 0.04, the clock stays; none comes early
    assert shown == [0.0, 0.13, 0.2, 0.34, 0.4, 0.5]
    late = FrameClock(0.1, now=0.0)
    late.shown(0.0)
    late.shown(0.3)  # two periods late: from here on again
    assert not late.is_due(0.39) and late.is_due(0.4001)


def test_frame_clock_stops_with_what_is_left_of_the_period() -> None:
    frame_clock = FrameClock(0.1, now=0.0)
    frame_clock.shown(0.0)
    frame_clock.stop(0.06)
    assert not frame_clock.is_due(5.0)
    frame_clock.go(10.0)
    assert not frame_clock.is_due(10.03) and frame_clock.is_due(10.041)
    assert frame_clock.covered_until(3) == pytest.approx(10.34)


def test_forecast_grows_with_the_number_of_worlds() -> None:
    forecast = Forecast()
    assert forecast.lead(1) is None and forecast.typical(2) is None
    for _ in range(10):
        forecast.add(1, 0.2)
    assert forecast.lead(1) == pytest.approx(0.2 + MARGIN)
    assert forecast.typical(3) == pytest.approx(0.6)
    forecast.add(2, 0.25)  # a graphics card does two at once
    assert forecast.typical(2) == pytest.approx(0.25)
    assert forecast.typical(4) == pytest.approx(0.5)


def test_lead_covers_nearly_all_rounds_and_forgets() -> None:
    forecast = Forecast()
    for i in range(60):
        forecast.add(1, 0.4 if i % 5 == 0 else 0.2)
    lead = forecast.lead(1)
    assert lead is not None and lead > 0.39
    assert forecast.typical(1) == pytest.approx(0.2)
    for _ in range(64):
        forecast.add(1, 0.1)
    assert forecast.lead(1) == pytest.approx(0.1 + MARGIN)


def test_meter_counts_stutters_but_no_pauses() -> None:
    meter = Meter(period=0.1)
    for now in (0.0, 0.1, 0.2, 0.36, 0.46):  # one interval of 1.6 periods
        meter.shown(now, None)
    frames = meter.frames(queued=3)
    assert (frames.shown, frames.smooth, frames.queued) == (4, 0.75, 3)
    assert frames.fps == pytest.approx(4 / 0.46)
    assert meter.latency == InputLatency(None, None, None)
    meter.interrupt()
    meter.shown(9.0, 0.5)
    meter.shown(9.1, 0.7)
    frames, latency = meter.frames(queued=0), meter.latency
    assert (frames.shown, frames.smooth) == (5, 0.8)
    assert (latency.last, latency.median) == (0.7, pytest.approx(0.6))
