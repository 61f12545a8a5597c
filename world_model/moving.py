"""Pictures looked up at displacements and blended, and what keeps them sharp (appearance_flow.py).

A rollout moves its own pictures again and again, and whatever blurs them a little ends in a blur. So what is used is nearly the
likeliest source alone, looked up with bicubic interpolation.

Shapes: B worlds, N sources, K frames of a block, H x W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

EARLIER = 1.0  # logit, for each block by which a picture is earlier than the newest: it has been looked up less often
MOST_EARLIER = 4.0  # of these
TOLD_SAME = 200.0  # logit, for a picture that was told what is told now
LIKELIEST = 3.0  # factor of logits for the frames that are used: a blend of sources that do not quite agree is a blur
FARTHEST = 1e4  # sizes of a picture that an infinite displacement counts for
LEAST_DEVIATION = 0.02  # of a picture in -1..1, that counts


def pooled(pictures: Tensor, scale: int) -> Tensor:
    """Pictures [B, N, 3, H, W] with pixels `scale` times as wide."""
    return F.avg_pool2d(pictures.flatten(0, 1), scale).unflatten(0, pictures.shape[:2])


def deviation(pictures: Tensor) -> Tensor:
    """Standard deviation [B, N, 3] of each colour of pictures [B, N, 3, H, W]."""
    return pictures.flatten(3).var(dim=3).clamp(min=LEAST_DEVIATION**2).sqrt()


def inside(flow: Tensor, cell: float) -> Tensor:
    """Whether each place comes from within a source, by a flow (`Moves`) whose places are `cell` pixels wide: [B, K, N, rows,
    columns] bool."""
    rows, columns = flow.shape[-2:]
    y, x = (torch.arange(n, device=flow.device) + 0.5 for n in (rows, columns))
    right, down, _ = flow.unbind(dim=3)
    across, along = x + right / cell, y[:, None] + down / cell
    return (across >= 0) & (across <= columns) & (along >= 0) & (along <= rows)


def likeliest(flow: Tensor, generations: Tensor | None = None, same: Tensor | None = None) -> Tensor:
    """A flow (`Moves`) that takes nearly the likeliest source alone.

    generations [B, N]: the number of the block that each source is of, 0 for the start picture. What is looked up again and again
    loses a little each time, of which the recordings that teach logits know nothing: earlier pictures are preferred.
    same [B, K, N, rows, columns] bool: which sources are of the text that is told now, and show a place; these are taken.
    """
    displacement, logit = flow.split([2, 1], dim=3)
    logit = LIKELIEST * logit
    if generations is not None:
        fewer = (EARLIER * (generations[:, :1] - generations)).clamp(0, MOST_EARLIER)
        logit = logit + fewer[:, None, :, None, None, None]
    if same is not None:
        logit = logit + TOLD_SAME * same[:, :, :, None]
    return torch.cat([displacement, logit], dim=3)


def blurred(pictures: Tensor, width: int) -> Tensor:
    """Means [..., H, W] of squares of `width` pixels, an odd number; beyond a border is what is at it.

    As two matrix products: pooling in steps of one pixel takes 5 to 8 times as long on a CPU.
    """
    if width == 1:
        return pictures
    along, across = (_means(n, width, pictures.device).to(pictures.dtype) for n in pictures.shape[-2:])
    return along @ pictures @ across.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for training, too
def _means(size: int, width: int, device: torch.device) -> Tensor:
    """[size, size] of which row i takes the mean of the `width` numbers about i."""
    around = torch.arange(size, device=device)[:, None] + torch.arange(width, device=device) - width // 2
    return F.one_hot(around.clamp(0, size - 1), size).float().mean(dim=1)


def move(pictures: Tensor, flow: Tensor, scale: int, mode: str = "bilinear") -> Tensor:
    """Pictures [B, N, c, H, W] whose pixels are `scale` pixels wide, looked up at displacements in pixels of scale 1 and blended
    by the softmax of the logits [B, K, N, 3 (x, y, logit), rows, columns] -> [B, K, c, H, W].

    Beyond a border there is the mirror image."""
    worlds, frames = flow.shape[:2]
    height, width = pictures.shape[-2:]
    fine = F.interpolate(flow.flatten(0, 2), size=(height, width), mode="bilinear", align_corners=False)
    y, x = (torch.arange(n, device=flow.device, dtype=fine.dtype) + 0.5 for n in (height, width))
    across = mirrored(x + fine[:, 0] / scale, width)
    along = mirrored(y[:, None] + fine[:, 1] / scale, height)
    place = torch.stack([across, along], dim=-1)
    # the gradient of grid_sample writes anywhere in memory where a coordinate is NaN (torch 2.13, CPU with AVX-512)
    grid = (place * place.new_tensor([2 / width, 2 / height]) - 1).nan_to_num(posinf=FARTHEST, neginf=-FARTHEST)
    grid = rearrange(grid, "(B K N) H W d -> (B N) (K H) W d", B=worlds, K=frames)
    moved = F.grid_sample(pictures.flatten(0, 1), grid, mode=mode, padding_mode="border", align_corners=False)
    moved = rearrange(moved, "(B N) c (K H) W -> B N c K H W", B=worlds, K=frames)
    share = rearrange(fine[:, 2], "(B K N) H W -> B N 1 K H W", B=worlds, K=frames).softmax(dim=1)
    return (moved * share).sum(dim=1).transpose(1, 2)


def mirrored(place: Tensor, size: int) -> Tensor:
    """Places along a side of so many pixels, those beyond its ends taken from within."""
    place = place.remainder(2 * size)
    return torch.where(place > size, 2 * size - place, place)


def each_moved(pictures: Tensor, flow: Tensor, scale: int) -> Tensor:
    """Each of the pictures [B, N, c, H, W] moved alone by its part of a flow (`move`): [B, K, N, c, H, W]."""
    each = move(pictures.flatten(0, 1)[:, None], flow.transpose(1, 2).flatten(0, 1)[:, :, None], scale)
    return each.unflatten(0, pictures.shape[:2]).transpose(1, 2)


def toned(pictures: Tensor, tone: Tensor) -> Tensor:
    """Pictures [B, K, 3, H, W] with gains and offsets [B, K, 6, h, w] in addition to 1 and 0."""
    fine = F.interpolate(tone.flatten(0, 1), size=pictures.shape[-2:], mode="bilinear", align_corners=False)
    gain, offset = fine.unflatten(0, tone.shape[:2]).chunk(2, dim=2)
    return pictures * (1 + gain) + offset
