"""Other memories: how their tokens and bytes grow with a world's age, at both sizes, and that they dream and learn."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from configs import with_dit
from test_plan import SMALL

from world_model.actions import Action
from world_model.baselines import BASELINES, baseline
from world_model.camera import CameraConfig
from world_model.conditions import Target
from world_model.config import ModelConfig, Retrieval, Tiers
from world_model.cost.costs import Block, count_block
from world_model.cost.plan import make_plan, report
from world_model.model import WorldModel
from world_model.packing import build_packing
from world_model.presets import get_preset
from world_model.retrieval import View, seen, view_points
from world_model.text import build_conditioning

AGES = (24, 600)  # history latents
SIZES = {name: "yume-5b" for name in BASELINES} | {"sliding-window": "street"}  # the other sizes count alike
GROWS = {"full-history": 1.0, "full-cache": 1.0, "framepack": 0.1}  # tokens of a new frame, as a share of a frame's


def sized(name: str) -> ModelConfig:
    """The street without its hand-made priors; yume-5b at the size of the paper, of which all that grows is a block's."""
    config = replace(get_preset(name), priors=())
    return config if name == "street" else config.resized((544, 960))


@functools.cache
def counted(name: str, age: int) -> Block:
    return count_block(baseline(sized(SIZES[name]), name), age)


@pytest.mark.parametrize("name", BASELINES)
def test_tokens_and_memory_grow_or_stay_as_they_should(name):
    config = baseline(sized(SIZES[name]), name)
    blocks = [counted(name, age) for age in AGES]
    tokens, kept, held = map(list, zip(*((b.history_tokens, b.held.kept, b.held.history) for b in blocks)))
    grid = config.token_grid
    frame = grid[1] * grid[2]
    packing = config.dit.history.packing
    share = GROWS.get(name, 0.0) if name != "spatial-only" or isinstance(packing, Tiers) else 0.1
    if share == 1.0:
        assert tokens == [age * frame for age in AGES]
    elif share:  # slower than frames come, but without end
        assert tokens[0] < tokens[1] < share * AGES[1] * frame
    else:
        assert tokens[0] == tokens[1] and held[0] == held[1]
        assert (kept[0] == kept[1]) == (name != "retrieval")
    if share or name == "retrieval":  # what is retrieved from is held
        assert kept[1] > 16 * kept[0]
    if share:
        assert held[0] < held[1]
    if name == "retrieval":  # about the tokens of the window whose place it takes
        window = count_block(baseline(sized(SIZES[name]), "sliding-window"), AGES[1])
        assert abs(tokens[1] - window.history_tokens) <= frame
    cached = config.dit.history.attention == "cached"
    width = 2 * config.dit.layers if cached else 1  # keys and values of every layer, or the embedded tokens
    assert held[1] >= tokens[1] * width * config.dit.dim * 2 * 0.99
    assert config.dit.history.channel is None


def test_a_window_has_about_the_tokens_of_what_it_stands_for():
    """About: whole frames."""
    street = sized(SIZES["sliding-window"])
    ours, window = count_block(street, AGES[0]).history_tokens, counted("sliding-window", AGES[0]).history_tokens
    frame = street.token_grid[1] * street.token_grid[2]
    assert abs(ours - window) <= frame


def test_a_cached_history_is_paid_once_a_block_and_a_joint_one_at_every_step():
    joint, cached = (counted(name, AGES[1]) for name in ("full-history", "full-cache"))
    assert cached.step.flops < joint.step.flops / 4 and cached.conditions.flops > 10 * joint.conditions.flops


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_generates_and_learns(name, config, make_dit, make_vae, make_history):
    """Block after block, from a picture and from text; and all its parameters have a gradient."""
    small = baseline(with_dit(replace(config, priors=()), positions="grid"), name)
    dit = make_dit(small)
    model = WorldModel(small, dit, make_vae(small), build_conditioning(small))
    state = model.start([torch.zeros(32, 48, 3, dtype=torch.uint8).numpy(), None], ["", "a street"], [0, 1])
    ages = []
    for _ in range(3):
        state, frames = model.step(state, [Action.from_keys("W")] * 2)
        ages.append(state.worlds.history.frames)
        assert frames.std() > 0
    assert (ages[0] < ages[1] < ages[2]) == (not isinstance(small.dit.history.packing, Tiers))
    length = ages[-1] if isinstance(small.dit.history.packing, Tiers) else 9
    dit.requires_grad_(True)
    context, pooled = model.conditioning.context([Action()] * 2, [None] * 2)
    zero = torch.zeros(2, small.block_latents, dtype=torch.float64)
    target = Target(zero, zero, torch.arange(small.block_latents).expand(2, -1))
    conditions = dit.encode_conditions(make_history(small, 2, length, -length), None, context, target, pooled)
    x = torch.randn(2, 8, 2, *small.latent_size, generator=torch.Generator().manual_seed(0))
    dit(x, torch.tensor([0.5, 0.9]), conditions).square().mean().backward()
    assert [n for n, p in dit.named_parameters() if p.grad is None] == []


