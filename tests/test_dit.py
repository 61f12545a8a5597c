"""The DiT against slow, explicit forms of what it claims to compute: attention over history, packing and the channel path."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from dit_inputs import KEPT, SIGMA, inputs_fixture, normal, prepared, varied  # noqa: F401  (fixtures, too)
from torch import Tensor

from world_model.config import ChannelConfig, Tiers
from world_model.dit import DiT
from world_model.layers import linear_read, modulate, rotary_table, rotate, sinusoid
from world_model.packing import append_tiers
from world_model.tscm import History, static_history

# ---- history through attention ----------------------------------------------------------------------------------------


def slow_forward(dit: DiT, x: Tensor, sigma: Tensor, given: dict, see_target: bool) -> Tensor:
    """The whole sequence through every layer at once; history sees the target only if `see_target` says so."""
    c = dit.config.dit
    history, coordinates, grids = dit.pack(given["history"], given["target"].frame[:, 0])
    batch, _, frames, rows, columns = x.shape
    target = dit.patch_embedding(x).flatten(2).transpose(1, 2)
    target = target + dit.screen.flatten(2).transpose(1, 2).repeat(1, frames, 1)
    guide, valid = given["guide"] * given["valid"], given["valid"]
    target = target + dit.prior_embeddings[0](torch.cat([guide, valid], dim=1)).flatten(2).transpose(1, 2)
    relative = given["target"].frame - given["target"].frame[:, :1]
    own = dit.positions.tokens(relative, given["target"].yaw, given["target"].pitch, (frames, rows, columns), 1, 0)
    table = rotary_table(torch.cat([coordinates, own], 1), dit.frequencies)
    n = history.shape[1]
    mask = torch.ones(n + target.shape[1], n + target.shape[1], dtype=torch.bool)
    mask[:n, n:] = see_target

    embedded = dit.time_embedding(sinusoid(1000 * torch.stack([0 * sigma, sigma], 1), c.embedding.freq_dim))
    embedded[:, 1] += dit.action_embedding(given["pooled"])
    of_token = torch.tensor([0] * n + [1] * target.shape[1])
    time = dit.time_projection(embedded).unflatten(-1, (6, -1))[:, of_token]
    text, tokens = dit.text_embedding(given["context"]), torch.cat([history, target], 1)
    memory_table = rotary_table(
        dit.positions.kernels(
            given["target"].frame.double(),
            given["target"].yaw,
            given["target"].pitch,
            (frames, rows, columns),
            (1, *c.patch[1:]),
        ),
        dit.channel_frequencies,
    )
    for i, block in enumerate(dit.blocks):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (block.modulation[:, None] + time).unbind(2)
        normed = modulate(tokens, shift, scale, c.layer.eps)
        key, value = block.self_attn.keys_values(normed)
        query, key = rotate(block.self_attn.queries(normed), table), rotate(key, table)
        weights = (query @ key.transpose(-1, -2) / c.head_dim**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        tokens = tokens + gate * block.self_attn.o((weights @ value).transpose(1, 2).reshape(batch, -1, c.dim))
        tokens = tokens + block.cross_attn.attend(
            block.cross_attn.queries(block.norm3(tokens)), block.cross_attn.keys_values(text)
        )
        past = given["memory"].total[i], given["memory"].norm[i]
        read = block.channel(tokens[:, n:], past, memory_table)
        tokens = torch.cat([tokens[:, :n], tokens[:, n:] + read], 1)
        tokens = tokens + gate_mlp * block.ffn(
            modulate(tokens, shift_mlp, scale_mlp, c.layer.eps), [*grids, (frames, rows, columns)]
        )
    normed = dit.head.normed(tokens[:, n:], embedded[:, 1:])
    out = dit.head.head(normed).view(batch, frames, rows, columns, -1).permute(0, 4, 1, 2, 3)
    # data ~ N(the warped frame where visible, deviation^2), seen through noise: precisions add up
    unseen, seen = dit.priors[0].deviation.square().view(2, 1, -1, 1, 1, 1)
    level = sigma.float().view(-1, 1, 1, 1, 1)
    variance = valid * seen + (1 - valid) * unseen
    precision = 1 / variance + ((1 - level) / level) ** 2
    mean = (guide / variance + (1 - level) / level**2 * x) / precision
    return mean + out / precision.sqrt()


@pytest.mark.parametrize(("attention", "see_target"), [("cached", False), ("joint", True)])
def test_a_forward_pass_equals_one_long_sequence(attention, see_target, config, make_dit, inputs):
    dit = make_dit(varied(config, attention=attention))
    x, given = inputs(dit)
    conditions = prepared(dit, **given)
    for sigma in (SIGMA, SIGMA / 3):  # one preparation serves every noise level
        expected = slow_forward(dit, x, sigma, given, see_target)
        torch.testing.assert_close(dit(x, sigma, conditions), expected, atol=2e-5, rtol=1e-4)
    assert (slow_forward(dit, x, SIGMA, given, not see_target) - dit(x, SIGMA, conditions)).abs().max() > 1e-3


def test_cached_and_joint_differ_only_where_history_looks_at_the_target(config, make_dit, inputs):
    """In one layer history has not yet seen the target, so that both forms agree; in two it has."""
    for layers in (1, 2):
        configs = [varied(config, layers=layers, attention=kind) for kind in ("cached", "joint")]
        cached, joint = make_dit(configs[0]), make_dit(configs[1])
        joint.load_state_dict(cached.state_dict())
        x, given = inputs(cached)
        difference = (
            (cached(x, SIGMA, prepared(cached, **given)) - joint(x, SIGMA, prepared(joint, **given))).abs().max()
        )
        assert (difference < 2e-5) == (layers == 1)


def test_history_noise_level_reaches_joint_history(config, make_dit, inputs):
    dit = make_dit(varied(config, attention="joint"))
    x, given = inputs(dit)
    conditions = prepared(dit, **given)
    assert not torch.allclose(dit(x, SIGMA, conditions), dit(x, SIGMA, conditions, history_sigma=0.1), atol=1e-3)


# ---- packing ----------------------------------------------------------------------------------------------------------


def test_coarse_kernels_start_as_the_fine_one_on_averaged_latents(config):
    dit = DiT(varied(config, packing=Tiers(recent=((1, 1), (2, 2)), initial=4, old=(2, 2))))
    latents = normal(1, 8, 3, 4, 8)
    for ratio in (2, 4):
        averaged = F.avg_pool3d(latents, (1, ratio, ratio))
        coarse = dit.get_submodule(f"patch_embedding_{ratio}x")
        torch.testing.assert_close(coarse(latents), dit.patch_embedding(averaged), atol=1e-5, rtol=1e-5)


def test_the_token_count_never_grows(config, make_dit, make_history):
    dit = make_dit(config)
    history = static_history(normal(1, 8, 2, 4, 6), KEPT, *2 * [torch.zeros(1)], torch.ones(1, dtype=torch.bool))
    seen = set()
    for step in range(40):
        block = make_history(config, 1, 2, first=2 * step)
        history = append_tiers(history, block, config.dit.history.packing, [torch.Generator().manual_seed(step)])
        tokens, coordinates, grids = dit.pack(history, torch.tensor([2 * step + 2]))
        seen.add((tokens.shape, coordinates.shape, tuple(grids)))
        assert coordinates[..., 0].max() == -1
    fine, coarse = 4 * 6, 2 * 3
    assert seen == {
        ((1, fine + 5 * coarse, 32), (1, fine + 5 * coarse, 3), ((1, 2, 3), (2, 2, 3), (2, 2, 3), (1, 4, 6)))
    }


def test_old_history_keeps_its_true_age_up_to_a_limit(config, make_dit, make_history):
    dit = make_dit(varied(config, max_age=9))
    history = make_history(config, 1, KEPT, first=0)
    _, coordinates, grids = dit.pack(history, torch.tensor([12]))
    ages = torch.cat([-coordinates[0, :, 0].unique_consecutive().flip(0)])
    assert ages.tolist() == [7, 8, 9]  # frames 5, 4, and 3 and older
    assert sum(f * h * w for f, h, w in grids) == coordinates.shape[1]


def test_absent_history_is_not_looked_at(config, make_dit, inputs):
    dit = make_dit(config)
    x, given = inputs(dit)
    outputs = []
    for seed in (0, 1):
        history = replace(given["history"], latents=normal(*given["history"].latents.shape, seed=seed))
        absent = replace(history, present=torch.zeros_like(history.present))
        outputs.append(
            dit(x, SIGMA, prepared(dit, **{**given, "history": absent, "memory": dit.encode_memory(absent)}))
        )
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], dit(x, SIGMA, prepared(dit, **given)), atol=1e-3)
    assert not dit.encode_memory(absent).norm.any()


# ---- the channel path -------------------------------------------------------------------------------------------------


def parts(history: History, sizes: list[int]) -> list[History]:
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    batch = history.frame.shape[0]
    return [history.select(torch.arange(a, b).repeat(batch, 1)) for a, b in pairwise(edges)]


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("positions", ["view_sphere", "grid"])
def test_carried_sums_equal_recomputed_ones(decay, positions, config, make_dit, make_history):
    dit = make_dit(
        varied(config, positions=positions, channel=ChannelConfig(dim=16, heads=2, patch=(2, 2, 2), decay=decay))
    )
    everything = make_history(config, 2, 14)
    memory, *blocks = (dit.encode_memory(part) for part in parts(everything, [2, 2, 4, 2, 4]))
    for block, kernels in zip(blocks, (1, 2, 1, 2)):
        memory = memory.add(block, decay**kernels)
    whole = dit.encode_memory(everything)
    torch.testing.assert_close(memory.total, whole.total, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(memory.norm, whole.norm, atol=1e-4, rtol=1e-4)
    assert whole.total.abs().mean() > 1e-2


def test_channel_attention_equals_its_quadratic_form_over_all_history(config, make_dit, make_history):
    """Sums of ten frames and the target's own tokens, against weights computed pair by pair."""
    dit = make_dit(config)
    channel, decay, everything = dit.blocks[0].channel, config.dit.history.channel.decay, make_history(config, 2, 10)
    memory = dit.encode_memory(everything)
    x, heads = normal(2, 24, config.dit.dim), config.dit.history.channel.heads
    angle = normal(2, 1, seed=1).double()
    table = rotary_table(
        dit.positions.kernels(torch.full((2, 1), 10.0), angle, angle, (1, 4, 6), (1, 1, 1)), dit.channel_frequencies
    )

    z = dit.channel_embedding(everything.latents)
    last = slice(1, None, 2)
    frame, yaw, pitch = (v[:, last] for v in (everything.frame.double(), everything.yaw, everything.pitch))
    at = dit.positions.kernels(frame, yaw, pitch, z.shape[2:], (2, 2, 2))
    weight = decay ** torch.arange(4, -1, -1.0).repeat_interleave(2 * 3)
    past_key, past_value = channel.keys_values(z.flatten(2).transpose(1, 2))
    down = channel.down(x)
    key, value = channel.keys_values(down)
    query = channel.norm_q(channel.q(down)).relu().unflatten(-1, (heads, -1)).transpose(1, 2)
    plain = torch.cat([past_key * weight[:, None], key], 2)
    rotated = torch.cat(
        [rotate(past_key, rotary_table(at, dit.channel_frequencies)) * weight[:, None], rotate(key, table)], 2
    )
    values = torch.cat([past_value, value], 2)
    read = (
        (rotate(query, table) @ rotated.transpose(-1, -2))
        @ values
        / ((query @ plain.transpose(-1, -2)).sum(-1, keepdim=True) + 1e-6)
    )
    expected = channel.up(channel.norm_out(read.transpose(1, 2).flatten(2)))
    result = channel(x, (memory.total[0], memory.norm[0]), table)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-3)
    alone = linear_read(query, (torch.zeros_like(memory.total[0]), torch.zeros_like(memory.norm[0])), table)
    assert not torch.allclose(result, channel.up(channel.norm_out(alone.transpose(1, 2).flatten(2))), atol=1e-2)


def test_a_part_of_a_kernel_is_padded_in_front(config, make_dit, make_history):
    dit = make_dit(config)
    odd = make_history(config, 1, 3)
    whole = History(F.pad(odd.latents, (0, 0, 0, 0, 1, 0)), *(F.pad(v, (1, 0), value=True) for v in odd._rows))
    for total, expected in zip(*((m.total, m.norm) for m in (dit.encode_memory(odd), dit.encode_memory(whole)))):
        torch.testing.assert_close(total, expected)


def test_no_memory_reads_the_target_alone(config, make_dit, inputs):
    dit = make_dit(config)
    x, given = inputs(dit)
    empty = replace(given["memory"], total=0 * given["memory"].total, norm=0 * given["memory"].norm)
    without = dit(x, SIGMA, prepared(dit, **{**given, "memory": None}))
    assert torch.equal(without, dit(x, SIGMA, prepared(dit, **{**given, "memory": empty})))
    assert not torch.allclose(without, dit(x, SIGMA, prepared(dit, **given)), atol=1e-3)
