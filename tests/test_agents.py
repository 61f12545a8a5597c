"""Agents in generated and real worlds: PPO learns and goes on, evaluation counts whole episodes, transfer compares both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from agents import evaluate as evaluation
from agents import ppo, transfer
from agents.evaluate import Result
from agents.planner import Choices, Planner
from agents.planner import Settings as PlannerSettings
from agents.scripted import BeaconSeeker, pillar
from agents.worlds import Where
from examples import watch_agent
from train.data.video import read_video
from train.recordings.environment import PictureSettings, RecordSettings
from train.recordings.recorder import record
from train.world import Recipe, Settings, WorldTraining

SHARES = {"autoencoder": 0.2, "foundation": 0.6, "distill": 0.0, "heads": 0.2}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[str, str]:
    """(model, recording) of the world of one dot, a few seconds of training."""
    root = tmp_path_factory.mktemp("agents")
    record(
        RecordSettings("Tiny-v0", "{}", ("tiny_worlds",), pictures=PictureSettings((40, 48))), root / "data", episodes=8
    )
    WorldTraining(root / "data", root / "run", Settings(minutes=0.1, size="tiny"), Recipe(shares=SHARES)).all()
    return str(root / "run"), str(root / "data")


def test_real_and_generated_worlds_have_the_same_spaces(both):
    model, recording = both
    real, made = (w.make(2, 0) for w in (Where(recording=recording, longest=4), Where(arguments={"model": model})))
    assert real.observation_space == made.observation_space and real.action_space == made.action_space
    assert real.reset().shape == made.reset().shape == (2, 40, 48, 12)
    for worlds in (real, made):
        worlds.close()


def test_an_agent_learns_stops_and_goes_on(both, tmp_path, capsys):
    where = ["--recording", both[1], "--longest", "6", "--out", str(tmp_path), "--worlds", "2", "--rollout", "8"]
    ppo.main([*where, "--batch", "8", "--steps", "16"])
    first = ppo.PPO.load(tmp_path / ppo.AGENT)
    assert first.num_timesteps == 16
    ppo.main([*where, "--batch", "8", "--steps", "48"])
    second = ppo.PPO.load(tmp_path / ppo.AGENT)
    assert second.num_timesteps == 48 and second.policy.optimizer.state_dict()["state"][0]["step"] > 8
    with pytest.raises(SystemExit):
        ppo.main([*where, "--batch", "16", "--steps", "48"])
    assert "holds an agent of other settings or worlds" in capsys.readouterr().err
    assert list(tmp_path.glob("PPO_*/events*")) and not list(tmp_path.glob("unfinished*"))


def test_an_agent_that_was_stopped_while_learning_goes_on(both, tmp_path, monkeypatch):
    where = Where(recording=both[1], longest=6)
    settings = ppo.Settings(steps=48, worlds=2, rollout=8, batch=8)
    seen: list[int] = []

    def stopped(progress: ppo.Progress) -> None:
        seen.append(progress.num_timesteps)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ppo.Progress, "_on_rollout_end", stopped)
    with pytest.raises(KeyboardInterrupt):
        ppo.learn(where, settings, tmp_path)
    assert seen == [16, 32, 48]
    assert ppo.PPO.load(tmp_path / ppo.AGENT).num_timesteps == 32
    assert ppo.learn(where, settings, tmp_path).num_timesteps == 48


def test_evaluation_counts_whole_episodes(both, tmp_path, capsys):
    """Tiny-v0 gives 1 a step and ends after 6 to 9 of them; `longest` cuts at 7."""
    where = ["--recording", both[1], "--longest", "7", "--agent", "random", "--episodes", "5", "--worlds", "3"]
    evaluation.main([*where, "--out", str(tmp_path / "result.json")])
    found = json.loads((tmp_path / "result.json").read_text())
    assert len(found["returns"]) == 5 and found["returns"] == found["lengths"] and set(found["lengths"]) <= {6, 7}
    # those of 6 steps ended by themselves; one of 7 may have been cut there
    assert all(goal or length == 7 for goal, length in zip(found["goals"], found["lengths"]))
    printed = capsys.readouterr().out
    assert (
        f"return {np.mean(found['returns']):.3g} (95% " in printed
        and f"goal in {np.mean(found['goals']):.0%}" in printed
    )
    again = evaluation.evaluate("random", Where(recording=both[1], longest=7), 5, 3, 1000)
    assert list(again.returns) == found["returns"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--agent", "nobody"], "no agent 'nobody': give a folder"),
        (["--agent", "random", "--model", "none"], "no such folder"),
    ],
)
def test_what_is_not_there_is_said(both, given, words, capsys):
    where = given if "--model" in given else [*given, "--recording", both[1]]
    with pytest.raises(SystemExit):
        evaluation.main(where)
    assert words in capsys.readouterr().err


class Corridor:
    """Stands for the batch of worlds: the picture's first pixel is a place, action 2 moves right; reward at 3, where it ends."""

    single_action_space = gymnasium.spaces.Discrete(3)

    def reset(self, seed, options):
        self.place, self.resets = np.full(32, int(options["image"][0, 0, 0])), getattr(self, "resets", 0) + 1

    def step(self, actions):
        self.place = self.place + actions - 1
        there = self.place == 3
        return None, 1.0 * there, there, np.zeros(32, bool), {}


