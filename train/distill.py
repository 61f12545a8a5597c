"""Self-Forcing with distribution matching: `python -m train.distill street --data DIR --vae RUN --initial WEIGHTS --out RUN`.

The generator dreams blocks with the few-step sampler it will be used with, on its own history (Self-Forcing, arXiv 2506.08009),
and is pulled to where a frozen teacher (the real score) and a critic that follows the generator (the fake score) disagree
(DMD, arXiv 2311.18828, eq. 7), all three conditioned on the same packed history (TSCM). The rollout is `rollout.dream_block`, the
environment's own. Resumable; contact sheets while it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from train.data.clips import open_corpus
from train.data.corpus import Corpus
from train.data.latents import LatentsOnly, load_vae
from train.data.texts import open_conditioning
from train.engine.arguments import initial_dit, read_arguments
from train.engine.loop import Networks, Run, prepare_cpu
from train.engine.optimization import TwoTimescale
from train.engine.pool import Batch, Pool, PoolSettings
from train.engine.sharding import mean_over_processes, own_device, settings_by_micro_batch
from train.evaluation.held_out import evaluate
from train.foundation import flow_loss
from world_model import flow
from world_model.conditions import Conditions, Motion
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.rollout import Sampling, constrained_motion, dream_block, encode_conditions, generator
from world_model.text import Conditioning, build_conditioning
from world_model.tscm import ChannelMemory
from world_model.vae import VideoVAE


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 4  # worlds a step
    micro_batches: int = 1  # parts of a step, each with worlds and random numbers of its own (train/engine/sharding.py)
    pool: PoolSettings = PoolSettings(size=32)  # every block of a world is the generator's own
    updates: TwoTimescale = TwoTimescale()
    guidance: float = 0.0  # w of c + w (c - u): u is the teacher without the event's text; 3 to 5 for large models
    truth: float = 0.5  # weight of the squared distance to the true block; 0: worlds outlive their trajectories
    ema: float = 0.99
    seed: int = 0


def dmd_direction(fake: Tensor, real: Tensor, x: Tensor) -> Tensor:
    """(fake - real) / mean |x - real|: the normalised gradient of the distribution matching loss (DMD, eq. 7-8).

    The mean is the sample's own, but not less than the batch's: in the dark all differences are small, and a push in units of
    them would burn nights and fog.
    """
    scale = (x - real).abs().mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return (fake - real) / torch.maximum(scale, scale.mean()).clamp(min=1e-6)


def dmd_loss(x: Tensor, direction: Tensor) -> Tensor:
    """A loss whose gradient in x is `direction` / x.numel(): 0.5 mse(x, stopgrad(x - direction))."""
    return 0.5 * (x - (x - direction).detach()).square().mean()


class Distiller:
    """Generator, fake and real score over one pool of worlds that live on the generator's dreams.

    real: the frozen teacher. exits: seed of the exit steps, which all micro-batches of a run share, since all processes call the
    generator equally often.
    """

    def __init__(
        self,
        config: ModelConfig,
        corpus: Corpus,
        vae: VideoVAE,
        settings: Settings,
        real: DiT,
        conditioning: Conditioning | None = None,
        exits: int | None = None,
    ) -> None:
        self.config, self.corpus, self.vae, self.settings = config, corpus, vae, settings
        self.real = real
        self.conditioning = conditioning or build_conditioning(config)
        self.exits, self.device = settings.seed if exits is None else exits, own_device()
        worlds = replace(settings.pool, beyond=not settings.truth)
        self.pool = Pool(corpus, self.conditioning, worlds, settings.seed, self.device)
        self.sigmas = flow.schedule_of(config.sampler)

    def rollout(self, dit: DiT, number: int, learn: bool) -> tuple[Batch, Motion, Tensor]:
        """One more block of some worlds, dreamt up to a random exit step (one for all): what it was dreamt from, and latents.

        With `learn`, gradients flow through the exit step and the compression of the history.
        """
        stream = generator(self.settings.seed, "distill", number)
        batch = self.pool.sample(dit, self.vae, self.settings.batch, 1.0, number)
        shared = stream if self.exits == self.settings.seed else generator(self.exits, "distill", number)
        exit_step = int(torch.randint(len(self.sigmas) - 1, (), generator=shared))
        noise = torch.randn(batch.truth.shape, generator=stream).to(self.device) * self.config.sampler.temperature
        with torch.set_grad_enabled(learn):
            remembering = replace(batch, worlds=replace(batch.worlds, memory=dit.encode_memory(batch.past)))
            motion, latents, _ = self.dream(dit, remembering, noise, [stream] * len(batch.index), exit_step)
        return batch, motion, latents

    def dream(
        self, dit: DiT, batch: Batch, noise: Tensor, streams: list[torch.Generator], exit_step: int | None = None
    ) -> tuple[Motion, Tensor, Tensor]:
        """The environment's own step of a batch; detached, its worlds go back to the pool. Motion, latents and pictures."""
        sampling = Sampling(noise, self.sigmas, exit_step)
        after, latents, video = dream_block(
            dit, self.vae, batch.worlds, batch.actions, batch.context, batch.pooled, sampling, streams
        )
        if after.memory is not None:
            after = replace(after, memory=ChannelMemory(after.memory.total.detach(), after.memory.norm.detach()))
        newest = torch.arange(after.history.frames - self.config.block_latents, after.history.frames)
        self.pool.add(batch, after, after.history.select(newest.repeat(len(batch.index), 1)))
        return constrained_motion(dit, batch.worlds, batch.actions), latents, video

    def conditions(self, score: DiT, batch: Batch, motion: Motion, context: Tensor) -> Conditions:
        """A score's own compression of the same generated history."""
        worlds = replace(batch.worlds, memory=score.encode_memory(batch.past))
        return encode_conditions(score, self.vae, worlds, motion, context, batch.pooled)[0]

    def critic_loss(self, critic: DiT, batch: Batch, motion: Motion, latents: Tensor, number: int) -> Tensor:
        """Flow matching of the generator's blocks."""
        stream = generator(self.settings.seed, "critic", number)
        sigma = torch.rand(len(latents), generator=stream, dtype=torch.float64).clamp(0.02, 1).to(self.device)
        noise = torch.randn(latents.shape, generator=stream).to(self.device)
        conditions = self.conditions(critic, batch, motion, batch.context)
        return flow_loss(critic, conditions, latents.detach(), sigma, noise, floor=0.4)

    @torch.no_grad()
    def direction(self, critic: DiT, batch: Batch, motion: Motion, latents: Tensor, number: int) -> Tensor:
        """Where distribution matching pushes the blocks, [B, C, K, h, w]."""
        stream = generator(self.settings.seed, "score", number)
        sigma = torch.rand(len(latents), generator=stream, dtype=torch.float64).clamp(0.02, 0.98).to(self.device)
        level = sigma.float()[:, None, None, None, None]
        x = flow.add_noise(latents, torch.randn(latents.shape, generator=stream).to(self.device), level)
        prediction = self.config.dit.output.prediction

        def score(network: DiT, context: Tensor) -> Tensor:
            return flow.to_data(
                network(x, sigma, self.conditions(network, batch, motion, context)), x, level, prediction
            )

        fake, real = score(critic, batch.context), score(self.real, batch.context)
        if self.settings.guidance:
            silent = self.conditioning.context(batch.actions, [None] * len(batch.actions))[0].to(self.device)
            real = real + self.settings.guidance * (real - score(self.real, silent))
        return dmd_direction(fake, real, latents)

    def generator_loss(self, critic: DiT, batch: Batch, motion: Motion, latents: Tensor, number: int) -> Tensor:
        """Distribution matching, and a little of the truth that the simulator knows for the same actions."""
        loss = dmd_loss(latents, self.direction(critic, batch, motion, latents.detach(), number))
        return loss + self.settings.truth * (latents - batch.truth).square().mean()


