"""Keyframe memory: what is kept, replaced and retrieved, and how the warped-frame prior uses it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from world_model import batch
from world_model.camera import CameraConfig
from world_model.conditions import Motion
from world_model.priors.album import Album, Recalled
from world_model.priors.depth import DepthNet
from world_model.priors.warp import REMEMBERED, PosedPicture, guide_block, warp

CAMERA = CameraConfig()
SIZE = (16, 24)


def row(memory: Album, world: int) -> Album:
    """World number `world` alone."""
    return batch.rows(memory, slice(world, world + 1))


def picture(value: float, worlds: int = 1) -> Tensor:
    return torch.full((worlds, 3, *SIZE), value)


def angles(*degrees: float) -> Tensor:
    return torch.tensor([math.radians(d) for d in degrees], dtype=torch.float64)


def positions(*xz: tuple[float, float]) -> Tensor:
    return torch.tensor(xz, dtype=torch.float64)


YES = torch.ones(1, dtype=torch.bool)
HERE = positions((0.0, 0.0))
LEVEL = angles(0)


def filled(*entries: tuple[float, float, tuple[float, float]], size: int = 4) -> Album:
    """A memory of (value, yaw in degrees, position), added in that order."""
    memory = Album.empty(1, size, *SIZE, device=torch.device("cpu"))
    for value, yaw, position in entries:
        memory = memory.add(picture(value), angles(yaw), LEVEL, positions(position), YES)
    return memory


def values(memory: Album) -> list[float]:
    return [round(float(p) / 127.5 - 1, 1) for p, f in zip(memory.pictures[0, :, 0, 0, 0], memory.filled[0]) if f]


def retrieve(memory: Album, yaw: float, position: tuple[float, float] = (0, 0)) -> Recalled:
    found = memory.recall(angles(yaw), LEVEL, positions(position), positions(position))
    assert found is not None
    return found


def test_an_empty_memory_retrieves_nothing():
    assert not retrieve(filled(), 0).present.any()
    assert Album.empty(1, 0, *SIZE, device=torch.device("cpu")).recall(LEVEL, LEVEL, HERE, HERE) is None


def test_the_oldest_picture_leaves_a_full_memory():
    memory = filled(*((i / 10, 30.0 * i, (0.0, 0.0)) for i in range(6)))
    assert values(memory) == [0.2, 0.3, 0.4, 0.5]
    assert memory.pictures.shape[1] == 4


def test_a_picture_of_the_same_view_replaces_the_earlier_one():
    memory = filled((0.1, 0, (0, 0)), (0.2, 40, (0, 0)), (0.3, 5, (0.2, 0)))
    assert values(memory) == [0.2, 0.3]


@pytest.mark.parametrize(("yaw", "position"), [(20, (0.0, 0.0)), (0, (1.0, 0.0))])
def test_another_view_or_position_is_kept_as_well(yaw: float, position: tuple[float, float]):
    assert values(filled((0.1, 0, (0, 0)), (0.3, yaw, position))) == [0.1, 0.3]


def test_retrieval_takes_the_nearest_direction_round_the_circle():
    memory = filled((0.1, 350, (0, 0)), (0.2, 90, (0, 0)), (0.3, 200, (0, 0)))
    assert retrieve(memory, 5).picture.mean() == pytest.approx(0.1, abs=0.01)
    assert retrieve(memory, 70).picture.mean() == pytest.approx(0.2, abs=0.01)
    assert retrieve(memory, 70).yaw.item() == pytest.approx(math.radians(90))


def test_retrieval_prefers_near_positions_and_rejects_far_ones():
    memory = filled((0.1, 0, (2.5, 0)), (0.2, 30, (0.5, 0)))
    near = retrieve(memory, 0)
    assert near.picture.mean() == pytest.approx(0.2, abs=0.01)
    assert near.walked[0].tolist() == pytest.approx([-0.5, 0])
    assert not retrieve(memory, 0, (0, 9)).present.any()
    assert not retrieve(filled((0.1, 0, (0, 0))), 120).present.any()


def test_worlds_do_not_mix_and_absent_ones_stay_as_they_are():
    memory = batch.collate([filled((0.1, 0, (0, 0))), filled((0.2, 90, (0, 0)))])
    later = memory.add(
        picture(0.5, 2), angles(180, 180), angles(0, 0), positions((0, 0), (0, 0)), torch.tensor([True, False])
    )
    assert values(row(later, 0)) == [0.1, 0.5]
    assert values(row(later, 1)) == [0.2]
    alone = filled((0.1, 0, (0, 0)), (0.5, 180, (0, 0)))
    assert torch.equal(row(later, 0).pictures, alone.pictures) and torch.equal(row(later, 0).yaw, alone.yaw)


def test_an_outdated_memory_is_cleared_and_others_stay():
    memory = batch.collate([filled((0.1, 0, (0, 0)), (0.2, 90, (0, 0))), filled((0.3, 90, (0, 0)))])
    emptied = memory.without(torch.tensor([True, False]))
    assert values(row(emptied, 0)) == [] and not retrieve(row(emptied, 0), 0).present.any()
    assert values(row(emptied, 1)) == [0.3] and torch.equal(row(emptied, 1).pictures, row(memory, 1).pictures)
    assert values(row(memory, 0)) == [0.1, 0.2]  # worlds that were forked keep theirs
    later = emptied.add(picture(0.5, 2), angles(40, 40), angles(0, 0), positions((0, 0), (0, 0)), YES.expand(2))
    assert [values(row(later, world)) for world in (0, 1)] == [[0.5], [0.3, 0.5]]


class Pixels:
    """The identity as an autoencoder: latents can be looked at as pictures."""

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode(self, latents: Tensor, cache: object = None) -> tuple[Tensor, tuple]:
        return latents, ()


def test_keyframes_fill_in_only_what_the_last_picture_does_not_show():
    torch.manual_seed(0)
    depth = DepthNet(4, CAMERA)
    last, old = torch.rand(1, 3, *SIZE) * 2 - 1, torch.rand(1, 3, *SIZE) * 2 - 1
    now, view = (angles(60), LEVEL), (angles(30)[:, None], LEVEL[:, None])
    still = torch.zeros(1, 1, 2, dtype=torch.float64)
    retrieved = Recalled(old, angles(0), LEVEL, positions((0, 0)), YES)

    def warped_frame(*memory: Recalled) -> tuple[Tensor, Tensor]:
        found = guide_block(depth, Pixels(), PosedPicture(last, *now), Motion(*view, still), *memory)
        return found.latents, found.valid

    bare, seen = warped_frame()
    latents, valid = warped_frame(retrieved)
    with torch.no_grad():
        back, back_seen = warp(old, depth(old, LEVEL), angles(0), LEVEL, *view, still, CAMERA)
    gap = (seen == 0) & (back_seen == 1)
    assert 0.1 < gap.float().mean() < 0.6
    assert torch.equal(latents[seen.expand_as(latents) == 1], bare[seen.expand_as(latents) == 1])
    assert torch.equal(latents[gap.expand_as(latents)], back[gap.expand_as(latents)])
    assert (valid[gap] == REMEMBERED).all() and torch.equal(valid[~gap], seen[~gap])
    nothing = Recalled(old, angles(0), LEVEL, positions((0, 0)), ~YES)
    same, same_valid = warped_frame(nothing)
    assert torch.equal(same, bare) and torch.equal(same_valid, seen)


def test_looking_back_after_turning_away_finds_the_old_picture():
    """A whole turn away and back, the walked distance taken into account."""
    memory = filled((0.7, 0, (0, 0)), (0.1, 22.5, (0, 0)), (0.2, 45, (0, 0)), (0.3, 67.5, (0, 0)), size=8)
    found = retrieve(memory, 2.0, (0.3, 0.0))
    assert found.picture.mean() == pytest.approx(0.7, abs=0.01)
    assert found.walked[0].tolist() == pytest.approx([0.3, 0.0])
