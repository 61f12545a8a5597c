"""Foundation training of the DiT: `python -m train.foundation street --data DIR --vae RUN --out RUN [--minutes 60]`.

Rectified flow on the next block given its history (Yume1.5, section 3.2), with what makes a world last on top:
text starts and picture starts mixed, still-image histories (every world starts with one), noised histories, and, from
`--dream-from` on, histories that the model dreamt itself while the target stays the truth. Resumable; contact sheets while it runs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from train.corpus import Corpus
from train.latents import load_vae
from train.loop import Run, prepare_cpu
from train.muon import Muon
from train.pool import Batch, Pool
from train.shards import HELD_OUT
from train.sheet import to_pictures, to_video
from train.vae import psnr
from world_model import flow
from world_model.config import ModelConfig, get_preset
from world_model.dit import Conditions, DiT
from world_model.rollout import (
    advance,
    block_noise,
    denoise_block,
    dream_block,
    generator,
    motion_of,
    prepare_block,
    start_worlds,
)  # fmt: skip
from world_model.text import Conditioning, pooled_actions
from world_model.vae import VideoVAE


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 8  # worlds a step
    draws: int = 2  # noise draws that share one world's history
    pool: int = 64
    lr: float = 1.5e-3
    warmup: int = 60
    cooldown: float = 0.3  # last share of the run over which the learning rate falls to a twentieth
    weight_decay: float = 0.01
    ema: float = 0.998
    history_noise: float = 0.25  # largest deviation added to a noised history
    noised: float = 0.5  # share of worlds with a noised history
    pure_noise: float = 0.4  # share of draws at sigma 1
    choice_weight: float = 0.1  # of the choice among the guides
    sigma_floor: float = 0.4  # the loss weight 1 / sigma stops growing here
    dream_from: int = 3000  # step from which histories are dreamt
    dream_over: int = 1000  # steps over which their share grows
    dream_share: float = 0.5
    dream_steps: int = 2  # sampler steps of a dreamt history
    seed: int = 0


def optimizers(dit: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    named = list(dit.named_parameters())
    matrices = [p for n, p in named if n.startswith("blocks.") and p.dim() == 2]
    rest = [p for n, p in named if not (n.startswith("blocks.") and p.dim() == 2)]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    return [Muon(matrices, lr=lr, weight_decay=weight_decay), adam]


def draw_sigma(count: int, pure_noise: float, shift: float, stream: torch.Generator) -> Tensor:
    """[count] float64 training noise levels: some at 1, the rest a shifted uniform draw that leaves out the last tenth."""
    uniform = 1 - 0.9 * torch.rand(count, generator=stream, dtype=torch.float64)
    sigma = flow.shift_sigma(uniform, shift)
    return torch.where(torch.rand(count, generator=stream) < pure_noise, torch.ones_like(sigma), sigma)


def channel_weight(dit: DiT) -> Tensor | float:
    """[C, 1, 1, 1] of mean 1: strong channels count more, half-way from equal weights to squared error of pixels."""
    if dit.prior_deviation is None:
        return 1.0
    return (dit.prior_deviation[0] / dit.prior_deviation[0].mean())[:, None, None, None]


def flow_loss(
    dit: DiT, conditions: Conditions, data: Tensor, sigma: Tensor, noise: Tensor, floor: float
) -> tuple[Tensor, Tensor | None]:
    """Squared error of the clean latent over max(sigma, floor), or of the velocity, by what is predicted; and `guide_loss`."""
    level = sigma.float()[:, None, None, None, None]
    x = flow.add_noise(data, noise, level)
    output, choice = dit.predict(x, sigma, conditions)
    if dit.config.dit.prediction == "velocity":
        return (output - (noise - data)).square().mean(), None
    loss = ((output - data).square() * channel_weight(dit) / level.clamp(min=floor)).mean()
    return loss, guide_loss(dit, choice, conditions, data)


def guide_loss(dit: DiT, choice: Tensor | None, conditions: Conditions, data: Tensor) -> Tensor | None:
    """Cross-entropy of the choice among the guides [B, L, G] to the one nearest the truth, softly: depth, taught by what came."""
    if choice is None or conditions.guides is None:
        return None
    error = (conditions.guides - data[:, None]).square() * channel_weight(dit)
    patch = dit.config.dit.patch
    error = rearrange(
        error, "B G C (F p) (h q) (w r) -> B (F h w) G (C p q r)", p=patch[0], q=patch[1], r=patch[2]
    ).mean(dim=-1)
    nearest = (-8 * error / error.mean(dim=-1, keepdim=True).clamp(min=1e-6)).softmax(dim=-1)
    return -(nearest * choice.float().log_softmax(dim=-1)).sum(dim=-1).mean()


@torch.no_grad()
def untrained_loss(dit: DiT, conditions: Conditions, data: Tensor, sigma: Tensor, noise: Tensor, floor: float) -> float:
    """`flow_loss` of the linear estimate that a data prediction starts from: what the network has to beat (nan without one)."""
    if conditions.guides is None or conditions.variance is None:
        return float("nan")
    guide = conditions.guides[:, conditions.guides.shape[1] // 2]
    level = sigma.float()[:, None, None, None, None]
    mean, _ = flow.gaussian_posterior(flow.add_noise(data, noise, level), level, guide, conditions.variance)
    return float(((mean - data).square() * channel_weight(dit) / level.clamp(min=floor)).mean())


def corrupt(batch: Batch, settings: Settings, stream: torch.Generator) -> Batch:
    """Adds noise to some worlds' histories and to the picture their guide is made of."""
    count = len(batch.index)
    deviation = settings.history_noise * torch.rand(count, generator=stream)
    deviation = deviation * (torch.rand(count, generator=stream) < settings.noised)
    history = batch.worlds.history
    noise = torch.randn(history.latents.shape, generator=stream)
    latents = history.latents + deviation[:, None, None, None, None] * noise
    picture = batch.worlds.picture
    shift = torch.randn(count, 3, 1, 1, generator=stream) * 0.1 + torch.randn(picture.shape, generator=stream) * 0.3
    picture = (picture + deviation[:, None, None, None] * shift).clamp(-1, 1)
    return replace(batch, worlds=replace(batch.worlds, history=replace(history, latents=latents), picture=picture))


