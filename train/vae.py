"""Trains the small autoencoder: `python -m train.vae street --data DIR --out RUN [--minutes 10]`, then `train.data encode`.

A PCA of the pixel patches is an autoencoder for free: it is the encoder, and the decoder's convolutions learn to repair its losses
(L1 + L1 of picture gradients + a little squared error), with noise on the latents so that the decoder forgives a dream's errors.
With --initial the PCA is that of given weights: what was trained on its latents goes on, and only pictures improve. Resumable.
Writes `vae.safetensors` (the EMA, normalised) and `vae.json` (config, steps, PSNR on walks not trained on).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.data.latents import WEIGHTS
from train.data.shards import HELD_OUT, Shard, find_shards
from train.engine.arguments import read_arguments
from train.engine.loop import Networks, Run, prepare_cpu
from train.evaluation.sheet import to_pictures, to_video
from world_model.config import ModelConfig
from world_model.rollout import generator
from world_model.vae import PatchVAE


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 16
    latent_frames: int = 3  # of a training clip
    lr: float = 1e-3
    cooldown: float = 0.4  # last share of the run over which the learning rate falls
    latent_noise: float = 0.05  # deviation, of normalised latents
    ema: float = 0.998
    bfloat16: bool = False  # arithmetic of the convolutions in training: 0.6 of the time where the CPU has AMX
    seed: int = 0


class Clips:
    """Random short clips of all walks in a folder, drawn by key."""

    def __init__(self, folder: Path, frames: int) -> None:
        self.shards, self.frames = [Shard(path) for path in find_shards(folder)], frames

    def draw(self, count: int, *key: int | str) -> Tensor:
        """[count, 3, T, H, W] in -1..1; never one of the held-out walks."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator(*key))))
        clips = []
        for _ in range(count):
            number = int(rng.integers(len(self.shards)))
            shard = self.shards[number]
            first = HELD_OUT if number == 0 and len(shard) > HELD_OUT else 0
            start = int(rng.integers(shard.header.frames_per_walk - self.frames + 1))
            clips.append(shard.frames(int(rng.integers(first, len(shard))), start, start + self.frames))
        return to_video(np.stack(clips))

    def held_out(self, frames: int = 32) -> Tensor:
        return to_video(
            np.stack([self.shards[0].frames(i, 0, frames) for i in range(min(HELD_OUT, len(self.shards[0])))])
        )


def psnr(video: Tensor, reference: Tensor) -> float:
    """Decibels, for values in -1..1 (peak 2); mean over clips of the clips' own figures."""
    error = (video - reference).square().flatten(1).mean(dim=1).clamp(min=1e-10)
    return float((10 * torch.log10(4 / error.detach())).mean())


def reconstruction_loss(video: Tensor, reference: Tensor) -> Tensor:
    """L1 + L1 of the horizontal and vertical picture gradients + a little squared error."""
    difference = video - reference
    edges = sum(difference.diff(dim=d).abs().mean() for d in (-1, -2))
    return difference.abs().mean() + edges + difference.square().mean()


def train(
    config: ModelConfig,
    data: Path,
    out: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
    initial: Path | None = None,
) -> None:
    """Trains until `steps` or `minutes`, evaluates and writes the weights; `initial`: weights whose PCA is kept."""
    clips = Clips(data, settings.latent_frames * config.vae.temporal_stride)
    torch.manual_seed(settings.seed)
    vae = PatchVAE(config.vae)
    if initial is not None:
        keep_linear(vae, initial)
    else:
        vae.fit_linear(clips.draw(600, settings.seed, "pca"))
        with torch.no_grad():
            vae.normalise(vae.encode_raw(clips.draw(200, settings.seed, "spread")))
    vae.to_latent.requires_grad_(False)  # latents are settled: the DiT may train on them while the decoder improves
    optimizer = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad], lr=settings.lr, betas=(0.9, 0.95), weight_decay=1e-4
    )
    run = Run("vae", config, settings, out, Networks({"vae": vae}, [optimizer], {"vae": settings.ema}))
    held_out = clips.held_out()
    for step in run.steps(steps, minutes):
        video = clips.draw(settings.batch, settings.seed, "clips", step)
        raw = vae.encode_raw(video)
        noise = torch.randn(raw.shape, generator=generator(settings.seed, "noise", step))
        noised = raw + settings.latent_noise * vae.scale.view(1, -1, 1, 1, 1) * noise
        with torch.autocast(run.device.type, torch.bfloat16, settings.bfloat16):
            decoded, _ = vae.decode_raw(noised)
        loss = reconstruction_loss(decoded.float(), video)
        optimizer.zero_grad()
        run.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * run.rate(steps, minutes, 50, settings.cooldown, 0.03)
        optimizer.step()
        run.average("vae")
        if step % 250 == 249:
            _report(run, held_out, float(loss.detach()))
    _report(run, held_out, float("nan"))
    run.finish()
    final = run.averaged("vae", PatchVAE)
    export(final, config, out, {"steps": run.progress.step, "psnr_held_out": round(_evaluate(final, held_out)[1], 2)})


def keep_linear(vae: PatchVAE, weights: Path) -> None:
    """Takes the linear part and the normalisation of the autoencoder in a folder of weights. ValueError where they do not fit."""
    taken = load_file(weights / WEIGHTS)
    own = vae.state_dict()
    names = [name for name in own if not name.startswith("decoder")]
    if any(name not in taken or taken[name].shape != own[name].shape for name in names):
        raise ValueError(
            f"{weights / WEIGHTS} is no autoencoder with {vae.config.latent_channels} latent channels of 8x8 pixels"
        )
    vae.load_state_dict({**own, **{name: taken[name].float() for name in names}})


def export(vae: PatchVAE, config: ModelConfig, out: Path, metadata: dict[str, float]) -> None:
    """vae.safetensors (float32) and vae.json."""
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, out / WEIGHTS)
    (out / "vae.json").write_text(json.dumps({**json.loads(config.to_json()), "vae_training": metadata}, indent=1))


@torch.no_grad()
def _evaluate(vae: PatchVAE, video: Tensor) -> tuple[Tensor, float]:
    decoded = torch.cat([vae.decode(vae.encode(clip[None]))[0] for clip in video])
    return decoded, psnr(decoded, video)


def _report(run: Run, held_out: Tensor, loss: float) -> None:
    decoded, figure = _evaluate(run.averaged("vae", PatchVAE), held_out)
    run.log({"loss": loss, "psnr_held_out": figure, "l1": float(F.l1_loss(decoded, held_out))})
    pairs = [list(to_pictures(clip)[::4]) for both in zip(held_out, decoded) for clip in both]
    run.sheet("vae", pairs)
    run.save()


def main() -> None:
    prepare_cpu()
    config, settings, a = read_arguments(__doc__, Settings, ("batch", "lr", "bfloat16"), ("data",), ("initial",))
    train(config, a.data, a.out, settings, a.steps, a.minutes, a.initial)


if __name__ == "__main__":
    main()
