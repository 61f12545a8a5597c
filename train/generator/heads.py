"""Training, calibration and measurement of the heads for reward and termination (world_model/heads.py).

Half of a batch is drawn uniformly, half equally from all groups of steps with one reward class and one termination flag. The loss
of a step is weighted by its natural over its drawn frequency (importance sampling), which is at most 2. Expected gradients are
therefore those of uniform batches, and the probabilities of both heads stay those of the recording. A correction of the logits
afterwards would be exact only for a head whose label alone decides what is drawn, and here two heads share a batch. What
overconfidence remains is taken out by a temperature for each head (Guo et al. 2017), chosen on held-out episodes.

Legend: S steps of a recording, B steps of a batch, C channels, n frames of history, K latent frames of a block, h x w latent size,
A numbers of an encoded action, R reward classes or bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.generator.fit import Stage
from train.generator.measures import average_precision, calibration_error
from train.generator.windows import LatentSet
from world_model.config import ModelConfig
from world_model.heads import Calibration, HeadsConfig, OutcomeHeads, calibrated, reward_classes, symlog

CHUNK = 256  # steps that are read at a time without gradient
PRECISION = 0.8  # at which recall is measured


@dataclass(frozen=True)
class Augmentation:
    """How histories and blocks of a recording are made like generated ones."""

    fresh: float = 0.1  # share of steps whose history is the picture before them, standing still, as after a start
    noise: float = 0.3  # largest deviation of the noise on latents, as on histories of the foundation stage
    noised: float = 0.5  # share of steps with noise


@dataclass(frozen=True)
class OutOfDistribution:
    """From which distance on a block is called unfamiliar."""

    fit_blocks: int = 8192  # training blocks that the familiarity is fitted to
    quantile: float = 0.999  # of held-out distances
    margin: float = 1.5  # times that quantile: generated blocks are further from the data than held-out ones


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    ema: float = 0.999
    balanced: float = 0.5  # share of a batch that is drawn equally from all groups of steps
    augmentation: Augmentation = Augmentation()
    frames: int = 4  # of history
    width: int = 64  # channels of the heads
    ood: OutOfDistribution = OutOfDistribution()
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Steps to train on: latents [B, C, n + K, h, w], action [B, A], reward [B], terminated [B] float32, weight [B]."""

    latents: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    weight: Tensor


class OutcomeSteps:
    """Steps of a `LatentSet` by number. Frames before an episode's start are copies of its start picture."""

    def __init__(self, data: LatentSet, block: int, frames: int) -> None:
        self.data, self.block = data, block
        self._offsets = torch.arange(-frames, block, device=data.latents.device)

    def gather(self, steps: Tensor, weight: Tensor | None = None, fresh: Tensor | None = None) -> Batch:
        """Steps [B] int64; where `fresh` [B] bool, the history is the picture before the step, standing still."""
        data = self.data
        episode = torch.searchsorted(data.begin, steps, right=True) - 1
        first = data.first[episode][:, None]
        row = first + 1 + (steps - data.begin[episode])[:, None] * self.block + self._offsets
        row = torch.maximum(row, first)
        if fresh is not None:
            row = torch.where(fresh[:, None] & (self._offsets < 0), data.still[steps][:, None], row)
        latents = data.latents[row].transpose(1, 2).float()
        weight = torch.ones_like(data.reward[steps]) if weight is None else weight
        return Batch(latents, data.action[steps], data.reward[steps], data.terminated[steps], weight)


