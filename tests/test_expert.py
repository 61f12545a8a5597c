"""The expert for texts: when a model uses it, what it reads, and its training beside a generator."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from configs import RECORDING, WALK

from train.generator import expert as training
from train.generator.encode import encode_recording
from train.generator.shapes import recorded_config
from train.generator.windows import Windows
from train.recordings import Episode, EpisodeWriter, open_episodes
from world_model import flow
from world_model.action_spaces import ActionSpec
from world_model.batch import rows
from world_model.config import ExpertConfig, ModelConfig
from world_model.dit import DiT
from world_model.memory import Told
from world_model.model import WorldModel
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.text import build_conditioning
from world_model.vae import PatchVAE
from world_model.weights import dit_tensors, read_manifest, save_weights
from world_model.worlds import WorldBatch, empty_worlds, start_worlds

SMALL = ExpertConfig(dim=24, heads=2, layers=2, ffn_dim=32, blocks=2, steps=2, start_steps=3)


def toy(expert: ExpertConfig | None = SMALL) -> ModelConfig:
    """Pictures of 32 x 32 whose actions have no captions; texts are hashed words."""
    recording = dataclasses.replace(RECORDING, height=32, width=32, frames_per_step=2)
    config = recorded_config("toy", recording, True, "tiny")
    text = dataclasses.replace(config.text, kind="hashed")
    return dataclasses.replace(config, text=text, dit=dataclasses.replace(config.dit, expert=expert))


@pytest.fixture(name="model", scope="module")
def model_fixture() -> WorldModel:
    """A model of random weights whose expert adds something."""
    config = toy()
    torch.manual_seed(0)
    vae, dit = PatchVAE(config.vae), DiT(config)
    assert dit.flow is not None and dit.expert is not None
    dit.flow.read_autoencoder(vae)
    for layer in (dit.head.head, dit.expert.head.head):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return WorldModel(config, dit, vae, build_conditioning(config))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def counted(model: WorldModel, monkeypatch) -> list[tuple[int, list[int]]]:
    """Worlds, and blocks since their text changed, of every block that the expert is asked for."""
    found: list[tuple[int, list[int]]] = []
    expert = model.dit.expert
    original = expert.conditions

    def conditions(mean, visible, start, text, before, since, guided=False):
        if guided:
            found.append((len(mean), since.tolist()))
        return original(mean, visible, start, text, before, since, guided)

    monkeypatch.setattr(expert, "conditions", conditions)
    return found


def test_the_expert_generates_blocks_after_a_text_changed_and_no_others(model, monkeypatch):
    found = counted(model, monkeypatch)
    state = model.start([picture()], ["a town"], [0])
    for text in (None, None, "rain", "rain", "rain", "snow", None, None, None):
        state, _ = model.step(state, [0], [text])
    assert found == [(1, [n]) for n in (0, 1, 0, 0, 1)]
    monkeypatch.undo()
    # a world that was told nothing is told something: that is a change, too
    found = counted(model, monkeypatch)
    state = model.start([picture()], [""], [0])
    for text in ("fog", "fog", "fog"):
        state, _ = model.step(state, [0], [text])
    assert found == [(1, [0]), (1, [1])]


def test_a_world_begun_from_text_is_the_experts_and_goes_on_without_a_change(model, monkeypatch):
    found = counted(model, monkeypatch)
    state = model.start(None, ["a town by night"], [0])
    assert found == [(1, [-1])]
    before = model.preview(state)
    model.step(state, [0])
    assert found == [(1, [-1])] and before.std() > 5
    other = model.preview(model.start(None, ["a town by day"], [0]))
    assert not np.array_equal(before, other)


def test_worlds_of_a_batch_have_blocks_of_their_own(model):
    """One world whose text changes, beside one whose text does not: each is what it is alone."""
    dit, vae, config = model.dit, model.vae, model.config
    pictures = torch.from_numpy(np.stack([picture(1), picture(2)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    both = start_worlds(dit, vae, pictures, torch.ones(2, dtype=torch.bool))

    def after(worlds: WorldBatch, seeds: list[int], texts: list[str | None]) -> torch.Tensor:
        context, pooled = model.conditioning.context([0] * len(seeds), texts)
        sampling = Sampling(block_noise(config, seeds, [0] * len(seeds)), flow.schedule_of(config.sampler))
        streams = [generator("old", seed) for seed in seeds]
        with torch.no_grad():
            return dream_block(dit, vae, worlds, [0] * len(seeds), context, pooled, sampling, streams)[1]

    made = after(both, [5, 6], [None, "rain"])
    for i, text in enumerate((None, "rain")):
        alone = after(rows(both, slice(i, i + 1)), [5 + i], [text])
        torch.testing.assert_close(made[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    plain = after(both, [5, 6], [None, None])
    torch.testing.assert_close(made[:1], plain[:1], rtol=1e-4, atol=1e-4)
    assert (made[1] - plain[1]).abs().mean() > 0.05


def test_what_was_told_is_counted_block_by_block():
    rain, snow, nothing = torch.eye(3)[:2, None].expand(-1, 1, -1)[0], torch.eye(3)[1:2], torch.zeros(1, 3)
    told = Told.always(nothing)
    seen = []
    for text in (nothing, rain, rain, snow, snow, nothing):
        told = told.then(text)
        assert torch.equal(told.text, text)
        seen.append((int(told.since), told.before.tolist()))
    far = seen[0][0]
    assert far > 10**6
    assert seen[1:] == [(n, t.tolist()) for n, t in ((0, nothing), (1, nothing), (0, rain), (1, rain), (0, snow))]


def test_a_fresh_expert_predicts_the_moved_frames():
    config = toy()
    expert = DiT(config).expert
    mean = torch.randn(2, config.dit.latent_channels, 2, 4, 4)
    text = torch.randn(2, 8, config.dit.text_dim)
    conditions = expert.conditions(
        mean, torch.ones(2, 1, 2, 4, 4), torch.zeros(2, 3, 32, 32), text, text[:, 0], torch.tensor([0, 7])
    )
    made = expert(torch.randn_like(mean), torch.ones(2), conditions)
    torch.testing.assert_close(made, mean)


def test_guidance_goes_beyond_the_prediction_without_the_text(model):
    expert, c = model.dit.expert, model.config.dit
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn((2, c.latent_channels, 2, 4, 4), generator=generator)
    text = torch.randn((2, 8, c.text_dim), generator=generator)
    given = (mean, torch.ones(2, 1, 2, 4, 4), torch.zeros(2, 3, 32, 32))
    rest = (text.mean(dim=1), torch.tensor([0, 1]))
    noise, level = torch.randn(mean.shape, generator=generator), torch.full((2,), 0.7)
    guided, told, untold = (
        expert(noise, level, expert.conditions(*given, words, *rest, guided=guided))
        for words, guided in ((text, True), (text, False), (torch.zeros_like(text), False))
    )
    assert (told - untold).abs().max() > 1e-3
    torch.testing.assert_close(guided, untold + SMALL.guidance * (told - untold))


def test_a_config_with_an_expert_survives_json_and_one_without_has_no_state_for_it(model):
    config = model.config
    assert ModelConfig.from_json(config.to_json()) == config
    plain = DiT(toy(None))
    assert plain.expert is None
    assert empty_worlds(plain, PatchVAE(config.vae), 1, torch.device("cpu")).told is None
    state = model.start([picture()], ["a town"], [0])
    forged = dataclasses.replace(state.worlds.told, since=state.worlds.told.since.float())
    with pytest.raises(ValueError, match=r"worlds\.told\.since must be torch\.int64"):
        model.check_state(dataclasses.replace(state, worlds=dataclasses.replace(state.worlds, told=forged)))


# ---- training ---------------------------------------------------------------------------------------------------------


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
    settings = training.Settings(batch=8, others=20)
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


def test_a_second_run_replaces_the_expert_of_the_first(trained, recording):
    settings = training.Settings(batch=4, others=4)
    training.train(trained / "run", [recording], trained / "again", 5.0, settings, SMALL, steps=1)
    one, two = (dit_tensors(trained / name) for name in ("run", "again"))
    assert one.keys() == two.keys()
    assert not torch.equal(one["expert.screen"], two["expert.screen"])


def test_a_generator_that_moves_no_frames_is_refused(recording, tmp_path):
    config = recorded_config("still", dataclasses.replace(RECORDING, height=32, width=32), True, "tiny", flow=False)
    vae, dit = PatchVAE(config.vae), DiT(config)
    save_weights(tmp_path / "still", config, {"dit.safetensors": dit.state_dict()}, {"training": []})
    del vae
    with pytest.raises(ValueError, match="must move frames and read texts"):
        training.train(tmp_path / "still", [recording], tmp_path / "out", 1.0)
    assert not (tmp_path / "out").exists()


@pytest.fixture(name="trainer", scope="module")
def trainer_fixture(recording, trained) -> training.ExpertTraining:
    model = WorldModel.load(trained / "generator")
    files = open_episodes(recording)
    data = encode_recording(model.config, model.vae, files, range(6), model.conditioning)
    return training.ExpertTraining(model.dit, Windows(model.config, data), training.Settings(batch=8, others=20), SMALL)


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
        quiet = [int(step) - first for step in trainer.quiet if first <= int(step) < first + 12]
        assert quiet == [0, 1, 2, 3]  # four steps after the end nothing is left of the text; the episode ends before


def test_moved_blocks_are_those_after_changes_and_some_others(trainer):
    data, moved = trainer.windows.data, trainer.moved
    changed = moved.step[: trainer.changes] % 12
    assert sorted(changed.tolist()) == sorted([4, 5, 8, 9] * 6)
    assert not set((moved.step[trainer.changes :] % 12).tolist()) & {4, 5, 8, 9}
    rows_of = data.first[torch.searchsorted(data.begin, moved.step, right=True) - 1] + 1 + 2 * (moved.step % 12)
    recorded = torch.stack([data.latents[rows_of + k] for k in range(2)], dim=2)
    torch.testing.assert_close(moved.data, recorded)


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
    assert WALK.action == ActionSpec()
    for flow_of, text in ((False, True), (True, False)):
        config = recorded_config("toy", RECORDING, text, "tiny", flow=flow_of)
        with pytest.raises(ValueError, match="an expert for texts"):
            dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=SMALL))
