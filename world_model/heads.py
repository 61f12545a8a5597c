"""Reward and termination of a generated block, read from the generator's own latents.

A folder of weights may hold `heads.safetensors` (float32) and `heads.json` (a `HeadsConfig`); `WorldModel.step` then says with each
block what it is worth and whether the episode ends with it.

Shapes: B worlds, C latent channels, n frames of history, K latent frames of a block, h x w latent size, A numbers of an encoded
action, R reward classes or bins, D pooled features.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.serialization import from_plain
from world_model.uncertainty import Familiarity
from world_model.vae import ResBlock
from world_model.weights import check_file, is_listed, list_files, load_tensors

TENSORS, CONFIG = "heads.safetensors", "heads.json"
BINS = 255  # of a two-hot reward
MOST_CLASSES = 8  # different rewards that are classes of their own


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} of the heads must be above 0, got {value}")


@dataclass(frozen=True)
class Calibration:
    """What was fitted to held-out episodes after training. Raises ValueError for values out of range."""

    reward_temperature: float = 1.0  # logits are divided by it
    termination_temperature: float = 1.0
    termination_threshold: float = 0.5  # probability from which an episode ends
    # distance above which a block is out of distribution; None: not measured, none is
    ood_threshold: float | None = None
    ood_patience: int = 3  # blocks in a row that have to be out of distribution to truncate an episode

    def __post_init__(self) -> None:
        for name in ("ood_patience", "reward_temperature", "termination_temperature"):
            _check_positive(name, getattr(self, name))
        if not 0 <= self.termination_threshold <= 1:
            raise ValueError(f"a termination threshold is a probability, got {self.termination_threshold}")


@dataclass(frozen=True)
class HeadsConfig:
    """Sizes of the heads, and their calibration. Raises ValueError where the fields contradict each other.

    kind "classes": the reported reward is the most likely of `values`. An expected value would add a little reward to every step,
    which no episode of the recording has.
    kind "two_hot": the reported reward is the mean of `values` in symlog space, brought back by symexp (Hafner et al. 2023,
    DreamerV3); these bins span the recording's own rewards, not -20..20.
    """

    kind: Literal["classes", "two_hot"]
    values: tuple[float, ...]  # all rewards of the recording in order ("classes"), or bins in symlog space ("two_hot")
    channels: int  # C
    block: int  # K
    action_width: int  # A
    frames: int = 4  # n
    embedding: int = 24  # channels of each frame
    width: int = 64  # channels of the convolutions
    hidden: int = 128  # of the MLP
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        if self.kind not in ("classes", "two_hot"):
            raise ValueError(f"unknown kind {self.kind!r} of reward: use 'classes' or 'two_hot'")
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"reward values must be different and in order, at least one, got {self.values[:9]}")
        if self.kind == "two_hot" and len(self.values) < 2:
            raise ValueError(f"a two-hot reward needs two bins or more, got {len(self.values)}")
        for name in ("channels", "block", "action_width", "frames", "embedding", "width", "hidden"):
            _check_positive(name, getattr(self, name))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> HeadsConfig:
        """The inverse of `to_json`. Raises ValueError for unknown, missing or wrong fields."""
        try:
            return from_plain(cls, json.loads(text))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not the configuration of heads ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Outcome:
    """What B blocks are worth, each [B]. Tensors of one device.

    reward float32; reward_confidence float32 0..1: probability of the reported class, or of the bins beside the reported value;
    terminated bool; termination_probability float32 0..1; unfamiliar int64: blocks in a row, this one included, that are out of
    distribution; truncated bool: so many that the world is not to be trusted any more.
    """

    reward: Tensor
    reward_confidence: Tensor
    terminated: Tensor
    termination_probability: Tensor
    unfamiliar: Tensor
    truncated: Tensor

    @classmethod
    def none(cls, worlds: int) -> Outcome:
        """Of worlds that no block was generated in yet: no reward, no end, nothing unfamiliar."""
        zero, no = torch.zeros(worlds), torch.zeros(worlds, dtype=torch.bool)
        return cls(zero, zero, no, zero, no.long(), no)

    @property
    def out_of_distribution(self) -> Tensor:
        """[B] bool: whether this block is."""
        return self.unfamiliar > 0


def symlog(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().expm1()


def reward_classes(rewards: Tensor) -> tuple[Literal["classes", "two_hot"], tuple[float, ...]]:
    """(kind, values) of a `HeadsConfig` for recorded rewards [S]: classes up to `MOST_CLASSES` different ones.

    Raises ValueError for no rewards, or what is not finite.
    """
    if not len(rewards) or not rewards.isfinite().all():
        raise ValueError("rewards of a recording must be finite numbers, at least one: record it again")
    different = rewards.float().unique()
    if len(different) <= MOST_CLASSES:
        return "classes", tuple(different.tolist())
    limit = float(symlog(different.abs().max()))
    half = torch.linspace(0, limit, BINS // 2 + 1, dtype=torch.float64)[1:].tolist()
    return "two_hot", (*(-value for value in reversed(half)), 0.0, *half)


class OutcomeHeads(nn.Module):
    """A small convolutional network over places, pooled by mean and maximum, and an MLP."""

    values: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        width, frames = config.width, config.frames + config.block
        self.embed = nn.Conv2d(config.channels, config.embedding, 1)
        self.join = nn.Conv2d(frames * config.embedding, width, 3, padding=1)
        self.action = nn.Linear(config.action_width, width)
        self.body = nn.Sequential(ResBlock(width), ResBlock(width))
        self.mlp = nn.Sequential(nn.Linear(2 * width + config.action_width, config.hidden), nn.ReLU())
        self.reward = nn.Linear(config.hidden, len(config.values))
        self.termination = nn.Linear(config.hidden, 1)
        self.familiarity = Familiarity(2 * width)
        self.register_buffer("values", torch.tensor(config.values), persistent=False)

    def pooled(self, latents: Tensor, action: Tensor) -> Tensor:
        """Latents [B, C, n + K, h, w] and encoded actions [B, A] -> features [B, D]. Raises ValueError for other shapes."""
        c = self.config
        if latents.shape[1:3] != (c.channels, c.frames + c.block) or action.shape[1:] != (c.action_width,):
            raise ValueError(
                f"heads read latents [B, {c.channels}, {c.frames} + {c.block}, h, w] and actions [B, {c.action_width}], "
                f"got {tuple(latents.shape)} and {tuple(action.shape)}"
            )
        frames = latents.float().transpose(1, 2)
        embedded = self.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).flatten(1, 2)
        hidden = F.relu(self.join(F.relu(embedded)) + self.action(action.float())[:, :, None, None])
        hidden = F.relu(self.body(hidden))
        return torch.cat([hidden.mean(dim=(2, 3)), hidden.amax(dim=(2, 3))], dim=1)

    def logits(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Reward logits [B, R] and termination logits [B] of pooled features, before calibration."""
        hidden = self.mlp(torch.cat([features, action.float()], dim=1))
        return self.reward(hidden), self.termination(hidden)[:, 0]

    def forward(self, latents: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """`logits` of latents [B, C, n + K, h, w] and encoded actions [B, A]."""
        return self.logits(self.pooled(latents, action), action)

    def target(self, reward: Tensor) -> Tensor:
        """Rewards [B] as probabilities [B, R]: of the nearest class, or of the two bins beside them."""
        if self.config.kind == "classes":
            nearest = (reward[:, None] - self.values).abs().argmin(dim=1)
            return F.one_hot(nearest, len(self.values)).float()
        place = symlog(reward).clamp(self.values[0], self.values[-1]).contiguous()
        above = torch.searchsorted(self.values, place).clamp(1, len(self.values) - 1)
        low, high = self.values[above - 1], self.values[above]
        share = ((place - low) / (high - low))[:, None]
        return torch.lerp(
            F.one_hot(above - 1, len(self.values)).float(), F.one_hot(above, len(self.values)).float(), share
        )

    def read(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [B, R] -> the reported reward [B] and its confidence [B]."""
        if self.config.kind == "classes":
            confidence, number = probability.max(dim=1)
            return self.values[number], confidence
        mean = (probability * self.values).sum(dim=1)
        above = torch.searchsorted(self.values, mean.contiguous()).clamp(1, len(self.values) - 1)
        beside = probability.gather(1, torch.stack([above - 1, above], dim=1)).sum(dim=1)
        return symexp(mean), beside.clamp(max=1)

    def probabilities(self, logits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities of the rewards [B, R] and of termination [B]."""
        (reward, termination), c = logits, self.config.calibration
        return (reward / c.reward_temperature).softmax(dim=1), (termination / c.termination_temperature).sigmoid()

    @torch.no_grad()
    def predict(self, latents: Tensor, action: Tensor, before: Outcome | None = None) -> Outcome:
        """What blocks are worth: latents [B, C, n + K, h, w] of the n newest history frames and the block, actions [B, A].

        before: the outcomes of the blocks before these, None after a start.
        """
        c, features = self.config.calibration, self.pooled(latents, action)
        probability, termination = self.probabilities(self.logits(features, action))
        reward, confidence = self.read(probability)
        distance = self.familiarity(features)
        unlike = torch.zeros_like(distance, dtype=torch.bool) if c.ood_threshold is None else distance > c.ood_threshold
        streak = unlike.long() if before is None else (before.unfamiliar.to(unlike.device) + 1) * unlike
        return Outcome(
            reward, confidence, termination >= c.termination_threshold, termination, streak, streak >= c.ood_patience
        )


def newest(history: Tensor, block: Tensor, frames: int) -> Tensor:
    """What heads read: the `frames` newest of a history [B, C, F, h, w], then the block [B, C, K, h, w].

    A history that holds fewer repeats its oldest frame. Raises ValueError for one that holds none.
    """
    if not history.shape[2]:
        raise ValueError(
            "heads compare a block with the frames before it, and this world has none: start from a picture"
        )
    missing = max(0, frames - history.shape[2])
    oldest = history[:, :, :1].expand(-1, -1, missing, -1, -1)
    return torch.cat([oldest, history[:, :, -frames:], block], dim=2)


def save_heads(folder: Path, heads: OutcomeHeads) -> None:
    """Writes the two files into a weights folder, and lists them in its manifest if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()}, folder / TENSORS)
    (folder / CONFIG).write_text(heads.config.to_json() + "\n")
    if (folder / "manifest.json").exists():
        list_files(folder)


def load_heads(folder: Path, config: ModelConfig, device: torch.device | str = "cpu") -> OutcomeHeads | None:
    """The heads of a weights folder; None for one that has none.

    Raises FileNotFoundError where one of the two files is missing, ValueError where one is damaged or does not fit the model.
    """
    if not any(is_listed(folder, name) for name in (TENSORS, CONFIG)):
        return None
    path = check_file(folder, CONFIG)
    try:
        sizes = HeadsConfig.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is of another version: {error}") from error
    wanted = (config.dit.latent_channels, config.block_latents, config.action_width)
    if (sizes.channels, sizes.block, sizes.action_width) != wanted:
        raise ValueError(
            f"{path} is of another model: its channels, frames of a block and numbers of an action are "
            f"{(sizes.channels, sizes.block, sizes.action_width)}, those of {config.name!r} {wanted}"
        )
    with torch.random.fork_rng(devices=[]):  # building draws weights that loading replaces
        heads = OutcomeHeads(sizes)
    try:
        heads.load_state_dict(load_tensors(folder, TENSORS), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / TENSORS} does not fit its {CONFIG}: {error}") from error
    return heads.eval().requires_grad_(False).to(device)


def calibrated(heads: OutcomeHeads, calibration: Calibration) -> OutcomeHeads:
    """The same heads, whose config holds what was fitted. In place."""
    heads.config = replace(heads.config, calibration=calibration)
    return heads
