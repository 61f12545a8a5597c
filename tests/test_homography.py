"""Pictures moved as a whole: against a pinhole camera, place by place."""

from __future__ import annotations

import math

import pytest
import torch

from world_model.camera import CameraConfig, rotation
from world_model.homography import FOCAL_RATE, Homography, Views


def rotated_places(view: tuple[float, float], other: tuple[float, float], size, cells, fov: float) -> torch.Tensor:
    """Where a camera looking along `other` (yaw, pitch) sees what one along `view` sees at each place: pixels [rows, columns, 2],
    place by place."""
    found = torch.empty(*cells, 2, dtype=torch.float64)
    focal = CameraConfig(horizontal_fov=fov).focal(size[1])
    turn = torch.from_numpy(rotation(*other).T @ rotation(*view))
    for row in range(cells[0]):
        for column in range(cells[1]):
            x, y = (column + 0.5) * size[1] / cells[1] - size[1] / 2, (row + 0.5) * size[0] / cells[0] - size[0] / 2
            ray = turn @ torch.tensor([x / focal, y / focal, 1.0], dtype=torch.float64)
            found[row, column] = ray[:2] / ray[2] * focal - torch.tensor([x, y], dtype=torch.float64)
    return found


@pytest.mark.parametrize("fov", [60.0, 90.0])
def test_a_camera_that_turns_is_followed_whatever_its_lens(fov):
    """With the right focal length displacements are those of a pinhole camera."""
    size, cells = (64, 96), (4, 6)
    homography = Homography(size, cells).requires_grad_(False)
    drawn = torch.Generator().manual_seed(0)

    def views(count: int) -> Views:
        angles = (torch.rand(count, 2, 2, generator=drawn) - 0.5) * torch.tensor([0.8, 0.6])
        return Views(angles[:, :1], angles[:, 1:])

    def pairs(given: Views) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        return list(zip(given.target[:, 0].tolist(), given.sources[:, 0].tolist(), strict=True))

    homography.log_focal.fill_(-math.log(math.tan(math.radians(fov) / 2)) / FOCAL_RATE)
    same = views(3).target
    # one that does not turn moves nothing
    assert max(found.abs().max() for found in homography(Views(same, same))) < 1e-4
    other = views(20)
    displaced, beyond = (found[:, 0, 0] for found in homography(other))
    sought = torch.stack([rotated_places(*pair, size, cells, fov) for pair in pairs(other)]).float()
    within = beyond == 0
    assert sought.abs().amax() > 20 and 0.3 < within.float().mean() < 0.9
    torch.testing.assert_close(displaced.movedim(1, -1)[within], sought[within], rtol=0, atol=0.01)  # pixels
    x, y = ((torch.arange(n) + 0.5) * side / n for n, side in zip(cells[::-1], size[::-1], strict=True))
    x, y = x + sought[..., 0], y[:, None] + sought[..., 1]
    outside = torch.stack([-x, x - size[1], -y, y - size[0]]).amax(dim=0)
    near = sought.abs().amax(dim=-1) < size[1]  # further displacements are cut off
    torch.testing.assert_close(beyond[near], outside.clamp(min=0)[near], rtol=0, atol=0.05)


def test_the_focal_length_is_learnt_from_displacements():
    """Descent on the squared error of a few views finds the lens."""
    size, cells = (64, 96), (4, 6)
    wanted, learnt = (Homography(size, cells) for _ in range(2))
    wanted.requires_grad_(False).log_focal.fill_(math.log(0.8) / FOCAL_RATE)
    angles = (torch.rand(16, 2, 2, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.4
    views = Views(angles[:, :1], angles[:, 1:])
    optimizer = torch.optim.Adam([learnt.log_focal], lr=2e-3)
    for _ in range(150):
        loss = (learnt(views)[0] - wanted(views)[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(learnt.focal) == pytest.approx(0.8, rel=0.02)
