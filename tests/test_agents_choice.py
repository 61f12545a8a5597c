"""Fewer actions: agents that learn or choose among some of an environment's actions, and act in it with all."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from test_agents import Corridor, both  # noqa: F401  (a fixture)

from agents import ppo, transfer
from agents.choice import FewerActions, Translated, action_number, check_actions
from agents.evaluate import RandomAgent, load_agent
from agents.planner import Planner
from agents.planner import Settings as PlannerSettings
from agents.worlds import Where
from world_model.actions import Action
from yume_gym.vector_env import YumeWorldVectorEnv

SOME = ["2", "0"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("13", 13),
        ("W", Action.from_keys("W").index),
        ("W →", Action.from_keys("W", "→").index),
        ("W right", Action.from_keys("W", "→").index),
        ("left", Action.from_keys("", "←").index),
        ("S+A up left", Action.from_keys("S+A", "↑←").index),
        ("↑→", Action.from_keys("", "↑→").index),
        ("noop", 0),
    ],
)
def test_an_action_has_a_number_or_keys(text, number):
    assert action_number(text) == number


@pytest.mark.parametrize("text", ["jump", "W+Q", "-1", "W jump"])
def test_what_is_no_action_is_said(text):
    with pytest.raises(ValueError, match="give its number, or keys as in"):
        action_number(text)


@pytest.mark.parametrize(
    ("actions", "space", "words"),
    [
        ((0, 3), gymnasium.spaces.Discrete(3), "different numbers from 0 to 2"),
        ((1, 1), gymnasium.spaces.Discrete(3), "different numbers from 0 to 2"),
        ((5, 6), gymnasium.spaces.Discrete(3, start=5), "begins at 0"),
        ((0,), gymnasium.spaces.Box(0.0, 1.0, (2,)), "of a Discrete space"),
    ],
)
def test_actions_that_the_space_has_not_are_refused(actions, space, words):
    with pytest.raises(ValueError, match=words):
        check_actions(actions, space)


def test_worlds_with_fewer_actions_take_those_that_were_chosen(both):  # noqa: F811
    whole, some = (Where(recording=both[1], longest=6).make(2, 0) for _ in range(2))
    some = FewerActions(some, (2, 0))
    assert some.action_space == gymnasium.spaces.Discrete(2)
    np.testing.assert_array_equal(whole.reset(), some.reset())
    for few in ([0, 1], [1, 1], [0, 0]):
        wanted, found = whole.step(np.array([2, 0])[few]), some.step(np.array(few))
        for one, other in zip(wanted[:3], found[:3]):
            np.testing.assert_array_equal(one, other)
    for worlds in (whole, some):
        worlds.close()


def test_an_agent_that_learnt_fewer_actions_acts_with_all(both, tmp_path, monkeypatch):  # noqa: F811
    where = ["--recording", both[1], "--longest", "6", "--out", str(tmp_path), "--worlds", "2", "--rollout", "8"]
    ppo.main([*where, "--batch", "8", "--steps", "16", "--actions", *SOME])
    assert json.loads((tmp_path / ppo.SETTINGS).read_text())["settings"]["actions"] == [2, 0]
    worlds = Where(recording=both[1], longest=6).make(8, 0)
    seen = worlds.reset()
    for path in (tmp_path, tmp_path / ppo.AGENT):
        agent = load_agent(str(path), worlds.action_space, 0)
        assert isinstance(agent, Translated)
        chosen = np.concatenate([agent.predict(seen)[0] for _ in range(20)])
        assert set(chosen.tolist()) == {0, 2}
    worlds.step(agent.predict(seen)[0])
    worlds.close()
    with pytest.raises(ValueError, match="different numbers from 0 to 1"):
        load_agent(str(tmp_path), gymnasium.spaces.Discrete(2), 0)
    (tmp_path / ppo.SETTINGS).write_text('{"settings": {"actions": [0, 1, 2]}}')
    with pytest.raises(ValueError, match="name 3 actions"):
        load_agent(str(tmp_path), worlds.action_space, 0)


def test_an_agent_from_before_there_was_a_choice_goes_on(both, tmp_path):  # noqa: F811
    where, settings = Where(recording=both[1], longest=6), ppo.Settings(steps=16, worlds=2, rollout=8, batch=8)
    ppo.learn(where, settings, tmp_path)
    kept = json.loads((tmp_path / ppo.SETTINGS).read_text())
    assert kept["settings"].pop("actions") == []
    (tmp_path / ppo.SETTINGS).write_text(json.dumps(kept))
    assert ppo.learn(where, settings, tmp_path).num_timesteps == 16


def test_a_random_agent_chooses_among_them_only():
    agent, seen = RandomAgent(gymnasium.spaces.Discrete(9), 0, (7, 2, 4)), np.zeros((300, 2, 2, 12), np.uint8)
    numbers, counts = np.unique(agent.predict(seen)[0], return_counts=True)
    assert numbers.tolist() == [2, 4, 7] and counts.min() > 70


def test_the_planner_plans_with_them_only(monkeypatch):
    corridor, taken = Corridor(), []
    step = corridor.step
    monkeypatch.setattr(gymnasium, "make_vec", lambda *_, **__: corridor)
    monkeypatch.setattr(corridor, "step", lambda actions: taken.append(actions) or step(actions), raising=False)
    planner = Planner("nowhere", PlannerSettings(horizon=6, commit=2), actions=(2, 1))
    shown = np.zeros((1, 8, 8, 12), np.uint8)
    shown[0, 0, 0, 9] = 1
    assert planner.predict(shown)[0].tolist() == [2]
    assert set(np.concatenate(taken).tolist()) == {1, 2}


def test_transfer_compares_agents_with_the_same_actions(both, tmp_path):  # noqa: F811
    model, recording = both
    plan = ["--model", model, "--recording", recording, "--out", str(tmp_path), "--longest", "6", "--worlds", "2"]
    plan += ["--steps", "32", "--seeds", "1", "--episodes", "2", "--rollout", "8", "--batch", "8", "--gamma", "0.9"]
    fewer = ["--generated-episodes", "1", "--real-horizon", "4"]
    transfer.main([*plan, "--agents", "random", "real", "--actions", *SOME, *fewer])
    asked = json.loads((tmp_path / "real-0" / ppo.SETTINGS).read_text())
    kept = asked["settings"]
    assert asked["where"]["longest"] == 4
    assert kept["actions"] == [2, 0] and kept["gamma"] == 0.9 and kept["rollout"] == 8
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["plan"]["learning"]["actions"] == [2, 0]
    for places in report["results"].values():
        assert [len(places[place][0]["returns"]) for place in transfer.PLACES] == [1, 2]
    assert "1 episodes each in the generated world and 2 in the real one" in (tmp_path / "report.md").read_text()


def test_sampler_steps_are_those_asked_for(both, tmp_path, monkeypatch):  # noqa: F811
    model, recording = both
    plan = ["--model", model, "--recording", recording, "--out", str(tmp_path), "--longest", "1", "--episodes", "1"]
    made, make = [], YumeWorldVectorEnv.__init__
    monkeypatch.setattr(
        YumeWorldVectorEnv,
        "__init__",
        lambda self, *given, **named: made.append(named.get("steps")) or make(self, *given, **named),
    )
    transfer.main([*plan, "--agents", "random", "--seeds", "1", "--arguments", '{"steps": 2}'])
    assert made == [2]
    small = ["--planner-candidates", "2", "--planner-horizon", "1", "--planner-rounds", "1", "--planner-episodes", "1"]
    transfer.main([*plan, "--agents", "planner", *small, "--planner-sampler-steps", "1"])
    assert made == [2, None, 1, 1]  # generated worlds to act in, to plan in, and to plan in for the real one


def test_a_plan_is_as_large_as_asked(both, tmp_path, monkeypatch, capsys):  # noqa: F811
    model, recording = both
    small = ["--planner-candidates", "3", "--planner-horizon", "2", "--planner-rounds", "1", "--planner-elite", "2"]
    plan = ["--model", model, "--recording", recording, "--out", str(tmp_path), "--longest", "2", "--worlds", "1"]
    plans = []
    earned = Planner.earned
    monkeypatch.setattr(
        Planner, "earned", lambda self, picture, found: plans.append(found) or earned(self, picture, found)
    )
    transfer.main([*plan, "--agents", "planner", "--planner-episodes", "1", "--planner-commit", "1", *small])
    # two steps in the real world, one or two in the generated one, which may end
    assert len(plans) in (3, 4) and {found.shape for found in plans} == {(3, 2)}
    assert "one seed, 3 candidates of 2 steps, 1 rounds, 1 steps of a plan taken" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        transfer.main([*plan, "--agents", "planner", "--planner-rounds", "0"])
    assert "numbers of a plan are 1 or more" in capsys.readouterr().err
