"""What docs/agents.md says is run: PPO as it stands, the batch of worlds and episodes for Minari on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from train import record as command
from train.recordings import open_episodes

PAGE = (Path(__file__).parent.parent / "docs" / "agents.md").read_text(encoding="utf-8")


def block(title: str, language: str) -> str:
    """The first block of code in a section of the page."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.S)
    assert found is not None
    return found[1]


def test_ppo_in_ten_lines():
    pytest.importorskip("stable_baselines3")
    code = block("PPO in ten lines", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(compile(code, "docs/agents.md", "exec"), names)
    assert names["agent"].num_timesteps == 32
    assert names["rewards"].shape == (4,) and (names["rewards"] > 0).all()


def test_the_batch_of_worlds(weights_folder):
    code, names = block("The batch of worlds", "python"), {}
    small = code.replace('"YumeWorld-v0"', f'"YumeWorld-v0", model="{weights_folder}"')
    assert small != code
    exec(compile(small, "docs/agents.md", "exec"), names)
    envs = names["envs"]
    assert envs.num_envs == 8
    assert names["infos"]["event"].tolist() == ["snow falls"] + [None] * 7
    observations = envs.step([1] * 8)[0]
    assert len({observation.tobytes() for observation in observations[3:6]}) == 3


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_episodes_go_to_minari_and_back(weights_folder, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for line in block("Episodes for offline reinforcement learning", "").splitlines()]
    assert [line[:3] for line in lines] == [["python", "-m", "train.record"]] * 3
    small = {"64x96": "32x48", "32": "3"}  # the small world of the tests, and short episodes
    model = ["--env-kwargs", json.dumps({"model": str(weights_folder), "device": "cpu"})]
    for line in lines:
        arguments = [small.get(word, word) for word in line[3:]]
        command.main([*arguments, *(model if "--env" in arguments else [])])
    ours, theirs = open_episodes(Path("data/dream")), open_episodes(Path("data/again"))
    assert ours.lengths.tolist() == theirs.lengths.tolist() == [3] * 4
    for one, other in zip(ours, theirs):
        assert one.frames.shape[1:] == (32, 48, 3)
        for name in ("frames", "action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_an_agent_is_recorded_to_minari(weights_folder, tmp_path, monkeypatch, capsys):
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    from examples import record_minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    where = ["--model", str(weights_folder), "--reward", "motion", "--longest", "3", "--episodes", "3", "--worlds", "2"]
    record_minari.main(["me/dream-v0", *where])
    assert "me/dream-v0: 3 episodes, 9 steps, return " in capsys.readouterr().out
    found = list(minari.load_dataset("me/dream-v0").iterate_episodes())
    assert [len(one.observations) for one in found] == [4, 4, 4] and found[0].observations[0].shape == (32, 48, 3)
    assert [one.truncations.tolist() for one in found] == [[False, False, True]] * 3
    assert not any(one.terminations.any() for one in found) and (found[0].rewards > 0).all()
    firsts = {one.observations[0].tobytes() for one in found}
    assert all(len({picture.tobytes() for picture in one.observations}) == 4 for one in found) and len(firsts) >= 2
    with pytest.raises(SystemExit):
        record_minari.main(["me/dream-v0", *where])
    record_minari.main(["me/dream-v0", "--read"])
