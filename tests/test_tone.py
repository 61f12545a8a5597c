"""Gain and offset of a block: what they depend on, and that they bring drifted colours back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

from world_model.moving import toned
from world_model.tone import GAINS, OFFSETS, Tone

WIDTH, TEXT = 6, 5


def trained(wanted, text: torch.Tensor, pictures, steps: int = 200) -> Tone:
    """A network that learnt gain and offset `wanted(newest, start)` [B, 6] of pictures drawn by `pictures`."""
    torch.manual_seed(0)
    tone = Tone(WIDTH, TEXT, 2)
    tone.reset_parameters()
    optimizer = torch.optim.Adam(tone.parameters(), lr=0.01)
    for _ in range(steps):
        newest, start = pictures()
        made = tone(torch.zeros(len(text), WIDTH, 2, 3), newest, start, text)
        loss = mse_loss(made, wanted(newest, start)[:, None, :, None, None].expand_as(made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tone


def test_a_fresh_one_adds_nothing_and_has_one_gain_a_picture():
    torch.manual_seed(0)
    tone = Tone(WIDTH, TEXT, 2)
    features, picture, text = torch.randn(6, WIDTH, 2, 3), torch.randn(2, 3, 16, 24), torch.randn(2, TEXT)
    gain, offset = tone(features, picture, picture, text).chunk(2, dim=2)
    assert gain.shape == offset.shape == (2, 6, 3, 2, 3)  # three tokens in time, of two frames each
    assert gain.std(dim=(-2, -1)).max() < 1e-6 < offset.std(dim=(-2, -1)).min()
    tone.reset_parameters()
    assert not tone(features, picture, picture, text).any()


def test_what_is_far_too_much_is_bounded_and_learns_to_come_back():
    torch.manual_seed(0)
    tone, picture, text = Tone(WIDTH, TEXT, 2), torch.zeros(1, 3, 16, 24), torch.zeros(1, TEXT)
    tone.reset_parameters()
    for sign in (5.0, -5.0):
        with torch.no_grad():
            tone.leave.bias.fill_(sign)
        optimizer = torch.optim.Adam(tone.parameters(), lr=0.05)
        for step in range(400):
            gain, offset = tone(torch.zeros(1, WIDTH, 2, 3), picture, picture, text).chunk(2, dim=2)
            if step == 0:
                assert gain.unique().item() == pytest.approx(GAINS[sign > 0])
                assert offset.unique().item() == pytest.approx(OFFSETS[sign > 0])
            optimizer.zero_grad()
            ((gain - 0.5).square().mean() + (offset + 0.5).square().mean()).backward()
            optimizer.step()
        assert (gain - 0.5).abs().max() < 0.01 and (offset + 0.5).abs().max() < 0.01


def test_a_text_is_learnt_though_features_do_not_speak_of_it():
    text = torch.eye(TEXT)[:4]
    wanted = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) / 4
    picture = torch.zeros(4, 3, 16, 24)
    tone = trained(lambda *_: wanted, text, lambda: (picture, picture))
    made = tone(torch.zeros(4, WIDTH, 2, 3), picture, picture, text)
    torch.testing.assert_close(made, wanted[:, None, :, None, None].expand_as(made), rtol=0, atol=0.03)


def test_colours_that_drifted_since_the_start_are_seen():
    """The offset that brings the newest picture's mean back to the first one's, for colours of no training picture."""
    text = torch.zeros(16, TEXT)

    def pictures():
        start = torch.randn(16, 3, 1, 1) / 4 + torch.randn(16, 3, 16, 24) / 2
        return start + torch.randn(16, 3, 1, 1) / 4, start

    def wanted(newest, start):
        return torch.cat([torch.zeros(16, 3), (start - newest).mean(dim=(2, 3))], dim=1)

    tone = trained(wanted, text, pictures, 600)
    newest, start = pictures()
    made = tone(torch.zeros(16, WIDTH, 2, 3), newest, start, text)[:, 0, :, 1, 1]
    assert mse_loss(made, wanted(newest, start)) < 0.15 * wanted(newest, start).square().mean()


def test_gain_and_offset_are_of_places_and_go_over_smoothly():
    pictures, tone = torch.rand(2, 1, 3, 16, 24), torch.zeros(2, 1, 6, 2, 3)
    torch.testing.assert_close(toned(pictures, tone), pictures)
    tone[:, :, :3], tone[:, :, 5] = -0.75, 0.5  # three quarters darker, half a unit bluer
    expected = 0.25 * pictures + torch.tensor([0, 0, 0.5])[:, None, None]
    torch.testing.assert_close(toned(pictures, tone), expected)
    tone.zero_()[:, :, 3, :, 0] = 1.0  # red on the left
    red = (toned(pictures, tone) - pictures)[0, 0, 0, 3]
    torch.testing.assert_close(red[[0, 3, 12, 23]], torch.tensor([1.0, 1.0, 0.0, 0.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(red[7] + red[8], torch.tensor(1.0))
