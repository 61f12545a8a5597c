"""Training of an expert for texts beside a generator."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from configs import RECORDING
from expert_world import SMALL, toy
from safetensors.torch import save_file

from train.generator import expert as training
from train.generator import moved_blocks as module
from train.generator.encode import encode_recording
from train.generator.moved_blocks import told_before
from train.generator.shapes import recorded_config
from train.generator.windows import Spans, Windows
from train.recordings import Episode, EpisodeWriter, open_episodes
from world_model.denoiser import Denoiser
from world_model.dit import DiT
from world_model.memory import Told
from world_model.model import WorldModel
from world_model.text import build_text_encoder, mean_token
from world_model.vae import PatchVAE
from world_model.weights import dit_tensors, read_manifest, save_weights


@pytest.fixture(name="recording", scope="module")
def recording_fixture(tmp_path_factory):
    """Six episodes of 12 steps: at step 4 a text turns the picture dark, from step 8 on nothing is told and it is light again."""
    folder = tmp_path_factory.mktemp("dark")
    recording = dataclasses.replace(RECORDING, height=32, width=32, frames_per_step=2)
    with EpisodeWriter(folder, recording) as writer:
        for seed in range(6):
            rng = np.random.default_rng(seed)
            frames = rng.integers(90, 110, (25, 32, 32, 3), dtype=np.uint8)
            frames[:, 4:12, 2:9] = 200  # not the same in a mirror
            frames[9:17] //= 4
            writer.add(
                Episode(
                    frames,
                    rng.integers(0, 3, 12),
                    np.zeros(12, np.float32),
                    np.zeros(12, np.uint8),
                    np.zeros(12, np.uint8),
                    caption="a light room",
                    texts=((4, "night falls"), (8, None)),
                )
            )
    return folder


@pytest.fixture(name="trained", scope="module")
def trained_fixture(recording, tmp_path_factory):
    """A generator's folder of random weights, and a run that teaches an expert for some steps."""
    folder = tmp_path_factory.mktemp("expert")
    config = toy(None)
    torch.manual_seed(0)
    vae, dit = PatchVAE(config.vae), DiT(config)
    dit.flow.read_autoencoder(vae)
    tensors = {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae.state_dict()}
    save_weights(folder / "generator", config, tensors, {"training": [{"stages": {"foundation": 3}}]})
    settings = training.Settings(batch=8, started=0.3, changed=0.3, others=20)
    training.train(folder / "generator", [recording], folder / "run", 5.0, settings, SMALL, steps=3)
    return folder


def test_training_leaves_the_generator_as_it_is_and_writes_a_model_that_loads(trained):
    before, after = (dit_tensors(trained / name) for name in ("generator", "run"))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    learnt = {name: value for name, value in after.items() if name not in before}
    assert learnt and all(name.startswith("expert.") for name in learnt)
    assert any(value.abs().max() > 0 for name, value in learnt.items() if name == "expert.head.head.weight")
    manifest = read_manifest(trained / "run")
    assert manifest["training"][0] == {"stages": {"foundation": 3}}
    assert manifest["training"][1]["stages"] == {"expert": 3} and manifest["training"][1]["episodes"] == 5
    model = WorldModel.load(trained / "run")
    assert model.config.dit.expert == SMALL
    model.step(model.start(None, ["a light room"], [0]), [1], ["night falls"])


def test_a_stopped_run_goes_on_with_the_frames_it_has_moved(trained, recording, monkeypatch):
    """Nothing is moved again, and the steps before count."""
    before = dit_tensors(trained / "run")
    monkeypatch.setattr(training, "moved_blocks", lambda *_: pytest.fail("frames are moved again"))
    settings = training.Settings(batch=8, started=0.3, changed=0.3, others=20)
    training.train(trained / "generator", [recording], trained / "run", 5.0, settings, SMALL, steps=3)
    after = dit_tensors(trained / "run")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_expert_is_taught_further_and_one_of_another_shape_begins_anew(trained, recording):
    """A learning rate of 0 shows where a run begins."""
    settings = training.Settings(batch=4, others=4, lr=0.0)
    for name, shape in (("further", SMALL), ("wider", dataclasses.replace(SMALL, ffn_dim=SMALL.ffn_dim + 8))):
        training.train(trained / "run", [recording], trained / name, 5.0, settings, shape, steps=1)
    one, two, three = (dit_tensors(trained / name) for name in ("run", "further", "wider"))
    assert all(torch.equal(two[name], value) for name, value in one.items())
    assert one.keys() == three.keys() and not torch.equal(one["expert.screen"], three["expert.screen"])


