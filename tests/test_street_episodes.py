"""Episodes of YumeStreet as a recording: what they hold, that they depend on their number alone, and the shares of events."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from train.data import commands as data
from train.recordings import RecordingError, open_episodes
from train.street import towns
from train.street.episodes import (
    PHRASINGS,
    EpisodeTask,
    EventTimes,
    opposite,
    plan_episode,
    render_episode,
    render_episodes,
)
from world_model.actions import ALL_ACTIONS, Action
from yume_gym.street.events import EVENTS


def test_an_opposite_action_leads_back():
    assert all(opposite(opposite(action)) == action for action in ALL_ACTIONS)
    assert opposite(Action.from_keys("W+A", "↑→")) == Action.from_keys("S+D", "↓←")


def test_all_kinds_of_events_come_about_equally_often():
    rng = np.random.default_rng(0)
    kinds = Counter(kind for _ in range(2000) for kind, _, _ in plan_episode(rng, 32).events)
    assert kinds.keys() == EVENTS.keys() and len(kinds) == 17
    assert max(kinds.values()) < 2.5 * min(kinds.values())


def test_sets_of_towns_do_not_overlap():
    sets = (towns.TRAINING_TOWNS, towns.VALIDATION_TOWNS, towns.REPORT_TOWNS)
    seeds = [seed for towns_of in sets for seed in towns_of]
    assert len(set(seeds)) == len(seeds) and max(seeds) < towns.JUDGE_FIRST_TOWN < towns.FIRST_UNUSED_TOWN


def test_episodes_are_rendered_as_a_recording_and_continued(config, tmp_path):
    command = [
        "debug",
        "episodes",
        "--first-town",
        "1000",
        "--episodes-per-town",
        "2",
        "--blocks",
        "9",
        "--out",
        str(tmp_path),
    ]
    data.main([*command, "--towns", "1"])
    data.main([*command, "--towns", "2"])
    files = open_episodes(tmp_path)
    assert len(files) == 4 and len(files.paths) == 2 and files.extras == ("pitch", "position", "yaw")
    assert [info["town"] for info in files.infos] == [1000, 1000, 1001, 1001]
    for number, found in enumerate(files):
        wanted = render_episode(EpisodeTask(config, 0, 1000 + number // 2, number % 2, 9, towns.TOWN_BLOCKS))
        np.testing.assert_array_equal(found.frames, wanted.frames)
        np.testing.assert_array_equal(found.action, wanted.action)
        assert (found.caption, found.texts) == (wanted.caption, wanted.texts) and found.caption
        assert len(found.frames) == len(found.extra["yaw"]) == 1 + 9 * config.frames_per_block
        for (step, text), (begins, kind) in zip(found.texts, found.info["kinds"]):
            assert step == begins and (text is None) == (kind is None)
    with pytest.raises(RecordingError, match="blocks"):
        render_episodes(config, tmp_path, towns=2, blocks=10)
    with pytest.raises(SystemExit):
        data.main([*command, "--towns", "0"])


def test_events_last_as_long_as_asked_for(config, tmp_path):
    times = EventTimes(blocks=(3, 4), gap=(2, 2))
    plans = [plan_episode(np.random.default_rng(seed), 30, times).events for seed in range(40)]
    told = [events for events in plans if events]
    assert {stop - first for events in told for _, first, stop in events} == {3, 4}
    assert {after[1] - before[2] for events in told for before, after in pairwise(events)} == {2}
    assert {events[0][1] for events in told} == {3}
    for wrong in ({"blocks": (0, 4)}, {"blocks": (5, 4)}, {"gap": (-1, 2)}):
        with pytest.raises(RecordingError, match="--event-"):
            EventTimes(**wrong)
    with pytest.raises(RecordingError):  # what stands there was made otherwise
        render_episodes(config, tmp_path, towns=1, episodes_per_town=1, blocks=4)
        render_episodes(config, tmp_path, towns=2, episodes_per_town=1, blocks=4, events=times)


def test_texts_are_phrasings_for_training(config):
    tasks = [EpisodeTask(config, 0, 1001, number, 20, towns.TOWN_BLOCKS) for number in range(3)]
    told = [text for task in tasks for _, text in render_episode(task).texts if text]
    kept = {phrase for kind in EVENTS.values() for phrase in kind.held_out}
    kept |= {phrase for phrases in json.loads(PHRASINGS.read_text())["fresh"].values() for phrase in phrases}
    assert told and not kept & set(told)
