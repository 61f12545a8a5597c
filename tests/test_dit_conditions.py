"""The DiT's conditions and its training: every input matters, and every parameter learns."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from dit_inputs import SIGMA, inputs_fixture, normal, prepared, varied  # noqa: F401  (fixtures, too)
from torch import Tensor

from train.engine.deepen import deepened
from world_model.conditions import Target
from world_model.dit import DiT
from world_model.tscm import ChannelMemory

NAMES = ("history", "memory", "context", "target", "pooled", "guide", "valid")


def repeated(given: dict, times: int) -> dict:
    """Every input `times` times, worlds in a row."""

    def again(value):
        if value is None:
            return None
        if isinstance(value, Target):
            return replace(value, **{field.name: again(getattr(value, field.name)) for field in fields(value)})
        return value.repeat(times) if not isinstance(value, Tensor) else value.repeat_interleave(times, 0)

    return {name: again(value) for name, value in given.items()}


# ---- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_condition_matters(name, config, make_dit, inputs):
    dit = make_dit(config)
    x, given = inputs(dit)
    other = {
        "history": lambda: replace(given["history"], latents=given["history"].latents.flip(0)),
        "memory": lambda: replace(given["memory"], total=given["memory"].total.flip(1)),
        "target": lambda: replace(given["target"], yaw=given["target"].yaw + 0.5),
    }.get(name, lambda: given[name].flip(0))()
    changed = dit(x, SIGMA, prepared(dit, **{**given, name: other}))
    assert not torch.allclose(changed, dit(x, SIGMA, prepared(dit, **given)), atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "joint"},
        {"priors": ()},
        {"priors": (), "screen": False, "pooled_action": False},
    ],
    ids=["cached", "joint", "no priors", "bare"],
)
def test_repeating_conditions_equals_repeating_inputs(changes, config, make_dit, inputs):
    dit = make_dit(varied(config, **changes))
    _, given = inputs(dit)
    x, sigma = normal(6, 8, 2, 4, 6, seed=9), torch.rand(6, generator=torch.Generator().manual_seed(1)).double()
    expected = dit(x, sigma, prepared(dit, **repeated(given, 3)))
    torch.testing.assert_close(dit(x, sigma, prepared(dit, **given).repeat(3)), expected, atol=1e-5, rtol=1e-5)
    shuffled = prepared(dit, **{**given, "context": given["context"].flip(0)}).repeat(3)
    assert not torch.allclose(dit(x, sigma, shuffled), expected, atol=1e-3)


def test_the_mean_token_of_the_text_joins_the_timestep(config, make_dit, inputs):
    """The padding of a text and the tokens of the action do not count; a text of padding alone says nothing but the bias."""
    dit = make_dit(varied(config, pooled_text=True))
    _, given = inputs(dit)
    words = config.text.event_tokens
    given["context"][0, 3:words] = 0  # a text of three tokens
    given["context"][1, :words] = 0
    bare = make_dit(varied(config))
    bare.load_state_dict({name: value for name, value in dit.state_dict().items() if "pooled_text" not in name})
    added = prepared(dit, **given).pooled - prepared(bare, **given).pooled
    expected = torch.stack([dit.pooled_text(given["context"][0, :3].mean(dim=0)), dit.pooled_text.bias])
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_worlds_of_a_batch_do_not_mix(attention, config, make_dit, inputs):
    dit = make_dit(varied(config, attention=attention))
    x, given = inputs(dit)
    both = dit(x, SIGMA, prepared(dit, **given))
    alone = dit(x[1:], SIGMA[1:], prepared(dit, **only(given, 1)))
    torch.testing.assert_close(alone, both[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(alone, both[:1], atol=1e-2)


def only(given: dict, world: int) -> dict:
    """The inputs of one world out of a batch."""
    pick = slice(world, world + 1)

    def one(value):
        if isinstance(value, Tensor):
            return value[pick]
        if value is None:
            return None
        if isinstance(value, ChannelMemory):
            return ChannelMemory(value.total[:, pick], value.norm[:, pick])
        return replace(value, **{field.name: one(getattr(value, field.name)) for field in fields(value)})

    return {name: one(value) for name, value in given.items()}


def test_a_level_for_the_block_a_frame_or_a_token(config, make_dit, inputs):
    dit = make_dit(config)
    x, given = inputs(dit)
    conditions = prepared(dit, **given)
    frames = torch.tensor([[0.2, 0.9], [0.5, 0.5]], dtype=torch.float64)
    tokens = frames.repeat_interleave(4 * 6, dim=1)
    torch.testing.assert_close(dit(x, frames, conditions), dit(x, tokens, conditions), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(dit(x, frames, conditions)[1], dit(x, frames[:, 1], conditions)[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(dit(x, frames, conditions)[0], dit(x, frames[:, 1], conditions)[0], atol=1e-3)


def test_predictions_of_all_priors_are_asked_for(config, make_dit, inputs):
    dit = make_dit(config)
    _, given = inputs(dit)
    with pytest.raises(ValueError, match="1 priors needs as many predictions, got 0"):
        prepared(dit, **{**given, "guide": None})


# ---- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_every_parameter_has_a_gradient_and_checkpointing_keeps_it(attention, config, make_dit, inputs):
    dit = make_dit(varied(config, attention=attention))
    gradients = []
    for checkpointing in (False, True):
        dit.activation_checkpointing = checkpointing
        dit.zero_grad()
        x, given = inputs(dit)
        absent = given["history"].present.clone()
        absent[:, 1] = False  # the learned token of an absent frame is used too
        given["history"] = replace(given["history"], present=absent)
        dit(x, SIGMA, prepared(dit, **given)).square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in dit.named_parameters() if p.grad is not None and p.grad.any()}
        )
    learnt = {name for name, p in dit.named_parameters() if p.requires_grad}
    assert gradients[0].keys() == learnt
    assert {name for name, _ in dit.named_parameters()} - learnt == {
        f"priors.0.depth.{n}" for n, _ in dit.priors[0].depth.named_parameters()
    }
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_network_can_be_planned_without_memory(config):
    with torch.device("meta"):
        dit = DiT(config)
    assert all(parameter.is_meta for parameter in dit.parameters())
    assert not any(frequency.is_meta for frequency in dit.frequencies)


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_a_network_with_added_layers_computes_the_same_and_learns_in_every_layer(layers, config, make_dit, inputs):
    dit, deeper = make_dit(config), make_dit(varied(config, layers=layers))
    deeper.load_state_dict(deepened(dit.state_dict(), layers))
    x, given = inputs(dit)
    expected = dit(x, SIGMA, prepared(dit, **given))
    found = deeper(x, SIGMA, prepared(deeper, **{**given, "memory": deeper.encode_memory(given["history"])}))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found.square().mean().backward()
    assert all(block.self_attn.o.weight.grad.abs().max() > 0 for block in deeper.layers)


def test_a_network_is_not_made_shallower(config, make_dit):
    with pytest.raises(ValueError, match="weights of 2 layers cannot go on as 1"):
        deepened(make_dit(config).state_dict(), 1)
