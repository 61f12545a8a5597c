"""A pool of worlds that follow trajectories of the corpus, so that training sees the histories that generation sees.

Each world follows a recorded trajectory block by block. A "clean" world's history is the recording, a self-generated one is the
model's own output, while its target stays the truth: the model learns to undo its own errors (self-forcing of the history).
The same functions as at inference keep history, memory, priors and decoder going; nothing is packed a second way.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from train.data.corpus import Corpus
from train.data.shards import HELD_OUT
from train.engine.sharding import any_process
from train.street.walks import rephrased
from world_model import batch as batches
from world_model.actions import Action
from world_model.conditions import Motion, Pose
from world_model.dit import DiT
from world_model.priors.album import Album
from world_model.priors.scene import SceneState
from world_model.rollout import commanded_motions, generator
from world_model.text import Conditioning
from world_model.tscm import ChannelMemory, History
from world_model.vae import VideoVAE
from world_model.worlds import WorldBatch, collate_worlds, split_worlds, start_worlds, without_history

POSITION_ERROR = 0.15  # metres by which worlds are wrong about where they started
# classes in a stored pool, by their names there
KINDS = {"Worlds": WorldBatch, **{kind.__name__: kind for kind in (History, ChannelMemory, SceneState, Album)}}
STORED_NAMES: dict[type, str] = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Entry:
    """One world of the pool, before block `block` of its trajectory (its number). `past` holds raw latents, for the gradient of
    the channel path."""

    trajectory: int
    block: int
    last: int  # block after which the world is drawn anew
    self_generated: bool
    worlds: WorldBatch
    past: History


@dataclass(frozen=True)
class Batch:
    """Entries joined: what the next block's conditions need, and the truth [B, C, K, h, w]. `motion` is the true camera's."""

    index: list[int]
    worlds: WorldBatch
    past: History
    actions: list[Action]
    motion: Motion
    context: Tensor
    pooled: Tensor
    truth: Tensor


@dataclass(frozen=True)
class PoolSettings:
    """Which worlds a pool holds, and how long they live."""

    size: int = 64  # worlds
    episode_length: int = 24  # blocks: the longest episode of a world; the end of its trajectory comes first
    text_start: float = 0.4  # share of worlds that start from a caption alone (T2V), and last one block
    # instead all worlds of even steps start from a caption, and none of odd ones, as in the paper
    alternate: bool = False
    caption: float = 0.4  # share of worlds that are given their caption though nothing happens
    memory_blocks: int = 16  # past blocks that are kept for the gradient of the channel path
    # go on after a trajectory's end, on other worlds' actions, where no truth is known (it is zero)
    beyond: bool = False


class Pool:
    """Worlds on `device`; `sample` takes some of them, `add` returns them one block later."""

    def __init__(
        self,
        corpus: Corpus,
        conditioning: Conditioning,
        settings: PoolSettings,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.corpus, self.conditioning, self.settings = corpus, conditioning, settings
        self.seed, self.device = seed, device
        # text starts of even steps have slots of their own, which are empty between two steps
        self.entries: list[Entry | None] = [None] * (2 * settings.size if settings.alternate else settings.size)

    def sample(self, dit: DiT, vae: VideoVAE, count: int, self_generated: float, step: int) -> Batch:
        """`count` different worlds; those at their end start anew, a share `self_generated` of them on their own history.

        Raises ValueError for more than the pool has.
        """
        s = self.settings
        if count > s.size:
            raise ValueError(f"a pool of {s.size} worlds cannot give {count}: make it larger or the batch smaller")
        stream = generator(self.seed, "pool", step)
        index = torch.randperm(s.size, generator=stream)[:count].tolist()
        text_start = float(step % 2 == 0) if s.alternate else s.text_start
        if s.alternate and text_start:
            index = [s.size + i for i in index]
        fresh = [i for i in index if self.entries[i] is None]
        starting = any_process(bool(fresh))
        if fresh:
            self._start(dit, vae, fresh, self_generated, text_start, stream)
        elif starting:  # a sharded network is called by all processes or by none
            size = (self.corpus.config.height, self.corpus.config.width)
            nothing = torch.zeros(1, 3, *size, device=self.device)
            with torch.no_grad():
                start_worlds(dit, vae, nothing, torch.zeros(1, dtype=torch.bool, device=self.device))
        entries = [entry for i in index if (entry := self.entries[i]) is not None]
        if len({e.worlds.history.frames for e in entries}) > 1:
            raise ValueError(
                "histories of this packing grow, and worlds of different ages fit no batch: one world a micro-batch"
            )
        worlds, past = collate_worlds([e.worlds for e in entries]), batches.collate([e.past for e in entries])
        actions = [self._action(e) for e in entries]
        context, pooled = self.conditioning.context(actions, [self.prompt(e) for e in entries])
        truth = torch.stack([self._truth(e) for e in entries])
        words = [t.to(self.device) for t in (context, pooled, truth)]
        motion = batches.collate([self._motion(e, action) for e, action in zip(entries, actions)])
        motion = batches.move(motion, self.device)
        return Batch(index, worlds, past, actions, motion, *words)

    def add(self, batch: Batch, after: WorldBatch, block: History) -> None:
        """The worlds one block later; `block` is what was added to their histories (truth or dream)."""
        rows = zip(batch.index, split_worlds(after), range(len(batch.index)))
        limit = self.settings.memory_blocks * self.corpus.config.block_latents
        for i, world, row in rows:
            entry = self.entries[i]
            assert entry is not None
            if entry.block + 1 > entry.last:
                self.entries[i] = None
                continue
            past = entry.past.join(batches.rows(block, slice(row, row + 1)))
            keep = torch.arange(past.frames - limit, past.frames, device=past.frame.device)[None]
            self.entries[i] = replace(entry, block=entry.block + 1, worlds=world, past=past.select(keep))

    def _on_trajectory(self, entry: Entry) -> bool:
        """Whether a world's next block is one of its trajectory's."""
        return not self.settings.beyond or entry.block < self.corpus.blocks_of(entry.trajectory)

    def _action(self, entry: Entry) -> Action:
        if self._on_trajectory(entry):
            return self.corpus.action(entry.trajectory, entry.block)
        stream = generator(self.seed, "beyond", entry.trajectory, entry.last, entry.block)
        others = [other for other in self.entries if other is not None and self._on_trajectory(other)] or [entry]
        other = others[int(torch.randint(len(others), (), generator=stream))]
        return self.corpus.action(other.trajectory, min(other.block, self.corpus.blocks_of(other.trajectory) - 1))

    def _truth(self, entry: Entry) -> Tensor:
        """[C, K, h, w]"""
        if self._on_trajectory(entry):
            return self.corpus.block(entry.trajectory, entry.block)
        config = self.corpus.config
        return torch.zeros(config.dit.latent_channels, config.block_latents, *config.latent_size)

    def _motion(self, entry: Entry, action: Action) -> Motion:
        """The true camera's of one world; beyond its trajectory the commanded one."""
        if self._on_trajectory(entry):
            return self.corpus.motion([entry.trajectory], [entry.block])
        world = entry.worlds
        return commanded_motions(self.corpus.config, [action], world.yaw.cpu(), world.pitch.cpu())

    def self_generated(self, batch: Batch) -> Tensor:
        """[B] bool."""
        flags = [entry.self_generated for i in batch.index if (entry := self.entries[i]) is not None]
        return torch.tensor(flags, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """The worlds of the pool as tensors, one row a world; `slot` says where each belongs. Where histories grow, `groups` of
        such states, each of worlds with equally long ones."""
        alive = [(slot, entry) for slot, entry in enumerate(self.entries) if entry is not None]
        if not alive:
            return {"slot": torch.zeros(0, dtype=torch.int64)}
        lengths = sorted({entry.worlds.history.frames for _, entry in alive})
        groups = [_state([pair for pair in alive if pair[1].worlds.history.frames == n]) for n in lengths]
        return groups[0] if len(groups) == 1 else {"groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Worlds beyond this pool's size or corpus are left out: they start anew when sampled."""
        self.entries = [None] * len(self.entries)
        for group in state.get("groups", [state]):
            self._fill(group)

    def _fill(self, state: dict[str, Any]) -> None:
        slots = state["slot"].tolist()
        if not slots:
            return
        worlds, past, plans = unpacked(state["worlds"]), unpacked(state["past"]), state["plan"].tolist()
        for row, (slot, world, (trajectory, block, last, self_generated)) in enumerate(
            zip(slots, split_worlds(worlds), plans)
        ):
            if (
                slot < self.settings.size
                and trajectory < len(self.corpus)
                and (self.settings.beyond or last < self.corpus.blocks_of(trajectory))
            ):
                self.entries[slot] = Entry(
                    trajectory, block, last, bool(self_generated), world, batches.rows(past, slice(row, row + 1))
                )

    def _start(
        self,
        dit: DiT,
        vae: VideoVAE,
        index: list[int],
        self_generated: float,
        text_share: float,
        stream: torch.Generator,
    ) -> None:
        corpus, config = self.corpus, self.corpus.config

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=stream))

        plans = []
        for _ in index:
            text_start = float(torch.rand((), generator=stream)) < text_share
            trajectory = draw(min(HELD_OUT, len(corpus) - 1), len(corpus))
            blocks = corpus.blocks_of(trajectory)
            block = draw(0, min(3, blocks) if text_start else max(blocks - 1, 1))
            last = block if text_start else block + draw(0, self.settings.episode_length)
            last = last if self.settings.beyond else min(last, blocks - 1)
            plans.append(
                (trajectory, block, last, text_start, float(torch.rand((), generator=stream)) < self_generated)
            )
        pictures = torch.stack([corpus.picture(trajectory, block) for trajectory, block, *_ in plans])
        present = torch.tensor([not text_start for *_, text_start, _ in plans])
        pictures = torch.where(present[:, None, None, None], pictures, torch.zeros_like(pictures))
        angles = torch.tensor(
            [corpus.direction(trajectory, block) for trajectory, block, *_ in plans], dtype=torch.float64
        )
        place = torch.tensor(
            [corpus.position(trajectory, block) for trajectory, block, *_ in plans], dtype=torch.float64
        )
        place = place + POSITION_ERROR * torch.randn(place.shape, generator=stream, dtype=torch.float64)
        with torch.no_grad():
            starts = (pictures, present, Pose(angles[:, 0], angles[:, 1], place))
            worlds = split_worlds(start_worlds(dit, vae, *batches.move(starts, self.device)))
        for i, world, (trajectory, block, last, text_start, dreams) in zip(index, worlds, plans):
            shown, held = config.start_latents, self.settings.memory_blocks * config.block_latents
            still = world.history.select(torch.arange(world.history.frames - shown, world.history.frames)[None])
            front = still.select(torch.zeros(1, max(held - shown, 0), dtype=torch.int64))
            past = replace(front, present=torch.zeros_like(front.present)).join(still)
            if text_start and not dit.packing.constant:
                world = without_history(world)
            self.entries[i] = Entry(trajectory, block, last, dreams, world, past)

    def prompt(self, entry: Entry) -> str | None:
        """The text of a world's next block: the event while one is in force, each world in a phrasing of its own; else the
        caption for a text start and in some worlds; else nothing."""
        info = self.corpus.info(entry.trajectory)
        event = info.event_at(entry.block)
        if event is not None:
            stream = generator(self.seed, "phrasing", entry.trajectory, entry.last, event)
            return rephrased(info, entry.block, stream)
        chance = float(torch.rand((), generator=generator(self.seed, "caption", entry.trajectory, entry.last)))
        needed = not bool(entry.worlds.history.has_past[0])
        return info.caption if needed or chance < self.settings.caption else None


def packed(tree: Any) -> Any:
    """A tree of dataclasses (`KINDS`) as dicts and lists of tensors."""
    if is_dataclass(tree):
        return {"kind": STORED_NAMES[type(tree)], **{f.name: packed(getattr(tree, f.name)) for f in fields(tree)}}
    return [packed(part) for part in tree] if isinstance(tree, tuple) else tree


def unpacked(tree: Any) -> Any:
    """The inverse of `packed`."""
    if isinstance(tree, dict):
        return KINDS[tree["kind"]](**{name: unpacked(part) for name, part in tree.items() if name != "kind"})
    return tuple(unpacked(part) for part in tree) if isinstance(tree, list) else tree


def _state(alive: list[tuple[int, Entry]]) -> dict[str, Any]:
    entries = [entry for _, entry in alive]
    return {
        "slot": torch.tensor([slot for slot, _ in alive]),
        "plan": torch.tensor([[e.trajectory, e.block, e.last, e.self_generated] for e in entries]),
        "past": packed(batches.collate([e.past for e in entries])),
        "worlds": packed(collate_worlds([e.worlds for e in entries])),
    }