def test_texts_may_come_from_a_table(trained, recording, tmp_path):
    """Where no text encoder is installed; a text that is not in it is named."""
    encoder, config = build_text_encoder(toy().text), toy().text
    held = ["a light room", "night falls"]
    for name, texts in (("whole", held), ("short", held[:1])):
        words = torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8)
        tokens = torch.stack([encoder.encode(text, config.event_tokens) for text in texts])
        save_file(
            {"tokens": tokens, "texts": words, "actions": torch.zeros(81, 2, 4)}, tmp_path / f"{name}.safetensors"
        )
    settings = training.Settings(batch=8, started=0.3, changed=0.3, others=20)
    given = (trained / "generator", [recording])
    training.train(*given, tmp_path / "run", 5.0, settings, SMALL, steps=3, texts=tmp_path / "whole.safetensors")
    one, two = dit_tensors(trained / "run"), dit_tensors(tmp_path / "run")
    assert all(torch.equal(one[name], value) for name, value in two.items())
    with pytest.raises(ValueError, match="'night falls' is not in the table"):
        training.train(*given, tmp_path / "no", 5.0, settings, SMALL, steps=3, texts=tmp_path / "short.safetensors")


def test_a_generator_that_moves_no_frames_is_refused(recording, tmp_path):
    config = recorded_config("still", dataclasses.replace(RECORDING, height=32, width=32), True, "tiny", flow=False)
    save_weights(tmp_path / "still", config, {"dit.safetensors": DiT(config).state_dict()}, {"training": []})
    with pytest.raises(ValueError, match="must move frames and read texts"):
        training.train(tmp_path / "still", [recording], tmp_path / "out", 1.0)
    assert not (tmp_path / "out").exists()


def with_expert(trainer):
    """The trainer's config, with an expert."""
    config = trainer.windows.config
    return dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=SMALL))


@pytest.fixture(name="trainer", scope="module")
def trainer_fixture(recording, trained) -> training.ExpertTraining:
    model = WorldModel.load(trained / "generator")
    files = open_episodes(recording)
    data = encode_recording(model.config, model.vae, files, range(6), model.conditioning)
    return training.ExpertTraining(
        model.dit, Windows(model.config, data), training.Settings(batch=8, started=0.3, changed=0.3, others=20), SMALL
    )


def test_changes_are_counted_step_by_step(trainer):
    """Against a count of its own, written down by hand: 4 steps of nothing, 4 of a text, 4 of nothing."""
    data = trainer.windows.data
    night = int(data.event_texts.step[5])
    assert night > 0
    for episode in range(6):
        first = int(data.begin[episode])
        since, before = (x[first : first + 12].tolist() for x in (trainer.since, trainer.before))
        assert since[4:] == [0, 1, 2, 3, 0, 1, 2, 3] and min(since[:4]) > 10**5
        assert before[4:] == [0] * 4 + [night] * 4
    assert trainer.starts.tolist() == data.begin[:-1].tolist()  # a caption describes the first picture


