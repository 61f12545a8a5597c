"""Foundation training of the DiT.

    python -m train.foundation street --data DIR --vae RUN --depth RUN --places RUN --events RUN --out RUN [--minutes 60]

`street` has a scene prior, whose parts are learnt by stages before this one (docs/train-street.md). Without --depth, --places and
--events it raises FileNotFoundError, unless --initial names weights that have these parts.

Rectified flow on the next block given its history (Yume1.5, section 3.2), with what makes a world last on top:
text starts and picture starts mixed, still-image histories (every world starts with one), noised histories, and, from
`--dream-from` on, histories that the model dreamt itself while the target stays the truth. Resumable; contact sheets while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.data.clips import open_corpus
from train.data.corpus import Corpus
from train.data.latents import LatentsOnly, load_vae
from train.data.texts import open_conditioning
from train.depth import load_depth
from train.engine.arguments import initial_dit, read_arguments
from train.engine.deepen import deepened
from train.engine.loop import Networks, Run, prepare_cpu
from train.engine.optimization import Optimization, optimizers
from train.engine.pool import Batch, Pool, PoolSettings
from train.engine.sharding import any_process, mean_over_processes, own_device, settings_by_micro_batch
from train.evaluation.held_out import evaluate
from train.generator.foundation import draw_sigma
from train.places import load_places
from train.street.growth import load_events
from train.street.scene import PARTS, part_name, part_of, scene_prior, without_doubt
from world_model import flow
from world_model.conditions import Conditions
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.rollout import append_and_decode, denoise_block, encode_conditions, generator
from world_model.text import Conditioning, build_conditioning
from world_model.vae import VideoVAE


@dataclass(frozen=True)
class Noise:
    """Noise on histories, and levels of the noise that is taken away again."""

    history_noise: float = 0.25  # largest deviation added to a noised history
    noised: float = 0.5  # share of worlds with a noised history
    pure_noise: float = 0.4  # share of draws at noise level 1; the rest cover (0, 1], shifted as the sampler is
    sigma_floor: float = 0.4  # the loss weight 1 / sigma stops growing here


@dataclass(frozen=True)
class SelfForcing:
    """Which histories are dreamt, and how."""

    dream_from: int = 3000  # step from which histories are dreamt
    dream_over: int = 1000  # steps over which their share grows
    dream_share: float = 0.5  # of worlds that start, once it has grown
    dream_steps: int = 2  # sampler steps of a dreamt history

    def share(self, step: int) -> float:
        """Share of the worlds starting at `step` whose history is dreamt."""
        return self.dream_share * min(1.0, max(0.0, (step - self.dream_from) / max(self.dream_over, 1)))


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 8  # worlds a step
    noise_samples: int = 2  # noise draws that share one world's history
    micro_batches: int = 1  # parts of a step, each with worlds and random numbers of its own (train/engine/sharding.py)
    pool: PoolSettings = PoolSettings()
    optimization: Optimization = Optimization()
    noise: Noise = Noise()
    self_forcing: SelfForcing = SelfForcing()
    ema: float = 0.998
    seed: int = 0


def channel_weight(dit: DiT) -> Tensor | float:
    """[C, 1, 1, 1] of mean 1: strong channels count more, half-way from equal weights to squared error of pixels."""
    if not len(dit.priors):
        return 1.0
    unseen = next(iter(dit.priors)).deviation[0]
    return (unseen / unseen.mean())[:, None, None, None]


def flow_loss(dit: DiT, conditions: Conditions, data: Tensor, sigma: Tensor, noise: Tensor, floor: float) -> Tensor:
    """Squared error of the clean latent over max(sigma, floor), or of the velocity, by what the model predicts."""
    level = sigma.float()[:, None, None, None, None]
    x = flow.add_noise(data, noise, level)
    output = dit(x, sigma, conditions)
    if dit.config.dit.output.prediction == "velocity":
        return (output - (noise - data)).square().mean()
    return ((output - data).square() * channel_weight(dit) / level.clamp(min=floor)).mean()


@torch.no_grad()
def untrained_loss(dit: DiT, conditions: Conditions, data: Tensor, sigma: Tensor, noise: Tensor, floor: float) -> float:
    """`flow_loss` of the linear estimate that a data prediction starts from: what the network has to beat (nan without one)."""
    if conditions.mean is None or conditions.variance is None:
        return float("nan")
    level = sigma.float()[:, None, None, None, None]
    mean, _ = flow.gaussian_posterior(flow.add_noise(data, noise, level), level, conditions.mean, conditions.variance)
    return float(((mean - data).square() * channel_weight(dit) / level.clamp(min=floor)).mean())


def corrupt(batch: Batch, settings: Noise, stream: torch.Generator) -> Batch:
    """Adds noise to some worlds' histories and to the picture that their priors see."""
    count = len(batch.index)
    deviation = settings.history_noise * torch.rand(count, generator=stream)
    deviation = deviation * (torch.rand(count, generator=stream) < settings.noised)
    history = batch.worlds.history
    noise = torch.randn(history.latents.shape, generator=stream)
    latents = history.latents + (deviation[:, None, None, None, None] * noise).to(history.latents.device)
    picture = batch.worlds.picture
    shift = torch.randn(count, 3, 1, 1, generator=stream) * 0.1 + torch.randn(picture.shape, generator=stream) * 0.3
    picture = (picture + (deviation[:, None, None, None] * shift).to(picture.device)).clamp(-1, 1)
    return replace(batch, worlds=replace(batch.worlds, history=replace(history, latents=latents), picture=picture))


