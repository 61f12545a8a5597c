"""Foundation training of a generator: flow matching of the next block, given a history that is recorded, noised or its own.

Shapes: B worlds, C channels, K latent frames of a block, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from train.engine.optimization import Optimization
from train.generator.pool import RolloutPool
from train.generator.windows import Spans, Window, Windows
from world_model import batch, flow
from world_model.appearance_flow import AppearanceFlow
from world_model.conditions import Conditions
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.rollout import denoise_block
from world_model.sources import choose
from world_model.tscm import History

FLOW_WEIGHT = 2.0  # of the appearance flow's own loss beside the flow-matching loss


@dataclass(frozen=True)
class Noise:
    """Noise on histories, and levels of the noise that is taken away again."""

    history: float = 0.3  # largest deviation of the noise added to a history
    noised: float = 0.5  # share of worlds with a noised history
    pure: float = 0.25  # share of draws at noise level 1, where a sampler begins; the rest cover (0, 1]
    colour: float = 0.15  # largest deviation of the colours to which a history drifts, and of its contrast


@dataclass(frozen=True)
class Texts:
    """What worlds are told."""

    described: float = 0.3  # share of worlds without an event that are told the caption
    changed: float = 0.3  # share of worlds that are told something else since this block or the one before
    start: float = 0.1  # share of worlds with no past at all: the block is generated from text (T2V)
    dropout: float = 0.1  # share of worlds that are told nothing, for guidance in distillation


@dataclass(frozen=True)
class SelfGenerated:
    """Histories that the generator made itself."""

    begin: float = 0.4  # share of the run after which they are mixed in
    share: float = 0.5  # of the batch that may live on them; at the end all of these do
    steps: int = 2  # sampler steps
    episode_length: int = 24  # blocks that one lasts at most


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 8  # worlds a step
    noise_samples: int = 2  # noise draws that share one world's history
    longest: int = 200  # blocks: oldest world in training
    optimization: Optimization = Optimization(lr=2e-3, warmup=50)
    noise: Noise = Noise()
    texts: Texts = Texts()
    self_generated: SelfGenerated = SelfGenerated()
    ema: float = 0.999
    seed: int = 0


def draw_sigma(count: int, pure_noise: float, shift: float, stream: torch.Generator) -> Tensor:
    """[count] float32 noise levels over all of (0, 1]: some at 1, the others uniform, then shifted."""
    uniform, choice = (torch.rand(count, generator=stream, device=stream.device) for _ in range(2))
    return torch.where(choice < pure_noise, 1.0, flow.shift_sigma(1 - uniform, shift))


def flow_loss(dit: DiT, conditions: Conditions, data: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the prediction at noise levels `sigma` [B]; and its squared error as a share of that of a network without output.

    Each level is weighted to about one (EDM, Karras et al. 2022, section 5): a velocity has unit scale at every level, the error of
    a data prediction is divided by the mean variance that it has to explain.
    """
    level = sigma.float()[:, None, None, None, None]
    noise = conditions.correlated(noise)
    x = flow.add_noise(data, noise, level)
    if dit.config.dit.output.prediction == "velocity":
        velocity = noise - data
        error = (dit(x, sigma, conditions) - velocity).square().mean()
        return error, error.detach() / velocity.square().mean()
    if conditions.mean is None or conditions.variance is None:
        error = (dit(x, sigma, conditions) - data).square().mean()
        return error, error.detach() / data.square().mean()
    variance = conditions.variance.mean(dim=(1, 2, 3, 4), keepdim=True)
    explained = variance_left(variance, level)
    start, _ = flow.gaussian_posterior(x, level, conditions.mean, conditions.variance)
    reference = ((start - data).square() / explained).mean()
    made = dit.detailed(x, sigma, conditions)
    error = ((made.output - data).square() / explained).mean(dim=1, keepdim=True)
    loss = error.mean() if made.error is None else likelihood(error, made.error)
    return loss, error.detach().mean() / reference.detach()


def variance_left(variance: Tensor, level: Tensor) -> Tensor:
    """What is unknown at a noise level of data that had a variance before: what a prediction has to explain."""
    return variance * level**2 / ((1 - level) ** 2 * variance + level**2)


