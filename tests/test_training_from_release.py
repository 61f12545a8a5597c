"""Where training at the full size begins: released weights, encoded texts, and worlds of a packing that grows."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")

from safetensors.torch import save_file
from shrunken import SHRUNKEN
from test_full_size import EVENT, SIZE, write_clips

from train import distill, foundation
from train.data.clips import Clips
from train.data.latents import LatentsOnly, load_vae
from train.data.texts import FOLDER, EncodedTexts, encode_texts, key, open_conditioning
from train.distill import Distiller
from train.engine.arguments import configured, initial_dit, read_arguments
from train.engine.pool import Pool, PoolSettings
from train.export import export
from train.foundation import Settings
from world_model.actions import Action
from world_model.conditions import Target
from world_model.config import ModelConfig
from world_model.model import WorldModel
from world_model.released.files import open_release, open_text_encoder, read_dit
from world_model.released.placement import LoadOptions
from world_model.rollout import Sampling, dream_block, generator
from world_model.text import JoinedConditioning
from world_model.tscm import History

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

CPU = LoadOptions(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder)
    return folder


@pytest.fixture(scope="module")
def released(original_release) -> ModelConfig:
    return configured(str(original_release), "32x64", "apart")


@pytest.fixture(scope="module")
def wan(released, original_release):
    return load_vae(released, original_release)[0]


@pytest.fixture(scope="module")
def clips(released, clips_folder, wan) -> Clips:
    return Clips(released, clips_folder, wan)


@pytest.fixture(scope="module")
def conditioning(released, clips_folder, original_release):
    return open_conditioning(released, clips_folder, original_release)


# ---- weights ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_weights_is_a_model_to_train(original_release, released):
    assert released.dit == SHRUNKEN.dit and released.dit.history.channel is not None  # which the folder itself lacks
    assert (released.height, released.width) == SIZE and not released.text.joined
    assert configured(str(original_release), None).text.joined  # as released
    for wrong, message in (
        (("nowhere", None), "unknown model 'nowhere'"),
        ((str(original_release), "5x5"), "multiple of"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(*wrong)


def test_training_begins_at_what_the_released_network_computes(original_release, released):
    """The added channel path is silent, whatever it remembers, and can learn."""
    torch.manual_seed(5)
    dit = initial_dit(released, original_release)
    release = open_release(original_release)
    plain = read_dit(release, release.config.resized(SIZE), CPU)
    assert release.config.dit.history.channel is None
    ours, theirs = (first_block(network) for network in (dit, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    first_block(dit).square().mean().backward()
    silent = dit.layers[0].channel.up.weight
    assert not silent.any() and silent.grad.any()


def first_block(dit) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 48, 9, 2, 4, generator=random)
    zero = torch.zeros(1, 9, dtype=torch.float64)
    history = History(latents, torch.arange(-9, 0)[None], zero, zero, torch.ones(1, 9, dtype=torch.bool))
    target = Target(zero[:, :8], zero[:, :8], torch.arange(8)[None])
    words = torch.randn(1, 20, 32, generator=random)
    conditions = dit.encode_conditions(history, dit.encode_memory(history), words, target)
    return dit(torch.randn(1, 48, 8, 2, 4, generator=random), torch.tensor([0.7]), conditions)


def test_weights_of_another_model_are_refused(original_release, released, tmp_path):
    other = replace(released, dit=replace(released.dit, layers=3))
    with pytest.raises(ValueError, match="give the folder itself as MODEL"):
        initial_dit(other, original_release)
    with pytest.raises(ValueError, match="does not hold the autoencoder"):
        load_vae(replace(released, vae=replace(released.vae, width=16)), original_release)
    with pytest.raises(FileNotFoundError, match="or released weights"):
        load_vae(released, tmp_path)


def test_a_stage_takes_what_it_begins_from_out_of_its_model(original_release, monkeypatch, capsys):
    line = ["stage", str(original_release), "--out", "x", "--data", "y"]
    monkeypatch.setattr(sys, "argv", [*line, "--vae", "z"])
    config, _, given = read_arguments("", Settings, ("optimization.lr",), ("data", "vae", "initial"))
    assert given.initial == original_release and given.vae == Path("z") and config.dit.history.channel is not None
    monkeypatch.setattr(sys, "argv", ["stage", "yume-5b", "--out", "x", "--data", "y"])
    with pytest.raises(SystemExit):
        read_arguments("", Settings, ("optimization.lr",), ("data", "vae", "initial"))
    assert "--vae, --initial (or a folder of weights as MODEL)" in capsys.readouterr().err


def test_a_long_video_is_encoded_in_stretches_as_it_is_at_once(wan):
    video = torch.randn(1, 3, 48, *SIZE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.inference_mode():
        whole = wan.encode(video)
        parts = list(wan.encode_stream([video[:, :, :8], video[:, :, 8:24], video[:, :, 24:]]))
    assert [part.shape[2] for part in parts] == [2, 4, 6]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=1e-5)
    alone = wan.encode(video[:, :, 8:24])
    assert not torch.allclose(alone, parts[1], atol=1e-3)  # what came before matters


# ---- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("captions", ["apart", "joined"])
def test_texts_are_encoded_once_and_read_from_disk(captions, original_release, clips_folder, tmp_path, monkeypatch):
    config, data = configured(str(original_release), None, captions), tmp_path / "clips"
    shutil.copytree(clips_folder, data)
    on_the_fly = open_conditioning(config, data, original_release)
    assert isinstance(on_the_fly, JoinedConditioning) == (captions == "joined")
    encoded, total = encode_texts(config, data, original_release, "cpu")
    assert encoded == total > 7
    assert encode_texts(config, data, original_release, "cpu") == (0, total)  # nothing is done twice
    cached = open_conditioning(config, data, None)  # nobody holds the encoder
    told = [
        (Action.from_keys("W+A"), EVENT),
        (Action.from_keys("W"), "A street, number 0."),
        (Action.from_keys("S"), None),
    ]
    for action, text in told:
        ours, theirs = (c.context([action], [text])[0] for c in (cached, on_the_fly))
        assert ours.shape == (1, 512, SHRUNKEN.text.dim)
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)  # float16 on disk
        assert ours.any()
    with pytest.raises(KeyError, match="encode-text"):
        cached.context([Action()], ["something nobody said"])
    assert on_the_fly.context([Action()], ["something nobody said"])[0].any()


def test_a_cache_of_another_encoder_and_models_without_one_are_refused(
    released, original_release, clips_folder, tmp_path
):
    store = EncodedTexts(tmp_path / FOLDER, released)
    assert ("a", 5) not in store and not store.encode("", 5).any()
    (tmp_path / FOLDER).mkdir()
    save_file({key("a", 5): torch.ones(3, 7).half()}, tmp_path / FOLDER / "texts_00000.safetensors")
    store = EncodedTexts(tmp_path / FOLDER, released)
    assert ("a", 5) in store
    with pytest.raises(ValueError, match=r"holds texts of 7 features, .* reads 32"):
        store.encode("a", 5)
    with pytest.raises(ValueError, match="texts are encoded as they come"):
        encode_texts(configured("street", None), clips_folder, original_release)
    with pytest.raises(FileNotFoundError, match="no text encoder UMT5"):
        encode_texts(released, clips_folder, tmp_path)


# ---- worlds of the pool -----------------------------------------------------------------------------------------------


def test_steps_from_text_and_from_pictures_alternate(clips, conditioning, released, original_release, wan):
    """From text there is no history at all, as at inference; worlds that continue wait meanwhile."""
    dit = initial_dit(released, original_release).requires_grad_(False)
    pool = Pool(clips, conditioning, PoolSettings(3, 4, alternate=True), 0)
    for step in range(6):
        batch = pool.sample(dit, LatentsOnly(wan), 1, 0.0, step)
        lengths = batch.worlds.history.frames
        assert (lengths == 0) == (step % 2 == 0) and lengths in (0, 5, 13, 21)
        assert bool(batch.past.present.any()) == (step % 2 == 1)
        waiting = [entry is not None for entry in pool.entries[:3]]
        pool.add(batch, batch.worlds, batch.past)
        if step % 2 == 0:
            assert not any(pool.entries[3:]) and [entry is not None for entry in pool.entries[:3]] == waiting
            assert batch.context[0, : released.text.event_tokens].any()  # a world from text is told one


def test_worlds_of_distillation_outlive_short_clips(clips, conditioning, released, original_release, wan):
    """For up to the blocks asked for, on actions of other clips; the clip's end is no end."""
    dit = initial_dit(released, original_release).requires_grad_(False)
    pool = Pool(clips, conditioning, PoolSettings(2, 9, text_start=0.0, beyond=True), 0)
    oldest, beyond = 0, []
    random = generator("noise")
    for step in range(24):
        batch = pool.sample(dit, LatentsOnly(wan), 1, 1.0, step)
        (entry,) = [pool.entries[i] for i in batch.index]
        outside = entry.block >= clips.blocks_of(entry.trajectory)
        oldest = max(oldest, entry.block)
        if outside:
            beyond.append(batch.actions[0])
            assert not batch.truth.any()
        else:
            assert torch.equal(batch.truth[0], clips.block(entry.trajectory, entry.block))
        noise = torch.randn(batch.truth.shape, generator=random)
        after, _, _ = dream_block(
            dit,
            LatentsOnly(wan),
            batch.worlds,
            batch.actions,
            batch.context,
            batch.pooled,
            Sampling(noise, torch.tensor([1.0, 0.0], dtype=torch.float64)),
            [random],
        )
        newest = torch.arange(after.history.frames - 8, after.history.frames)[None]
        pool.add(batch, after, after.history.select(newest))
    assert oldest >= 6 and len(set(beyond)) > 1
    assert (
        Distiller(released, clips, wan, distill.Settings(truth=0.0), dit, conditioning).pool.settings.beyond
        and not Distiller(released, clips, wan, distill.Settings(), dit, conditioning).pool.settings.beyond
    )


