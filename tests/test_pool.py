"""The rollout pool: worlds that follow the recorded trajectories, and its stored state."""

from __future__ import annotations

import pytest
import torch
from rollout_pool import (  # noqa: F401  (fixtures, too)
    BLOCKS,
    CAR,
    RAIN,
    SILENT,
    SIZE,
    WALKS,
    conditioning_fixture,
    dit_fixture,
    drawn,
    make_pool_fixture,
    same,
    tensors,
    walk_on,
)
from scenes import state_of

from train.engine.pool import POSITION_ERROR
from world_model.text import mean_token
from yume_gym.street.events import EVENTS

# ---- the pool ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_next_block_of_each_world(make_pool, corpus, conditioning, dit, frozen_vae):
    pool = make_pool()
    for step in range(6):
        batch = pool.sample(dit, frozen_vae, 2, 0.0, step)
        assert len(set(batch.index)) == 2
        for row, entry in enumerate(drawn(pool, batch)):
            assert torch.equal(batch.truth[row], corpus.block(entry.trajectory, entry.block))
            assert batch.actions[row] == corpus.action(entry.trajectory, entry.block)
            table = conditioning.actions[batch.actions[row].index]
            assert torch.equal(batch.context[row, 8:], table)
            assert torch.equal(batch.pooled[row], mean_token(table))
            alone = corpus.motion([entry.trajectory], [entry.block])
            assert torch.equal(batch.motion.displacement[row], alone.displacement[0])
            assert torch.equal(batch.motion.yaw[row], alone.yaw[0])
        pool = make_pool(seed=step)


def test_clean_worlds_follow_their_trajectory(make_pool, corpus, config, dit, frozen_vae):
    """Along the walk: history and past hold the truth, the camera looks where the walk's did and stands a little beside it."""
    pool, ages, beside = make_pool(), [], []
    for step in range(14):
        before = list(pool.entries)
        walk_on(pool, dit, frozen_vae, step)
        for entry, old in zip(pool.entries, before, strict=True):
            if entry is None:
                continue
            frames = int(entry.worlds.frame)
            age, first = frames // SIZE, entry.block - frames // SIZE
            ages.append(age)
            assert old is None or (entry.trajectory, entry.block) == (old.trajectory, old.block + 1)
            assert not entry.self_generated
            lived = torch.cat([corpus.block(entry.trajectory, b) for b in range(first, entry.block)], dim=1)
            still = frozen_vae.encode(corpus.picture(entry.trajectory, first)[None, :, None].expand(-1, -1, 4, -1, -1))
            shown = torch.cat([still[0], lived], dim=1)
            assert torch.equal(entry.past.latents[0, :, -shown.shape[1] + SIZE :], shown[:, SIZE:])
            torch.testing.assert_close(entry.past.latents[0, :, : -shown.shape[1] + SIZE][:, -SIZE:], still[0])
            recent = config.dit.history.packing.recent_frames
            torch.testing.assert_close(entry.worlds.history.latents[0, :, -recent:], shown[:, -recent:])
            torch.testing.assert_close(entry.worlds.history.latents[0, :, 0], still[0, :, 0])
            yaw, pitch = corpus.direction(entry.trajectory, entry.block)
            assert float(entry.worlds.yaw) == pytest.approx(yaw, abs=1e-4)
            assert float(entry.worlds.pitch) == pytest.approx(pitch, abs=1e-4)
            place = torch.tensor(corpus.position(entry.trajectory, entry.block), dtype=torch.float64)
            aside = state_of(entry.worlds).place[0] - place
            if old is None:
                beside.append(aside)
            else:  # as far beside as it was: it moves as the true camera does, walls and all
                before_that = torch.tensor(corpus.position(old.trajectory, old.block), dtype=torch.float64)
                torch.testing.assert_close(aside, state_of(old.worlds).place[0] - before_that, atol=1e-4, rtol=0)
    assert max(ages) >= 6
    errors = torch.stack(beside)
    assert 0.3 * POSITION_ERROR < errors.std() < 2 * POSITION_ERROR and errors.abs().max() < 5 * POSITION_ERROR