def likelihood(error: Tensor, logarithm: Tensor) -> Tensor:
    """beta-NLL with beta = 1/2 (Seitzer et al. 2022, arXiv 2203.09168, eq. 5) of squared errors that the network expects to be
    ``exp(logarithm)``.

    Weights depend on what the network knows, never on the data: the prediction stays the mean. Few large changes, such as a wall
    close by, outweigh all small things in a plain squared error: a monster, a ball, whatever stands still.
    """
    return (((error / logarithm.exp()) + logarithm) * (logarithm / 2).exp().detach()).mean()


def noised(window: Window, settings: Noise, stream: torch.Generator) -> Window:
    """Adds noise to the histories of some worlds, the more the later after the start picture: a generator that saw only clean ones
    would drift (GameNGen, section 3.2.1), and one whose frames were all alike would not prefer the older ones."""
    device, count = stream.device, len(window.data)
    strength, choice = (torch.rand(count, generator=stream, device=device) for _ in range(2))
    deviation = (settings.history * strength * (choice < settings.noised))[:, None, None, None, None]
    lived = window.history.frame[:, -1:] + 1

    def corrupt(past: History) -> History:
        noise = torch.randn(past.latents.shape, generator=stream, device=device)
        return replace(past, latents=past.latents + deviation * since_start(past, lived) * noise)

    return replace(window, history=corrupt(window.history), past=corrupt(window.past))


def since_start(past: History, lived: Tensor) -> Tensor:
    """Which share of the blocks that worlds have lived through, `lived` [B, 1] frames, came before each frame of their `past`, its
    own included: [B, 1, F, 1, 1]; 0 of the start picture."""
    return ((past.frame + 1) / lived.clamp(min=1)).clamp(0, 1).float()[:, None, :, None, None]


def drifted(window: Window, appearance: AppearanceFlow, largest: float, stream: torch.Generator) -> Window:
    """Lets the colours and the contrast of histories drift, more and more since the start picture, as rollouts do: the network
    learns to bring them back."""
    worlds = len(window.data)
    strength = largest * torch.rand(worlds, 1, generator=stream, device=stream.device)
    offset, contrast = (strength * torch.randn(worlds, n, generator=stream, device=stream.device) for n in (3, 1))
    black = appearance.encode_bias[:, None, None, None]
    side = appearance.stride**2
    shift = (offset.repeat_interleave(side, dim=1) @ appearance.encode.T)[:, :, None, None, None]
    lived = window.history.frame[:, -1:] + 1

    def drift(past: History) -> History:
        change = contrast[:, :, None, None, None] * (past.latents - black) + shift
        return replace(past, latents=past.latents + since_start(past, lived) * change)

    return replace(window, history=drift(window.history), past=drift(window.past))


def silent(window: Window, share: float, event_tokens: int, stream: torch.Generator) -> Window:
    """Takes the text from a share of the worlds, for classifier-free guidance."""
    kept = torch.rand(len(window.data), generator=stream, device=stream.device) >= share
    context = window.context.clone()
    context[:, :event_tokens] *= kept[:, None, None]
    return replace(window, context=context)


def read_window(dit: DiT, window: Window) -> Conditions:
    """Conditions of the next block: history compressed by both halves of TSCM, text and action."""
    memory = dit.encode_memory(window.past)
    return dit.encode_conditions(window.history, memory, window.context, window.target, window.action)


def keep_travel(windows: Windows, spans: Spans, conditions: Conditions, chosen: Tensor) -> None:
    """`Windows.keep_travel` of `chosen` [B] of the worlds, where a network says how far the camera comes."""
    if conditions.moves is not None and (camera := conditions.moves.camera) is not None:
        rows = chosen.nonzero()[:, 0]
        windows.keep_travel(batch.rows(spans, rows), camera.travelled[rows])


@torch.no_grad()
def add_up_travel(dit: DiT, windows: Windows, episodes: Sequence[int], size: int = 64) -> None:
    """`Windows.keep_travel` of all blocks of some episodes, one after the other, as a trained network says."""
    if not dit.config.dit.camera:
        return
    data, stream = windows.data, torch.Generator(windows.data.latents.device).manual_seed(0)
    lengths = data.begin.diff()
    every = torch.as_tensor(episodes, device=lengths.device)
    for block in range(int(lengths[every].max())):
        for part in every[lengths[every] > block].split(size):
            spans = Spans(part, data.begin[part], torch.full_like(part, block))
            window = windows.truth(spans, stream)
            travelled = dit.travelled(window.history, window.target, window.action)
            assert travelled is not None
            windows.keep_travel(spans, travelled)


