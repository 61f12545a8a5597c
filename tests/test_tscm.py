"""Both halves of the history's bookkeeping: which frames are held, and how they are cut into groups."""

from __future__ import annotations

import pytest
import torch

from world_model.config import Tiers
from world_model.packing import Group, append_all, append_tiers, released_packing, tier_packing
from world_model.rollout import generator
from world_model.tscm import ChannelMemory, History, static_history

TIERS = Tiers(recent=((1, 1), (2, 2), (5, 4)), initial=2, old=(3, 2))
KEPT = 1 + 3 + 8

# the public code's slices, by the longest history each row serves: (ratio, first, last, in two stages), as in Python
RELEASED = {
    2: [(1, 0, 1, False), (2, -1, None, False), (1, -1, None, False)],
    6: [(1, 0, 1, False), (2, 1, -1, False), (1, -1, None, False)],
    22: [(1, 0, 1, False), (4, 1, -5, False), (2, -5, -3, False), (1, -3, None, False)],
    86: [(1, 0, 1, False), (8, 1, -21, False), (4, -21, -5, False), (2, -5, -3, False), (1, -3, None, False)],
    342: [
        (2, 0, 1, False),
        (16, 1, -85, False),
        (8, -85, -21, False),
        (4, -21, -5, False),
        (2, -5, -3, False),
        (1, -3, None, False),
    ],
    1366: [
        (2, 0, 1, False),
        (16, 1, -341, True),
        (16, -341, -85, False),
        (8, -85, -21, False),
        (4, -21, -5, False),
        (2, -5, -3, False),
        (1, -3, None, False),
    ],
}


def numbered(first: int, count: int, batch: int = 1) -> History:
    """Frames whose latents, angles and index all tell their number."""
    frame = torch.arange(first, first + count).repeat(batch, 1)
    angle = frame.double()
    return History(
        frame[:, None, :, None, None].float(), frame, angle, -angle, torch.ones_like(frame, dtype=torch.bool)
    )


def grown(blocks: int, block: int = 2, batch: int = 1, seed: int = 0, present: bool = True) -> History:
    """The buffer after some blocks of `block` frames from a still start."""
    history = static_history(
        torch.full((batch, 1, 1, 1, 1), -1.0), KEPT, *2 * [torch.zeros(batch)], torch.full((batch,), present)
    )
    for step in range(blocks):
        streams = [generator("old frames", seed + world, step) for world in range(batch)]
        history = append_tiers(history, numbered(step * block, block, batch), TIERS, streams)
    return history


# ---- packing tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [*range(1, 100), 200, 341, 342, 343, 344, 400, 1365, 1366])
def test_released_packing_is_the_public_table(length):
    rows = next(rows for longest, rows in RELEASED.items() if length <= longest)
    frames = range(length)
    cut = [(ratio, frames[first:last], two_stage) for ratio, first, last, two_stage in rows]
    expected = [Group(ratio, part.start, part.stop, two_stage) for ratio, part, two_stage in cut]
    assert released_packing(length) == expected


def test_released_packing_uses_every_frame_once_and_in_order():
    for length in range(3, 1367):
        groups = released_packing(length)
        assert [frame for g in groups for frame in range(g.start, g.stop)] == list(range(length))


def test_no_history_is_not_packed():
    assert released_packing(0) == []


def test_released_packing_ends_where_the_public_code_does():
    with pytest.raises(ValueError, match="1366"):
        released_packing(1367)


def test_tier_packing_covers_the_buffer_from_old_to_new():
    groups = tier_packing(TIERS)
    assert [(g.ratio, g.stop - g.start) for g in groups] == [(2, 1), (2, 3), (4, 5), (2, 2), (1, 1)]
    assert [frame for g in groups for frame in range(g.start, g.stop)] == list(range(KEPT))


def test_tiers_without_frames_have_no_group():
    assert tier_packing(Tiers(recent=((2, 1),), initial=4, old=(0, 2))) == [Group(4, 0, 1), Group(1, 1, 3)]


# ---- histories --------------------------------------------------------------------------------------------------------


def test_a_still_past_repeats_its_first_frame_and_ends_before_zero():
    latents = torch.tensor([[5.0, 6.0], [7.0, 8.0]])[:, None, :, None, None]
    yaw, pitch, present = torch.tensor([0.5, 1.0]), torch.tensor([0.1, 0.2]), torch.tensor([True, False])
    history = static_history(latents, 4, yaw, pitch, present)
    assert history.latents.flatten(1).tolist() == [[5, 5, 5, 6], [7, 7, 7, 8]]
    assert history.frame.tolist() == 2 * [[-4, -3, -2, -1]]
    assert history.yaw.dtype == torch.float64
    assert history.yaw.tolist() == [4 * [0.5], 4 * [1.0]]
    assert history.present.tolist() == [4 * [True], 4 * [False]]


def test_select_takes_other_frames_of_every_world():
    index = torch.tensor([[3, 0], [1, 1]])
    chosen = numbered(10, 4, batch=2).select(index)
    for values in (chosen.latents.flatten(1), chosen.frame, chosen.yaw, -chosen.pitch):
        assert values.tolist() == [[13, 10], [11, 11]]