class HeadTraining:
    """One optimisation step at a time. A step draws by its number alone, so a resumed run draws what an unbroken one would."""

    def __init__(self, data: LatentSet, block: int, settings: Settings) -> None:
        self.settings, self.device = settings, data.latents.device
        self.steps = OutcomeSteps(data, block, settings.frames)
        kind, values = reward_classes(data.reward)
        bounds = torch.tensor(values if kind == "classes" else (-1.0, 0.0, 1.0), device=self.device)
        rewards = data.reward if kind == "classes" else data.reward.sign()
        group = torch.searchsorted(bounds, rewards.contiguous()) * 2 + data.terminated.long()
        _, self._group, self._count = group.unique(return_inverse=True, return_counts=True)
        self._order = self._group.argsort(stable=True)
        self._begin = self._count.cumsum(0) - self._count

    def stream(self, number: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + number + 1)

    def draw(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Numbers of `count` steps [count], and their importance weights [count]."""
        share, groups, total = self.settings.balanced, len(self._count), len(self._order)
        uniform, group_at, place, choice = torch.rand(4, count, generator=stream, device=self.device)
        group = (group_at * groups).long()
        member = (place * self._count[group]).long()
        balanced = self._order[self._begin[group] + member.minimum(self._count[group] - 1)]
        steps = torch.where(choice < share, balanced, (uniform * total).long().clamp(max=total - 1))
        drawn = (1 - share) / total + share / groups / self._count[self._group[steps]]
        return steps, 1 / total / drawn

    def batch(self, count: int, stream: torch.Generator) -> Batch:
        """Steps with the noise that a generator's own latents are imitated by."""
        steps, weight = self.draw(count, stream)
        fresh = torch.rand(count, generator=stream, device=self.device) < self.settings.augmentation.fresh
        found = self.steps.gather(steps, weight, fresh)
        latents = noised(found.latents, self.settings.augmentation, stream)
        return Batch(latents, found.action, found.reward, found.terminated, weight)

    def losses(self, heads: OutcomeHeads, number: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy of rewards and of termination in step `number`."""
        batch = self.batch(self.settings.batch, self.stream(number))
        reward, termination = heads(batch.latents, batch.action)
        each = F.cross_entropy(reward, heads.target(batch.reward), reduction="none")
        ends = F.binary_cross_entropy_with_logits(termination, batch.terminated, reduction="none")
        return (batch.weight * each).mean(), (batch.weight * ends).mean()

    def step(self, stage: Stage, name: str = "heads") -> Callable[[int, float], dict[str, Tensor]]:
        """What `Stage.run` calls: one gradient step of the model `name`."""

        def step(number: int, done: float) -> dict[str, Tensor]:
            reward, termination = self.losses(stage.models[name], number)  # type: ignore[arg-type]
            stage.update(name, reward + termination)
            return {"reward": reward, "termination": termination}

        return step


def build_heads(config: ModelConfig, data: LatentSet, settings: Settings) -> OutcomeHeads:
    """Fresh heads for the rewards of a recording. Raises ValueError for rewards that are not finite."""
    kind, values = reward_classes(data.reward)
    sizes = HeadsConfig(
        kind,
        values,
        config.dit.latent_channels,
        config.block_latents,
        config.action_width,
        frames=settings.frames,
        width=settings.width,
    )
    return OutcomeHeads(sizes).to(data.latents.device)


def noised(latents: Tensor, settings: Augmentation, stream: torch.Generator) -> Tensor:
    """Latents [B, C, F, h, w] of which a share gets noise: white or smooth over 3 x 3 places, as a generator's errors are."""
    strength, choice, smooth = torch.rand(3, len(latents), generator=stream, device=latents.device)
    deviation = settings.noise * strength * (choice < settings.noised)
    white = torch.randn(latents.shape, generator=stream, device=latents.device)
    wide = 3 * F.avg_pool3d(white, (1, 3, 3), stride=1, padding=(0, 1, 1))
    return latents + deviation[:, None, None, None, None] * torch.where(
        (smooth < 0.5)[:, None, None, None, None], wide, white
    )


@torch.no_grad()
def fit_familiarity(heads: OutcomeHeads, training: HeadTraining) -> None:
    """Fits what is familiar to training blocks, drawn uniformly, with the noise of training."""
    settings, stream, total = training.settings, training.stream(-1), len(training._order)
    parts = []
    for _ in range(-(-min(settings.ood.fit_blocks, 4 * total) // CHUNK)):
        found = training.steps.gather(torch.randint(total, (CHUNK,), generator=stream, device=training.device))
        parts.append(heads.pooled(noised(found.latents, settings.augmentation, stream), found.action))
    heads.familiarity.fit(torch.cat(parts))


@torch.no_grad()
def read_all(heads: OutcomeHeads, data: LatentSet) -> tuple[Tensor, Tensor, Tensor]:
    """Reward logits [S, R], termination logits [S] and distances [S] of all steps of a recording."""
    steps = OutcomeSteps(data, heads.config.block, heads.config.frames)
    parts = []
    for some in torch.arange(data.steps, device=data.latents.device).split(CHUNK):
        batch = steps.gather(some)
        features = heads.pooled(batch.latents, batch.action)
        parts.append((*heads.logits(features, batch.action), heads.familiarity(features)))
    reward, termination, distance = (torch.cat(part) for part in zip(*parts))
    return reward, termination, distance


def calibrate(heads: OutcomeHeads, held_out: LatentSet, settings: Settings = Settings()) -> OutcomeHeads:
    """The heads with temperatures, a termination threshold and a distance threshold for held-out episodes. In place.

    Temperatures minimise the negative log-likelihood. The termination threshold maximises F1; without a termination in `held_out`
    both it and its temperature say nothing, and are .5 and 1. Fit the familiarity first.
    """
    reward, termination, distance = read_all(heads, held_out)
    target, ended = heads.target(held_out.reward), held_out.terminated > 0

    def reward_loss(t: float) -> Tensor:
        return F.cross_entropy(reward / t, target)

    def end_loss(t: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(termination / t, held_out.terminated)

    temperature, threshold = 1.0, 0.5
    if bool(ended.any()):
        temperature = best_temperature(end_loss)
        threshold = best_threshold((termination / temperature).sigmoid().cpu().numpy(), ended.cpu().numpy())
    limit = settings.ood.margin * float(torch.quantile(distance, settings.ood.quantile))
    return calibrated(heads, Calibration(best_temperature(reward_loss), temperature, threshold, limit))


def best_temperature(loss: Callable[[float], Tensor]) -> float:
    """Of 121 temperatures from .1 to 10, in equal ratios, the one with the least `loss`; 1 where all are equal."""
    temperatures = np.geomspace(0.1, 10, 121)
    values = np.array([float(loss(t)) for t in temperatures])
    return 1.0 if np.ptp(values) == 0 else float(temperatures[values.argmin()])


def best_threshold(probability: np.ndarray, label: np.ndarray) -> float:
    """Probability from which to say yes, [N] and [N] bool: of the highest F1, in the middle between it and the next lower one."""
    order = np.argsort(-probability, kind="stable")
    ranked, hits = probability[order].astype(float), label[order].cumsum()
    lower = np.append(ranked[1:], 0.0)
    score = np.where(ranked > lower, 2 * hits / (np.arange(1, len(hits) + 1) + label.sum()), -1)
    best = int(score.argmax())
    return float((ranked[best] + lower[best]) / 2)


def evaluate(heads: OutcomeHeads, held_out: LatentSet) -> dict[str, float]:
    """Figures of calibrated heads on held-out episodes; NaN where there is nothing to measure.

    steps, positive_rewards, negative_rewards, terminations: counts. reward_ap_*, reward_recall_*: average precision of a reward
    above or below 0, and the largest recall at a precision of .8 or more. reward_error: mean absolute error, in symlog space.
    reward_calibration, termination_calibration: expected calibration errors, of the sign of the reward and of termination.
    termination_ap; termination_recall: at the threshold; false_terminations: share of other steps that are said to be last.
    """
    reward, termination, _ = read_all(heads, held_out)
    probability, ends = heads.probabilities((reward, termination))
    said, _ = heads.read(probability)
    values, true = heads.values, held_out.reward
    signs = {"positive": (values > 0, true > 0), "negative": (values < 0, true < 0)}
    ended = held_out.terminated.cpu().numpy() > 0
    called = (ends >= heads.config.calibration.termination_threshold).cpu().numpy()
    error = (symlog(said) - symlog(true)).abs().mean()
    found = {"steps": float(held_out.steps), "terminations": float(ended.sum()), "reward_error": float(error)}
    parts, labels = [], []
    for sign, (classes, is_so) in signs.items():
        score, label = probability[:, classes].sum(dim=1).cpu().numpy(), is_so.cpu().numpy()
        found[f"{sign}_rewards"] = float(label.sum())
        found[f"reward_ap_{sign}"] = average_precision(score, label)
        found[f"reward_recall_{sign}"] = recall_at(score, label, PRECISION)
        parts.append(score.clip(0, 1))
        labels.append(label)
    chance = ends.cpu().numpy()
    found["reward_calibration"] = calibration_error(np.concatenate(parts), np.concatenate(labels))
    found["termination_ap"] = average_precision(chance, ended)
    found["termination_calibration"] = calibration_error(chance, ended)
    found["termination_recall"] = float(called[ended].mean()) if ended.any() else np.nan
    found["false_terminations"] = float(called[~ended].mean()) if not ended.all() else np.nan
    return found


def recall_at(score: np.ndarray, label: np.ndarray, precision: float) -> float:
    """Largest recall of scores [N] for labels [N] bool at this precision or a higher one; 0 if none reaches it.

    NaN without a true label.
    """
    if not label.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    hits = label[order].cumsum()
    last = np.append(np.diff(score[order]) != 0, True)  # of each run of equal scores
    reached = last & (hits / np.arange(1, len(hits) + 1) >= precision)
    return float(hits[reached].max() / hits[-1]) if reached.any() else 0.0
