"""A toy recording of a square that three actions move, as latents and as training windows of a small generator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from train.generator.autoencoder import Clips, fit_pca
from train.generator.autoencoder import Settings as AutoencoderSettings
from train.generator.encode import encode_recording
from train.generator.foundation import measure_residuals
from train.generator.shapes import recorded_config
from train.generator.windows import LatentSet, Spans, Windows, history_frames
from train.recordings import Episode, EpisodeFiles, EpisodeWriter, Recording, open_episodes
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig, Tiers
from world_model.dit import DiT
from world_model.packing import append_tiers
from world_model.rollout import generator
from world_model.text import build_conditioning
from world_model.tscm import History, static_history
from world_model.vae import PatchVAE

LENGTHS = (30, 11, 25)  # steps of the episodes of the toy recording


def toy_episode(steps: int, seed: int, frames_per_step: int = 1) -> Episode:
    """A bright square that the three actions move left, not at all or right."""
    rng = np.random.default_rng(seed)
    x, frames, actions = 12, [], []

    def picture() -> np.ndarray:
        canvas = np.full((32, 32, 3), 40, np.uint8)
        canvas[8:16, x : x + 6] = (200, 120, 60)
        return canvas

    frames.append(picture())
    for _ in range(steps):
        action = int(rng.integers(3))
        for _ in range(frames_per_step):
            x = int(np.clip(x + action - 1, 0, 25))
            frames.append(picture())
        actions.append(action)
    ended = np.zeros(steps, np.uint8)
    return Episode(np.stack(frames), np.array(actions), np.zeros(steps, np.float32), ended, ended)


@pytest.fixture(name="files", scope="module", params=[1, 2], ids=["a picture a step", "two pictures a step"])
def files_fixture(request, tmp_path_factory) -> EpisodeFiles:
    folder = tmp_path_factory.mktemp("toy")
    spec = ActionSpec("discrete", (3,), meanings=("left", "stay", "right"))
    recording = Recording("toy", 32, 32, 8.0, spec, frames_per_step=request.param)
    with EpisodeWriter(folder, recording) as writer:
        for seed, steps in enumerate(LENGTHS):
            writer.add(toy_episode(steps, seed, request.param))
    return open_episodes(folder)


@pytest.fixture(name="toy_config", scope="module")
def toy_config_fixture(files) -> ModelConfig:
    config = recorded_config("toy", files.recording, files.has_text, "tiny")
    tiers = Tiers(recent=((1, 1), (6, 2)), initial=2, old=(2, 2))
    config = config.with_history(packing=tiers)
    dit = dataclasses.replace(config.dit, latent_channels=12)
    return dataclasses.replace(config, dit=dit, vae=dataclasses.replace(config.vae, latent_channels=12, width=0))


@pytest.fixture(name="vae", scope="module")
def vae_fixture(files, toy_config) -> PatchVAE:
    vae = PatchVAE(toy_config.vae)
    fit_pca(vae, toy_config, Clips(files, range(3), 2), AutoencoderSettings(clips=40))
    return vae.eval().requires_grad_(False)


@pytest.fixture(name="data", scope="module")
def data_fixture(files, toy_config, vae) -> LatentSet:
    return encode_recording(toy_config, vae, files, range(3), build_conditioning(toy_config))


@pytest.fixture(name="windows", scope="module")
def windows_fixture(toy_config, data) -> Windows:
    return Windows(toy_config, data, past_blocks=6)


@pytest.fixture(name="dit", scope="module")
def dit_fixture(toy_config, windows, make_dit) -> DiT:
    dit = make_dit(toy_config, 3)
    measure_residuals(dit, windows)
    return dit.requires_grad_(False)


def at(episode: int, start: int, age: int, data: LatentSet) -> Spans:
    """One world that began at step `start` of an episode and is `age` blocks old."""
    return Spans(torch.tensor([episode]), data.begin[episode] + torch.tensor([start]), torch.tensor([age]))


def lived(config: ModelConfig, data: LatentSet, episode: int, start: int, age: int) -> History:
    """The same world's history, built block by block as the environment does."""
    tiers, size = config.dit.history.packing, config.block_latents
    assert isinstance(tiers, Tiers)
    row = int(data.first[episode]) + start * size
    zero = torch.zeros(1, dtype=torch.float64)
    picture = data.latents[row].float()[None, :, None]
    history = static_history(picture, history_frames(tiers), zero, zero, torch.ones(1, dtype=torch.bool))
    for block in range(age):
        rows = row + 1 + block * size + torch.arange(size)
        number = torch.arange(block * size, (block + 1) * size)[None]
        angle = torch.zeros(1, size, dtype=torch.float64)
        latents = data.latents[rows].float().transpose(0, 1)[None]
        added = History(latents, number, angle, angle, torch.ones(1, size, dtype=torch.bool))
        history = append_tiers(history, added, tiers, [generator("old", block)])
    return history


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
