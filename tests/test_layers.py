"""Building blocks against slow, plain forms of the same arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from world_model import layers
from world_model.camera import CameraConfig, rotation

TURN = 2 * math.pi
CAMERA = CameraConfig()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_table(batch: int, length: int, head_dim: int, positions: str, seed: int = 0) -> Tensor:
    coordinates = normal(batch, length, 3, seed=seed).double() * 3
    return layers.rotary_table(coordinates, layers.axis_frequencies(head_dim, positions))


# ---- norms and embeddings ---------------------------------------------------------------------------------------------


def test_rms_norm_spans_the_full_width():
    norm, x = layers.RMSNorm(12, 1e-6), 3 * normal(2, 5, 12)
    with torch.no_grad():
        norm.weight.copy_(normal(12, seed=1))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_modulate_is_layer_norm_then_scale_and_shift():
    x, shift, scale = 4 + normal(2, 5, 12), normal(2, 5, 12, seed=1), normal(2, 1, 12, seed=2)
    expected = nn.LayerNorm(12, eps=1e-6, elementwise_affine=False)(x) * (1 + scale) + shift
    torch.testing.assert_close(layers.modulate(x, shift, scale, 1e-6), expected)


def test_sinusoid_is_cosines_then_sines():
    steps = torch.tensor([[0.0, 954.5454545454546, 1000.0]], dtype=torch.float64)
    expected = [
        [f(t * 10000 ** (-i / 4)) for f in (math.cos, math.sin) for i in range(4)] for t in steps.flatten().tolist()
    ]
    result = layers.sinusoid(steps, 8)
    assert result.shape == (1, 3, 8)
    np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-7)


# ---- rotary positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head_dim", "split"), [(32, (6, 5, 5)), (128, (22, 21, 21)), (48, (8, 8, 8)), (8, (2, 1, 1))])
@pytest.mark.parametrize("positions", ["grid", "view_sphere"])
def test_axes_share_the_head(head_dim, split, positions):
    frequencies = layers.axis_frequencies(head_dim, positions)
    assert tuple(len(f) for f in frequencies) == split
    assert all(f.dtype == torch.float64 for f in frequencies)


def test_grid_frequencies_are_base_ten_thousand():
    expected = [[10000 ** (-2 * i / n) for i in range(n // 2)] for n in (12, 10, 10)]
    for ours, right in zip(layers.axis_frequencies(32, "grid"), expected):
        np.testing.assert_allclose(ours.numpy(), right, rtol=1e-14)


def test_frequencies_are_numbers_also_on_the_meta_device():
    with torch.device("meta"):
        frequencies = layers.axis_frequencies(32, "grid")
    assert all(f.device.type == "cpu" for f in frequencies)


def test_rotate_multiplies_pairs_by_a_complex_phase():
    frequencies = layers.axis_frequencies(16, "grid")
    x, coordinates = (
        normal(2, 3, 5, 16),
        torch.randint(0, 20, (2, 5, 3), generator=torch.Generator().manual_seed(1)).double(),
    )
    result = layers.rotate(x, layers.rotary_table(coordinates, frequencies))
    axis = [i for i, f in enumerate(frequencies) for _ in f]
    for pair, (i, frequency) in enumerate(zip(axis, torch.cat(frequencies).tolist())):
        value = torch.complex(x[..., 2 * pair], x[..., 2 * pair + 1]) * torch.exp(
            1j * coordinates[:, None, :, i] * frequency
        )
        torch.testing.assert_close(result[..., 2 * pair], value.real.float())
        torch.testing.assert_close(result[..., 2 * pair + 1], value.imag.float())


@pytest.mark.parametrize("positions", ["grid", "view_sphere"])
def test_only_relative_positions_matter(positions):
    frequencies = layers.axis_frequencies(16, positions)
    query, key, at = normal(1, 1, 4, 16), normal(1, 1, 4, 16, seed=1), normal(1, 4, 3).double()
    offset = torch.tensor([7.0, 2.0, -1.0])

    def scores(shift: Tensor) -> Tensor:
        a, b = (layers.rotary_table(p + shift, frequencies) for p in (at, at.flip(1)))
        return layers.rotate(query, a) @ layers.rotate(key, b).transpose(-1, -2)

    torch.testing.assert_close(scores(offset), scores(0 * offset), atol=1e-5, rtol=1e-5)
    moved = layers.rotary_table(at + offset, frequencies)
    assert not torch.allclose(
        layers.rotate(query, moved), layers.rotate(query, layers.rotary_table(at, frequencies)), atol=1e-2
    )


def test_a_full_turn_comes_back_to_itself():
    frequencies = layers.axis_frequencies(48, "view_sphere")
    assert torch.equal(frequencies[2], frequencies[2].round())
    assert (frequencies[2] >= 1).all()
    at = normal(1, 6, 3).double()
    tables = [
        layers.rotary_table(at + torch.tensor([0, 0, turns * TURN], dtype=torch.float64), frequencies)
        for turns in (0, 1, -3)
    ]
    for table in tables[1:]:
        torch.testing.assert_close(table, tables[0], atol=1e-6, rtol=0)
    half = layers.rotary_table(at + torch.tensor([0, 0, 3.0]), frequencies)
    assert not torch.allclose(half, tables[0], atol=1e-2)


# ---- view directions --------------------------------------------------------------------------------------------------


def directions(yaw: float, pitch: float, rows=4, columns=6, stride=8.0) -> np.ndarray:
    angles = (torch.tensor([[value]], dtype=torch.float64) for value in (yaw, pitch))
    return layers.view_directions(*angles, rows, columns, stride, stride, (32, 48), CAMERA)[0, 0].numpy()


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (0.7, 0.3), (-2.0, -0.5), (3.1, 0.6), (9.0, 0.0)])
def test_directions_are_those_of_the_camera_matrices(yaw, pitch):
    inverse = np.linalg.inv(CAMERA.intrinsics(32, 48))
    for (row, column), (elevation, azimuth) in zip(np.ndindex(4, 6), directions(yaw, pitch).reshape(-1, 2)):
        x, y, z = rotation(yaw, pitch) @ inverse @ [8 * (column + 0.5), 8 * (row + 0.5), 1]
        assert elevation == pytest.approx(math.atan2(-y, math.hypot(x, z)), abs=1e-12)
        assert math.remainder(azimuth - math.atan2(x, z), TURN) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("pitch", [0.0, 0.4])
def test_turning_adds_to_the_azimuth_alone(pitch):
    there = directions(0.3, pitch)
    for turn in (0.9, TURN, -2 * TURN):
        np.testing.assert_allclose(
            directions(0.3 + turn, pitch) - there, np.broadcast_to([0, turn], there.shape), atol=1e-12
        )
    np.testing.assert_array_equal(directions(0.3, pitch), there)


def test_a_coarse_token_looks_at_the_centre_of_its_area():
    coarse, pixels = directions(0.2, 0.1, 2, 3, 16.0), directions(0.2, 0.1, 32, 48, 1.0)
    corners = pixels[7:25:16, 7::16], pixels[8:25:16, 8::16]  # the two pixels around each centre
    assert (corners[0][..., 1] < coarse[..., 1]).all()
    assert (coarse[..., 1] < corners[1][..., 1]).all()
    assert (corners[1][..., 0] < coarse[..., 0]).all()
    assert (coarse[..., 0] < corners[0][..., 0]).all()


# ---- attention and the MLP --------------------------------------------------------------------------------------------


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    attention = layers.Attention(16, 2, 1e-6)
    nn.init.normal_(attention.norm_q.weight)
    nn.init.normal_(attention.norm_k.weight)
    x, context = normal(2, 5, 16), normal(2, 7, 16, seed=1)
    result = attention.attend(attention.queries(x), attention.keys_values(context))
    query, key, value = attention.norm_q(attention.q(x)), attention.norm_k(attention.k(context)), attention.v(context)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / 8**0.5, dim=-1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(result, attention.o(torch.cat(heads, dim=-1)), atol=1e-5, rtol=1e-5)


def test_mlp_convolution_starts_as_the_identity_and_keeps_to_each_grid():
    torch.manual_seed(0)
    plain, conv = layers.ConvMLP(6, 10, conv=False), layers.ConvMLP(6, 10, conv=True)
    conv.load_state_dict({**conv.state_dict(), **plain.state_dict()})
    grids = [(2, 2, 3), (1, 4, 2)]
    x = normal(2, 20, 6)
    torch.testing.assert_close(conv(x, grids), plain(x, grids))

    nn.init.normal_(conv.conv.weight)
    nn.init.normal_(conv.conv.bias)
    hidden, expected, start = conv[0](x).detach(), [], 0
    for frames, rows, columns in grids:
        for _ in range(frames):
            picture = hidden[:, start : start + rows * columns].view(2, rows, columns, 10)
            start += rows * columns
            for row, column in np.ndindex(rows, columns):
                total = conv.conv.bias.clone()
                for i, j in np.ndindex(3, 3):
                    y, x_ = row + i - 1, column + j - 1
                    if 0 <= y < rows and 0 <= x_ < columns:
                        total = total + picture[:, y, x_] * conv.conv.weight[:, 0, i, j]
                expected.append(total)
    expected = conv[2](nn.functional.gelu(torch.stack(expected, dim=1), approximate="tanh"))
    torch.testing.assert_close(conv(x, grids), expected, atol=1e-5, rtol=1e-5)


# ---- ReLU linear attention --------------------------------------------------------------------------------------------


def quadratic(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, q_table: Tensor, k_table: Tensor) -> Tensor:
    """The same attention, weight by weight: O(L^2)."""
    similar = layers.rotate(query, q_table) @ layers.rotate(key, k_table).transpose(-1, -2) * weight[:, None, None]
    positive = query @ key.transpose(-1, -2) * weight[:, None, None]
    return (similar @ value) / (positive.sum(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("positions", ["grid", "view_sphere"])
def test_linear_attention_equals_its_quadratic_form(positions):
    query, key = normal(2, 3, 9, 8).relu(), normal(2, 3, 20, 8, seed=1).relu()
    value, weight = normal(2, 3, 20, 8, seed=2), normal(2, 20, seed=3).abs()
    q_table, k_table = some_table(2, 9, 8, positions), some_table(2, 20, 8, positions, seed=5)
    result = layers.linear_read(query, layers.linear_sums(key, value, k_table, weight), q_table)
    expected = quadratic(query, key, value, weight, q_table, k_table)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    assert result.abs().mean() > 0.05


def test_linear_sums_of_two_stretches_add_up():
    key, value, table = normal(1, 2, 12, 8).relu(), normal(1, 2, 12, 8, seed=1), some_table(1, 12, 8, "grid")
    whole = layers.linear_sums(key, value, table)
    parts = [layers.linear_sums(key[:, :, p], value[:, :, p], table[..., p, :]) for p in (slice(0, 5), slice(5, 12))]
    for total, one, other in zip(whole, *parts):
        torch.testing.assert_close(total, one + other, atol=1e-5, rtol=1e-5)


def test_linear_attention_of_nothing_is_zero():
    key, value, table = normal(1, 2, 4, 8).relu(), normal(1, 2, 4, 8), some_table(1, 4, 8, "grid")
    nothing = layers.linear_sums(key, value, table, torch.zeros(1, 4))
    assert torch.equal(layers.linear_read(key, nothing, table), torch.zeros(1, 2, 4, 8))


def test_linear_sums_are_float32_whatever_comes_in():
    key, value, table = normal(1, 2, 4, 8).relu().bfloat16(), normal(1, 2, 4, 8).bfloat16(), some_table(1, 4, 8, "grid")
    assert {part.dtype for part in layers.linear_sums(key, value, table)} == {torch.float32}
