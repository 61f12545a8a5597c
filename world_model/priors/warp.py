"""The guide: the last picture, moved as the keys command, before the network repairs it and invents what it does not show.

The picture's distances come from depth.py. Distances are moved into each new view (nearest wins), then colours are looked up, so
that they stay sharp and what comes from behind something is known to be unknown. It is a prior on control, so that the same
model without it is the ablation. Shapes: B worlds, T new views, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.camera import CameraConfig
from world_model.conditions import Motion
from world_model.priors.album import Recalled
from world_model.priors.depth import FARTHEST, DepthNet
from world_model.priors.geometry import camera_rays, camera_to_world
from world_model.vae import DecoderCache, VideoVAE

BEHIND = 0.05  # metres in front of the camera: nearer things are not seen
AGREEMENT = 0.15  # by which a distance may differ from that of the pixel it is looked up at
UNLIKE = 0.5  # deviation of latents from the guide's beyond which its detail no longer fits
# Doubt of a picture: error variance of what it shows over that of places.py. The two estimates weigh 1 / (1 + doubt) and the rest,
# leave as much doubt as the second one's weight (a Kalman filter), and each block adds WEAR (variance 0.25**2 over 0.57**2).
WEAR = 0.19
USELESS = 2.0  # doubt of what is not to be looked up at all; from 1 on, where no estimate's own doubt gets, the weight falls to 0
REMEMBERED = 0.5  # validity of what only the album shows
OUTDATED = 0.25  # validity of a picture from before the text in force changed


def warp(
    picture: Tensor,
    inverse: Tensor,
    yaw: Tensor,
    pitch: Tensor,
    yaws: Tensor,
    pitches: Tensor,
    displacement: Tensor,
    camera: CameraConfig,
) -> tuple[Tensor, Tensor]:
    """Pictures seen from elsewhere.

    picture [B, 3, H, W] and inverse distances [B, H, W] (1 / metres, along rays) seen at yaw, pitch [B]; the new views at
    yaws, pitches [B, T] (radians) after walking displacement [B, T, 2] (world x, z; metres). Returns video [B, 3, T, H, W]
    (something plausible where nothing was seen) and validity [B, 1, T, H, W]: 1 where the old picture shows that place.
    """
    height, width = picture.shape[-2:]
    views = yaws.shape[1]
    rays = camera_rays(height, width, camera, picture.device)
    old = camera_to_world(yaw.float(), pitch.float())
    new = camera_to_world(yaws.float(), pitches.float())
    walked = F.pad(displacement.float().flip(-1), (1, 0))[..., [2, 0, 1]]  # (x, 0, z)
    points = torch.einsum("bij,hwj->bhwi", old, rays) / inverse[..., None]
    moved = torch.einsum("btji,bthwj->bthwi", new, points[:, None] - walked[:, :, None, None])
    distance = _nearest(moved, camera.focal(width)).unflatten(0, (-1, views))
    found = distance < torch.inf
    distance = torch.where(found, distance, torch.full_like(distance, FARTHEST))
    target = torch.einsum("btij,hwj->bthwi", new, rays) * distance[..., None] + walked[:, :, None, None]
    source = torch.einsum("bji,bthwj->bthwi", old, target)
    grid, ahead = _project(source, camera.focal(width))
    scale = grid.new_tensor([2 / width, 2 / height])
    flat = (grid * scale - 1).flatten(1, 2)
    video = F.grid_sample(picture, flat, mode="bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)
    there = F.grid_sample(inverse[:, None], flat, mode="nearest", padding_mode="border", align_corners=False)
    there = there[:, 0].unflatten(1, (views, height))
    agrees = (there * source.norm(dim=-1) - 1).abs() < AGREEMENT
    inside = ((grid >= 0) & (grid <= grid.new_tensor([width, height]))).all(dim=-1)
    return video.unflatten(2, (views, height)), (found & ahead & inside & agrees).float()[:, None]


def _project(points: Tensor, focal: float) -> tuple[Tensor, Tensor]:
    """Camera-axes points [..., H, W, 3] -> places in the picture in pixels from its corner [..., H, W, 2], and whether ahead."""
    height, width = points.shape[-3:-1]
    ahead = points[..., 2] > BEHIND
    depth = points[..., 2].clamp(min=BEHIND)
    place = torch.stack([points[..., 0] / depth, points[..., 1] / depth], dim=-1) * focal
    return place + place.new_tensor([width / 2, height / 2]), ahead


def _nearest(points: Tensor, focal: float) -> Tensor:
    """Distance of the nearest of the points [B, T, H, W, 3] that fall on or beside each pixel, [B * T, H, W]; inf: none.

    A point covers the four pixels around it, and single gaps are closed: coming nearer pulls points apart.
    """
    height, width = points.shape[-3:-1]
    place, ahead = _project(points, focal)
    column, row = (place - 0.5).floor().long().unbind(-1)
    distance = torch.where(ahead, points.norm(dim=-1), torch.full_like(points[..., 0], torch.inf))
    buffer = torch.full((points.shape[0] * points.shape[1], height * width), torch.inf, device=points.device)
    for down in (0, 1):
        for right in (0, 1):
            y, x = row + down, column + right
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(0, 1).flatten(1)
            value = torch.where(inside, distance, torch.full_like(distance, torch.inf)).flatten(0, 1).flatten(1)
            buffer.scatter_reduce_(1, index, value, "amin")
    buffer = buffer.unflatten(1, (height, width))
    closed = -F.max_pool2d(-buffer[:, None], 3, 1, 1)[:, 0]
    return torch.where(buffer < torch.inf, buffer, closed)


@dataclass(frozen=True)
class Guide:
    """latents [B, C, K, h, w] of the warped picture, their validity [B, 1, K, h, w] in 0..1, and what of the warped picture
    [B, 3, T, H, W] those latents cannot hold: `detail`. `doubt` [B, 1, H, W] in 0..1 belongs to the block's last picture."""

    latents: Tensor
    valid: Tensor
    detail: Tensor
    doubt: Tensor

    def restored(self, video: Tensor, latents: Tensor) -> Tensor:
        """The decoded `video` [B, 3, T, H, W] of a block with the detail put back where its `latents` agree with the guide.

        Without this every block would lose again what the autoencoder loses, and walking on would blur.
        """
        error = (latents - self.latents).square().mean(dim=1, keepdim=True)
        agrees = F.interpolate((-error / UNLIKE**2).exp(), size=video.shape[2:], mode="trilinear", align_corners=False)
        return (video + agrees * self.detail).clamp(-1, 1)

    def with_things(self, vae: VideoVAE, latents: Tensor, pictures: Tensor, covered: Tensor) -> Guide:
        """The guide of a block in which events bring things: its `latents` with them and the `pictures` that these are of
        (`Events.over`), and where in its latent frames they are, [B, 1, K, H, W] in 0..1."""
        share = covered.repeat_interleave(self.detail.shape[2] // covered.shape[2], dim=2)
        lost = (pictures - vae.decode(latents)[0]) * share
        return replace(self, latents=latents, detail=self.detail * (1 - share) + lost)


@dataclass(frozen=True)
class PosedPicture:
    """A picture and where the camera looked."""

    picture: Tensor  # [B, 3, H, W] in -1..1
    yaw: Tensor  # [B] radians
    pitch: Tensor  # [B] radians
    doubt: Tensor | None = None  # [B, 1, H, W] in 0..USELESS (`Guide.doubt`); None: there is none


@torch.no_grad()
def guide_block(
    depth: DepthNet,
    vae: VideoVAE,
    last: PosedPicture,
    motion: Motion,
    recalled: Recalled | None = None,
    cache: DecoderCache | None = None,
    trust: Tensor | None = None,
) -> Guide:
    """The guide of a block of this commanded `motion` after the `last` picture; `cache` is the decoder's before it.

    What the last picture does not show, or only in doubt, is filled in from the `recalled` one with validity REMEMBERED.
    The picture's doubt lowers validity, and so does trust [B] in 0..1 in all that was seen.
    """
    videos, valid = _seen(depth, last, motion)
    # plans count the dearer case
    if recalled is not None and (recalled.present.is_meta or bool(recalled.present.any())):
        some = (
            slice(None)
            if recalled.present.is_meta or bool(recalled.present.all())
            else recalled.present.nonzero()[:, 0]
        )
        walked = recalled.walked[some, None] + motion.displacement[some]
        earlier = PosedPicture(recalled.picture[some], recalled.yaw[some], recalled.pitch[some])
        old, there = _seen(depth, earlier, Motion(motion.yaw[some], motion.pitch[some], walked))
        filled = (1 - valid[some]) * there
        videos[some], valid[some] = torch.lerp(videos[some], old, filled), valid[some] + REMEMBERED * filled
    if trust is not None:
        valid = valid * trust[:, None, None, None, None]
    latents = vae.encode(videos)
    detail = (videos - vae.decode(latents, cache)[0]) * valid
    after = (1 - valid[:, :, -1] + WEAR).clamp(max=1)
    frames, rows, columns = latents.shape[2:]
    return Guide(latents, F.adaptive_avg_pool3d(valid, (frames, rows, columns)), detail, after)


def _seen(depth: DepthNet, old: PosedPicture, motion: Motion) -> tuple[Tensor, Tensor]:
    """`warp` at the distances that the network finds; validity is lower where the picture was in doubt."""
    # on a CPU one world at a time: a batch rounds differently, and a point that lands in the next pixel is another picture
    picture, views = old.picture, (old.yaw, old.pitch, motion.yaw, motion.pitch, motion.displacement)
    each = len(picture) if picture.is_cuda else 1
    parts = [depth(picture[i : i + each], old.pitch[i : i + each]) for i in range(0, len(picture), each)]
    inverse = torch.cat(parts) if len(parts) > 1 else parts[0]
    if old.doubt is None:
        return warp(picture, inverse, *views, depth.camera)
    both = torch.cat([picture, old.doubt - 1], dim=1)
    video, valid = warp(both, inverse, *views, depth.camera)
    moved = video[:, 3:] + 1
    return video[:, :3], valid * torch.minimum(1 / (1 + moved), ((USELESS - moved) / 2).clamp(min=0))