def test_repeat_keeps_the_draws_of_a_world_together():
    history = append_all(numbered(0, 1, batch=2), numbered(1, 1, batch=2), 99)
    history = History(history.latents + torch.tensor([0, 100])[:, None, None, None, None], *history._rows)
    assert history.repeat(2).latents.flatten(1).tolist() == [[0, 1], [0, 1], [100, 101], [100, 101]]
    assert history.repeat(2).frame.shape == (4, 2)


def test_released_worlds_hold_every_frame():
    history = append_all(append_all(numbered(0, 3), numbered(3, 2), 99), numbered(5, 2), 99)
    assert history.frame.tolist() == [list(range(7))]
    assert history.latents.flatten().tolist() == list(range(7))


def test_released_worlds_forget_all_but_the_first_frame_and_the_newest():
    history = append_all(numbered(0, 3, batch=2), numbered(3, 2, batch=2), 5)
    assert history.frame[0].tolist() == [0, 1, 2, 3, 4]
    history = append_all(history, numbered(5, 2, batch=2), 5)
    assert history.frame.tolist() == 2 * [[0, 3, 4, 5, 6]]
    assert history.latents[1].flatten().tolist() == [0, 3, 4, 5, 6]


# ---- the reservoir ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3, 8, 11])
def test_the_buffer_keeps_its_size_its_first_frame_and_the_newest(block):
    for blocks in (1, 5, 30):
        history = grown(blocks, block)
        newest = blocks * block
        assert history.frames == KEPT
        assert history.frame[0, 0] == -KEPT
        assert history.frame[0, 4:].tolist() == list(range(newest - 8, newest))
        assert torch.equal(history.latents.flatten(), history.frame[0].clamp(min=-1).float())
        assert torch.equal(history.yaw[:, 4:], history.frame[:, 4:].double()) or newest < 8


@pytest.mark.parametrize("block", [1, 2, 3])
def test_old_slots_hold_distinct_frames_older_than_the_recent_ones(block):
    for seed in range(30):
        blocks = 12 + seed
        slots = grown(blocks, block, seed=seed).frame[0, 1:4].tolist()
        assert len(set(slots)) == 3
        left = blocks * block - 8
        assert all(slot < left for slot in slots)
        assert all(slot >= 0 for slot in slots) or left < 3


def test_a_still_start_never_enters_the_reservoir():
    history = grown(4, present=False)  # 8 frames dreamt: all of them recent, nothing of the dream has left
    assert (history.frame[0, 1:4] < 0).all()
    assert not history.present[0, :4].any()
    assert grown(11, block=1, present=False).frame[0, 1:4].tolist() == [0, 1, 2]  # the first to leave fill the slots


@pytest.mark.parametrize(("left", "worlds"), [(4, 2000), (6, 2000), (40, 500)])
def test_every_old_frame_is_kept_with_the_same_chance(left, worlds):
    slots = grown((left + 8) // 2, batch=worlds).frame[:, 1:4]
    counts = torch.bincount(slots.flatten(), minlength=left).double()
    chance = 3 / left
    deviation = (counts - worlds * chance) / (worlds * chance * (1 - chance)) ** 0.5
    assert counts.shape == (left,)
    assert deviation.abs().max() < 3.5
    assert deviation.square().mean() < 1 + 3 * (2 / left) ** 0.5
    early = counts[: left // 2].sum() / counts.sum()
    assert abs(float(early) - 0.5) < 0.035


def test_draws_depend_on_the_generator_alone():
    again, same, other = grown(20, seed=3), grown(20, seed=3), grown(20, seed=4)
    torch.manual_seed(123)
    torch.rand(5)
    assert torch.equal(again.frame, same.frame)
    assert torch.equal(grown(20, seed=3).frame, same.frame)
    assert not torch.equal(other.frame, same.frame)


def test_a_world_in_a_batch_draws_as_it_does_alone():
    batch = grown(20, batch=4, seed=7)
    for world in range(4):
        assert torch.equal(batch.frame[world], grown(20, seed=7 + world).frame[0])
    assert len({tuple(row) for row in batch.frame[:, 1:4].tolist()}) > 1


# ---- carried sums -----------------------------------------------------------------------------------------------------


def test_memory_decays_once_and_then_adds():
    old, new = (ChannelMemory(torch.full((1, 2, 1, 2, 2), v), torch.full((1, 2, 1, 2), v)) for v in (8.0, 1.0))
    after = old.add(new, 0.5).add(new, 0.25)
    assert torch.equal(after.total, torch.full((1, 2, 1, 2, 2), 2.25))
    assert torch.equal(after.norm, torch.full((1, 2, 1, 2), 2.25))


def test_repeating_a_memory_keeps_the_draws_of_a_world_together():
    rows = torch.arange(3.0)[None, :, None, None]
    twice = ChannelMemory(rows[..., None].expand(2, 3, 1, 2, 2), rows.expand(2, 3, 1, 2)).repeat(2)
    assert twice.total[1, :, 0, 0, 0].tolist() == twice.norm[1, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
