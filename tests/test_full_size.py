"""The full size, from released files to a distilled world that hears events: docs/training.md's commands on a shrunken copy."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shlex
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")

from safetensors.torch import load_file
from shrunken import SHRUNKEN

import yume_gym  # noqa: F401
from train import evaluate
from train.data import sekai
from train.data.shards import Header, Trajectory, TrajectoryInfo
from world_model.actions import Action
from world_model.config import ModelConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*found in sys.modules after import:RuntimeWarning"
    ),  # commands run in this process
]

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
SIZE = (32, 64)
EVENT = "a meteor falls"
# what is shrunken of a documented command: its sizes, nothing else
SMALL = {
    "--size": "32x64",
    "--micro-batches": "2",
    "--batch": "2",
    "--pool": "4",
    "--steps": "4",
    "--warmup": "1",
    "--critic-warmup": "0",
    "--generator-every": "1",
    "--dream-from": "2",
    "--dream-over": "1",
}


def documented(page: Path) -> list[list[str]]:
    """The `python -m` commands of the section on the full size, in order, as words."""
    section = page.read_text().split("## The full size, step by step", 1)[1].split("\n## ", 1)[0]
    blocks = "\n".join(re.findall(r"```\n(.*?)```", section, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [line for line in lines if "-m" in line]


def shrunken(command: list[str]) -> tuple[str, list[str]]:
    """Module and arguments of a documented command, with the sizes of `SMALL`; what launches it is left out."""
    module, *arguments = command[len(command) - command[::-1].index("-m") :]
    for i, word in enumerate(arguments):
        if word in SMALL:
            arguments[i + 1] = SMALL[word]
    return module, arguments


def run(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    module, arguments = shrunken(command)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        assert not stop.code, f"{' '.join(command)} stopped with {stop.code}"


def write_clips(folder: Path) -> None:
    """Seven clips of 2 to 4 blocks of 32 frames at 16 a second, with poses and captions; one with an event."""
    for number, (keys, arrows, blocks) in enumerate(
        [("W", "", 3), ("W", "→", 2), ("S", "", 2), ("A", "", 2), ("", "←", 2), ("D", "", 2), ("W+A", "", 4)]
    ):
        count = 32 * blocks
        colours = np.random.default_rng(number).integers(0, 256, (blocks, 2, 4, 3), dtype=np.uint8)
        frames = colours.repeat(32, 0).repeat(16, 1).repeat(16, 2)
        angles = np.linspace(0, 0.3, count, dtype=np.float32)
        place = np.stack([angles, 2 * angles], axis=1)
        action = np.full(blocks, Action.from_keys(keys, arrows).index, np.uint8)
        info = TrajectoryInfo(f"A street, number {number}.", ((0, EVENT, None),) if number == 6 else ())
        walk = Trajectory(frames, action, angles, 0 * angles, place, np.zeros(blocks, np.uint8), info)
        header = Header("shrunken", *SIZE, 16, 32, blocks, 0, {})
        sekai.write_walk(folder, f"clip{number}", walk, header, SHRUNKEN.camera)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, original_release, sharded_release) -> Path:
    """A folder in which every documented command was run, from clips/ and weights/, which changes its layout between commands."""
    folder = tmp_path_factory.mktemp("workshop")
    write_clips(folder / "clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, command in enumerate(documented(PAGE)):
            Path("weights").unlink(missing_ok=True)
            Path("weights").symlink_to((original_release, sharded_release)[number % 2])
            run(patch, command)
    return folder


def updates(run_folder: Path) -> int:
    """How often the averaged network of a run was updated."""
    return int(torch.load(run_folder / "checkpoint" / "custom_checkpoint_1.pkl", weights_only=True)["n_averaged"])


def test_the_page_says_every_stage():
    modules = [shrunken(command)[0] for command in documented(PAGE)]
    assert modules == ["train.data", "train.foundation", "train.export", "train.distill", "train.export"]


def test_the_full_size_trains_from_released_files_to_a_distilled_world(workshop):
    runs = workshop / "runs"
    assert updates(runs / "foundation") == 4 and updates(runs / "distill") >= 3
    first, second = (load_file(runs / f"{stage}-weights" / "dit.safetensors") for stage in ("foundation", "distill"))
    assert first["blocks.0.channel.up.weight"].any()  # the channel path was added with a zero output, and learns
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert all(bool(value.isfinite().all()) for value in second.values())
    assert not list((workshop / "clips" / "texts").glob("*.unfinished"))
    manifest = json.loads((runs / "distill-weights" / "manifest.json").read_text())
    assert [stage.get("stage", "released") for stage in manifest["training"]] == ["released", "foundation", "distill"]


def test_a_trained_world_starts_from_picture_and_text_follows_an_event_and_is_restored(workshop):
    folder = workshop / "runs" / "distill-weights"
    config = ModelConfig.from_json((folder / "config.json").read_text())
    assert (
        not config.text.joined and config.dit.history.channel is not None
    )  # event and action apart, as they were trained
    env = gymnasium.make("YumeWorld-v0", model=str(folder), device="cpu", dtype="float32")
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    observation, _ = env.reset(seed=1, options={"image": picture, "text": "a quiet street"})
    assert (observation == picture).all()
    for keys in ("W", "A"):
        env.step(Action.from_keys(keys).index)
    world = env.unwrapped
    state = pickle.loads(pickle.dumps(world.get_state()))
    plain = env.step(Action.from_keys("", "→").index)[-1]["frames"]
    world.set_state(state)
    assert (env.step(Action.from_keys("", "→").index)[-1]["frames"] == plain).all()
    assert plain.shape == (32, *SIZE, 3)
    world.set_state(state)
    world.trigger_event("a dragon lands")
    assert (env.step(Action.from_keys("", "→").index)[-1]["frames"] != plain).any()


def test_yume_bench_is_run_on_it(workshop, tmp_path, capsys):
    weights = str(workshop / "runs" / "distill-weights")
    evaluate.main([weights, "--bench", "yume", "--out", str(tmp_path), "--walks", "1", "--frames", "32"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["figures"]["instruction_following_pose"] in (0.0, 1.0, None)  # of one block; None without opencv
    assert "frames_per_block': 32" in report["reasons"]["instruction_following_judge"]  # no judge reads such pictures
    assert report["conditions"][0] == "videos are 32x64, the bench's are 544x960"
    assert capsys.readouterr().out.count("(published)") == 6
