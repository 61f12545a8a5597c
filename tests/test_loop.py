"""What all stages share: a run goes on exactly where its last whole checkpoint was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from train.engine import loop
from train.engine.arguments import read_arguments
from train.engine.loop import Networks, Run, warm_average
from train.evaluation.sheet import save_sheet, to_pictures, to_video
from world_model.config import ModelConfig
from world_model.rollout import generator


@dataclass(frozen=True)
class Numbers:
    seed: int = 3


class Walker:
    """A state of its own, as the pool of worlds is: a random walk that every step goes on with."""

    def __init__(self) -> None:
        self.place = torch.zeros(3)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Little:
    """A training run of a 3x3 layer, with everything that can be resumed: two optimizers, EMA and a kept object."""

    def __init__(self, config: ModelConfig, folder: Path, start: float = 0.5, keep: bool = True) -> None:
        self.model, self.walker = nn.Linear(3, 3), Walker()
        nn.init.constant_(self.model.weight, start)
        nn.init.constant_(self.model.bias, 0.0)
        adam = torch.optim.AdamW([self.model.weight], lr=0.1)
        momentum = torch.optim.SGD([self.model.bias], lr=0.1, momentum=0.9)
        extra_state = {"walker": self.walker} if keep else None
        self.run = Run(
            "little",
            config,
            Numbers(),
            folder,
            Networks({"net": self.model}, [adam, momentum], {"net": 0.9}),
            extra_state,
        )
        self.seen: list[int] = []

    def train(self, last: int, save_at: int | None = None, stop_at: int | None = None) -> None:
        for step in self.run.steps(last):
            x = torch.randn(4, 3, generator=generator(3, step))
            self.walker.place = self.walker.place + x[0]
            loss = (self.model(x) - self.walker.place).square().mean()
            for optimizer in self.run.optimizers:
                optimizer.zero_grad()
            self.run.accelerator.backward(loss)
            for optimizer in self.run.optimizers:
                optimizer.step()
            self.run.average("net")
            self.seen.append(step)
            if step == save_at:
                self.run.save()
            if step == stop_at:
                raise KeyboardInterrupt

    def everything(self) -> list[Tensor]:
        average = self.run.ema["net"]
        return [*self.model.state_dict().values(), *average.state_dict().values(), self.walker.place]

    def equals(self, other: Little) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.everything(), other.everything(), strict=True))


@pytest.fixture
def whole(config, tmp_path) -> Little:
    """Nine steps without a stop."""
    little = Little(config, tmp_path / "whole")
    little.train(9)
    return little


def test_steps_in_two_parts_equal_steps_at_once(config, tmp_path, whole):
    first = Little(config, tmp_path / "run")
    first.train(4)
    first.run.finish()
    second = Little(config, tmp_path / "run", start=9.0)  # its own start must not matter
    assert not second.equals(whole)
    second.train(9)
    assert second.seen == [4, 5, 6, 7, 8]
    assert second.equals(whole)


def test_a_killed_run_goes_on_after_the_step_it_saved_in(config, tmp_path, whole):
    """A checkpoint written at the end of step 3 holds step 3: it must not be trained twice."""
    killed = Little(config, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        killed.train(9, save_at=3, stop_at=6)
    again = Little(config, tmp_path / "run")
    again.train(9)
    assert again.seen == [4, 5, 6, 7, 8]
    assert again.equals(whole)


def interrupt(monkeypatch, where: str, little: Little) -> None:
    """Makes the next `save` stop in the middle of its writing, or between its two renames."""
    if where == "writing":

        def stop(folder: str) -> None:
            Path(folder).mkdir()
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(little.run.accelerator, "save_state", stop)
        return
    replace = loop.os.replace

    def stop_second(source: Path, target: Path) -> None:
        if source.name == "checkpoint.new":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(loop.os, "replace", stop_second)


@pytest.mark.parametrize("where", ["writing", "renaming"])
def test_an_interrupted_save_leaves_the_old_checkpoint(where, config, tmp_path, monkeypatch, whole):
    little = Little(config, tmp_path / "run")
    little.train(4)
    little.run.save()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, where, little)
        little.train(7, save_at=5)
    again = Little(config, tmp_path / "run")
    assert again.run.progress.step == 4
    again.train(9)
    assert again.equals(whole)
    again.run.save()
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if "checkpoint" in p.name) == ["checkpoint"]


def test_a_checkpoint_without_a_kept_object_is_still_taken(config, tmp_path, capsys):
    old = Little(config, tmp_path / "run", keep=False)
    old.train(4)
    old.run.finish()
    assert not (tmp_path / "run" / "checkpoint" / "walker.pt").exists()
    new = Little(config, tmp_path / "run")
    assert "no walker" in capsys.readouterr().out
    assert new.run.progress.step == 4
    assert torch.equal(new.model.weight, old.model.weight)
    assert not new.walker.place.any()


def test_learning_rates_are_those_given_now(config, tmp_path):
    """All else of an optimizer is the checkpoint's."""
    first = Little(config, tmp_path / "run")
    first.train(4)
    first.run.finish()
    model = nn.Linear(3, 3)
    adam, momentum = torch.optim.AdamW([model.weight], lr=0.02), torch.optim.SGD([model.bias], lr=0.03, momentum=0.9)
    Run("little", config, Numbers(), tmp_path / "run", Networks({"net": model}, [adam, momentum], {"net": 0.9}))
    assert [optimizer.param_groups[0]["lr"] for optimizer in (adam, momentum)] == [0.02, 0.03]
    assert float(adam.state[model.weight]["step"]) == 4


