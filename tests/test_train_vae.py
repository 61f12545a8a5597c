"""Training of the small autoencoder: what it reads, that it learns, and that a resumed run equals an unbroken one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from train import vae as stage
from train.data.latents import load_vae
from train.data.shards import HELD_OUT, Shard
from train.vae import Clips, Settings, psnr, reconstruction_loss, train
from world_model.rollout import generator
from world_model.vae import build_vae

QUICK = Settings(batch=3, lr=5e-3, ema=0.9)


@pytest.fixture(scope="module")
def clips(config, data_folder) -> Clips:
    return Clips(data_folder, 6)


@pytest.fixture(scope="module")
def untrained(config, data_folder, tmp_path_factory) -> Path:
    """A run of no steps: the PCA."""
    folder = tmp_path_factory.mktemp("untrained")
    train(config, data_folder, folder, QUICK, 0, None)
    return folder


def test_clips_depend_on_their_key_alone(clips):
    first = clips.draw(3, 0, "clips", 5)
    assert first.shape == (3, 3, 6, 32, 48)
    assert first.min() >= -1 and first.max() <= 1
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert torch.equal(clips.draw(3, 0, "clips", 5), first)
    assert not torch.equal(clips.draw(3, 0, "clips", 6), first)


def test_clips_come_from_all_walks_but_the_held_out(clips, monkeypatch):
    read = []
    frames = Shard.frames

    def watched(shard: Shard, walk: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        read.append((walk, start))
        return frames(shard, walk, start, stop)

    monkeypatch.setattr(Shard, "frames", watched)
    clips.draw(60, 1, "clips", 0)
    assert {walk for walk, _ in read} == set(range(HELD_OUT, 7))
    assert min(start for _, start in read) >= 0 and max(start for _, start in read) <= 64 - 6
    read.clear()
    assert clips.held_out(8).shape == (HELD_OUT, 3, 8, 32, 48)
    assert read == [(walk, 0) for walk in range(HELD_OUT)]


def test_psnr_is_the_textbook_one():
    reference = torch.zeros(2, 3, 2, 4, 4)
    video = reference.clone()
    video[0] += 0.2
    video[1] -= 0.02
    expected = np.mean([10 * np.log10(2**2 / 0.2**2), 10 * np.log10(2**2 / 0.02**2)])
    assert psnr(video, reference) == pytest.approx(expected, abs=1e-4)
    assert psnr(reference, reference) == pytest.approx(10 * np.log10(4e10), abs=1e-3)


def test_loss_is_zero_for_a_perfect_picture_and_sees_edges():
    video = torch.rand(1, 3, 2, 8, 8, generator=generator("video")) * 2 - 1
    assert float(reconstruction_loss(video, video)) == 0
    brighter = float(reconstruction_loss(video + 0.1, video))
    assert brighter == pytest.approx(0.1 + 0.01, abs=1e-5)
    stripes = 0.1 * (torch.arange(8) % 2 * 2.0 - 1)  # as large an error, but with edges
    assert float(reconstruction_loss(video + stripes, video)) == pytest.approx(brighter + 0.2, abs=1e-5)


def test_latents_are_settled_before_the_decoder_learns(config, data_folder, clips, untrained, tmp_path):
    """The encoder is the PCA of the first moment: latents encoded early stay valid while the decoder gets better."""
    train(config, data_folder, tmp_path, QUICK, 100, None)
    early, later = (load_file(folder / "vae.safetensors") for folder in (untrained, tmp_path))
    for name in ("to_latent.weight", "to_latent.bias", "mean", "scale"):
        assert torch.equal(early[name], later[name])
    assert not torch.equal(early["to_pixels.weight"], later["to_pixels.weight"])
    assert later["decoder.0.conv1.weight"].ne(early["decoder.0.conv1.weight"]).any()
    before, after = (json.loads((folder / "vae.json").read_text())["vae_training"] for folder in (untrained, tmp_path))
    assert (before["steps"], after["steps"]) == (0, 100)
    assert 15 < after["psnr_held_out"] != before["psnr_held_out"]
    assert (tmp_path / "sheets" / "vae.png").exists()
    video = clips.draw(20, "seen")
    fresh, loaded = (load_vae(config, folder)[0] for folder in (untrained, tmp_path))
    with torch.no_grad():
        worse, better = (reconstruction_loss(vae.decode(vae.encode(video))[0], video) for vae in (fresh, loaded))
    assert better < 0.985 * worse
    assert torch.equal(loaded.get_parameter("to_pixels.weight"), later["to_pixels.weight"])
    assert not any(p.requires_grad for p in loaded.parameters())


def test_normalised_latents_have_unit_variance(config, data_folder, untrained):
    loaded, _ = load_vae(config, untrained)
    with torch.no_grad():
        latents = loaded.encode(Clips(data_folder, 6).draw(100, "other"))
    spread = latents.transpose(0, 1).flatten(1)
    assert float(spread.square().mean()) == pytest.approx(1, rel=0.25)
    assert spread.mean(dim=1).abs().max() < 0.3


def test_training_resumes_exactly(config, data_folder, tmp_path):
    train(config, data_folder, tmp_path / "whole", QUICK, 7, None)
    train(config, data_folder, tmp_path / "parts", QUICK, 3, None)
    half = load_file(tmp_path / "parts" / "vae.safetensors")
    train(config, data_folder, tmp_path / "parts", QUICK, 7, None)
    for name in ("vae.safetensors", "checkpoint/model.safetensors"):
        whole, parts = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not torch.equal(half["to_pixels.weight"], parts["to_pixels.weight"])


def test_overfits_a_clip(config, clips):
    """The convolutional branch learns what a linear code of 8 numbers cannot give: one clip, again and again."""
    video = clips.draw(1, 0, "one")
    torch.manual_seed(0)
    vae = build_vae(config.vae)
    vae.fit_linear(video)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        decoded, _ = vae.decode_raw(vae.encode_raw(video))
        loss = reconstruction_loss(decoded, video)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.85 * losses[0]


def test_command_line(config, data_folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "train", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(stage, "prepare_cpu", lambda: None)
    words = f"vae debug --data {data_folder} --out {tmp_path} --steps 5 --minutes 2.5 --batch 4 --lr 0.01 --bfloat16"
    monkeypatch.setattr("sys.argv", words.split())
    stage.main()
    assert given == [(config, data_folder, tmp_path, Settings(batch=4, lr=0.01, bfloat16=True), 5, 2.5, None)]


def test_the_pca_of_given_weights_is_kept(config, data_folder, tmp_path):
    """Latents of what was trained on them stay what they were, on whatever walks training goes on."""
    train(config, data_folder, tmp_path / "first", QUICK, 1, None)
    train(config, data_folder, tmp_path / "second", replace(QUICK, seed=9), 2, None, tmp_path / "first")
    first, second = (load_file(tmp_path / name / "vae.safetensors") for name in ("first", "second"))
    for name in ("to_latent.weight", "to_latent.bias", "mean", "scale"):
        assert torch.equal(first[name], second[name])
    other = replace(config, vae=replace(config.vae, latent_channels=5), dit=replace(config.dit, latent_channels=5))
    with pytest.raises(ValueError, match="5 latent channels"):
        train(other, data_folder, tmp_path / "third", QUICK, 1, None, tmp_path / "first")
