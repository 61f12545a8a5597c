"""Event objects: how texts are classified, where objects are placed, and what of the view they cover."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from scenes import predicted, standing, state_of, with_state
from torch import Tensor
from towns import streets

from train.street.voxels import distance_field
from world_model.actions import Action
from world_model.camera import rotation
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.priors.config import scene_of
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
from world_model.priors.scene import LEAST
from world_model.priors.warp import REMEMBERED, USELESS
from world_model.retrieval import View
from world_model.rollout import (
    Sampling,
    append_and_decode,
    constrained_motion,
    dream_block,
    encode_conditions,
    generator,
)
from world_model.text import build_text_encoder, scaled
from world_model.worlds import WorldBatch, collate_worlds, empty_worlds, split_worlds, start_worlds
from yume_gym.street.events import EVENTS

UFO, FIRE, SNOW = (EVENTS[name].phrases[0] for name in ("ufo", "fire", "snow"))
STILL = Action()


@pytest.fixture(scope="module")
def event_dit(event_config, make_dit) -> DiT:
    """Random weights in a town of streets. A text is taken for the kind whose first phrasing is most like it."""
    dit = make_dit(event_config).requires_grad_(False)
    solid, walkable = streets(event_config)
    dit.priors[0].places.stand(distance_field(solid, scene_of(event_config).places))
    dit.priors[0].places.walkable.copy_(walkable)
    encoder, length = build_text_encoder(event_config.text), event_config.text.event_tokens
    dit.priors[0].events.extent.copy_(torch.tensor([8.0, 5.0, 8.0]))
    dit.priors[0].events.kind.weight.zero_()
    dit.priors[0].events.kind.bias.zero_()
    for number, (name, *_) in enumerate(scene_of(event_config).events.kinds):
        words = encoder.encode(EVENTS[name].phrases[0], length)
        dit.priors[0].events.wording[number] = words
        dit.priors[0].events.kind.weight[number] = scaled(words[(words != 0).any(dim=1)].mean(dim=0))
    dit.priors[0].events.kind.bias[-1] = 12.0
    dit.priors[0].events.looks[:, 0, 3] = 1.0
    return dit


def words(config: ModelConfig, *texts: str) -> Tensor:
    encoder = build_text_encoder(config.text)
    return torch.stack([encoder.encode(text, config.text.event_tokens) for text in texts])


# ---- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_classified_and_replaced_by_their_kinds_wording(event_dit, event_config):
    prompts = words(event_config, FIRE, "nothing of the sort", "", SNOW, UFO)
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


STAND = torch.tensor([[[3.0, 20.0]]], dtype=torch.float64)
YAW, PITCH = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)


def drawn(
    config: ModelConfig, events: Events, kind: int, course: list[float], away: float, centre: Tensor | None = None
):
    view = torch.zeros(1, config.dit.latent_channels, 1, *config.latent_size)
    far = torch.full((1, 1, *(2 * side for side in config.latent_size)), away)
    place = torch.tensor([course], dtype=torch.float64)
    return events(torch.tensor([kind]), View(YAW, PITCH, STAND), far, place, torch.tensor([[3]]), view, centre)


@pytest.mark.parametrize(("row", "column"), [(24, 24), (10, 30), (30, 12)])
def test_an_object_is_seen_at_its_position(event_dit, event_config, row, column):
    """A texel's position in the world, through a pinhole camera."""
    events, (x, z, heading) = spotted(event_dit, row, column), (6.0, 30.0, 0.9)
    forward, right, up = 1.0, -0.5, 2.0
    colour, covered = drawn(event_config, events, 0, [x, z, heading], 90.0, torch.tensor([[[forward, right, up]]]))
    sin, cos = math.sin(heading), math.cos(heading)
    middle = np.array([x + forward * sin + right * cos, z + forward * cos - right * sin])
    sight = middle - STAND[0, 0].numpy()
    beside = np.array([sight[1], -sight[0]]) / np.linalg.norm(sight)  # to the right of a camera that looks there
    texel = 2 * float(events.extent[0]) / TEXELS
    spot = middle + beside * (column + 0.5 - TEXELS / 2) * texel
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
    events, course = spotted(event_dit, 24, 24), [3 + 10 * math.sin(0.3), 20 + 10 * math.cos(0.3), 0.0]
    shares = [float(drawn(event_config, events, 0, course, away)[1].max()) for away in (40.0, 6.0)]
    assert shares[0] > 0.1 and shares[1] < 1e-3
    for kind in (NOTHING, 2):
        assert not drawn(event_config, events, kind, course, 40.0)[1].any()
    behind = [3 - 10 * math.sin(0.3), 20 - 10 * math.cos(0.3), 0.0]
    assert not drawn(event_config, events, 0, behind, 40.0)[1].any()


