"""Other memories: how their tokens and bytes grow with a world's age, at both sizes, and that they dream and learn."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from world_model.actions import Action
from world_model.baselines import BASELINES, baseline
from world_model.conditions import Target
from world_model.config import ModelConfig, Tiers, get_preset
from world_model.cost.costs import Block, count_block
from world_model.model import WorldModel
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
    tokens, kept, held = ([getattr(b, n) for b in blocks] for n in ("history_tokens", "kept_bytes", "history_bytes"))
    grid = config.token_grid
    frame = grid[1] * grid[2]
    packing = config.dit.packing
    share = GROWS.get(name, 0.0) if name != "spatial-only" or isinstance(packing, Tiers) else 0.1
    if share == 1.0:
        assert tokens == [age * frame for age in AGES]
    elif share:  # slower than frames come, but without end
        assert tokens[0] < tokens[1] < share * AGES[1] * frame
    else:
        assert tokens[0] == tokens[1] and kept[0] == kept[1] and held[0] == held[1]
    if share:
        assert kept[1] > 16 * kept[0] and held[0] < held[1]
    cached = config.dit.history_attention == "cached"
    width = 2 * config.dit.layers if cached else 1  # keys and values of every layer, or the embedded tokens
    assert held[1] >= tokens[1] * width * config.dit.dim * 2 * 0.99
    assert config.dit.channel is None


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
def test_every_baseline_dreams_and_learns(name, config, make_dit, make_vae, make_history):
    """Block after block, from a picture and from text; and all its parameters have a gradient."""
    small = baseline(replace(config, priors=(), dit=replace(config.dit, positions="grid")), name)
    dit = make_dit(small)
    model = WorldModel(small, dit, make_vae(small), build_conditioning(small))
    state = model.start([torch.zeros(32, 48, 3, dtype=torch.uint8).numpy(), None], ["", "a street"], [0, 1])
    ages = []
    for _ in range(3):
        state, frames = model.step(state, [Action.from_keys("W")] * 2)
        ages.append(state.worlds.history.frames)
        assert frames.std() > 0
    assert (ages[0] < ages[1] < ages[2]) == (not isinstance(small.dit.packing, Tiers))
    length = ages[-1] if isinstance(small.dit.packing, Tiers) else 9
    dit.requires_grad_(True)
    context, pooled = model.conditioning.context([Action()] * 2, [None] * 2)
    zero = torch.zeros(2, small.block_latents, dtype=torch.float64)
    target = Target(zero, zero, torch.arange(small.block_latents).expand(2, -1))
    conditions = dit.encode_conditions(make_history(small, 2, length, -length), None, context, target, pooled)
    x = torch.randn(2, 8, 2, *small.latent_size, generator=torch.Generator().manual_seed(0))
    dit(x, torch.tensor([0.5, 0.9]), conditions).square().mean().backward()
    assert [n for n, p in dit.named_parameters() if p.grad is None] == []


def test_an_unknown_baseline_is_named():
    with pytest.raises(ValueError, match="unknown baseline 'magic': known are spatial-only"):
        baseline(get_preset("street"), "magic")