class Trainer:
    """One optimisation step of the foundation stage."""

    def __init__(
        self,
        config: ModelConfig,
        corpus: Corpus,
        vae: VideoVAE,
        settings: Settings,
        conditioning: Conditioning | None = None,
    ) -> None:
        self.config, self.corpus, self.vae, self.settings = config, corpus, vae, settings
        self.conditioning = conditioning or build_conditioning(config)
        self.device = own_device()
        self.pool = Pool(corpus, self.conditioning, settings.pool, settings.seed, self.device)

    def step(self, dit: DiT, number: int) -> tuple[Tensor, float]:
        """Loss of step `number`, and that of no network at all; the pool's worlds move on by one block, true or dreamt."""
        s = self.settings
        stream = generator(s.seed, "foundation", number)
        batch = self.pool.sample(dit, self.vae, s.batch, s.self_forcing.share(number), number)
        noised = corrupt(batch, s.noise, stream)
        worlds = replace(noised.worlds, memory=dit.encode_memory(batch.past))
        conditions, block = encode_conditions(dit, self.vae, worlds, batch.motion, batch.context, batch.pooled)
        data = batch.truth.repeat_interleave(s.noise_samples, 0)
        sigma = draw_sigma(len(data), s.noise.pure_noise, self.config.sampler.shift, stream).to(self.device)
        noise = torch.randn(data.shape, generator=stream).to(self.device)
        repeated = conditions.repeat(s.noise_samples)
        loss = flow_loss(dit, repeated, data, sigma, noise, s.noise.sigma_floor)
        reference = untrained_loss(dit, repeated, data, sigma, noise, s.noise.sigma_floor)
        with torch.no_grad():
            added = batch.truth
            dreaming = self.pool.self_generated(batch)
            dreams = bool(dreaming.any())
            if any_process(dreams):  # a sharded network is called by all processes or by none
                sigmas = flow.schedule_of(self.config.sampler, s.self_forcing.dream_steps)
                start = torch.randn(added.shape, generator=stream) if dreams else torch.zeros(added.shape)
                start = start.to(self.device) * self.config.sampler.temperature
                dream = denoise_block(dit, conditions, start, sigmas)
                added = torch.where(dreaming[:, None, None, None, None], dream, added)
            clean = replace(block, worlds=batch.worlds)
            after, _ = append_and_decode(dit, self.vae, clean, added, [stream] * len(batch.index))
            self.pool.add(batch, without_doubt(after, ~dreaming), block.history(added))
        return loss, reference