@dataclass(frozen=True)
class Options:
    batch: int = 8
    lr: float = 0.5
    optimizer: str = "muon"


def test_command_lines_of_stages(config, tmp_path, monkeypatch, capsys):
    def read(*words: str):
        paths = ["--data", "d", "--vae", "v", "--out", "o"]
        monkeypatch.setattr("sys.argv", ["stage", *words, *paths])
        return read_arguments("What it does.", Options, ("batch", "lr", "optimizer"), ("data", "vae"), ("initial",))

    found, options, arguments = read("debug", "--batch", "4", "--optimizer", "adamw", "--size", "64x96")
    assert (found.name, found.height, found.width) == ("debug", 64, 96)
    assert options == Options(4, 0.5, "adamw")
    assert (arguments.data, arguments.initial, arguments.minutes) == (Path("d"), None, None)
    own = tmp_path / "config.json"
    own.write_text(config.to_json())
    assert read(str(own))[0] == config
    for words, message in ((["no-such"], "known presets"), (["debug", "--size", "33x48"], "multiple of")):
        with pytest.raises(SystemExit):
            read(*words)
        assert message in capsys.readouterr().err


def test_a_finished_run_does_nothing_more(config, tmp_path, whole):
    whole.run.finish()
    again = Little(config, tmp_path / "whole")
    again.train(9)
    assert again.seen == []
    assert again.equals(whole)


def test_training_stops_after_its_minutes_over_all_sittings(config, tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    def sitting() -> int:
        little = Little(config, tmp_path / "run")
        done = 0
        for _ in little.run.steps(100, minutes=3.5):
            clock[0] += 60
            done += 1
            if done == 2:
                break
        little.run.save()
        return done

    assert sitting() == 2
    clock[0] = 5000.0  # time between the sittings does not count
    assert sitting() == 2
    clock[0] = 9000.0
    assert sitting() == 0


def test_a_run_folder_says_what_it_is(config, tmp_path, whole):
    folder = tmp_path / "whole"
    assert ModelConfig.from_json((folder / "config.json").read_text()) == config
    assert json.loads((folder / "settings.json").read_text()) == {"seed": 3}
    whole.run.log({"loss": 0.5})
    whole.run.finish()
    assert list(folder.rglob("events.out.tfevents*"))


def test_training_stays_on_the_cpu(whole):
    """Data and pools are there; a machine with an accelerator must train like any other."""
    assert whole.run.accelerator.device.type == "cpu"


def test_average_warms_up_then_keeps_its_decay():
    update = warm_average(0.9)
    average, expected = [torch.zeros(2)], 0.0
    for n in range(200):
        update(average, [torch.full((2,), float(n))], torch.tensor(n))
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert float(average[0][0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (1 + 3) / (10 + 3) < 0.9 < (1 + 199) / (10 + 199)


def test_average_follows_the_model(config, tmp_path):
    """The first update takes the model as it is; later ones go part of the way."""
    little = Little(config, tmp_path / "run")
    little.train(1)
    average = little.run.ema["net"].module
    assert torch.equal(average.weight, little.model.weight)
    before, little.model.weight.data = little.model.weight.detach().clone(), torch.full((3, 3), 7.0)
    little.run.average("net")
    torch.testing.assert_close(average.weight, before.lerp(torch.full((3, 3), 7.0), 1 - 2 / 11))
    assert not any(p.requires_grad for p in average.parameters())


# ---- contact sheets ---------------------------------------------------------------------------------------------------


def test_pictures_and_videos_are_inverses():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6, 3), dtype=np.uint8)
    video = to_video(frames)
    assert video.shape == (2, 3, 3, 4, 6)
    assert video.min() >= -1 and video.max() <= 1
    assert float(video[1, 2, 0, 3, 5]) == pytest.approx(frames[1, 0, 3, 5, 2] / 127.5 - 1, abs=1e-6)
    np.testing.assert_array_equal(to_pictures(video), frames)
    assert to_pictures(torch.full((3, 1, 1, 1), 5.0)).max() == 255


def test_sheet_has_a_row_for_each_row(tmp_path):
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    path = tmp_path / "sheets" / "a.png"
    save_sheet(path, [pictures[:2], pictures[2:]], zoom=2)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (8, 12, 3)
    assert sheet[0, 0, 0] == 10 and sheet[0, 6, 0] == 20 and sheet[4, 0, 0] == 30 and sheet[4, 6, 0] == 0
