"""train.world: every stage of a toy recording, the folder that it writes, and a run that goes on."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from toy_generator import toy_episode

from train.engine.optimization import TwoTimescale
from train.generator import adversarial
from train.generator.encode import encode_recording
from train.generator.fit import Budget, Stage
from train.generator.rollouts import split_episodes
from train.generator.sampler_steps import Found, chosen
from train.generator.windows import Windows
from train.recordings import EpisodeWriter, Recording, RecordingError, open_episodes
from train.world import Recipe, Settings, WorldTraining
from world_model.action_spaces import ActionSpec
from world_model.model import WorldModel

WITH_DISTILLATION = Recipe(shares={"autoencoder": 0.1, "foundation": 0.6, "distill": 0.2, "heads": 0.1})


def write_toy(folder, episodes: int = 3):
    recording = Recording("toy", 32, 32, 8.0, ActionSpec("discrete", (3,)))
    with EpisodeWriter(folder, recording) as writer:
        for seed in range(episodes):
            writer.add(toy_episode(40, seed))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few seconds."""
    root = tmp_path_factory.mktemp("world")
    data, out = write_toy(root / "data"), root / "run"
    training = WorldTraining(data, out, Settings(minutes=0.1, size="tiny"), WITH_DISTILLATION)
    training.all()
    return data, out, training


def test_all_stages_ran_and_the_folder_is_whole(trained):
    _, out, training = trained
    assert {"autoencoder", "foundation", "distill"} <= {name for name, steps in training.steps.items() if steps > 0}
    split = json.loads((out / "recording.json").read_text())
    assert split["held_out"] == [2]
    assert split["train"] == [0, 1]
    model = WorldModel.load(out)
    state = model.start([None], [None], [0]) if model.starts is None else model.start([model.starts[0]], [None], [0])
    after, frames = model.step(state, [2])
    assert frames.shape == (1, 1, 32, 32, 3)
    assert after.steps == (1,)
    measured = json.loads((out / "manifest.json").read_text())["training"][-1]["sampler_steps"]
    assert [one["steps"] for one in measured] == [1, 2, 3]
    assert model.config.sampler.steps == chosen([Found(**one) for one in measured]).steps


def test_distillation_by_a_discriminator(trained, tmp_path):
    """A stage like the others: it runs, leaves a checkpoint, and changes the layers that see the noise alone."""
    training = copy.copy(trained[2])
    distil = adversarial.Settings(
        batch=2, pool=4, episode_length=3, updates=TwoTimescale(generator_every=1, critic_warmup=1), width=4
    )
    recipe = dataclasses.replace(WITH_DISTILLATION, distill=distil, steps={"distill": 3})
    training.out, training.recipe, training.steps = tmp_path, recipe, {}
    training.settings = dataclasses.replace(training.settings, minutes=10.0)  # steps end it, also on a busy machine
    windows = Windows(
        training.config,
        encode_recording(training.config, training.vae, training.files, training.episodes, training.conditioning),
    )
    teacher, looks = training.generator, []
    training.between_steps = lambda stage, _: looks.append(stage.name)
    student = training.distilled(windows.data, teacher)
    assert looks == 3 * ["distill"]  # what a run leaves on the way, it leaves in this stage, too
    assert training.steps["distill"] == 3 and (tmp_path / "stages" / "distill" / "checkpoint.pt").is_file()
    before, after = teacher.state_dict(), student.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"head.head.weight", "detail.leave.weight"} <= changed
    assert not {name for name in changed if name.startswith(("flow.", "blocks.0."))}


def test_a_finished_run_has_nothing_left_to_do(trained):
    data, out, before = trained
    again = WorldTraining(data, out, Settings(minutes=0.1, size="tiny"), WITH_DISTILLATION)
    again.all()
    assert again.steps == before.steps


def test_a_run_of_another_size_is_refused(trained):
    data, out, _ = trained
    with pytest.raises(ValueError, match="another model or recording"):
        WorldTraining(data, out, Settings(size="small"))


def test_one_episode_is_too_few(tmp_path):
    files = open_episodes(write_toy(tmp_path, 1))
    with pytest.raises(RecordingError, match="record two or more"):
        split_episodes(files)


def test_a_stage_goes_on_where_it_was_stopped(tmp_path):
    """Twelve steps at once, and seven and five, end in the same numbers."""

    def run(folder, *parts: int) -> torch.Tensor:
        for steps in parts:
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 1)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            budget = Budget(minutes=60, steps=steps, cooldown=1e-9)
            stage = Stage("toy", folder, budget, {"model": model}, {"model": [optimizer]}, {"model": 0.9})

            def step(number: int, done: float, stage=stage, model=model) -> dict[str, torch.Tensor]:
                data = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
                loss = (model(data) - data.sum(dim=1, keepdim=True)).square().mean()
                stage.update("model", loss)
                return {"loss": loss}

            stage.run(step)
        return torch.cat([p.detach().flatten() for p in (*model.parameters(), *stage.averaged("model").parameters())])

    torch.testing.assert_close(run(tmp_path / "once", 12), run(tmp_path / "twice", 7, 12), rtol=0, atol=0)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    def stage(width: int) -> Stage:
        model = torch.nn.Linear(width, 1)
        adam = torch.optim.AdamW(model.parameters())
        return Stage("toy", tmp_path, Budget(minutes=1), {"model": model}, {"model": [adam]}, {})

    stage(3).save()
    with pytest.raises(ValueError, match="another model or stage"):
        stage(4)


def test_a_budget_ends_by_steps_or_minutes():
    budget = Budget(minutes=2, steps=10, warmup=4, cooldown=0.5, least=0.1)
    assert budget.done(5, 0.0) == 0.5
    assert budget.done(1, 90.0) == 0.75
    assert np.allclose([budget.rate(step, 0.0) for step in range(5)], [0.25, 0.5, 0.75, 1, 1])
    assert budget.rate(9, 0.9) == pytest.approx(0.2)
    assert budget.rate(9, 1.0) == 0.1


def test_shares_of_the_minutes_add_up():
    assert sum(Recipe().shares.values()) == pytest.approx(1)


def test_pictures_off_the_coarse_grid_are_learnt_too(tmp_path):
    """40 pixels are 5 tokens: coarser tokens hang over the edge."""
    recording = Recording("toy", 40, 40, 8.0, ActionSpec("discrete", (3,)))
    with EpisodeWriter(tmp_path / "data", recording) as writer:
        for seed in range(2):
            toy = toy_episode(12, seed)
            writer.add(dataclasses.replace(toy, frames=np.pad(toy.frames, ((0, 0), (0, 8), (0, 8), (0, 0)))))
    training = WorldTraining(tmp_path / "data", tmp_path / "run", Settings(minutes=0.02, size="tiny"))
    training.all()
    model = WorldModel.load(tmp_path / "run")
    _, frames = model.step(model.start([model.starts[0]], [None], [0]), [1])
    assert frames.shape == (1, 1, 40, 40, 3)
