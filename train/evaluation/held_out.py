"""Held-out walks dreamt from a start picture: PSNR by horizon, and contact sheets of truth above dream."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from train.data.corpus import Corpus
from train.data.shards import HELD_OUT
from train.engine.loop import Run
from train.engine.sharding import own_device
from train.evaluation.sheet import to_pictures, to_video
from train.generator.measures import sharpness
from train.vae import psnr
from world_model import flow
from world_model.conditions import Pose
from world_model.dit import DiT
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.text import Conditioning
from world_model.vae import VideoVAE
from world_model.worlds import start_worlds

HORIZONS = {"block1": (0, 1), "blocks2-4": (1, 4), "rest": (4, None)}  # blocks of a dream


@torch.no_grad()
def roll_out(
    dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning, walks: list[int], block: int, blocks: int
) -> Tensor:
    """Dreams the true actions and events of `walks` from before `block`: video [B, 3, blocks * T, H, W]."""
    config, device = dit.config, own_device()
    sigmas = flow.schedule_of(config.sampler)
    pictures = torch.stack([corpus.picture(walk, block) for walk in walks]).to(device)
    angles = torch.tensor([corpus.direction(walk, block) for walk in walks], dtype=torch.float64, device=device)
    present = torch.ones(len(walks), dtype=torch.bool, device=device)
    place = torch.tensor([corpus.position(walk, block) for walk in walks], dtype=torch.float64, device=device)
    worlds = start_worlds(dit, vae, pictures, present, Pose(angles[:, 0], angles[:, 1], place))
    videos = []
    for b in range(block, block + blocks):
        actions = [corpus.action(walk, b) for walk in walks]
        words = conditioning.context(actions, [corpus.info(walk).event_at(b) for walk in walks])
        noise = block_noise(config, walks, [b] * len(walks)).to(device)
        streams = [generator("old", walk, b) for walk in walks]
        context, pooled = (part.to(device) for part in words)
        worlds, _, video = dream_block(dit, vae, worlds, actions, context, pooled, Sampling(noise, sigmas), streams)
        videos.append(video.cpu())
    return torch.cat(videos, dim=2)


def horizon_frames(name: str, size: int) -> slice:
    """Frames of one of the `HORIZONS` of a dream in blocks of `size` frames."""
    first, end = HORIZONS[name]
    return slice(first * size, None if end is None else end * size)


def held_out_psnr(
    dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning, blocks: int = 12
) -> tuple[dict[str, float], Tensor, Tensor]:
    """PSNR of held-out walks dreamt from a start picture, by horizon as far as the shortest of them goes, beside a frozen picture;
    truth and dream [B, 3, T, H, W]."""
    walks = list(range(min(HELD_OUT, len(corpus))))
    shortest = min(corpus.blocks_of(walk) for walk in walks)
    block = min(3, shortest // 2)
    blocks = min(blocks, shortest - block)
    truth = to_video(np.stack([corpus.frames(walk, block, blocks) for walk in walks]))
    video = roll_out(dit, vae, corpus, conditioning, walks, block, blocks)
    still = torch.stack([corpus.picture(walk, block) for walk in walks])[:, :, None].expand_as(truth)
    size = dit.config.frames_per_block
    parts = {name: horizon_frames(name, size) for name in HORIZONS}
    reached = {name: part for name, part in parts.items() if part.start < video.shape[2]}
    figures = {f"psnr/{name}": psnr(video[:, :, part], truth[:, :, part]) for name, part in reached.items()}
    figures["psnr/still_block1"] = psnr(still[:, :, :size], truth[:, :, :size])
    return figures, truth, video


def sharpness_share(video: Tensor, truth: Tensor, size: int) -> dict[str, float]:
    """Mean gradient of a dream over that of the truth, both [B, 3, T, H, W] in -1..1, by horizon; `size` pictures a block."""
    dream, true = (np.array([[sharpness(p) for p in clip] for clip in to_pictures(v)]) for v in (video, truth))
    parts = {n: part for n in HORIZONS if (part := horizon_frames(n, size)).start < true.shape[1]}
    shares = {name: dream[:, part].mean() / true[:, part].mean() for name, part in parts.items()}
    return {f"sharpness/{name}": float(shares.get(name, np.nan)) for name in HORIZONS}


def evaluate(run: Run, dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning, name: str) -> None:
    """Logs `held_out_psnr` and writes a contact sheet: truth above dream, one picture a block."""
    training = dit.training
    figures, truth, video = held_out_psnr(dit.eval(), vae, corpus, conditioning)
    run.log(figures)
    size = dit.config.frames_per_block
    pairs = [list(to_pictures(clip)[size - 1 :: size]) for both in zip(truth, video) for clip in both]
    run.sheet(name, pairs)
    dit.train(training)
