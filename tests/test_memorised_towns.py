"""Several memorised towns: one model, one plane, each town as if it were alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_rays import CAMERA, SMALL, town_of_a_box
from torch import Tensor, nn

from train import finder as finder_stage
from train.street.voxels import distance_field
from world_model.priors.distance_field import APART, PARTLY
from world_model.priors.finder import Finder
from world_model.priors.places import UNKNOWN, Places
from world_model.rollout import generator

THERE = APART * SMALL.period  # metres in x at which the second town begins


@pytest.fixture(scope="module")
def boxed() -> Places:
    return town_of_a_box()


@pytest.fixture(scope="module")
def other() -> Places:
    """A town of walls and thin posts, parts of voxels among them; the network is that of the box's town."""
    places = Places(replace(SMALL, fine=2, bricks=120), CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    rng = np.random.default_rng(3)
    solid = rng.random((32, 16, 32)) < 0.01
    solid[20, :12] = True
    partly = solid & (rng.random(solid.shape) < 0.2)
    bits = torch.randint(1, 2**8, (int(partly.sum()),), generator=generator("bits"))
    places.stand(distance_field(solid, SMALL, partly), bits)
    places.walkable.copy_(torch.rand(32, 32, generator=generator("walkable")) < 0.6)
    for table in places.tables:
        nn.init.normal_(table)
    return places


@pytest.fixture(scope="module")
def both(boxed, other) -> Places:
    """The two of them as one; parts that towns share are the box's town's."""
    config = replace(SMALL, towns=(0, 5), fine=2, bricks=140)
    places = Places(config, CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    places.stand(boxed.distance)
    places.stand(other.distance, other.bricks[: int((other.distance == PARTLY).sum())], town=1)
    places.walkable.copy_(torch.cat([boxed.walkable, other.walkable]))
    shared = {k: v for k, v in boxed.state_dict().items() if k.split(".")[0] in ("look", "paint", "blend", "head")}
    places.load_state_dict(shared, strict=False)
    for table, one, two in zip(places.tables, boxed.tables, other.tables):
        table.copy_(torch.cat([one, two]))
    return places


def poses(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [count, 3, 2] here and there around the torus, yaw and pitch [count, 3]."""
    draw = generator("poses")
    place = (torch.rand(count, 3, 2, generator=draw, dtype=torch.float64) * 6 - 3) * SMALL.period
    yaw = torch.rand(count, 3, generator=draw, dtype=torch.float64) * 2 * math.pi
    return place, yaw, torch.rand(count, 3, generator=draw, dtype=torch.float64) - 0.5


def test_each_town_is_seen_as_if_it_were_alone(both, boxed, other):
    """Two worlds in each town, in one batch: rays, sights and steps are those of the town by itself."""
    place, yaw, pitch = poses(4)
    where = place.clone()
    where[2:, :, 0] += THERE
    assert both.town(where).tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]
    rays = both.rays(where, yaw, pitch)
    heights = both.clear_sight(where, yaw, pitch)
    for town, rows in ((boxed, slice(0, 2)), (other, slice(2, 4))):
        alone = town.rays(place[rows], yaw[rows], pitch[rows])
        torch.testing.assert_close(rays.away[rows], alone.away, atol=1e-3, rtol=1e-3)
        close = ((rays.features[rows] - alone.features).abs() < 0.02).all(dim=-1)
        assert close.float().mean() > 0.99  # a point on the edge of a voxel may lie on its other side
        assert alone.away.unique().numel() > 100
        same = (heights[rows] - town.clear_sight(place[rows], yaw[rows], pitch[rows])).abs() < 0.02
        assert same.float().mean() > 0.99
        reach, met = both.free_sight(where[rows, 0], yaw[rows])
        expected = town.free_sight(place[rows, 0], yaw[rows])
        torch.testing.assert_close(reach, expected[0], atol=1e-3, rtol=1e-3)
        assert torch.equal(met, expected[1])
    assert not torch.equal(
        boxed.rays(place[2:], yaw[2:], pitch[2:]).away, other.rays(place[2:], yaw[2:], pitch[2:]).away
    )


def test_each_town_is_walked_as_if_it_were_alone(both, boxed, other):
    place = poses(60)[0][:, 0]
    way = torch.randn(60, 4, 2, generator=generator("way"), dtype=torch.float64).cumsum(dim=1)
    far = place + torch.tensor([THERE, 0.0], dtype=torch.float64)
    assert torch.equal(both.free(far), other.free(place)) and torch.equal(both.free(place), boxed.free(place))
    assert torch.equal(both.walk(far, way), other.walk(place, way))
    assert not torch.equal(other.walk(place, way), boxed.walk(place, way))


def test_nobody_walks_from_one_town_to_another(both):
    """Forty thousand kilometres either way are still the same town."""
    config = replace(SMALL, period=80.0, towns=(0, 5), height=2.0, tables=((2.0, 4, 2),))
    places, far = Places(config, CAMERA, (1, 1), channels=2, text=2), 40_000_000.0
    there = [[x + start, z] for start in (0.0, APART * 80.0) for x, z in ((1.0, 0.0), (-far, 0.0), (far, -far))]
    assert places.town(torch.tensor(there, dtype=torch.float64)).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_town_that_is_learnt_leaves_the_sub_voxels_of_others(both, other):
    """The first town gets sub-voxels after the second has them, then others, then none."""
    places = copy.deepcopy(both)
    count = int((other.distance == PARTLY).sum())
    for parts in (7, 12, 0):
        distance = places.distance[places.rows(0)].clone().clamp(min=2)
        distance.view(-1)[torch.arange(parts) * 11] = PARTLY
        bits = torch.arange(1, parts + 1)
        places.stand(distance, bits)
        assert places.bricks[:parts].tolist() == bits.tolist()
        assert torch.equal(places.bricks[parts : parts + count], other.bricks[:count])
        slots = -places.field[places.distance == PARTLY]
        assert slots.tolist() == list(range(1, parts + count + 1))
    with pytest.raises(ValueError, match=rf"{count + 90} voxels are solid in part, places.bricks is 140: raise it"):
        places.stand(torch.full_like(places.distance[places.rows(0)], PARTLY), torch.ones(90, dtype=torch.int64))


def test_a_text_starts_in_memorised_towns(monkeypatch):
    monkeypatch.setattr("world_model.priors.places.VIEWS", 4)
    places = Places(replace(SMALL, towns=(0, 5)), CAMERA, (4, 6), channels=8, text=5).requires_grad_(False)
    places.views.copy_(torch.arange(24.0).view(8, 3) / 3)
    text, silence = torch.randn(1, 3, 5, generator=generator("text")), torch.zeros(1, 3, 5)

    def towns(words: Tensor) -> set[int]:
        found = torch.stack([places.somewhere(generator("somewhere", seed), words) for seed in range(60)])
        number = places.town(found[:, :2])
        views = found - torch.stack([number * THERE, 0 * number, 0 * number], dim=1)
        rows = torch.cdist(views, places.views.double()).argmin(dim=1)
        torch.testing.assert_close(views, places.views[rows].double())
        assert torch.equal(rows // 4, number)
        return set(number.tolist())

    assert (places.where.bias[4:] == UNKNOWN).all()
    assert towns(text) == {0}
    places.where.bias[4:] = 0.0
    assert towns(text) == {0, 1} and towns(silence) == {0, 1}
    places.where.bias[:4] = UNKNOWN
    assert towns(text) == {1}


# ---- relocalisation ---------------------------------------------------------------------------------------------------


def test_relocalisation_names_the_town(monkeypatch):
    """The pose that was labelled is the likeliest candidate, in every town."""
    finder = Finder(80.0, (32, 48), width=8, towns=3).requires_grad_(False)
    assert finder.cells == (60, 20, 16)
    side = APART * 80.0
    pose = torch.tensor([[3.0, 71.0, 1.0], [side - 2.0, 5.0, -9.0], [2 * side + 79.9, 0.1, 3.0]], dtype=torch.float64)
    index, inside = finder.labels(pose)
    assert index[:, 0].tolist() == [0, 20 + 19, 40 + 19]
    around = torch.tensor([80.0, 80.0, 2 * math.pi], dtype=torch.float64)
    for town in range(3):
        scores = tuple(torch.zeros(1, n).index_fill(1, i[None], 9.0) for n, i in zip(finder.cells, index[town]))
        monkeypatch.setattr(Finder, "forward", lambda self, _, s=scores, t=town: (s, inside[t][None]))
        found = finder.candidates(torch.zeros(1, 3, 32, 48), 1)[0]
        start = town * side
        assert 0 <= float(found[0]) - start < 80 + 1e-6 and 0 <= float(found[1]) < 80 + 1e-6
        apart = (found - pose[town] + around / 2) % around - around / 2
        assert apart.abs().max() < 1e-3


class Likeness:
    """Stands for a scene field: it renders what a picture shows, with a given residual in each town."""

    words = 5

    def __init__(self, picture: Tensor, residual: tuple[float, float]) -> None:
        self.picture, self.unlike = picture, torch.tensor(residual)

    def looks(self, *_: Tensor) -> Tensor:
        return torch.zeros(1, 1)

    def town(self, place: Tensor) -> Tensor:
        return (place[..., 0] / (APART * 80.0)).round().long()

    def free(self, place: Tensor) -> Tensor:
        return torch.ones(len(place), dtype=torch.bool)

    def __call__(self, place: Tensor, *_: Tensor) -> Tensor:
        share = 1 - self.unlike[self.town(place[0])].sqrt()
        return (self.picture[0, :, None] * share[None, :, None, None])[None]


@pytest.mark.parametrize(
    ("residual", "town"),
    [((0.9, 0.88), 0), ((0.9, 0.7), 1), ((0.9, 0.5), 1), ((0.59, 0.5), 1), ((0.8, 0.9), 0)],
)
def test_uncertain_pictures_start_in_the_first_town(residual, town):
    """If relocalisation is uncertain, a further town is taken only where its residual is clearly lower."""
    torch.manual_seed(0)
    finder = Finder(80.0, (32, 48), width=8, towns=2).requires_grad_(False)
    latents = torch.randn(1, 3, 4, 6, generator=generator("latents"))
    latents = latents - latents.mean(dim=(2, 3), keepdim=True)
    places = Likeness(latents, residual)
    pose, error = finder.find(places, torch.zeros(1, 3, 32, 48), latents)
    assert int(places.town(pose[:2])) == town
    assert error == pytest.approx(residual[town], rel=1e-4)


def test_relocalisation_in_more_towns_begins_with_earlier_weights(tmp_path):
    one, two = (Finder(80.0, (32, 48), width=8, towns=n).requires_grad_(False) for n in (1, 2))
    save_file(one.state_dict(), tmp_path / finder_stage.WEIGHTS)
    two.load_state_dict(finder_stage.grown(load_file(tmp_path / finder_stage.WEIGHTS), two))
    picture = torch.randn(2, 3, 32, 48, generator=generator("picture"))
    (x, z, heading), inside = one(picture)
    (wide, *rest), turns = two(picture)
    assert torch.equal(wide[:, :20], x) and torch.equal(turns, inside)
    assert all(torch.equal(a, b) for a, b in zip(rest, (z, heading)))
    assert wide.shape == (2, 40)
    same = finder_stage.grown(two.state_dict(), two)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in same.items())