def test_memory_recomputed_from_the_past_equals_the_carried_one(make_pool, dit, frozen_vae):
    pool = make_pool(8, memory_blocks=8)
    ages = set()
    for step in range(12):
        walk_on(pool, dit, frozen_vae, step)
        for entry in pool.entries:
            if entry is None:
                continue
            age = int(entry.worlds.frame) // SIZE
            again, carried = dit.encode_memory(entry.past), entry.worlds.memory
            assert again is not None and carried is not None
            if age < 8:  # the start takes one of the eight
                torch.testing.assert_close(again.total, carried.total, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(again.norm, carried.norm, atol=1e-4, rtol=1e-4)
            else:
                assert not torch.allclose(again.total, carried.total, atol=1e-4, rtol=1e-4)
            ages.add(age)
    assert {1, 7, 8} <= ages


def test_text_starts_have_no_past_and_know_their_caption(make_pool, corpus, dit, frozen_vae):
    pool = make_pool(text_start=1.0)
    for step in range(3):
        batch = pool.sample(dit, frozen_vae, 3, 0.0, step)
        assert not batch.worlds.history.present.any()
        assert not batch.past.present.any()
        assert not batch.worlds.picture.any()
        memory = dit.encode_memory(batch.past)
        assert memory is not None and not memory.total.any()
        for row, entry in enumerate(drawn(pool, batch)):
            info = corpus.info(entry.trajectory)
            assert (
                fits(corpus, entry.trajectory, entry.block, batch.context[row, :8])
                or info.event_at(entry.block) is None
            )
            if info.event_at(entry.block) is None:
                assert torch.equal(batch.context[row, :8], corpus.text(info.caption))
        pool.add(batch, batch.worlds, batch.past)
        assert pool.entries == [None] * 3  # they live for one block


def fits(corpus, walk: int, block: int, text) -> bool:
    """Whether `text` is a phrasing of the kind of event in force; as it is written where the kind is not known."""
    info = corpus.info(walk)
    kind = next((kind for _, words, kind in info.event if words == info.event_at(block)), None)
    phrases = EVENTS[kind].phrases if kind in EVENTS else [info.event_at(block)]
    return any(torch.equal(text, corpus.text(phrase)) for phrase in phrases if phrase)


def test_a_world_gets_one_phrasing_of_an_event_and_others_get_others(make_pool, corpus, dit, frozen_vae):
    pool, prompts = make_pool(12), {}
    for step in range(24):
        batch = pool.sample(dit, frozen_vae, 12, 0.0, step)
        for text, entry in zip(batch.context[:, :8], drawn(pool, batch), strict=True):
            event = corpus.info(entry.trajectory).event_at(entry.block)
            if event is not None:
                prompts.setdefault((entry.trajectory, event, entry.last), []).append(text)
        pool.add(batch, batch.worlds, batch.past)
    assert max(map(len, prompts.values())) > 2
    assert all(torch.equal(text, texts[0]) for texts in prompts.values() for text in texts)
    phrasings = {
        (walk, event): {texts[0].sum().item() for (w, e, _), texts in prompts.items() if (w, e) == (walk, event)}
        for walk, event, _ in prompts
    }
    assert max(map(len, phrasings.values())) > 1


def test_picture_starts_and_text_starts_are_mixed(make_pool, dit, frozen_vae):
    pool = make_pool(80, text_start=0.25, episode_length=1)
    present = pool.sample(dit, frozen_vae, 80, 0.0, 0).worlds.history.present
    assert (present.all(dim=1) == present.any(dim=1)).all()
    assert 0.55 < float(present[:, 0].float().mean()) < 0.92


def test_prompts_are_events_while_they_last_and_captions_now_and_then(make_pool, corpus, dit, frozen_vae):
    events = {RAIN: range(7, BLOCKS), CAR: range(10, 14)}
    pool = make_pool(60, episode_length=1, caption=0.4)
    batch = pool.sample(dit, frozen_vae, 60, 0.0, 0)
    counts = {"event": 0, "caption": 0, "nothing": 0}
    for row, entry in enumerate(drawn(pool, batch)):
        text, info = batch.context[row, :8], corpus.info(entry.trajectory)
        event = info.event_at(entry.block)
        assert (event is not None) == (entry.block in events.get(entry.trajectory, ()))
        if event is not None:
            assert fits(corpus, entry.trajectory, entry.block, text)
            counts["event"] += 1
        else:
            counts["caption" if text.any() else "nothing"] += 1
            assert not text.any() or torch.equal(text, corpus.text(info.caption))
    assert counts["event"] >= 3
    assert 0.2 < counts["caption"] / (counts["caption"] + counts["nothing"]) < 0.6


def test_a_world_has_its_caption_as_prompt_always_or_never(make_pool, corpus, dit, frozen_vae):
    """Whenever no event is in force, before it and after it; as it was drawn once."""
    pool, prompted = make_pool(8, caption=0.5), {}
    for step in range(20):
        batch = pool.sample(dit, frozen_vae, 8, 0.0, step)
        for text, entry in zip(batch.context[:, :8], drawn(pool, batch), strict=True):
            info = corpus.info(entry.trajectory)
            if info.event_at(entry.block) is None:
                assert not text.any() or torch.equal(text, corpus.text(info.caption))
                prompted.setdefault((entry.trajectory, entry.last), []).append(bool(text.any()))
        pool.add(batch, batch.worlds, batch.past)  # a block later; what they look like does not matter here
    assert all(len(set(captions)) == 1 for captions in prompted.values())
    assert max(len(captions) for captions in prompted.values()) > 5
    assert {captions[0] for captions in prompted.values()} == {True, False}


def test_held_out_trajectories_are_never_sampled_and_none_is_overrun(make_pool, dit, frozen_vae):
    pool = make_pool(100)
    pool.sample(dit, frozen_vae, 100, 0.0, 0)
    entries = [entry for entry in pool.entries if entry is not None]
    assert {entry.trajectory for entry in entries} == {SILENT, RAIN, CAR}
    assert all(0 <= entry.block <= entry.last < BLOCKS for entry in entries)
    assert max(entry.last - entry.block for entry in entries) > 8
    short = make_pool(100, episode_length=3)
    short.sample(dit, frozen_vae, 100, 0.0, 0)
    assert {entry.last - entry.block for entry in short.entries if entry is not None} == {0, 1, 2}


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 0.35, 0.65), (1.0, 1, 1)])
def test_a_share_of_new_worlds_is_self_generated(share, low, high, make_pool, dit, frozen_vae):
    pool = make_pool(80, episode_length=1)
    dreaming = pool.self_generated(pool.sample(dit, frozen_vae, 80, share, 0))
    assert dreaming.dtype == torch.bool
    assert low <= float(dreaming.float().mean()) <= high