# ---- in a dream -------------------------------------------------------------------------------------------------------


def worlds_of(dit: DiT, vae, pictures: list[np.ndarray], count: int) -> WorldBatch:
    seen = torch.from_numpy(np.stack(pictures[:count])).permute(0, 3, 1, 2).float() / 127.5 - 1
    place = torch.tensor([[0.5, 20.0]] * count, dtype=torch.float64)
    yaw = torch.full((count,), 0.2, dtype=torch.float64)
    return start_worlds(dit, vae, seen, torch.ones(count, dtype=torch.bool), standing(yaw, place))


def context_of(config: ModelConfig, *texts: str) -> tuple[Tensor, Tensor]:
    event = words(config, *texts)
    table = torch.randn(len(texts), config.text.action_tokens, config.text.dim, generator=generator("action"))
    return torch.cat([event, table], dim=1), table.mean(dim=1)


def stepped(dit: DiT, vae, worlds: WorldBatch, config: ModelConfig, *texts: str):
    motion = constrained_motion(dit, worlds, [STILL] * len(texts))
    ready, block = encode_conditions(dit, vae, worlds, motion, *context_of(config, *texts))
    return motion, ready, block


def test_a_first_text_describes_the_scene_and_is_no_event(event_dit, event_config, make_vae, pictures, monkeypatch):
    """Words of snow bring snow to a running world; as its first text they are embedded as they are."""
    vae, kinds = make_vae(event_config), []
    embedded = event_dit.priors[0].events.heard
    monkeypatch.setattr(
        event_dit.priors[0].events,
        "heard",
        lambda prompts, kind: kinds.append(kind.tolist()) or embedded(prompts, kind),
    )
    stepped(event_dit, vae, worlds_of(event_dit, vae, pictures, 2), event_config, SNOW, UFO)
    _, _, block = stepped(event_dit, vae, empty_worlds(event_dit, vae, 2, torch.device("cpu")), event_config, SNOW, UFO)
    assert kinds == [[2, 0]] * 2 + [[NOTHING, NOTHING]] * 2 and predicted(block).covered is None


