"""Distribution matching by a discriminator: the adversarial objective of Self-Forcing (arXiv 2506.08009, section 3.3).

The discriminator tells short clips of rollouts from recorded ones: the start picture of a world, its newest one and its next block.
Without the start picture and the caption a rollout's night turns into day, block by block. The loss is relativistic: a recorded and
a generated clip of the same walk are compared (R3GAN, arXiv 2501.05441, eq. 2). Gradient penalties on both are approximated by what
a little noise changes (APT, arXiv 2501.08316, eq. 4).

Where nothing may be added to moved frames in view (`OutputConfig.kept_size` 1), what is not in view counts: elsewhere a rollout and
a recording differ by what moving frames has blurred, and the student could do nothing about it.

Only what sees the noise learns. Displacements, gains and offsets stay as recordings taught them: a discriminator bends
displacements into waves, and drives offsets to one colour.

Shapes: B worlds, T pictures of a clip, H x W pixels, A numbers that say what was asked for: action, text,
and the caption of the episode.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.engine.optimization import TwoTimescale
from train.generator import distill
from train.generator.windows import Windows
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.vae import VideoVAE

NOISE = 0.05  # deviation of the noise of the gradient penalties; pictures are -1..1
SEEN = 0.02  # weight of places in view, where nothing may be added to these
PENALISED = 4  # one clip in so many is used for the gradient penalties
SCALES = 3  # at most, at which a discriminator judges


@dataclass(frozen=True)
class Settings(distill.Settings):
    """Numbers of this stage."""

    updates: TwoTimescale = TwoTimescale(generator_lr=1e-4, generator_every=1)
    episode_length: int = 24
    truth: float = 4.0  # at every age: without it contrast grows from block to block
    cooldown: float = 0.3
    text_start: float = 0.3
    ema: float = 0.995
    penalty: float = 100.0  # weight of the gradient penalties
    width: int = 48  # channels of the discriminator's first layer
    fresh: bool = True  # whether the student begins with the moved frames alone, or with what earlier updates taught it

    def trainer(self, config: ModelConfig, windows: Windows, teacher: DiT, vae: VideoVAE) -> AdversarialDistillation:
        return AdversarialDistillation(config, windows, teacher, self, vae)


class Discriminator(nn.Module):
    """Convolutions over a clip, its pictures stacked as channels. It judges every place of 8 x 8 pixels, of 16 x 16 and of 32 x 32,
    given what was asked for (projection discriminator, arXiv 1802.05637). It knows where on the screen a place is."""

    def __init__(self, pictures: int, asked: int, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        sizes = 3 * pictures, width, 2 * width, 4 * width
        rows, columns = size[0] // 8, size[1] // 8
        scales = min(SCALES, min(rows, columns).bit_length())
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(sizes))
        self.screen = nn.Parameter(torch.zeros(1, 4 * width, rows, columns))
        self.shrink = nn.ModuleList(nn.Conv2d(4 * width, 4 * width, 4, 2, 1) for _ in range(scales - 1))
        self.mix = nn.ModuleList(nn.Conv2d(4 * width, 4 * width, 3, padding=1) for _ in range(scales))
        self.judge = nn.ModuleList(nn.Conv2d(4 * width, 1, 1) for _ in range(scales))
        self.asked = nn.Linear(asked, 4 * width * scales)

    def forward(self, clip: Tensor, asked: Tensor) -> list[Tensor]:
        """clip [B, 3, T, H, W] in -1..1, asked [B, A] -> judgements [B, places] at each scale, higher for recorded clips."""
        x = clip.flatten(1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        x = x + self.screen
        questions = self.asked(asked)[:, :, None, None].chunk(len(self.judge), dim=1)
        judged = []
        for scale, (mix, judge, question) in enumerate(zip(self.mix, self.judge, questions, strict=True)):
            if scale:
                x = F.leaky_relu(self.shrink[scale - 1](x), 0.2)
            hidden = F.leaky_relu(mix(x), 0.2)
            judged.append((judge(hidden) + (hidden * question).mean(dim=1, keepdim=True)).flatten(1).float())
        return judged


@dataclass(frozen=True)
class ClipRollout(distill.Rollout):
    """A rollout's block and the recorded one as the discriminator sees them."""

    recorded: Tensor  # [B, 3, T, H, W]
    generated: Tensor  # the same
    asked: Tensor  # [B, A]
    counts: Tensor  # [B, 1, K, h, w] in 0..1, how much each latent place counts

    @property
    def weights(self) -> list[Tensor]:
        """Of judgements at each scale, [B, places]."""
        weight, (height, width) = self.counts.mean(dim=2), self.generated.shape[-2:]
        sizes = ((max(height >> scale, 1), max(width >> scale, 1)) for scale in range(3, 3 + SCALES))
        return [F.adaptive_avg_pool2d(weight, size).flatten(1) for size in sizes]


