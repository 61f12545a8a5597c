"""A rollout pool of the small corpus, and what the corpus holds."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from train.engine.pool import Batch, Entry, Pool, PoolSettings
from world_model.dit import DiT
from world_model.rollout import append_and_decode, encode_conditions, generator
from world_model.text import Conditioning

WALKS, BLOCKS, SIZE = 7, 16, 2  # of the corpus; SIZE is latent frames of a block
# the walks that are trained on: no event, rain from block 7 on, a car in blocks 10 to 13
SILENT, RAIN, CAR = 4, 5, 6


@pytest.fixture(name="dit", scope="module")
def dit_fixture(config, make_dit) -> DiT:
    return make_dit(config).requires_grad_(False)


@pytest.fixture(name="conditioning", scope="module")
def conditioning_fixture(config) -> Conditioning:
    return Conditioning(config.text)


@pytest.fixture(name="make_pool")
def make_pool_fixture(corpus, conditioning):
    """make_pool(size, ...): long episodes and no text starts unless asked for."""
    return lambda size=3, seed=0, **given: Pool(
        corpus, conditioning, PoolSettings(size, **{"episode_length": 16, "text_start": 0.0, **given}), seed
    )


def walk_on(pool: Pool, dit: DiT, vae, step: int, count: int | None = None, dreaming: float = 0.0) -> Batch:
    """One block of some worlds by the truth, as training does it; returns the sampled batch."""
    batch = pool.sample(dit, vae, pool.settings.size if count is None else count, dreaming, step)
    _, ahead = encode_conditions(dit, vae, batch.worlds, batch.motion, batch.context, batch.pooled)
    streams = [generator("old", step)] * len(batch.index)
    after, _ = append_and_decode(dit, vae, ahead, batch.truth, streams)
    pool.add(batch, after, ahead.history(batch.truth))
    return batch


def drawn(pool: Pool, batch: Batch) -> list[Entry]:
    """The pool's entries of a batch that was drawn and not put back yet."""
    entries = [pool.entries[slot] for slot in batch.index]
    assert None not in entries
    return entries


def tensors(value) -> list[Tensor]:
    """All tensors inside."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [tensor for field in fields(value) for tensor in tensors(getattr(value, field.name))]
    return []


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
