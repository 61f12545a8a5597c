"""Appearance flow: earlier pictures, moved place by place and blended as the network says (Zhou et al. 2016, arXiv 1605.03557;
Finn et al. 2016, arXiv 1605.07157).

A camera that turns moves every pixel, and a paddle moves a few. The network says from where in each source (sources.py) each place
of the next pictures comes, and how much of it to take. Displacements are learnt from recordings.
Where these say which way the camera looked, displacements are those of a camera that turned (homography.py) and moved
(parallax.py).
Light that changes moves nothing, so a blended picture also gets a gain, and each of its places an offset (tone.py). Offsets learn
from blurred pictures alone, gains from how much these vary: from pixels they learn to fade what is uncertain.
Displacements and shares are learnt from blends; what is used is nearly the likeliest source alone (moving.py).
Latents of `PatchVAE` are linear in pixels, so that pictures are moved between its linear decoder and encoder.

Shapes: B worlds, L tokens, D width, C latent channels, K latent frames of a block, N sources, h x w latent size, H x W pixels,
s = H / h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from world_model.blocks import unpatch
from world_model.config import ModelConfig, Tiers
from world_model.homography import Homography
from world_model.moving import blurred, deviation, each_moved, inside, likeliest, move, pooled, toned
from world_model.parallax import Camera, Odometer, Parallax, travelled, unusual, ways_to
from world_model.sources import SOURCES, Sources
from world_model.tone import Tone
from world_model.vae import PatchVAE, PlaceNorm, ResBlock

CELLS = 4  # displacements along each side of a latent place
SEEN = 2  # places of the convolutions along each side of a latent place
NEWEST = 3.0  # logit by which a fresh network prefers the newest one
SCALES = (1, 2, 4, 8)  # pixels: sizes at which a moved picture is compared
GAIN_WEIGHT = 0.5  # of the difference of logarithms that teaches gains
DISPARITY_WEIGHT = 0.04  # of what tells how far away things usually are (parallax.py)


@dataclass(frozen=True)
class Moves:
    """How a block is made of its sources.

    flow [B, K, N, 3 (x, y, logit), CELLS * h, CELLS * w]: for each source displacements in pixels, from where each place comes
    relative to itself, and logits. tone [B, K, 6, h, w]: what is added to a gain of 1 and to an offset of 0, each of red, green and
    blue; a picture has one gain. moved [B, C, K, h, w]: the blended frames before gain and offset, of sources [B, N, C, h, w], by a
    flow `used` that takes nearly the likeliest alone. In worlds with a camera: whole, the part of `flow` that homographies make,
    and where the camera is, in those that add it up.
    """

    flow: Tensor
    used: Tensor
    tone: Tensor
    moved: Tensor
    sources: Tensor
    whole: Tensor | None = None
    camera: Camera | None = None


class AppearanceFlow(nn.Module):
    """Displacements from tokens, and earlier latent frames moved by them. A fresh one moves nothing."""

    encode: Tensor
    encode_bias: Tensor
    decode: Tensor
    decode_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, stride = config.dit, config.vae.spatial_stride
        if config.vae.kind != "patch" or config.vae.temporal_stride != 1:
            raise ValueError(
                f"{config.name}: appearance flow needs latents that are linear in the pixels of single pictures: autoencoder "
                f"'patch' with a temporal stride of 1"
            )
        tiers, frames = c.history.packing, 1 + (SOURCES - 1) * config.block_latents
        if not isinstance(tiers, Tiers) or tiers.recent_frames < frames:
            raise ValueError(
                f"{config.name}: appearance flow moves the last pictures of {SOURCES} blocks; its history must be tiers with the "
                f"newest {frames} frames, got {tiers}"
            )
        self.stride, self.block = stride, config.block_latents
        self.patch = (1, c.patch[1] * SEEN, c.patch[2] * SEEN)  # places of the convolutions that a token covers
        channels, width = c.dim // 4, c.dim // 3
        rows, columns = config.latent_size
        camera = c.camera
        self.homography = Homography((config.height, config.width), (CELLS * rows, CELLS * columns)) if camera else None
        # tokens of a picture unlike others are large, and convolutions that nothing normalises would make that a million times as
        # much; the street, of which there are weights without this, has no such pictures
        self.norm = nn.Identity() if camera else nn.LayerNorm(c.dim, elementwise_affine=False)
        self.settled = nn.Identity() if camera else PlaceNorm()
        self.features = nn.Linear(c.dim, channels * math.prod(self.patch))
        colours = 3 * (stride // SEEN) ** 2
        shown = c.patch[0] * (colours + SOURCES) if camera else colours
        self.enter = nn.Conv2d(channels + shown, width, 3, padding=1)
        # the other sources, as the end of the block sees them: how they are displaced is seen by comparing them with the newest
        self.others = nn.Conv2d((SOURCES - 1) * colours, width, 3, padding=1, bias=False) if camera else None
        self.blocks = nn.Sequential(*(ResBlock(width, normalised=not camera) for _ in range(c.output.flow_blocks)))
        self.odometer = Odometer(c.dim, config.block_latents) if camera else None
        self.parallax = Parallax(width, c.patch[0], CELLS // SEEN) if camera else None
        # for each source and place: a logit, and a displacement where nothing else says it
        self.said = 1 if camera else 3
        self.displacement = nn.Conv2d(width, c.patch[0] * (CELLS // SEEN) ** 2 * SOURCES * self.said, 1)
        self.tone = Tone(width, c.text_dim, c.patch[0])
        pixels = 3 * stride**2
        self.register_buffer("encode", torch.eye(c.latent_channels, pixels))
        self.register_buffer("encode_bias", torch.zeros(c.latent_channels))
        self.register_buffer("decode", torch.eye(pixels, c.latent_channels))
        self.register_buffer("decode_bias", torch.zeros(pixels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No displacements, nearly all of the newest picture, and its colours."""
        self.tone.reset_parameters()
        rest = () if self.others is None else (self.others.weight,)
        for parameter in (*self.displacement.parameters(), *rest):
            nn.init.zeros_(parameter)
        for part in (self.parallax, self.odometer):
            if part is not None:
                part.reset_parameters()
        self.displacement.get_parameter("bias").unflatten(0, (-1, SOURCES, self.said))[:, 0, -1] = NEWEST

    @torch.no_grad()
    def read_autoencoder(self, vae: PatchVAE) -> None:
        """Takes over the linear encoder, normalisation included, and what inverts it: the pseudo-inverse, about the mean patch.

        A learnt decoder does not quite invert its encoder. Frames are decoded, moved and encoded again in every block, and each
        time details would shrink, by up to a third."""
        weight = (vae.to_latent.weight / vae.scale[:, None]).double()
        bias = ((vae.to_latent.bias - vae.mean) / vae.scale).double()
        patch = (vae.to_pixels.bias + vae.to_pixels.weight @ vae.mean).double()
        inverse = torch.linalg.pinv(weight)
        self.encode.copy_(weight)
        self.encode_bias.copy_(bias)
        self.decode.copy_(inverse)
        self.decode_bias.copy_(patch - inverse @ (weight @ patch + bias))

    def forward(
        self, tokens: Tensor, sources: Sources, text: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Moves]:
        """tokens [B, L, D] of the block, its sources, mean text token [B, text_dim], what says the action [B, D], for an odometer
        -> the blended frames [B, C, K, h, w], and how they were made.

        Latents of the blended frames stay within those of the sources, channel by channel, before gain and offset. Nothing is
        learnt from these frames; `loss` compares what they are made of."""
        flow, whole, camera, features = self.displacements(tokens, sources, action)
        latents, start = sources.latents, self.pictures(sources.start[:, :, None])[:, 0]
        with torch.no_grad():
            same = None
            if sources.same is not None and not bool(sources.same.all()):
                same = sources.same[:, None, :, None, None] & inside(flow, self.stride / CELLS)
            used = likeliest(flow, sources.generations, same) if self.homography is not None else likeliest(flow)
            moved = self.latents(move(self.pictures(latents.transpose(1, 2)), used, 1, "bicubic"))
            # half-moved pixels may need components that pictures of this world hardly have, where latents would be huge
            least, most = (
                bound(latents.float(), (1, 3, 4))[:, :, None, None, None] for bound in (torch.amin, torch.amax)
            )
            moved = moved.clamp(least, most)
            pictures = self.pictures(moved)
        tone = self.tone(F.avg_pool2d(features, SEEN), pictures.transpose(1, 2).flatten(2, 3), start, text)
        with torch.no_grad():
            return self.latents(toned(pictures, tone)), Moves(flow, used, tone, moved, latents, whole, camera)

    def finer(self, added: Tensor, kept: Tensor, size: int) -> Tensor:
        """What is added to moved frames, latents [B, C, K, h, w], without a share `kept` [B, 1, K, h, w] of what is coarser in it
        than `size` pixels."""
        return added - self._share(added, kept, lambda pixels: blurred(pixels, size))

    def coarser(self, added: Tensor, kept: Tensor, size: int) -> Tensor:
        """The same without what is finer."""
        return added - self._share(added, kept, lambda pixels: pixels - blurred(pixels, size))

    def _share(self, added: Tensor, kept: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        """A share `kept` of a part of the pictures that latents make a difference by."""
        pixels = self.pictures(added) - self.pictures(torch.zeros_like(added))
        share = F.interpolate(kept.float().transpose(1, 2).flatten(0, 1), pixels.shape[-2:], mode="bilinear")
        taken = self.latents(share.unflatten(0, pixels.shape[:2]) * part(pixels))
        return (taken - self.encode_bias[:, None, None, None]).to(added.dtype)

    def bounded(self, latents: Tensor) -> Tensor:
        """Latents [B, C, F, h, w] of the nearest pictures in -1..1: a rollout whose colours drift stays finite."""
        return self.latents(self.pictures(latents).clamp(-1, 1)).to(latents.dtype)

    def visible(self, flow: Tensor) -> Tensor:
        """[B, 1, K, h, w] in 0..1: how much of each place comes from within the sources, by the flow `Moves.used`. The rest is
        their mirror image."""
        share = (inside(flow, self.stride / CELLS) * flow[:, :, :, 2].softmax(dim=2)).sum(dim=2)
        return F.avg_pool2d(share, CELLS)[:, None]

    def displacements(
        self, tokens: Tensor, sources: Sources, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Camera | None, Tensor]:
        """Flow, whole and camera (`Moves`) of a block, and the features [B * F, width, rows, columns] that they are read from,
        of F groups of frames. action [B, D] says it to an odometer.

        Convolutions over the newest picture, moved as a whole where a homography does that, put the borders of displacements where
        those of things are; tokens are too coarse for it."""
        _, a, b = self.patch
        newest = sources.latents[:, 0]
        rows, columns = newest.shape[-2] * SEEN // a, newest.shape[-1] * SEEN // b
        groups = tokens.shape[1] // (rows * columns)
        features = unpatch(self.features(self.norm(tokens)), (groups, rows, columns), self.patch)
        pictures = self.pictures(sources.latents.transpose(1, 2))
        picture, whole, camera, others, below = pictures[:, :1], None, None, None, None
        if self.homography is None:
            seen = F.pixel_unshuffle(picture[:, 0], self.stride // SEEN)[:, :, None].expand(-1, -1, groups, -1, -1)
        else:
            with torch.autocast(tokens.device.type, enabled=False):
                displaced, beyond = self.homography(sources.views)
                logit = -self.homography.outside * beyond / self.stride
                whole = torch.cat([displaced, logit[:, :, :, None]], dim=3)
                seen = self.seen(picture, whole.detach(), beyond.detach(), groups)
                others = self.from_end(pictures[:, 1:], whole[:, -1:, 1:].detach())
                below = self.homography.below(sources.views.target[..., 1])
        places = rearrange(torch.cat([features, seen.to(features.dtype)], dim=1), "B C F h w -> (B F) C h w")
        entered = self.enter(places)
        if self.others is not None and others is not None:
            entered = entered + self.others(others.to(entered.dtype)).repeat_interleave(groups, dim=0)
        if self.parallax is not None and below is not None:
            entered = entered + self.parallax.entering(below.detach().to(entered.dtype), groups)
        hidden = torch.relu(self.settled(self.blocks(entered)))
        side = CELLS // SEEN
        with torch.autocast(tokens.device.type, enabled=False):
            weight, bias = self.displacement.weight, self.displacement.get_parameter("bias")
            raw = F.conv2d(hidden.float(), weight.float(), bias.float())
            flow = rearrange(
                raw,
                "(B F) (p a b n d) h w -> B (F p) n d (h a) (w b)",
                F=groups,
                a=side,
                b=side,
                n=SOURCES,
                d=self.said,
            )
            if self.homography is not None and self.parallax is not None and below is not None:
                assert self.odometer is not None and whole is not None and action is not None
                disparity = self.parallax(hidden.float(), below)
                newest = self.odometer(action, sources.views, sources.places)
                camera = Camera(travelled(newest, sources.views), disparity)
                way = ways_to(newest, sources.places, sources.views)
                # what a source does not show teaches no way: to look it up nearer the middle, cameras would be said to go forward
                shown = whole[:, :, :, 2:] >= 0
                step = torch.where(shown, way[..., None, None], way.detach()[..., None, None])
                displaced, beyond = self.homography(sources.views, step * disparity[:, :, None, None])
                logit = flow - self.homography.outside * beyond[:, :, :, None] / self.stride
                flow = torch.cat([displaced, logit], dim=3)
        return flow, whole, camera, hidden

    def seen(self, picture: Tensor, whole: Tensor, beyond: Tensor, groups: int) -> Tensor:
        """The newest picture [B, 1, 3, H, W] moved by homographies as each frame of a block sees it, and which places lie beyond
        the border of each source: [B, channels, F, rows, columns] of F groups of frames, at the places of the convolutions."""
        moved = move(picture, whole[:, :, :1], 1)
        both = torch.cat(
            [
                F.pixel_unshuffle(moved, self.stride // SEEN),
                F.avg_pool2d((beyond > 0).float().flatten(0, 1), CELLS // SEEN).unflatten(0, beyond.shape[:2]),
            ],
            dim=2,
        )
        return rearrange(both, "B (F p) C h w -> B (p C) F h w", F=groups)

    def from_end(self, pictures: Tensor, whole: Tensor) -> Tensor:
        """Pictures [B, n, 3, H, W], each moved by its homography of `whole` [B, 1, n, 3, rows, columns], at the places of the
        convolutions: [B, channels, rows, columns]."""
        moved = each_moved(pictures, whole, 1)[:, 0]
        return F.pixel_unshuffle(moved, self.stride // SEEN).flatten(1, 2)

    def pictures(self, latents: Tensor) -> Tensor:
        """[B, C, F, h, w] -> [B, F, 3, H, W], about -1..1, by the linear decoder."""
        with torch.autocast(latents.device.type, enabled=False):
            pixels = F.linear(latents.float().movedim(1, -1), self.decode, self.decode_bias)
        return rearrange(pixels, "B F h w (c p q) -> B F c (h p) (w q)", p=self.stride, q=self.stride)

    def latents(self, pictures: Tensor) -> Tensor:
        """The inverse of `pictures`."""
        patches = rearrange(pictures, "B F c (h p) (w q) -> B F h w (c p q)", p=self.stride, q=self.stride)
        with torch.autocast(pictures.device.type, enabled=False):
            return F.linear(patches, self.encode, self.encode_bias).movedim(-1, 1)

    def loss(self, moves: Moves, data: Tensor) -> Tensor:
        """Mean absolute difference between the blended frames and the true block `data` [B, C, K, h, w], at several sizes of
        pixels: large displacements are learnt from coarse pictures. Offsets learn at the coarsest alone, where places that are a
        little displaced look alike. Gains learn there how much a picture varies, not where, and whatever the offsets are:
        else offsets that draw a dark picture make its gain fall, which leaves more to the offsets, without end."""
        before, target = self.pictures(moves.sources.transpose(1, 2)), self.pictures(data)
        tone, total = moves.tone.detach(), target.new_zeros(())
        for scale in SCALES:
            small, wanted = (pooled(x, scale) for x in (before, target))
            total = total + (toned(move(small, moves.flow, scale), tone) - wanted).abs().mean()
        small, wanted = (pooled(x, SCALES[-1]) for x in (self.pictures(moves.moved.detach()), target))
        gain, offset = moves.tone.chunk(2, dim=2)
        total = total + (toned(small, torch.cat([gain.detach(), offset], dim=2)) - wanted).abs().mean()
        made, true = (deviation(x) for x in (toned(small, torch.cat([gain, torch.zeros_like(offset)], dim=2)), wanted))
        total = total + GAIN_WEIGHT * (made.log() - true.log()).abs().mean()
        if moves.camera is not None:
            total = total + DISPARITY_WEIGHT * unusual(moves.camera.disparity)
        if moves.whole is not None:
            inside = (moves.whole[:, :, :, 2:] >= 0).float()
            for flow in (moves.whole, moves.flow):
                total = total + self._each_loss(flow, inside, before, target)
        return total / len(SCALES)

    def _each_loss(self, flow: Tensor, inside: Tensor, before: Tensor, target: Tensor) -> Tensor:
        """Mean absolute difference, `inside` its borders, between each source moved alone and the true block, with one pixel for
        each displacement. Blends alone teach the displacements of what is taken; older sources hardly are, in recordings."""
        scale = self.stride // CELLS
        small, wanted = (pooled(x, scale) for x in (before, target))
        difference = each_moved(small, flow, scale) - wanted[:, :, None]
        return (difference.abs() * inside).sum() / (3 * inside.sum()).clamp(min=1)