class AdversarialDistillation(distill.Distillation):
    """`Distillation` with a discriminator as its critic."""

    settings: Settings

    def __init__(self, config: ModelConfig, windows: Windows, teacher: DiT, settings: Settings, vae: VideoVAE) -> None:
        if config.vae.temporal_stride != 1:
            raise ValueError(
                f"{config.name}: the discriminator sees a block's pictures after those before it; it needs an autoencoder "
                f"with a temporal stride of 1, got {config.vae.temporal_stride}"
            )
        super().__init__(config, windows, teacher, settings)
        self.vae = vae

    def student(self) -> DiT:
        """The moved frames, and nothing else: these are sharp, the mean of what may follow is not. Or an earlier student."""
        student = super().student().requires_grad_(False)
        for part in student.seeing_noise().values():
            part.requires_grad_(True)
        # all layers' sums of the past are one tensor: a gradient of one would run through all
        for layer in student.layers:
            if layer.channel is not None:
                layer.channel.requires_grad_(False)
        last = student.denoiser or student
        if self.settings.fresh and last.head is not None and last.detail is not None:
            with torch.no_grad():
                for parameter in (*last.head.head.parameters(), *last.detail.leave.parameters()):
                    parameter.zero_()
        return student

    def critic(self) -> nn.Module:
        asked = self.windows.data.action.shape[1] + 2 * self.config.text.dim
        size = self.config.height, self.config.width
        return Discriminator(2 + self.config.block_latents, asked, self.settings.width, size)

    def rollout(self, student: DiT, number: int) -> ClipRollout:
        made = super().rollout(student, number)
        window = made.window
        text = window.context[:, : self.config.text.event_tokens].mean(dim=1)
        caption = self.windows.data.event_texts.of_episodes(made.spans.episode).mean(dim=1)
        asked = torch.cat([window.action, text, caption], dim=1)
        seen = window.history.has_past[:, None, None, None, None]
        newest = window.history.latents[:, :, -1:] * seen
        clip = self.windows.clip(made.spans, 1)
        clip[:, :, :1] *= seen
        start, _ = self.vae.decode(window.history.latents[:, :, :1] * seen)
        recorded, _ = self.vae.decode(clip)
        with torch.set_grad_enabled(self.learns(number)):
            generated, _ = self.vae.decode(torch.cat([newest, made.latents], dim=2))
        recorded, generated = (torch.cat([start, pictures], dim=2) for pictures in (recorded, generated))
        counts = torch.ones_like(made.latents[:, :1])
        if self.config.dit.output.kept_size == 1 and made.visible is not None:
            counts = SEEN + (1 - SEEN) * (1 - made.visible.float())
        return ClipRollout(window, made.spans, made.latents, made.visible, recorded, generated, asked, counts)

    def critic_loss(self, critic: nn.Module, made: distill.Rollout, number: int) -> Tensor:
        assert isinstance(made, ClipRollout)
        both = torch.cat([made.recorded, made.generated.detach()])
        asked = torch.cat([made.asked, made.asked])
        some = both[::PENALISED]
        noise = NOISE * torch.randn(some.shape, generator=self.stream(number, 1), device=both.device)
        judged, shaken = critic(both, asked), critic(some + noise, asked[::PENALISED])
        real, fake = zip(*(at.chunk(2) for at in judged), strict=True)
        change = [(at[::PENALISED] - other).square().mean() for at, other in zip(judged, shaken, strict=True)]
        return preferred(real, fake, made.weights) + self.settings.penalty * torch.stack(change).mean()

    def generator_loss(self, critic: nn.Module, made: distill.Rollout, number: int) -> Tensor:
        """The discriminator's, and with `truth` above 0 the squared distance of what counts in pictures to the recorded ones."""
        assert isinstance(made, ClipRollout)
        loss = self.matching_loss(critic, made, number)
        if self.settings.truth:
            apart = (made.generated - made.recorded)[:, :, 2:].square().mean(dim=1)
            rows, columns = made.counts.shape[-2:]
            places = F.adaptive_avg_pool2d(apart, (rows, columns))[:, None]
            loss = loss + self.settings.truth * (places * made.counts).sum() / made.counts.sum()
        return loss

    def matching_loss(self, critic: nn.Module, made: distill.Rollout, number: int) -> Tensor:
        """A generated clip should look more recorded than the recorded one."""
        assert isinstance(made, ClipRollout)
        with torch.no_grad():
            real = critic(made.recorded, made.asked)
        return preferred(critic(made.generated, made.asked), real, made.weights)


def preferred(higher: Sequence[Tensor], lower: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Mean over scales of how far judgements `higher` are from lying above `lower`; log 2 where they are equal. `weights` may be of
    more scales than judgements."""
    lacking = [F.softplus(b - a) * weight / weight.mean() for a, b, weight in zip(higher, lower, weights)]
    return torch.stack([lack.mean() for lack in lacking]).mean()
