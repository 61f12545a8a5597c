"""Displacements of a camera that moves: against points in space, place by place."""

from __future__ import annotations

import math

import pytest
import torch

from world_model.camera import CameraConfig, rotation
from world_model.homography import FOCAL_RATE, Homography, Views
from world_model.parallax import USUAL_DISPARITY, VANISHING, Odometer, Parallax, travelled, unusual, ways_to

SIZE, CELLS, FOV = (64, 96), (8, 12), 90.0


def homography() -> Homography:
    made = Homography(SIZE, CELLS).requires_grad_(False)
    made.log_focal.fill_(-math.log(math.tan(math.radians(FOV) / 2)) / FOCAL_RATE)
    return made


def test_points_are_seen_from_elsewhere():
    """Points on the rays of a camera, at distances of their own, as another camera sees them that stands and looks elsewhere."""
    drawn = torch.Generator().manual_seed(0)
    depth = 2 + 8 * torch.rand(CELLS, generator=drawn, dtype=torch.float64)
    here, there = (0.3, -0.1), (-0.1, 0.2)  # yaw, pitch
    way = torch.tensor([0.4, -0.2, 0.7], dtype=torch.float64)  # from the other camera to this one, as this one sees it
    turn = torch.from_numpy(rotation(*there).T @ rotation(*here))
    focal = CameraConfig(horizontal_fov=FOV).focal(SIZE[1])
    sought = torch.empty(*CELLS, 2, dtype=torch.float64)
    for row in range(CELLS[0]):
        for column in range(CELLS[1]):
            x = (column + 0.5) * SIZE[1] / CELLS[1] - SIZE[1] / 2
            y = (row + 0.5) * SIZE[0] / CELLS[0] - SIZE[0] / 2
            point = depth[row, column] * torch.tensor([x / focal, y / focal, 1.0], dtype=torch.float64)
            seen = turn @ (point + way)
            sought[row, column] = seen[:2] / seen[2] * focal - torch.tensor([x, y], dtype=torch.float64)
    views = Views(torch.tensor([[there]]), torch.tensor([[here]]))
    shift = (way[:, None, None] / depth).float()[None, None, None]
    displaced, beyond = homography()(views, shift)
    inside = beyond[0, 0, 0] == 0
    assert 0.3 < inside.float().mean() < 1
    torch.testing.assert_close(displaced[0, 0, 0].movedim(0, -1)[inside], sought.float()[inside], rtol=0, atol=0.01)


def test_rays_below_the_horizon_meet_the_ground_where_it_is():
    """A camera one unit above the ground: the depth at which a ray meets it is one over `below`."""
    found = homography().below(torch.tensor([0.0, -0.3, 0.4]))
    focal = CameraConfig(horizontal_fov=FOV).focal(SIZE[1])
    for number, pitch in enumerate((0.0, -0.3, 0.4)):
        for row in range(CELLS[0]):
            y = (row + 0.5) * SIZE[0] / CELLS[0] - SIZE[0] / 2
            down = (rotation(0.0, pitch) @ torch.tensor([0.0, y / focal, 1.0], dtype=torch.float64).numpy())[1]
            assert found[number, row].tolist() == pytest.approx([down] * CELLS[1], abs=1e-5)


def test_sources_and_frames_of_one_walk_agree():
    """Cameras that look and stand anywhere: how rays change is what the true positions say, and what has been travelled adds up."""
    drawn = torch.Generator().manual_seed(0)
    angles = torch.rand(1, 5, 2, generator=drawn, dtype=torch.float64) - 0.5
    places = torch.rand(
        1, 5, 3, generator=drawn, dtype=torch.float64
    )  # of two frames and three sources, the newest first
    views = Views(angles[:, 2:], angles[:, :2])
    axes = [torch.from_numpy(rotation(float(yaw), 0.0)) for yaw, _ in angles[0, :2]]
    way = torch.stack([axes[k].T @ (places[0, k] - places[0, 2]) for k in range(2)])[None].float()
    torch.testing.assert_close(travelled(way, views).double(), places[:, :2] - places[:, 2:3])
    found = ways_to(way, (places[:, 2:] - places[:, 2:3]).float(), views)
    for frame in range(2):
        own = torch.from_numpy(rotation(*angles[0, frame].tolist()))
        for source in range(3):
            wanted = own.T @ (places[0, frame] - places[0, 2 + source])
            torch.testing.assert_close(found[0, frame, source].double(), wanted, rtol=0, atol=1e-6)