def test_frames_since_a_change_are_a_rollout_that_was_not_told(trainer, trained):
    """Against a slow form: moved frames of one block after the other, each put into a recording of its own."""
    dit, windows = WorldModel.load(trained / "generator").dit, trainer.windows
    data = windows.data
    steps, unheard = torch.tensor([6, 17, 21, 5]), torch.tensor([2, 1, 0, 0])  # texts begin at steps 4, 16 and 20
    moved = module.moved_blocks(dit, windows, steps, 3, unheard)
    plain = module.moved_blocks(dit, windows, steps, 3)
    assert torch.equal(moved.data, plain.data)
    for row, (step, missed) in enumerate(zip(steps.tolist(), unheard.tolist())):
        one = torch.tensor([row])
        assert torch.equal(moved.mean[one], plain.mean[one]) == (missed == 0)
        begun = int((data.still == moved.start[row]).nonzero()[0, 0])  # the step at which the world began
        assert step - begun >= missed
        latents = data.latents.clone()
        for then in range(step - missed, step):
            own = Windows(windows.config, dataclasses.replace(data, latents=latents))
            age = torch.tensor([then - begun])
            spans = Spans(torch.tensor([then // 12]), torch.tensor([begun]), age)
            with torch.no_grad():
                mean = module.read_window(dit, own.truth(spans, torch.Generator())).mean
            first = int(data.first[then // 12]) + 1 + 2 * (then % 12)
            latents[first : first + 2] = mean[0].transpose(0, 1).to(latents.dtype)
        own = Windows(windows.config, dataclasses.replace(data, latents=latents))
        spans = Spans(torch.tensor([step // 12]), torch.tensor([begun]), torch.tensor([step - begun]))
        rows, ago = told_before(data.event_texts.step, data.begin)
        told = Told(mean_token(data.event_texts.tokens[rows[[step]]].float()), ago[[step]])
        window = own.truth(spans, torch.Generator())
        with torch.no_grad():
            mean = module.read_window(
                dit, dataclasses.replace(window, target=dataclasses.replace(window.target, told=told))
            ).mean
        torch.testing.assert_close(moved.mean[row].float(), mean[0], atol=0.02, rtol=0.02)


def test_what_was_told_before_is_what_a_world_remembers():
    """The texts of three episodes against worlds that are told them one after the other."""
    text = torch.tensor([2, 2, 0, 0, 1, 1, 1, 0, 2, 0, 1, 2, 1, 2, 0, 1])
    begin = torch.tensor([0, 9, 15, 16])
    rows, ago = told_before(text, begin)
    for first, stop in zip(begin[:-1].tolist(), begin[1:].tolist()):
        told = Told.always(text[first : first + 1, None].float())
        for step in range(first, stop):
            told = told.then(text[step : step + 1, None].float())
            assert told.ago[0].tolist() == ago[step].tolist()
            assert told.texts[0, :, 0].tolist() == rows[step].tolist()


def test_frames_that_were_told_something_else_are_not_preferred(trainer, trained, monkeypatch):
    """Of the blocks that follow the end of a text, the moved frames are those of before it, as in a rollout."""
    asked = []
    read = module.read_window

    def keeping(dit, window):
        asked.append(window.target.told)
        return read(dit, window)

    monkeypatch.setattr(module, "read_window", keeping)
    steps = torch.tensor([8, 9])
    module.moved_blocks(WorldModel.load(trained / "generator").dit, trainer.windows, steps, 0)
    assert asked[0].ago[:, 0].tolist() == [0, 1] and asked[0].ago[:, 1].tolist() == [4, 5]
    assert asked[0].same(torch.tensor([[0, 4], [0, 5]])).tolist() == [[False, True], [True, True]]


def test_moved_blocks_are_those_after_changes_and_some_others(trainer):
    data, moved = trainer.windows.data, trainer.moved
    changed = moved.step[: trainer.changes] % 12
    assert sorted(changed.tolist()) == sorted([4, 5, 8, 9] * 6)
    assert not set((moved.step[trainer.changes :] % 12).tolist()) & {4, 5, 8, 9}
    rows_of = data.first[torch.searchsorted(data.begin, moved.step, right=True) - 1] + 1 + 2 * (moved.step % 12)
    recorded = torch.stack([data.latents[rows_of + k] for k in range(2)], dim=2)
    torch.testing.assert_close(moved.data, recorded)


def test_of_other_blocks_only_what_is_not_in_view_counts(trainer, monkeypatch):
    """An expert that is wrong in view alone is not worse."""
    moved = trainer.moved
    visible = torch.ones_like(moved.visible)
    visible[..., 2:] = 0
    monkeypatch.setattr(trainer, "moved", dataclasses.replace(moved, visible=visible))
    settings = dataclasses.replace(trainer.settings, mirrored=0.0, drifted=0.0)
    monkeypatch.setattr(trainer, "settings", settings)
    expert = Denoiser(with_expert(trainer), SMALL).requires_grad_(False)
    trainer.measure(expert)
    plain = trainer.loss(expert, 0)
    original = Denoiser.forward

    def wrong(places: slice):
        def forward(self, x, sigma, conditions):
            made = original(self, x, sigma, conditions).clone()
            made[..., places] += 1
            return made

        monkeypatch.setattr(Denoiser, "forward", forward)
        return trainer.loss(expert, 0)

    in_view, not_in_view = wrong(slice(0, 2)), wrong(slice(2, 4))
    torch.testing.assert_close(in_view[2], plain[2])
    assert not_in_view[2] > 1.1 * plain[2] and in_view[1] > 1.1 * plain[1]


def test_a_mirror_exchanges_left_and_right_of_all_that_belongs_together(trainer):
    pictures = torch.rand(2, 3, 2, 32, 32).transpose(1, 2) * 2 - 1
    latents = trainer.flow.latents(pictures)
    exact = trainer.flow.pictures(latents)
    visible = torch.rand(2, 1, 2, 4, 4)
    block, mean, seen = trainer._mirrored(latents, latents, visible, torch.tensor([True, False]), 0)
    for got in (block, mean):
        again = trainer.flow.latents(exact[:1].flip(-1))
        torch.testing.assert_close(got[:1], again)
        torch.testing.assert_close(got[1:], latents[1:])
    torch.testing.assert_close(seen, torch.cat([visible[:1].flip(-1), visible[1:]]))


def test_it_learns_what_a_text_does(trainer):
    """After some steps the blocks of a change are told better than by the moved frames, which know of no night."""
    torch.manual_seed(0)
    network = DiT(toy()).expert.float()
    trainer.measure(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    with torch.no_grad():
        first = torch.stack([trainer.loss(network, number) for number in range(8)]).mean(dim=0)
    for number in range(60):
        (trainer.loss(network, 100 + number) * trainer.shares).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        last = torch.stack([trainer.loss(network, number) for number in range(8)]).mean(dim=0)
    assert (last[:2] < 0.8 * first[:2]).all(), json.dumps([first.tolist(), last.tolist()])


def test_an_expert_needs_moved_frames_and_texts():
    for flow_of, text in ((False, True), (True, False)):
        config = recorded_config("toy", RECORDING, text, "tiny", flow=flow_of)
        with pytest.raises(ValueError, match="an expert for texts"):
            dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=SMALL))