@dataclass(frozen=True)
class Initial:
    """What training begins from. The runs give parts of the scene prior that the weights lack, or that were trained on since."""

    weights: Path | None = None  # folder of weights to continue from, of as many layers or fewer
    depth: Path | None = None  # run of train.depth
    places: Path | None = None  # run of train.places
    events: Path | None = None  # run of train.events


def _begin(config: ModelConfig, initial: Initial) -> DiT:
    """The network that training begins with."""
    given: dict[str, Path | None] = vars(initial)
    known: dict[str, Callable[..., None]] = {"depth": load_depth, "places": load_places, "events": load_events}
    own = [name for name in PARTS if given[name] or initial.weights is None] if config.priors else []
    dit = initial_dit(
        config, initial.weights, [part_name(name) for name in own], partial(deepened, layers=config.dit.layers)
    )
    own = [name for name in own if part_of(dit, name) is not None]
    for name in own:
        known[name](part_of(dit, name), given[name])
    return dit


def train(
    config: ModelConfig,
    data: Path,
    vae_folder: Path,
    out: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
    initial: Initial | None = None,
) -> None:
    """Trains until `steps` or `minutes`, from fresh weights if no `initial` ones are given."""
    torch.manual_seed(settings.seed)
    initial = initial or Initial()
    dit = _begin(config, initial)
    vae, _ = load_vae(config, vae_folder, str(own_device()))
    corpus = open_corpus(config, data, vae)
    scene = scene_prior(dit)
    if initial.weights is None and scene is not None:
        scene.deviation.copy_(corpus.prior_deviation(scene, load_vae(config, vae_folder)[0]))
    conditioning, blind = open_conditioning(config, data, initial.weights), vae if config.priors else LatentsOnly(vae)
    trainers = {
        name: Trainer(config, corpus, blind, own, conditioning)
        for name, own in settings_by_micro_batch(settings).items()
    }
    opt = settings.optimization
    both = optimizers(dit, opt.lr, opt.weight_decay, opt.optimizer)
    pools = {name: trainer.pool for name, trainer in trainers.items()}
    networks = Networks({"dit": dit}, both, {"dit": settings.ema})
    run = Run("foundation", config, settings, out, networks, pools)
    average = run.averaged("dit", DiT)
    losses: list[np.ndarray] = []
    for step in run.steps(steps, minutes):
        parts = []
        for trainer in trainers.values():
            loss, reference = trainer.step(dit, step)
            run.accelerator.backward(loss / len(trainers))
            parts.append((float(loss.detach()), reference))
        torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        rate = run.rate(steps, minutes, opt.warmup, opt.cooldown, 0.05)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = opt.lr * rate
            optimizer.step()
            optimizer.zero_grad()
        run.average("dit")
        losses.append(np.mean(parts, axis=0))
        if step % 25 == 24:
            mean, untrained = mean_over_processes(np.mean(losses[-25:], axis=0).tolist())
            run.log({"loss": mean, "explained": 1 - mean / untrained})
        if step % 1000 == 999:
            evaluate(run, average, vae, corpus, conditioning, f"foundation_{step + 1:06d}")
        if step % 250 == 249:
            run.save()
    run.finish()


def main() -> None:
    prepare_cpu()
    names = (
        "batch",
        "pool.size",
        "pool.episode_length",
        "noise_samples",
        "optimization.lr",
        "optimization.warmup",
        "ema",
        "noise.pure_noise",
        "pool.alternate",
        "pool.text_start",
        "self_forcing.dream_from",
        "self_forcing.dream_over",
        "self_forcing.dream_share",
        "optimization.optimizer",
        "micro_batches",
        "seed",
    )
    offered = ("initial", "depth", "places", "events", "captions", "baseline")
    config, settings, a = read_arguments(__doc__, Settings, names, ("data", "vae"), offered, {"pool.size": "pool"})
    initial = Initial(a.initial, a.depth, a.places, a.events)
    train(config, a.data, a.vae, a.out, settings, a.steps, a.minutes, initial)


if __name__ == "__main__":
    main()
