"""The expert for texts: when a model uses it, and what it reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from expert_world import SMALL, picture, toy

from world_model import flow
from world_model.batch import rows
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.memory import TEXTS, Told
from world_model.model import WorldModel
from world_model.moving import blurred
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.text import build_conditioning
from world_model.vae import PatchVAE
from world_model.worlds import WorldBatch, empty_worlds, start_worlds


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


def test_a_first_picture_has_one_noise_for_all_of_its_frames(model):
    """What noise the later frames are given changes nothing; with a past it does."""
    dit, vae, config = model.dit, model.vae, model.config
    context, pooled = model.conditioning.context([0], ["rain"])
    sigmas = flow.schedule_of(config.sampler)
    seen = torch.zeros(1, 3, 32, 32)
    for worlds, same in (
        (empty_worlds(dit, vae, 1, torch.device("cpu")), True),
        (start_worlds(dit, vae, seen, torch.ones(1, dtype=torch.bool)), False),
    ):
        noise = block_noise(config, [3], [0])
        other = torch.cat([noise[:, :, :1], noise[:, :, 1:].flip(1)], dim=2)
        with torch.no_grad():
            made = [
                dream_block(dit, vae, worlds, [0], context, pooled, Sampling(n, sigmas), [generator("old", 0)])[1]
                for n in (noise, other)
            ]
        assert torch.equal(*made) == same


def test_details_in_view_are_not_the_experts():
    """The same block with and without it: what is in view differs by what is coarse, where a network may only refine."""
    config = toy()
    parts = {name: dataclasses.replace(getattr(config, name), latent_channels=192) for name in ("dit", "vae")}
    config = dataclasses.replace(config, **parts)  # as many channels as pixels: the eye is exact
    differences = []
    for size in (0, 5):
        torch.manual_seed(0)
        expert = dataclasses.replace(config.dit.expert, coarse_size=size)
        made = dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=expert))
        vae, dit = PatchVAE(made.vae), DiT(made)
        torch.nn.init.normal_(dit.expert.head.head.weight, std=0.3)
        model = WorldModel(made, dit, vae, build_conditioning(made))
        state = model.start([picture()], [None], [0])
        dit.flow.bounded = lambda latents: latents
        blocks = []
        for expert in (dit.expert, None):
            dit.expert = expert
            blocks.append(model.step(state, [0], ["rain"])[0].worlds.history.latents[:, :, -config.block_latents :])
        pixels = dit.flow.pictures(blocks[0].float() - blocks[1].float()) - dit.flow.pictures(0 * blocks[0].float())
        fine = pixels - blurred(pixels, 5)
        differences.append(float(fine.square().mean() / pixels.square().mean()))
    assert differences[1] < 0.3 * differences[0]


def test_what_was_told_is_counted_block_by_block():
    rain, snow, nothing = torch.eye(3)[:2, None].expand(-1, 1, -1)[0], torch.eye(3)[1:2], torch.zeros(1, 3)
    told = Told.always(nothing)
    seen = []
    for text in (nothing, rain, rain, snow, snow, nothing):
        told = told.then(text)
        assert torch.equal(told.texts[:, 0], text)
        seen.append((int(told.since), told.before.tolist()))
    far = seen[0][0]
    assert far > 10**6
    assert seen[1:] == [(n, t.tolist()) for n, t in ((0, nothing), (1, nothing), (0, rain), (1, rain), (0, snow))]


def test_which_blocks_were_told_what_is_told_now():
    """Against a list of all that was told, block by block; what lies more than a few texts back is not known."""
    rng = np.random.default_rng(0)
    told, past = Told.always(torch.zeros(1, 2)), [0] * 40
    for step in range(60):
        text = int(rng.integers(3)) if step % 3 == 0 else past[-1]
        told = told.then(torch.full((1, 2), float(text)))
        age = torch.arange(40)[None]
        changes = [n for n in range(1, 40) if past[-n] != past[-n - 1]]
        begun = ([0] if text != past[-1] else []) + changes
        known = begun[TEXTS - 1] if len(begun) >= TEXTS else 40
        wanted = [past[-1 - n] == text and n < known for n in range(40)]
        assert told.same(age)[0].tolist() == wanted, step
        past.append(text)


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
    forged = dataclasses.replace(state.worlds.told, ago=state.worlds.told.ago.float())
    with pytest.raises(ValueError, match=r"worlds\.told\.ago must be torch\.int64"):
        model.check_state(dataclasses.replace(state, worlds=dataclasses.replace(state.worlds, told=forged)))