def test_the_unit_of_disparities_is_fixed():
    """Half or twice as far away on average costs the square of log 2, whatever the shape of what is seen; farther much more."""
    shape = torch.rand(2, 3, *CELLS, generator=torch.Generator().manual_seed(0))
    usual = shape * USUAL_DISPARITY / shape.mean(dim=(-2, -1), keepdim=True)
    assert unusual(usual).item() == pytest.approx(0, abs=1e-6)
    assert unusual(2 * usual).item() == pytest.approx(math.log(2) ** 2, rel=1e-4)
    assert unusual(usual / 2).item() == pytest.approx(math.log(2) ** 2, rel=1e-4)
    assert unusual(usual / 4).item() == pytest.approx((4 + VANISHING) * math.log(2) ** 2, rel=1e-4)


def test_fresh_distances_are_one_and_are_learnt_from_displacements():
    """A wall half of whose places are near, seen by a camera that steps aside by ways that are known."""
    torch.manual_seed(0)
    lens, parallax = homography(), Parallax(8, 2, 2)
    hidden = torch.rand(1, 8, 4, 6)
    hidden[:, 0, :, :3] += 1  # features tell near from far
    views = Views(torch.zeros(1, 3, 2), torch.zeros(1, 2, 2))
    below = lens.below(views.target[..., 1])
    disparity = parallax(hidden, below)
    assert disparity.shape == (1, 2, *CELLS) and disparity.std() < 1e-6
    depth = torch.where(torch.arange(CELLS[1]) < 6, 2.0, 8.0).expand(CELLS)
    way = (torch.tensor([0.3, 0.0, 0.0]) * torch.arange(1, 4)[:, None]).expand(1, 2, -1, -1)
    wanted = lens(views, (way[..., None, None] / depth).expand(1, 2, 3, 3, *CELLS))[0]
    optimizer = torch.optim.Adam(parallax.parameters(), lr=5e-2)
    for _ in range(300):
        shift = way[..., None, None] * parallax(hidden, below)[:, :, None, None]
        error = (lens(views, shift)[0] - wanted).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.05 * wanted.square().mean()
    assert parallax.entering(below, 1).shape == (1, 8, 4, 6)


def test_an_odometer_learns_ways_from_actions_turns_and_the_way_before():
    """Three actions, one of which stands still; a camera that looks to the right comes to the left of where it looks; one that
    was fast stays so. Positions and angles of the world play no part."""
    torch.manual_seed(0)
    odometer, frames = Odometer(8, 2), torch.arange(1, 3)[:, None] / 2
    actions = torch.randn(3, 8)

    def drawn(count: int):
        chosen = torch.randint(3, (count,))
        yaw, turned, fast = 6 * torch.rand(count, 1), torch.rand(count, 1) - 0.5, torch.rand(count)
        views = Views(
            torch.cat([yaw, torch.zeros(count, 1)], 1)[:, None].expand(-1, 2, -1),
            torch.stack([yaw + turned * frames[:, 0], torch.zeros(count, 2)], dim=-1),
        )
        before = torch.stack([yaw[:, 0].sin() * fast, torch.zeros(count), yaw[:, 0].cos() * fast], dim=1)
        places = torch.stack([torch.zeros(count, 3), -before], dim=1)
        ahead = (chosen[:, None] * (1 + fast[:, None])) * frames[:, 0]
        side = -ahead * turned / 2
        return actions[chosen], views, places, torch.stack([side, torch.zeros_like(side), ahead], dim=-1)

    action, views, places, _ = drawn(4)
    assert odometer(action, views, places).shape == (4, 2, 3) and not odometer(action, views, places).any()
    optimizer = torch.optim.Adam(odometer.parameters(), lr=1e-2)
    for _ in range(600):
        action, views, places, wanted = drawn(64)
        error = (odometer(action, views, places) - wanted).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.02 * wanted.square().mean()