def test_event_objects_are_drawn_over_the_prior_mean_with_confidence(event_dit, event_config, make_vae, pictures):
    vae = make_vae(event_config)
    worlds = worlds_of(event_dit, vae, pictures, 2)
    plain = copy.deepcopy(event_dit)
    plain.priors[0].events = None
    _, ready, block = stepped(event_dit, vae, worlds, event_config, UFO, "nothing of the sort")
    _, bare, without = stepped(plain, vae, worlds, event_config, UFO, "nothing of the sort")
    assert torch.equal(ready.mean[1], bare.mean[1]) and torch.equal(ready.variance[1], bare.variance[1])
    places, events, kind = event_dit.priors[0].places, event_dit.priors[0].events, torch.tensor([0, NOTHING])
    begun = events.begin(kind, places, state_of(worlds).place, worlds.yaw)
    assert (
        torch.equal(predicted(block).course[0, :3], begun[0])
        and not predicted(block).course[1, :4].any()
        and predicted(block).course[:, 4].tolist() == [0, 1]
    )
    frames = event_config.block_latents
    ages = torch.arange(frames)[None]
    position = state_of(worlds).place[:, None].expand(-1, frames, -1)
    yaw = worlds.yaw[:, None].expand(-1, frames)
    rays = places.rays(position, yaw, 0 * yaw)
    latents = worlds.history.latents
    look = places.looks(
        latents[:, :, 0], latents[:, :, -1], worlds.history.has_past, words(event_config, UFO, "nothing of the sort")
    )
    known = places.painted(rays, look)
    away = places.clear_sight(position, yaw, 0 * yaw)
    things, covered = events(
        kind, View(yaw, 0 * yaw, position), away, predicted(block).course[:, :3], ages.expand(2, -1), known
    )
    stride = event_config.vae.temporal_stride
    share, thing = (part.repeat_interleave(stride, dim=2) for part in (covered, things))

    def over(view: Tensor) -> Tensor:
        return ((1 - share) * vae.decode(view)[0] + share * thing).clamp(-1, 1)

    seen = over(predicted(without).guide.latents)
    latents = vae.encode(seen)
    expected = torch.lerp(vae.encode(over(known)), latents, predicted(block).guide.valid)
    coverage = covered.unflatten(3, (-1, 8)).unflatten(5, (-1, 8)).mean(dim=(4, 6))
    torch.testing.assert_close(ready.variance[0], (bare.variance * (1 - coverage) + LEAST * coverage)[0])
    torch.testing.assert_close(ready.mean[0], expected[0], atol=1e-5, rtol=1e-4)
    assert 0.05 < covered[0].mean() < 0.95 and torch.equal(predicted(block).covered, covered[:, :, -1])
    # the residual that latents lose of an object is added where the block shows it as it was drawn
    detail = (1 - share) * predicted(without).guide.detail + share * (seen - vae.decode(latents)[0])
    torch.testing.assert_close(predicted(block).guide.detail[0], detail[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predicted(block).guide.detail[1], predicted(without).guide.detail[1])


def test_what_moves_by_itself_is_not_looked_up_where_it_was(event_dit, event_config, make_vae, pictures):
    vae = make_vae(event_config)
    worlds = worlds_of(event_dit, vae, pictures, 2)
    _, _, block = stepped(event_dit, vae, worlds, event_config, UFO, "")
    covered = torch.zeros_like(predicted(block).covered)
    covered[0, 0, 8:16, 16:24] = 0.9
    noise = torch.zeros(2, event_config.dit.latent_channels, event_config.block_latents, *event_config.latent_size)
    streams = [generator("draw", i) for i in range(2)]
    hidden = dataclasses.replace(block.predictions[0], auxiliary=dataclasses.replace(predicted(block), covered=covered))
    after, _ = append_and_decode(event_dit, vae, dataclasses.replace(block, predictions=(hidden,)), noise, streams)
    useless, margin = state_of(after).doubt[:, 0] >= USELESS, (slice(4, 20), slice(12, 28))
    assert useless[0][margin].all() and useless.sum() == 16 * 16
    _, _, later = stepped(event_dit, vae, after, event_config, UFO, "")
    assert predicted(later).guide.valid[0, 0, 0, 1, 2] <= REMEMBERED < predicted(later).guide.valid[1].min()
    album = append_and_decode(event_dit, vae, later, noise, streams)[0].priors[0].album
    kept = [torch.equal(album.pictures[i], state_of(after).album.pictures[i]) for i in range(2)]
    assert kept == [True, False]  # the picture that shows the object is not added


def test_an_event_keeps_its_position_until_another_begins(event_dit, event_config, make_vae, pictures):
    vae, walk = make_vae(event_config), Action.from_keys("W", "→")
    worlds, courses = worlds_of(event_dit, vae, pictures, 1), []
    sigmas = torch.tensor([1.0, 0.0])
    for number, text in enumerate(["", UFO, UFO, "nothing of the sort", FIRE]):
        noise = torch.zeros(1, event_config.dit.latent_channels, event_config.block_latents, *event_config.latent_size)
        context, pooled = context_of(event_config, text)
        worlds, *_ = dream_block(
            event_dit, vae, worlds, [walk], context, pooled, Sampling(noise, sigmas), [generator("old", number)]
        )
        courses.append(state_of(worlds).course[0])
    assert not courses[0].any() and courses[1][3] == event_config.block_latents
    assert torch.equal(courses[1], courses[2]) and torch.equal(courses[2][:4], courses[3][:4])
    assert courses[4][3] == 4 * event_config.block_latents and not torch.equal(courses[4][:3], courses[1][:3])
    pair = collate_worlds([worlds, with_state(worlds, course=2 * state_of(worlds).course)])
    for world, times in zip(split_worlds(pair), (1, 2)):
        assert torch.equal(state_of(world).course, times * state_of(worlds).course)


def test_only_texts_that_may_change_the_light_lower_the_confidence(event_dit, event_config, make_vae, pictures):
    """An object that comes or goes leaves all else as it was; an unknown text may change anything."""
    vae, other = make_vae(event_config), "nothing of the sort"
    noise = torch.zeros(1, event_config.dit.latent_channels, event_config.block_latents, *event_config.latent_size)
    expected = {("", UFO): False, (UFO, FIRE): False, (UFO, ""): False, (UFO, SNOW): True, (SNOW, ""): True, (SNOW, UFO): True,
                ("", other): True, (other, ""): True, (UFO, UFO): False, (SNOW, SNOW): False}  # fmt: skip
    for (before, after), changed in expected.items():
        worlds = worlds_of(event_dit, vae, pictures, 1)
        _, _, block = stepped(event_dit, vae, worlds, event_config, before)
        worlds, _ = append_and_decode(event_dit, vae, block, noise, [generator("draw")])
        assert predicted(stepped(event_dit, vae, worlds, event_config, after)[2]).changed.tolist() == [changed], (
            before,
            after,
        )
