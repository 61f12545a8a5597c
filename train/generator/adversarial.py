"""Distribution matching by a discriminator: the adversarial objective of Self-Forcing (arXiv 2506.08009, section 3.3).

The discriminator tells short clips of rollouts from recorded ones: the newest picture of a world and its next block. The loss is
relativistic, a recorded and a generated clip of the same walk are compared (R3GAN, arXiv 2501.05441, eq. 2). Gradient penalties on
both are approximated by what a little noise changes (APT, arXiv 2501.08316, eq. 4).

Only the layers that see the noise learn. Displacements stay as recordings taught them: a discriminator bends them into waves.

Shapes: B worlds, T pictures of a clip, H x W pixels, A numbers of an encoded action.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.generator import distill
from train.generator.windows import Window, Windows
from world_model.conditions import Conditions
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.vae import CausalTime, VideoVAE

NOISE = 0.05  # deviation of the noise of the gradient penalties; pictures are -1..1
CONTEXT = CausalTime.reach + 1  # latent frames before a block that its clip is decoded with; the last one is shown


@dataclass(frozen=True)
class Settings(distill.Settings):
    """Numbers of this stage."""

    generator_lr: float = 1e-4
    critic_lr: float = 2e-4
    critic_steps: int = 1
    episode_length: int = 8
    truth: float = 0.3
    penalty: float = 100.0  # weight of the gradient penalties
    width: int = 48  # channels of the discriminator's first layer

    def trainer(self, config: ModelConfig, windows: Windows, teacher: DiT, vae: VideoVAE) -> AdversarialDistillation:
        return AdversarialDistillation(config, windows, teacher, self, vae)


class Discriminator(nn.Module):
    """Convolutions over a clip, its pictures stacked as channels. It judges every place of 8 x 8 pixels and of 16 x 16, given the
    action (projection discriminator, arXiv 1802.05637)."""

    def __init__(self, pictures: int, action: int, width: int) -> None:
        super().__init__()
        sizes = 3 * pictures, width, 2 * width, 4 * width
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(sizes))
        self.shrink = nn.Conv2d(4 * width, 4 * width, 4, 2, 1)
        self.mix = nn.ModuleList(nn.Conv2d(4 * width, 4 * width, 3, padding=1) for _ in range(2))
        self.judge = nn.ModuleList(nn.Conv2d(4 * width, 1, 1) for _ in range(2))
        self.action = nn.Linear(action, 8 * width)

    def forward(self, clip: Tensor, action: Tensor) -> Tensor:
        """clip [B, 3, T, H, W] in -1..1, action [B, A] -> judgements [B, places], higher for recorded clips."""
        x = clip.flatten(1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        asked = self.action(action)[:, :, None, None].chunk(2, dim=1)
        judged = []
        for features, mix, judge, question in zip(
            (x, F.leaky_relu(self.shrink(x), 0.2)), self.mix, self.judge, asked, strict=True
        ):
            hidden = F.leaky_relu(mix(features), 0.2)
            judged.append((judge(hidden) + (hidden * question).mean(dim=1, keepdim=True)).flatten(1))
        return torch.cat(judged, dim=1)


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
        """The moved frames and nothing else: they are sharp, and the mean of what may follow is not."""
        student = super().student()
        if student.flow is not None and student.detail is not None:
            with torch.no_grad():
                for parameter in (*student.head.head.parameters(), *student.detail.leave.parameters()):
                    parameter.zero_()
        return student

    def read(self, student: DiT, window: Window) -> Conditions:
        with torch.no_grad():
            return super().read(student, window)

    def critic(self) -> nn.Module:
        return Discriminator(1 + self.config.block_latents, self.windows.data.action.shape[1], self.settings.width)

    def critic_loss(self, critic: nn.Module, made: distill.Rollout, number: int) -> Tensor:
        with torch.no_grad():
            recorded, generated = self.recorded(made), self.generated(made)
        action = made.window.action
        both, twice = torch.cat([recorded, generated]), torch.cat([action, action])
        noise = NOISE * torch.randn(both.shape, generator=self.stream(number, 1), device=both.device)
        judged, shaken = critic(torch.cat([both, both + noise]), torch.cat([twice, twice])).float().chunk(2)
        real, fake = judged.chunk(2)
        return F.softplus(fake - real).mean() + self.settings.penalty * (judged - shaken).square().mean()

    def matching_loss(self, critic: nn.Module, made: distill.Rollout, number: int) -> Tensor:
        """A generated clip should look more recorded than the recorded one."""
        action = made.window.action
        with torch.no_grad():
            real = critic(self.recorded(made), action).float()
        return F.softplus(real - critic(self.generated(made), action).float()).mean()

    def recorded(self, made: distill.Rollout) -> Tensor:
        """Clips [B, 3, T, H, W] of the recording."""
        return self._pictures(self.windows.clip(made.spans, CONTEXT))

    def generated(self, made: distill.Rollout) -> Tensor:
        """Clips [B, 3, T, H, W] of the rollout."""
        return self._pictures(torch.cat([made.window.history.latents[:, :, -CONTEXT:], made.latents], dim=2))

    def _pictures(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)[0][:, :, CONTEXT - 1 :]
