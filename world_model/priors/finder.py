"""Where a picture was taken: a start picture tells a model that knows towns (places.py) in which it stands, and where.

A small network names likely cells and headings (train.finder teaches it on views of the town); each is then moved about, ever more
finely, to where the town as the model knows it looks most like the picture. A pose that still looks unlike it is looked for once
more, more widely. Shapes: B pictures, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from world_model.priors.distance_field import APART
from world_model.priors.places import Places

CELL = 4.0  # metres
HEADINGS = 16
# of the network: the likeliest that one can stand at are kept anyhow, of the others those that look best
CANDIDATES = 32
LIKELIEST = 4
# (candidates kept, metres, radians) of each round: candidates are moved by -1, 0 and 1 of these along both axes and around
ROUNDS = ((8, 1.6, 0.14), (4, 0.6, 0.06), (2, 0.2, 0.02), (1, 0.07, 0.007))
UNLIKE, WIDER = 0.6, 4  # how unlike is in doubt: then so many times as many candidates are tried and kept
# a picture in doubt is taken for a further town only where that is less unlike than the first by this factor
ELSEWHERE = 0.9
INDOORS = 1e3  # added to the errors of poses where nobody can stand


class Finder(nn.Module):
    """Pictures [B, 3, H, W] in -1..1 -> scores of x and z cells and of headings, [B, towns cells], [B, cells], [B, HEADINGS], and
    where inside these: cosines and sines [B, 3, 2], one turn a cell. x cells are those of one town after the other."""

    def __init__(self, period: float, size: tuple[int, int], width: int = 32, towns: int = 1) -> None:
        super().__init__()
        self.cells = (towns * round(period / CELL), round(period / CELL), HEADINGS)
        self.stages = nn.Sequential(
            *_stage(3, width),
            *_stage(width, 2 * width),
            *_stage(2 * width, 4 * width),
            *_stage(4 * width, 6 * width),
            nn.Flatten(),
        )
        rows, columns = (-(-side // 16) for side in size)
        self.hidden = nn.Sequential(nn.Linear(6 * width * rows * columns, 512), nn.GroupNorm(8, 512), nn.ReLU())
        self.scores, self.inside = nn.Linear(512, sum(self.cells)), nn.Linear(512, 6)

    def forward(self, pictures: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        hidden = self.hidden(self.stages(pictures))
        return self.scores(hidden).split(self.cells, dim=-1), self.inside(hidden).unflatten(-1, (3, 2))

    def labels(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` should answer for poses [B, 3] (x, z, yaw): cells and heading [B, 3], and cosines and sines [B, 3, 2]."""
        units = pose / pose.new_tensor([CELL, CELL, 2 * math.pi / HEADINGS])
        turn, side = 2 * math.pi * units, self.cells[1]
        index = torch.remainder(units.floor().long(), torch.tensor([side, side, HEADINGS], device=pose.device))
        index[:, 0] += (units[:, 0] / (APART * side)).round().long() * side
        return index, torch.stack([turn.cos(), turn.sin()], dim=-1).float()

    @torch.no_grad()
    def candidates(self, picture: Tensor, count: int, towns: int | None = None) -> Tensor:
        """The likeliest poses [count, 3] float64 (x, z, yaw) of one picture [1, 3, H, W], in the first `towns` or in all."""
        scores, inside = self(picture)
        if towns is not None:
            scores = (scores[0][:, : towns * self.cells[1]], *scores[1:])
        x, z, heading = (part[0].log_softmax(dim=-1) for part in scores)
        joint = x[:, None, None] + z[:, None] + heading
        best = torch.stack(torch.unravel_index(joint.flatten().topk(count).indices, joint.shape), dim=-1)
        part = torch.remainder(torch.atan2(inside[0, :, 1], inside[0, :, 0]) / (2 * math.pi), 1)
        side = self.cells[1]
        town, best[:, 0] = best[:, 0] // side, best[:, 0] % side
        scale = torch.tensor([CELL, CELL, 2 * math.pi / HEADINGS], dtype=torch.float64, device=picture.device)
        poses = (best + part).double() * scale
        poses[:, 0] += town * (APART * side * CELL)
        return poses

    @torch.no_grad()
    def find(self, places: Places, picture: Tensor, latents: Tensor) -> tuple[Tensor, float]:
        """The pose [3] float64 (x, z; metres; yaw, radians) of one picture [1, 3, H, W] with latents [1, C, h, w], and how unlike
        its town it still looks there: squared error over squared latents, both about each channel's mean, for a light that is a
        little off is no other place. It is a pose where one can stand, for pictures of elsewhere as well: they go on from there,
        in the first town rather than in a further one, which may look less unlike only because it is known more vaguely."""
        moves = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, device=picture.device)
        around = torch.cartesian_prod(moves, moves, moves)
        silence = latents.new_zeros(1, 1, places.words)
        look = places.looks(latents, latents, torch.ones(1, dtype=torch.bool, device=picture.device), silence)

        def errors_at(poses: Tensor) -> Tensor:
            views = ((part[None, :, :2], part[None, :, 2]) for part in poses.split(32))
            seen = [places(place, yaw, torch.zeros_like(yaw), look)[0] for place, yaw in views]
            return torch.cat(seen, dim=1).transpose(0, 1) - latents

        def unlike(poses: Tensor, errors: Tensor) -> Tensor:
            return errors.square().mean(dim=(1, 2, 3)) + INDOORS * ~places.free(poses[:, :2])

        def search(times: int, **which: int) -> tuple[Tensor, float]:
            poses = self.candidates(picture, times * CANDIDATES, **which)
            errors = errors_at(poses)
            errors[: times * LIKELIEST] = 0
            for kept, metres, angle in ROUNDS:
                poses = poses[unlike(poses, errors).argsort()[: times * kept]]
                poses = (poses[:, None] + around * poses.new_tensor([metres, metres, angle])).flatten(0, 1)
                errors = errors_at(poses)
            best = unlike(poses, errors).argmin()
            return poses[best], float(_about_mean(errors[best]) / _about_mean(latents[0]))

        found = search(1)
        if found[1] >= UNLIKE:
            found = min(found, search(WIDER), key=lambda pose: pose[1])
        if found[1] >= UNLIKE and self.cells[0] > self.cells[1] and int(places.town(found[0][:2])):
            first = search(WIDER, towns=1)
            found = found if found[1] < ELSEWHERE * first[1] else first
        return found


def _about_mean(latents: Tensor) -> Tensor:
    """The sum of squares of latents [C, h, w] about the mean of each channel."""
    return (latents - latents.mean(dim=(1, 2), keepdim=True)).square().sum()


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    """Two 3x3 convolutions; the first halves the picture."""
    layers: list[nn.Module] = []
    for stride, width in ((2, inputs), (1, outputs)):
        layers += [nn.Conv2d(width, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]
    return layers