def test_the_view_to_come_is_retrieved_from_where_it_was_seen_before(config, make_history):
    """A walk ahead, a turn by 180 degrees: of the old frames that one is read which looked back from there."""
    packing = build_packing(config.with_history(packing=Retrieval(recent=2, retrieved=2)))
    yaw = torch.tensor([[0.0, 0.0, math.pi, math.pi, *[0.0] * 8]], dtype=torch.float64)  # looked back in frames 2 and 3
    position = torch.stack([torch.zeros_like(yaw), torch.arange(12.0, dtype=torch.float64)[None]], dim=2)
    history = replace(make_history(config, 1, 12), yaw=yaw, pitch=0 * yaw, position=position)

    def read(yaw: float, place: float) -> list[int]:
        view = View(
            *(torch.tensor([[value]], dtype=torch.float64) for value in (yaw, 0.0)),
            torch.tensor([[[0.0, place]]]).double(),
        )
        return packing.read(history, lambda: view).frame[0].tolist()

    assert read(math.pi, 3.0) == [0, 3, 9, 10, 11]  # frame 2 shows nothing that 3 does not: the newest besides
    assert read(math.pi, 50.0) == [0, 8, 9, 10, 11]  # far from there nothing shows it: the newest
    assert {2, 3}.isdisjoint(read(0.0, 12.0))
    assert packing.read(history.select(torch.arange(5)[None]), lambda: None).frames == 5  # few enough: all


def test_a_point_is_seen_where_it_is_in_the_picture():
    """A view sees all of its own points, and none of them after a turn by 180 degrees, whatever the tilt and the place."""
    turn = torch.tensor([[0.7, 0.7 + math.pi, 0.7 + math.radians(50)]], dtype=torch.float64)
    views = View(turn, torch.tensor([[0.2, 0.2, 0.2]]).double(), torch.tensor([[[3.0, -1.0]] * 3]).double())
    own = View(*(part[:, :1] for part in (views.yaw, views.pitch, views.position)))
    camera = CameraConfig()
    shares = seen(view_points(own, camera, 0.6), views, camera, 0.6).double().mean(dim=2)[0].tolist()
    assert shares[0] == 1 and shares[1] == 0 and 0.2 < shares[2] < 0.6


def test_a_retrieving_world_keeps_where_it_was_in_its_states(config, make_dit, make_vae):
    small = baseline(with_dit(replace(config, priors=()), positions="grid"), "retrieval")
    model = WorldModel(small, make_dit(small), make_vae(small), build_conditioning(small))
    state = model.start([torch.zeros(32, 48, 3, dtype=torch.uint8).numpy()], [""], [0])
    for keys in ("W", "W", "D"):
        state, _ = model.step(state, [Action.from_keys(keys)])
    place = state.worlds.history.position
    assert place is not None and place.shape[1] == state.worlds.history.frames
    metres = small.camera.walk_speed * small.frames_per_block / small.fps
    assert torch.allclose(place[0, -1], torch.tensor([metres, 2 * metres], dtype=torch.float64))
    assert ModelConfig.from_json(small.to_json()) == small


def test_an_unknown_baseline_is_named_and_known_ones_are_rows_of_the_plan():
    with pytest.raises(ValueError, match="unknown baseline 'magic': known are spatial-only"):
        baseline(get_preset("street"), "magic")
    text = report(make_plan(SMALL, [24], baselines=["full-history"]), 0.4)
    rows = [line.split(" | ")[:2] for line in text.splitlines()]
    assert rows.count(["| 24", "full-history"]) == 2  # in the table of costs, and in that of speeds
