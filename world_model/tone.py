"""Light that changes: a gain for each picture of a block, and an offset for each of its places.

The generalised dynamic image model (Negahdaripour 1998, eq. 4). What moves nothing, nightfall or fog, is said here. The text and
the colours of the world's first picture reach it directly: the one says what light is asked for, the other what light there was.

Shapes: B worlds, D text width, p frames of a token, h x w latent size, H x W pixels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

COLOURS = 2 * 2 * 3  # mean and deviation of red, green and blue in two pictures
GAINS, OFFSETS = (-0.95, 3.0), (-2.0, 2.0)  # least and most that is added to 1 and to 0, of pictures in -1..1


class Tone(nn.Module):
    """What is added to a gain of 1 and to an offset of 0, by features of places and by what is known of the whole picture. A fresh
    one adds nothing."""

    def __init__(self, width: int, text_dim: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.features = nn.Conv2d(width, width, 1)
        self.known = nn.Linear(COLOURS + text_dim, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, frames * 2 * 3, 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Nothing is added."""
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, moved: Tensor, start: Tensor, text: Tensor) -> Tensor:
        """features [B * F, width, h, w] of F tokens in time; what is toned, pictures put together, and the world's first picture,
        [B, 3, ., W] each; mean text token [B, D]
        -> [B, F * p, 6, h, w]: gains of red, green and blue, the same in all of a picture, then offsets."""
        with torch.autocast(features.device.type, enabled=False):
            colours = [at(picture.flatten(2), dim=2) for picture in (moved, start) for at in (torch.mean, torch.std)]
            known = self.known(torch.cat([*colours, text], dim=1).to(self.known.weight.dtype))
            known = known.repeat_interleave(len(features) // len(known), dim=0)[:, :, None, None]
            hidden = torch.relu(self.features(features.to(known.dtype)) + known)
            made = self.leave(torch.relu(self.mix(hidden))).float()
        made = rearrange(made, "(B F) (p d) h w -> B (F p) d h w", B=len(text), p=self.frames)
        gain, offset = made.chunk(2, dim=2)
        gain = bounded(gain.mean(dim=(-2, -1), keepdim=True), *GAINS)
        return torch.cat([gain.expand_as(offset), bounded(offset, *OFFSETS)], dim=2)


def bounded(value: Tensor, least: float, most: float) -> Tensor:
    """`value` within bounds; its gradient passes, so that what is out of bounds learns to come back (a straight-through estimator).

    A gain below 0, or offsets that make up for far too large a gain, fit as well as right ones, and grow without end.
    """
    return value + (value.clamp(least, most) - value).detach()