def _update(run: Run, which: int, model: nn.Module, losses: Iterable[Tensor], micro_batches: int = 1) -> float:
    """One optimizer step on the mean of the micro-batches' losses, each computed when its turn comes; returns that mean."""
    total = 0.0
    for loss in losses:
        run.accelerator.backward(loss / micro_batches)
        total += float(loss.detach()) / micro_batches
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    run.optimizers[which].step()
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    return total


def _check_warmup(settings: Settings, steps: int) -> None:
    """Raises ValueError for a run that ends before the generator's first update."""
    warmup, every = settings.updates.critic_warmup, settings.updates.generator_every
    first = -(-warmup // every) * every
    if 0 < steps <= first:
        raise ValueError(
            f"the generator first learns after {first} steps (--critic-warmup {warmup}, --generator-every {every}), but "
            f"--steps is {steps}: make the warm-up shorter"
        )


def _step(
    run: Run, distillers: list[Distiller], student: DiT, critic: DiT, number: int, learn: bool
) -> dict[str, float]:
    """With `learn` an update of the generator, then in any case one of the critic, on the same rollouts. Returns both losses."""
    losses: dict[str, float] = {}
    rollouts: list[tuple[Batch, Motion, Tensor]] = []

    def generator_losses() -> Iterator[Tensor]:
        for distiller in distillers:
            rollouts.append(distiller.rollout(student, number, True))
            yield distiller.generator_loss(critic, *rollouts[-1], number)

    if learn:
        losses["generator"] = _update(run, 0, student, generator_losses(), len(distillers))
        run.average("dit")
    else:
        rollouts += [distiller.rollout(student, number, False) for distiller in distillers]
    critic_losses = (d.critic_loss(critic, *rollout, number) for d, rollout in zip(distillers, rollouts, strict=True))
    losses["critic"] = _update(run, 1, critic, critic_losses, len(distillers))
    return losses


def train(
    config: ModelConfig,
    data: Path,
    vae_folder: Path,
    initial: Path,
    out: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
) -> None:
    """Distils the foundation weights in `initial`. Raises ValueError for a run that ends before the generator's first update."""
    _check_warmup(settings, steps)
    torch.manual_seed(settings.seed)
    student = initial_dit(config, initial)
    critic = copy.deepcopy(student)
    real = copy.deepcopy(student).eval().requires_grad_(False)
    vae, _ = load_vae(config, vae_folder, str(own_device()))
    corpus, conditioning = open_corpus(config, data, vae), open_conditioning(config, data, initial)
    blind = vae if config.priors else LatentsOnly(vae)
    distillers = {
        name: Distiller(config, corpus, blind, own, real, conditioning, settings.seed)
        for name, own in settings_by_micro_batch(settings).items()
    }
    updates = settings.updates
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.0, 0.999), weight_decay=0.0)
        for network, lr in ((student, updates.generator_lr), (critic, updates.critic_lr))
    ]
    models: dict[str, nn.Module] = {"dit": student, "critic": critic}
    pools = {name: distiller.pool for name, distiller in distillers.items()}
    networks = Networks(models, optimizers, {"dit": settings.ema}, frozen=[real])
    run = Run("distill", config, settings, out, networks, pools)
    average = run.averaged("dit", DiT)
    losses: dict[str, list[float]] = {"generator": [], "critic": []}
    for step in run.steps(steps, minutes):
        learn = step >= updates.critic_warmup and step % updates.generator_every == 0
        for name, loss in _step(run, list(distillers.values()), student, critic, step, learn).items():
            losses[name].append(loss)
        if step % 50 == 49:
            recent = {name: float(np.mean(values[-50:])) for name, values in losses.items() if values}
            run.log(dict(zip(recent, mean_over_processes(list(recent.values())))))
        if step % 300 == 299:
            evaluate(run, average, vae, corpus, conditioning, f"distill_{step + 1:06d}")
            run.save()
    run.finish()


def main() -> None:
    prepare_cpu()
    names = (
        "batch",
        "pool.size",
        "pool.episode_length",
        "pool.text_start",
        "updates.generator_lr",
        "updates.critic_lr",
        "updates.generator_every",
        "updates.critic_warmup",
        "guidance",
        "truth",
        "micro_batches",
        "seed",
    )
    called = {"pool.size": "pool", "pool.episode_length": "blocks"}
    config, settings, a = read_arguments(__doc__, Settings, names, ("data", "vae", "initial"), names=called)
    train(config, a.data, a.vae, a.initial, a.out, settings, a.steps, a.minutes)


if __name__ == "__main__":
    main()
