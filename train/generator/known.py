"""Adds what a model was trained on to its weights: `python -m train.generator.known RUN`, of train.street_world or train.world.

`info` of the environment then says how a text was understood, and how far a start picture is from those of training
(`world_model.known`). These two commands do it themselves at their end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from train.engine.loop import prepare_cpu
from train.evaluation.sheet import to_video
from train.generator.rollouts import Split
from train.recordings import EpisodeFiles, RecordingError
from world_model.config import ModelConfig
from world_model.known import Known, features, save_known, usual_similarity
from world_model.model import WorldModel
from world_model.text import Conditioning, mean_token
from world_model.vae import VideoVAE

PICTURES, MOST = 2000, 8  # of training, at most; of an episode


@torch.no_grad()
def fit_known(
    config: ModelConfig,
    vae: VideoVAE,
    files: EpisodeFiles,
    episodes: Sequence[int],
    conditioning: Conditioning,
    device: torch.device | str = "cpu",
) -> Known:
    """The texts of these episodes, and the Gaussian of about `PICTURES` of their pictures, taken evenly."""
    texts = texts_of(files, episodes) if config.dit.text_dim else []
    tokens = torch.zeros(0, config.text.dim)
    if texts:
        tokens = torch.stack([mean_token(conditioning.event(text)) for text in texts])
    known = Known(texts, tokens, config.dit.latent_channels, usual_similarity(tokens))
    each = max(2, min(MOST, PICTURES // len(episodes)))
    found = []
    for episode in episodes:
        frames = files.frames(episode)
        chosen = frames[np.linspace(0, len(frames) - 1, each).astype(int)]
        stills = to_video(chosen[:, None]).expand(-1, -1, config.vae.temporal_stride, -1, -1)
        found.append(features(vae.encode(stills.to(device))[:, :, 0]).cpu())
    known.pictures.fit(torch.cat(found))
    return known


def texts_of(files: EpisodeFiles, episodes: Sequence[int]) -> list[str]:
    """All captions and texts of episodes, each once, in order of the alphabet."""
    told = {files.captions[episode] for episode in episodes}
    told |= {files.text_at(episode, step) for episode in episodes for step in range(int(files.lengths[episode]))}
    return sorted(text for text in told if text)


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of train.street_world or train.world")
    run = parser.parse_args().run
    try:
        split, model = Split.read(run), WorldModel.load(run)
        known = fit_known(model.config, model.vae, split.files, split.train, model.conditioning, model.device)
    except (RecordingError, ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    save_known(run, known)
    print(f"{len(known.texts)} texts, understood from a cosine of {known.least:.2f} on")


if __name__ == "__main__":
    main()