class Trainer:
    """One optimisation step of the foundation stage."""

    def __init__(self, config: ModelConfig, corpus: Corpus, vae: VideoVAE, settings: Settings) -> None:
        self.config, self.corpus, self.vae, self.settings = config, corpus, vae, settings
        self.conditioning = Conditioning(config.text)
        self.pool = Pool(corpus, self.conditioning, settings.pool, settings.seed)

    def step(self, dit: DiT, number: int) -> tuple[Tensor, float, float]:
        """What step `number` minimises, its flow loss, and that of no network at all; the pool's worlds move on by one block,
        true or dreamt."""
        s = self.settings
        stream = generator(s.seed, "foundation", number)
        share = s.dream_share * min(1.0, max(0.0, (number - s.dream_from) / max(s.dream_over, 1)))
        batch = self.pool.draw(dit, self.vae, s.batch, share, number)
        noised = corrupt(batch, s, stream)
        motion = motion_of(self.config, batch.actions, batch.worlds.yaw, batch.worlds.pitch)
        worlds = replace(noised.worlds, memory=dit.remember(batch.past))
        conditions, place = prepare_block(dit, self.vae, worlds, motion, batch.context, batch.pooled)
        data = batch.truth.repeat_interleave(s.draws, 0)
        sigma = draw_sigma(len(data), s.pure_noise, self.config.sampler.shift, stream)
        noise = torch.randn(data.shape, generator=stream)
        repeated = conditions.repeat(s.draws)
        loss, choice = flow_loss(dit, repeated, data, sigma, noise, s.sigma_floor)
        reference = untrained_loss(dit, repeated, data, sigma, noise, s.sigma_floor)
        with torch.no_grad():
            added = batch.truth
            dreaming = self.pool.dreaming(batch)
            if dreaming.any():
                sigmas = flow.sigma_schedule(s.dream_steps, self.config.sampler.shift)
                start = torch.randn(added.shape, generator=stream)
                dream = denoise_block(dit, conditions, start, sigmas)
                added = torch.where(dreaming[:, None, None, None, None], dream, added)
            after, _ = advance(dit, self.vae, batch.worlds, motion, place, added, [stream] * len(batch.index))
            self.pool.put(batch, after, replace(place, latents=added))
        total = loss if choice is None else loss + s.choice_weight * choice
        return total, float(loss.detach()), reference


@torch.no_grad()
def roll_out(
    dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning, walks: list[int], block: int, blocks: int
) -> Tensor:
    """Dreams the true actions and events of `walks` from before `block`: video [B, 3, blocks * T, H, W]."""
    config = dit.config
    sigmas = flow.sigma_schedule(config.sampler.steps, config.sampler.shift)
    pictures = torch.stack([corpus.picture(walk, block) for walk in walks])
    angles = torch.tensor([corpus.direction(walk, block) for walk in walks], dtype=torch.float64)
    worlds = start_worlds(dit, vae, pictures, torch.ones(len(walks), dtype=torch.bool), angles[:, 0], angles[:, 1])
    videos = []
    for b in range(block, block + blocks):
        actions = [corpus.action(walk, b) for walk in walks]
        tables = conditioning.actions[[a.index for a in actions]]
        texts = torch.stack([corpus.text(corpus.info(walk).event_at(b)) for walk in walks])
        noise = block_noise(config, walks, [b] * len(walks))
        draws = [generator("old", walk, b) for walk in walks]
        context = torch.cat([texts, tables], dim=1)
        worlds, _, video = dream_block(dit, vae, worlds, actions, context, pooled_actions(tables), noise, sigmas, draws)
        videos.append(video)
    return torch.cat(videos, dim=2)


