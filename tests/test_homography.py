"""Pictures moved as a whole: against a pinhole camera, place by place."""

from __future__ import annotations

import math

import pytest
import torch

from world_model.camera import CameraConfig, rotation
from world_model.homography import VIEW_RATE, Homography, Views


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
def test_a_camera_that_turns_is_within_reach_whatever_its_lens(fov):
    """Factors fitted to the homographies K R K^-1 of some views give the displacements of others: the nine numbers are linear in
    the products."""
    size, cells = (64, 96), (4, 6)
    homography = Homography(size, cells).requires_grad_(False)
    drawn = torch.Generator().manual_seed(0)

    def views(count: int) -> Views:
        angles = (torch.rand(count, 2, 2, generator=drawn) - 0.5) * torch.tensor([0.8, 0.6])
        return Views(angles[:, :1], angles[:, 1:])

    def pairs(given: Views) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        return list(zip(given.target[:, 0].tolist(), given.sources[:, 0].tolist(), strict=True))

    displaced, beyond = homography(views(3))
    assert not displaced.any() and not beyond.any()  # a fresh one moves nothing
    lens = torch.diag(torch.tensor([1 / math.tan(math.radians(fov) / 2)] * 2 + [1.0], dtype=torch.float64))
    products, matrices = [], []
    for view, other in pairs(views(60)):
        angles = torch.tensor([view[0] - other[0], other[1], view[1]], dtype=torch.float64)
        a, b, c = torch.stack([torch.ones(3), angles.sin(), 1 - angles.cos()], dim=1)
        products.append(torch.einsum("i,j,k->ijk", a, b, c).flatten())
        turn = torch.from_numpy(rotation(*other).T @ rotation(*view))
        matrices.append((lens @ turn @ lens.inverse() - torch.eye(3)).flatten())
    fitted = torch.linalg.lstsq(torch.stack(products), torch.stack(matrices)).solution
    homography.factors.copy_(fitted.T / VIEW_RATE)
    other = views(20)
    displaced, beyond = (found[:, 0, 0] for found in homography(other))
    sought = torch.stack([rotated_places(*pair, size, cells, fov) for pair in pairs(other)]).float()
    within = beyond == 0
    assert sought.abs().amax() > 20 and 0.3 < within.float().mean() < 0.9
    torch.testing.assert_close(displaced.movedim(1, -1)[within], sought[within], rtol=0, atol=0.01)  # pixels
    x, y = ((torch.arange(n) + 0.5) * side / n for n, side in zip(cells[::-1], size[::-1], strict=True))
    x, y = x + sought[..., 0], y[:, None] + sought[..., 1]
    outside = torch.stack([-x, x - size[1], -y, y - size[0]]).amax(dim=0)
    torch.testing.assert_close(beyond, outside.clamp(min=0), rtol=0, atol=0.05)