def test_what_is_drawn_depends_on_seed_and_step_alone(make_pool, dit, frozen_vae):
    first = [walk_on(make_pool(6), dit, frozen_vae, step, 3) for step in (0, 1)]
    torch.manual_seed(5)
    again = walk_on(make_pool(6), dit, frozen_vae, 0, 3)
    assert again.index == first[0].index and same(again.worlds, first[0].worlds)
    assert not same(first[0].truth, first[1].truth)
    assert not same(first[0].truth, walk_on(make_pool(6, seed=1), dit, frozen_vae, 0, 3).truth)


def test_more_than_a_pool_has_is_refused(make_pool, dit, frozen_vae):
    with pytest.raises(ValueError, match="a pool of 3 worlds cannot give 4"):
        make_pool(3).sample(dit, frozen_vae, 4, 0.0, 0)


# ---- its state --------------------------------------------------------------------------------------------------------


def test_a_stored_pool_goes_on_as_if_nothing_had_happened(make_pool, dit, frozen_vae, tmp_path):
    pool = make_pool(5, text_start=0.2)
    for step in range(6):
        walk_on(pool, dit, frozen_vae, step, 3, dreaming=0.5)
    assert None in pool.entries or len(pool.entries) == 5
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    again = make_pool(5, text_start=0.2)
    again.load_state_dict(torch.load(tmp_path / "pool.pt", weights_only=True))
    for a, b in zip(pool.entries, again.entries, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a.trajectory, a.block, a.last, a.self_generated) == (
                b.trajectory,
                b.block,
                b.last,
                b.self_generated,
            )
            assert same(a.worlds, b.worlds) and same(a.past, b.past)
    for step in range(6, 12):
        left, right = (walk_on(p, dit, frozen_vae, step, 3, dreaming=0.5) for p in (pool, again))
        assert left.index == right.index and same(left.worlds, right.worlds) and same(left.context, right.context)


def test_a_stored_pool_takes_no_more_room_than_its_worlds(make_pool, dit, frozen_vae, tmp_path):
    """Worlds of a batch are views of it: stored one by one they would each take the whole batch along."""
    pool = make_pool(6, episode_length=16)
    walk_on(pool, dit, frozen_vae, 0)
    alive = [entry for entry in pool.entries if entry is not None]
    size = sum(t.numel() * t.element_size() for entry in alive for t in tensors([entry.worlds, entry.past]))
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    assert size < (tmp_path / "pool.pt").stat().st_size < size + 20_000


def test_an_empty_pool_can_be_stored(make_pool, dit, frozen_vae):
    pool = make_pool()
    walk_on(pool, dit, frozen_vae, 0)
    pool.load_state_dict(make_pool().state_dict())
    assert pool.entries == [None] * 3


def test_worlds_that_do_not_fit_start_anew(make_pool, corpus, dit, frozen_vae):
    """A smaller pool, or fewer walks on disk than when the state was stored."""
    pool = make_pool(6)
    pool.sample(dit, frozen_vae, 6, 0.0, 0)
    state = pool.state_dict()
    small = make_pool(4)
    small.load_state_dict(state)
    kept = [entry.trajectory for entry in small.entries if entry is not None]
    assert kept == [entry.trajectory for entry in pool.entries[:4] if entry is not None] and len(kept) == 4
    state["plan"][2, 0] = WALKS
    small.load_state_dict(state)
    assert [entry is None for entry in small.entries] == [False, False, True, False]
    walk_on(small, dit, frozen_vae, 1)