def held_out_psnr(
    dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning, blocks: int = 12
) -> tuple[dict[str, float], Tensor, Tensor]:
    """PSNR of held-out walks dreamt from a start picture, by horizon, beside a frozen picture; truth and dream [B, 3, T, H, W]."""
    walks, block = list(range(min(HELD_OUT, len(corpus)))), 3
    truth = to_video(np.stack([corpus.frames(walk, block, blocks) for walk in walks]))
    video = roll_out(dit, vae, corpus, conditioning, walks, block, blocks)
    still = torch.stack([corpus.picture(walk, block) for walk in walks])[:, :, None].expand_as(truth)
    size = dit.config.frames_per_block
    ends = {"block1": (0, size), "blocks2-4": (size, 4 * size), "rest": (4 * size, blocks * size)}
    figures = {f"psnr/{k}": psnr(video[:, :, a:b], truth[:, :, a:b]) for k, (a, b) in ends.items()}
    figures["psnr/still_block1"] = psnr(still[:, :, :size], truth[:, :, :size])
    return figures, truth, video


def evaluate(run: Run, dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning, name: str) -> None:
    """Logs `held_out_psnr` and writes a contact sheet: truth above dream, one picture a block."""
    training = dit.training
    figures, truth, video = held_out_psnr(dit.eval(), vae, corpus, conditioning)
    run.log(figures)
    size = dit.config.frames_per_block
    pairs = [list(to_pictures(clip)[size - 1 :: size]) for both in zip(truth, video) for clip in both]
    run.sheet(name, pairs)
    dit.train(training)


def train(
    config: ModelConfig,
    data: Path,
    vae_folder: Path,
    out: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
    initial: Path | None,
) -> None:
    """Trains until `steps` or `minutes`; `initial` is a folder of weights to continue from."""
    torch.manual_seed(settings.seed)
    dit = DiT(config)
    if initial is not None:
        from world_model.weights import load_dit

        load_dit(dit, initial)
    vae, _ = load_vae(config, vae_folder)
    corpus = Corpus(config, data)
    if initial is None and dit.prior_deviation is not None:
        dit.prior_deviation.copy_(corpus.prior_deviation(vae))
    trainer = Trainer(config, corpus, vae, settings)  # type: ignore[arg-type]
    run = Run(
        "foundation",
        config,
        settings,
        out,
        {"dit": dit},
        optimizers(dit, settings.lr, settings.weight_decay),
        {"dit": settings.ema},
        {"pool": trainer.pool},
    )
    average: DiT = run.ema["dit"].module  # type: ignore[assignment]
    losses: list[tuple[float, float]] = []
    for step in run.steps(steps, minutes):
        loss, flow_part, reference = trainer.step(dit, step)
        run.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        done = step / steps if minutes is None else run.minutes / minutes
        rate = min(1.0, (step + 1) / settings.warmup, max(0.05, (1 - done) / settings.cooldown))
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate
            optimizer.step()
            optimizer.zero_grad()
        run.average("dit")
        losses.append((flow_part, reference))
        if step % 25 == 24:
            mean, untrained = np.mean(losses[-25:], axis=0)
            run.log({"loss": mean, "explained": 1 - mean / untrained})
        if step % 1000 == 999:
            evaluate(run, average, vae, corpus, trainer.conditioning, f"foundation_{step + 1:06d}")  # type: ignore[arg-type]
        if step % 250 == 249:
            run.save()
    run.finish()


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="preset name")
    parser.add_argument("--data", type=Path, required=True, help="folder of encoded shards (train.data)")
    parser.add_argument("--vae", type=Path, required=True, help="run folder of train.vae")
    parser.add_argument("--out", type=Path, required=True, help="run folder; a checkpoint in it is resumed")
    parser.add_argument("--initial", type=Path, help="folder of weights to start from")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, help="stop after this much training")
    for name, kind in (
        ("batch", int),
        ("draws", int),
        ("lr", float),
        ("ema", float),
        ("dream_from", int),
        ("dream_over", int),
        ("dream_share", float),
        ("seed", int),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Settings, name))
    values = vars(parser.parse_args())
    model, data, vae, out, initial, steps, minutes = (
        values.pop(k) for k in ("model", "data", "vae", "out", "initial", "steps", "minutes")
    )
    train(get_preset(model), data, vae, out, Settings(**values), steps, minutes, initial)


if __name__ == "__main__":
    main()
