"""Event objects: how texts are classified, where objects are, and how they are drawn."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from event_town import FIRE, SNOW, UFO, event_dit_fixture, text_tokens  # noqa: F401  (fixtures, too)
from torch import Tensor

from world_model.camera import rotation
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.priors.events import (
    CLEARANCE,
    DETOUR,
    GLANCES,
    NEAREST,
    NOTHING,
    PHRASINGS,
    TEXELS,
    Events,
)
from world_model.priors.places import Places
from world_model.retrieval import View
from world_model.rollout import generator

# ---- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_classified_and_replaced_by_their_kinds_wording(event_dit, event_config):
    prompts = text_tokens(event_config, FIRE, "nothing of the sort", "", SNOW, UFO)
    kind = event_dit.priors[0].events.read(prompts)
    assert kind.tolist() == [1, NOTHING, NOTHING, 2, 0]
    assert event_dit.priors[0].events.things(kind).tolist() == [True, False, False, False, True]
    shuffled = prompts[:, torch.randperm(prompts.shape[1], generator=generator("order"))]
    embedded = event_dit.priors[0].events.heard(shuffled, kind)
    for row, number in ((0, 1), (3, 2), (4, 0)):
        assert torch.equal(embedded[row], event_dit.priors[0].events.wording[number])
    assert torch.equal(embedded[1:3], shuffled[1:3])


def test_texts_are_compared_with_phrasings_as_a_reference_loop_does(event_config):
    events, many = Events(event_config), torch.randn(9, event_config.text.dim, generator=generator("phrasings"))
    kind = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 1])
    events.keep_phrasings(many, kind)
    new = torch.randn(4, event_config.text.dim, generator=generator("new"))
    unit = (many / many.norm(dim=1, keepdim=True)).double()
    middle = unit.mean(dim=0)
    for row, found in zip(new.double(), events.alike(new)):
        own = row / row.norm() - middle
        cosine = torch.stack([own @ (u - middle) / own.norm() / (u - middle).norm() for u in unit])
        slow = [(cosine[kind == k] / 0.05).exp().mean().log() for k in range(4)]
        torch.testing.assert_close(found.double(), torch.stack(slow), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="more than the"):
        events.keep_phrasings(torch.randn(PHRASINGS + 1, event_config.text.dim), torch.zeros(1, dtype=torch.int64))


# ---- positions of objects ----------------------------------------------------------------------------------------------


def marched(places: Places, x: float, z: float, yaw: float) -> float:
    """Metres to the first solid voxel, by small steps."""
    solid, cell = places.distance == 0, places.config.cell
    for step in np.arange(0.05, 90, 0.05):
        i, j = (
            int((start + step * part) // cell) % solid.shape[0]
            for start, part in ((x, math.sin(yaw)), (z, math.cos(yaw)))
        )
        if solid[i, int(places.camera.eye_height // cell), j]:
            return float(step)
    return 90.0


@pytest.mark.parametrize("pose", [(0.5, 20.0, 0.1), (0.5, 20.0, 1.4), (20.0, 1.0, -1.2), (41.0, 3.0, 2.8)])
def test_objects_are_placed_where_the_view_is_freest(event_dit, pose):
    x, z, yaw = pose
    place, direction = torch.tensor([[x, z]], dtype=torch.float64), torch.tensor([yaw], dtype=torch.float64)
    found = event_dit.priors[0].events.begin(torch.tensor([0]), event_dit.priors[0].places, place, direction)[0]
    distance = event_dit.priors[0].events.config.kinds[0][1]
    best = max(
        (min(distance, marched(event_dit.priors[0].places, x, z, yaw + turn) - CLEARANCE) - DETOUR * abs(turn), turn)
        for turn in GLANCES
    )
    reach = max(NEAREST, best[0] + DETOUR * abs(best[1]))
    expected = (x + reach * math.sin(yaw + best[1]), z + reach * math.cos(yaw + best[1]), yaw)
    assert found.tolist() == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize(("yaw", "facing"), [(0.5, -math.pi / 2), (-0.5, math.pi / 2), (math.pi - 0.5, -math.pi / 2)])
def test_a_facade_faces_the_street(event_dit, yaw, facing):
    """From a street along z, house fronts look along x, towards the street."""
    place, direction = torch.tensor([[0.0, 20.0]], dtype=torch.float64), torch.tensor([yaw], dtype=torch.float64)
    x, z, heading = (
        event_dit.priors[0].events.begin(torch.tensor([1]), event_dit.priors[0].places, place, direction)[0].tolist()
    )
    assert heading == pytest.approx(facing)
    assert abs(abs(x) - 6.0) < 1.0  # fronts stand 6 m from the middle
    assert math.hypot(x, z - 20) > 5


@pytest.mark.parametrize(
    ("turns", "place", "expected"),
    [
        (0, (3.0, 7.0), (2.0, 7.0)),  # along z: across is x
        (2, (3.0, 7.0), (3.0, 7.0)),  # the other way no lane is stored
        (1, (3.0, 7.0), (3.0, 5.0)),  # along x: across is z
        (-3, (3.0, 7.0), (3.0, 5.0)),  # the same heading
        (0, (79.5, -40.0), (82.0, -40.0)),  # around the torus of 80 metres the nearest lane is beyond the edge
        (0, (901.0, 1.0), (900.0, 1.0)),  # a world may have walked far
    ],
)
def test_what_goes_along_streets_keeps_to_its_lane(event_config, turns, place, expected):
    events = Events(event_config)
    assert events.period == 80.0
    events.lanes[0, :2] = torch.tensor([2.0, 20.0])
    events.lanes[1, 0] = 5.0
    found = events.in_lane(torch.tensor([place], dtype=torch.float64), torch.tensor([turns * math.pi / 2]))
    assert found.tolist() == [pytest.approx(list(expected))]


# ---- what things look like --------------------------------------------------------------------------------------------


def spotted(dit: DiT, row: int, column: int) -> Events:
    """Events of which every sprite is three by three opaque texels."""
    events = copy.deepcopy(dit.priors[0].events)
    for tensor in (events.looks, events.mixtures, events.sides, *events.light.parameters(), events.path):
        tensor.zero_()
    events.mixtures[..., 0], events.extent[0] = 1, 5.0
    events.looks[:, 0, 3] = -30
    events.looks[:, 0, 3, row - 1 : row + 2, column - 1 : column + 2] = 30
    events.looks[:, 0, 0] = 0.7
    return events


POSITION = torch.tensor([[[3.0, 20.0]]], dtype=torch.float64)
YAW, PITCH = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)


def drawn(
    config: ModelConfig, events: Events, kind: int, object_pose: list[float], depth: float, centre: Tensor | None = None
):
    view = torch.zeros(1, config.dit.latent_channels, 1, *config.latent_size)
    far = torch.full((1, 1, *(2 * side for side in config.latent_size)), depth)
    trajectory = torch.tensor([object_pose], dtype=torch.float64)
    return events(torch.tensor([kind]), View(YAW, PITCH, POSITION), far, trajectory, torch.tensor([[3]]), view, centre)


@pytest.mark.parametrize(("row", "column"), [(24, 24), (10, 30), (30, 12)])
def test_an_object_is_seen_at_its_position(event_dit, event_config, row, column):
    """A texel's position in the world, through a pinhole camera."""
    events, (x, z, heading) = spotted(event_dit, row, column), (6.0, 30.0, 0.9)
    forward, right, up = 1.0, -0.5, 2.0
    colour, covered = drawn(event_config, events, 0, [x, z, heading], 90.0, torch.tensor([[[forward, right, up]]]))
    sin, cos = math.sin(heading), math.cos(heading)
    middle = np.array([x + forward * sin + right * cos, z + forward * cos - right * sin])
    direction = middle - POSITION[0, 0].numpy()
    # to the right of a camera that looks there
    sideways = np.array([direction[1], -direction[0]]) / np.linalg.norm(direction)
    texel = 2 * float(events.extent[0]) / TEXELS
    spot = middle + sideways * (column + 0.5 - TEXELS / 2) * texel
    height = up - (row + 0.5 - TEXELS / 2) * texel
    world = np.array([spot[0] - 3.0, event_config.camera.eye_height - height, spot[1] - 20.0])
    ray = rotation(0.3, 0.1).T @ world
    focal = event_config.camera.focal(event_config.width)
    expected = np.array([event_config.height / 2, event_config.width / 2]) + focal * ray[[1, 0]] / ray[2] - 0.5
    share = covered[0, 0, 0]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in share.shape), indexing="ij"), dim=-1)
    found = (grid * share[..., None]).sum(dim=(0, 1)) / share.sum()
    assert share.max() > 0.1 and found.tolist() == pytest.approx(expected.tolist(), abs=1.0)
    assert torch.equal(colour[0, 1:, 0], torch.zeros_like(colour[0, 1:, 0])) and colour.max() == pytest.approx(0.7)


def test_objects_are_occluded_by_what_is_nearer_and_only_objects_are_drawn(event_dit, event_config):
    events, object_pose = spotted(event_dit, 24, 24), [3 + 10 * math.sin(0.3), 20 + 10 * math.cos(0.3), 0.0]
    shares = [float(drawn(event_config, events, 0, object_pose, depth)[1].max()) for depth in (40.0, 6.0)]
    assert shares[0] > 0.1 and shares[1] < 1e-3
    for kind in (NOTHING, 2):
        assert not drawn(event_config, events, kind, object_pose, 40.0)[1].any()
    behind = [3 - 10 * math.sin(0.3), 20 - 10 * math.cos(0.3), 0.0]
    assert not drawn(event_config, events, 0, behind, 40.0)[1].any()