# ---- runs that cannot be ------------------------------------------------------------------------------------------------


def test_a_run_in_which_the_generator_never_learns_is_refused(released, clips_folder, original_release, tmp_path):
    settings = distill.Settings(updates=distill.TwoTimescale(critic_warmup=50))
    with pytest.raises(ValueError, match=r"first learns after 52 steps .*, but --steps is 51"):
        distill.train(released, clips_folder, original_release, original_release, tmp_path, settings, 51, None)


def test_runs_that_cannot_be_exported_say_why(config, released, original_release, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        export(tmp_path, tmp_path / "out", original_release)
    for model, message in ((config, "train.land debug"), (released, "--initial must name the weights")):
        (tmp_path / "config.json").write_text(model.to_json())
        with pytest.raises(ValueError, match=message):
            export(tmp_path, tmp_path / "out", original_release)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        export(tmp_path, tmp_path / "out", original_release, original_release)
    assert not (tmp_path / "out").exists()


def test_what_is_trained_on_joined_captions_is_prompted_with_them(original_release, clips_folder, tmp_path):
    """Encoded on the fly; the export says so in its config, and needs no table of actions."""
    config = configured(str(original_release), "32x64")
    optimization = foundation.Optimization("adamw", lr=1e-5, warmup=1)
    settings = Settings(batch=1, noise_samples=1, pool=PoolSettings(2), optimization=optimization)
    data = tmp_path / "clips"
    shutil.copytree(clips_folder, data)
    foundation.train(
        config, data, original_release, tmp_path / "run", settings, 1, None, foundation.Initial(original_release)
    )
    export(tmp_path / "run", tmp_path / "out", original_release, original_release)
    assert not (tmp_path / "out" / "text.safetensors").exists() and not (data / FOLDER).exists()
    model = WorldModel.load(tmp_path / "out", device="cpu", dtype="float32")
    assert isinstance(model.conditioning, JoinedConditioning)
    spoken = f"First-person perspective.{Action.from_keys('W').caption} {EVENT}"
    context, _ = model.conditioning.context([Action.from_keys("W")], [EVENT])
    encoder = open_text_encoder(original_release, config.text, CPU)
    assert torch.equal(context[0], encoder.encode(spoken, 512))
    state = model.start([np.zeros((*SIZE, 3), np.uint8)], ["a street"], [0])
    (_, plain), (_, told) = (model.step(state, [Action.from_keys("W")], [event]) for event in (None, EVENT))
    assert (plain != told).any()


@pytest.mark.parametrize("name", ["full-cache", "sliding-window"])
def test_another_memory_begins_from_released_weights_too(name, original_release):
    """Of the network all is taken that the memory has a use for."""
    config = configured(str(original_release), "32x64", "apart", name)
    dit = initial_dit(config, original_release)
    released = open_release(original_release).dit
    own = dit.state_dict()
    assert own.keys() - released.places.keys() == ({"empty"} if name == "sliding-window" else set())
    assert all(torch.equal(own[n], released[n].float()) for n in own.keys() & released.places.keys())
    assert {n for n in released.places if n not in own and not n.startswith("patch_embedding_")} == set()