def test_the_planner_goes_where_the_model_says_it_pays(monkeypatch):
    corridor = Corridor()
    monkeypatch.setattr(gymnasium, "make_vec", lambda *_, **__: corridor)
    planner = Planner("nowhere", PlannerSettings(horizon=6, commit=2))
    shown = np.zeros((2, 8, 8, 12), np.uint8)
    shown[0, 0, 0, 9], shown[1, 0, 0, 9] = 1, 4  # places, in the newest picture
    actions, state = planner.predict(shown)
    assert actions.tolist() == [2, 0] and corridor.resets == 4  # two rounds for each world
    shown[0, 0, 0, 9], shown[1, 0, 0, 9] = 2, 4
    actions, state = planner.predict(shown, state, np.array([False, True]))
    assert actions.tolist() == [2, 0] and corridor.resets == 6  # the first follows its plan, the second begins anew
    _, state = planner.predict(shown, state, np.array([False, False]))
    assert corridor.resets == 8 and [taken for _, taken in state] == [1, 2]
    shown[0, 0, 0, 9] = 1
    plans = np.array([[2, 2, 2, 2, 2, 2], [1, 2, 2, 0, 0, 0]] * 16)
    earned = planner.earned(shown[0, ..., 9:], plans)
    assert earned[0] == pytest.approx(0.97) and earned[1] == pytest.approx(0.97**2)  # nothing after the end


def test_the_planner_learns_where_a_box_pays():
    """The cross-entropy method finds the maximum of a function of two numbers."""
    choices = Choices(gymnasium.spaces.Box(-1.0, 1.0, (2,)), PlannerSettings(candidates=64, horizon=1, elite=8))
    rng, goal = np.random.default_rng(0), np.array([0.6, -0.3])
    for _ in range(6):
        drawn = choices.draw(rng)
        choices.fit(drawn[np.argsort(((drawn[:, 0] - goal) ** 2).sum(axis=1))[:8]])
    np.testing.assert_allclose(choices.draw(rng).mean(axis=(0, 1)), goal, atol=0.05)


def test_the_planner_acts_in_the_real_world(both, capsys):
    model, recording = both
    where = [
        "--recording",
        recording,
        "--agent",
        f"planner:{model}",
        "--longest",
        "2",
        "--episodes",
        "1",
        "--worlds",
        "1",
    ]
    evaluation.main(where)
    assert "length 2.0 steps, 1 episodes" in capsys.readouterr().out