class Foundation:
    """One optimisation step at a time; the pool of self-generated histories moves on with each."""

    def __init__(self, config: ModelConfig, windows: Windows, settings: Settings) -> None:
        self.config, self.windows, self.settings = config, windows, settings
        self.device = windows.data.latents.device
        own = settings.self_generated
        self.own = min(max(round(settings.batch * own.share), 1), settings.batch - 1)
        self.pool = RolloutPool(windows, 4 * self.own, own.episode_length, self.stream(-1), share=0.0)
        self.sigmas = flow.schedule_of(config.sampler, own.steps)

    def stream(self, number: int) -> torch.Generator:
        """Random numbers of one step: a resumed run draws what an unbroken one would."""
        return torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + number + 1)

    def loss(self, dit: DiT, number: int, done: float) -> tuple[Tensor, Tensor]:
        """`flow_loss` of step `number`, after the share `done` of the run."""
        s, stream = self.settings, self.stream(number)
        begin = s.self_generated.begin
        share = min(1.0, max(0.0, done - begin) / max(1e-6, (1 - begin) / 2))
        rows, spans, lived = self.pool.sample(self.own, stream)
        block = lived.data
        if share:
            with torch.no_grad():
                noise = torch.randn(block.shape, generator=stream, device=self.device)
                made = denoise_block(dit, read_window(dit, lived), noise, self.sigmas)
            block = torch.where(self.pool.generated[rows, None, None, None, None], made, block)
        self.pool.add(rows, block, stream, share)
        drawn = self.windows.data.draw(s.batch - self.own, s.longest, stream, changed=s.texts.changed)
        window = batch.collate([lived, self.windows.truth(drawn, stream, s.texts.described)])
        window = silent(window, s.texts.dropout, self.config.text.event_tokens, stream)
        chosen = torch.rand(s.batch, generator=stream, device=self.device) < s.texts.start
        window = self.windows.from_text(window, batch.collate([spans, drawn]), chosen)
        if dit.flow is not None and s.noise.colour:
            window = drifted(window, dit.flow, s.noise.colour, stream)
        conditions = read_window(dit, noised(window, s.noise, stream))
        moving = window.data.new_zeros(())
        if dit.flow is not None and conditions.moves is not None:
            keep_travel(self.windows, batch.collate([spans, drawn]), conditions, ~chosen)
            # displacements between pixels blur noise away: from noised pictures, a camera that stands still would learn to creep
            clear = choose(window.history, self.config.block_latents, window.target.yaw, window.target.pitch).latents
            moving = FLOW_WEIGHT * dit.flow.loss(replace(conditions.moves, sources=clear), window.data)
            if not any(p.requires_grad for part in dit.seeing_noise().values() for p in part.parameters()):
                return moving, torch.ones_like(moving)  # what sees the noise learns nothing
        conditions = replace(conditions, moves=None).repeat(s.noise_samples)
        data = window.data.repeat_interleave(s.noise_samples, 0)
        sigma = draw_sigma(len(data), s.noise.pure, self.config.sampler.shift, stream)
        noise = torch.randn(data.shape, generator=stream, device=self.device)
        loss, unexplained = flow_loss(dit, conditions, data, sigma, noise)
        return loss + moving, unexplained


@torch.no_grad()
def measure_residuals(dit: DiT, windows: Windows, count: int = 256) -> None:
    """Sets where a data prediction starts from: deviation of blocks from zero, and from the frame before them."""
    if dit.residual_deviation is None:
        return
    stream = torch.Generator(windows.data.latents.device).manual_seed(0)
    window = windows.truth(windows.data.draw(count, 0, stream, fresh=0.0), stream)
    last = window.history.latents[:, :, -1:]
    for row, difference in enumerate((window.data, window.data - last)):
        dit.residual_deviation[row] = difference.square().mean(dim=(0, 3, 4)).sqrt().clamp(min=0.02).T