def test_transfer_measures_every_agent_in_both_worlds_once(both, tmp_path, monkeypatch):
    model, recording = both
    plan = ["--model", model, "--recording", recording, "--out", str(tmp_path), "--longest", "6", "--worlds", "2"]
    plan += ["--steps", "128", "--seeds", "1", "--episodes", "3"]
    transfer.main(plan)
    report, number = (tmp_path / "report.md").read_text(), r"-?\d+(?:\.\d+)?"
    for name in (transfer.AGENTS[name] for name in transfer.Plan.agents):
        assert re.search(
            rf"\| {name} \| {number} \({number} to {number}\) \| {number} \({number} to {number}\) \| [+-]{number} \(",
            report,
        )
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert all(len(found[0]["returns"]) == 3 for places in results.values() for found in places.values())
    assert (tmp_path / "transfer.png").stat().st_size > 5000
    monkeypatch.setattr(transfer, "evaluate", lambda *_: pytest.fail("measured again"))
    transfer.main(plan)


def test_the_alarm_is_for_an_agent_that_is_better_in_the_generated_world_only(tmp_path):
    def of(values: list[float]) -> list[Result]:
        return [Result(tuple(values), (1,) * len(values), (True,) * len(values))]

    noisy, high = list(np.linspace(90, 110, 40)), list(np.linspace(190, 210, 40))
    results = {
        "random": {"generated": of(noisy), "real": of(noisy)},
        "scripted": {"generated": of(high), "real": of(noisy)},
    }
    transfer.write(transfer.Plan(Where(), Where(), steps=1, seeds=1, episodes=40), results, tmp_path)
    rows = {
        line.split("|")[1].strip(): line.split("|")[5].strip()
        for line in (tmp_path / "report.md").read_text().splitlines()[2:4]
    }
    assert rows == {"random": "no", "scripted": "yes"}
    difference, low, highest = transfer.Row.of("cheat", results["scripted"]).gap
    assert difference == pytest.approx(100) and 90 < low < 100 < highest < 110


def test_a_folder_that_is_no_agent_is_refused(tmp_path):
    (tmp_path / "agent.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is not an agent of PPO, A2C or DQN"):
        evaluation.load_agent(str(Path(tmp_path)), Where().make, 0)


def test_an_agent_is_shown_in_both_worlds(both, tmp_path, capsys):
    model, recording = both
    out = tmp_path / "agent.mp4"
    watch_agent.main(
        ["--agent", "random", "--model", model, "--recording", recording, "--steps", "9", "--out", str(out)]
    )
    frames, _, count = read_video(out, 160, 2 * 192 + 8, 15.0)
    assert count == 10 and frames[0, :, 192:200].min() > 240  # the gap between the two
    assert re.search(r"real world: returns \[[6-9]\.0\]", capsys.readouterr().out)


def test_the_pillar_is_found_by_its_colour():
    picture = np.full((64, 96, 3), (90, 120, 200), np.uint8)
    assert pillar(picture) is None and BeaconSeeker.act(picture).arrows == "→"
    picture[:40, 20:23] = (250, 220, 60)
    assert pillar(picture) == pytest.approx(2 * 20.5 / 96 - 1) and BeaconSeeker.act(picture).arrows == "←"
    picture[40:, :] = (250, 220, 60)  # a yellow road is no pillar
    picture[:40, 20:23], picture[:30, 48:50] = (90, 120, 200), (250, 220, 60)
    action = BeaconSeeker.act(picture)
    assert (action.keys, action.arrows) == ("W", "")


def test_the_scripted_agent_reaches_the_beacon():
    """A street in which the pillar is in view."""
    env = gymnasium.make("YumeStreetBeacon-v0")
    observation, _ = env.reset(seed=2)
    terminated = truncated = False
    while not (terminated or truncated):
        actions, _ = BeaconSeeker().predict(observation[None])
        observation, reward, terminated, truncated, _ = env.step(int(actions[0]))
    assert terminated and reward > 10
