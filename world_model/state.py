"""`WorldState`: worlds between two steps, as a value. Saving, restoring and forking a world is keeping a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from world_model import batch
from world_model.checks import short
from world_model.heads import Outcome
from world_model.worlds import WorldBatch, collate_worlds, replace_worlds, select_worlds

Value = TypeVar("Value")


@dataclass(frozen=True)
class WorldState:
    """Worlds between two steps: their tensors, and for each its seed, its step number and its start text ("" for none).

    outcomes: what each world's last block was worth, as batches of one (`Outcome.none` after a start); () of models without heads.
    """

    worlds: WorldBatch
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    texts: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, numbers: Sequence[int]) -> WorldState:
        """The worlds of these numbers, in this order, in memory of their own. Raises IndexError for a number out of range."""
        return WorldState(
            worlds=select_worlds(self.worlds, numbers, copy=True),
            seeds=tuple(self.seeds[i] for i in numbers),
            steps=tuple(self.steps[i] for i in numbers),
            texts=tuple(self.texts[i] for i in numbers),
            outcomes=tuple(self.outcomes[i] for i in numbers) if self.outcomes else (),
        )

    def replaced(self, numbers: Sequence[int], others: WorldState) -> WorldState:
        """With worlds `others` in place of those of these numbers, one for each. Raises ValueError for more or fewer."""
        if len(numbers) != len(others):
            raise ValueError(f"{len(numbers)} worlds are to be replaced by {len(others)}: give one for each")
        return WorldState(
            worlds=replace_worlds(self.worlds, numbers, others.worlds),
            seeds=_put(self.seeds, numbers, others.seeds),
            steps=_put(self.steps, numbers, others.steps),
            texts=_put(self.texts, numbers, others.texts),
            outcomes=_put(self.outcomes, numbers, others.outcomes),
        )


def check_state(state: object, like: WorldState, exact: bool) -> None:
    """Raises TypeError for what is no `WorldState`, ValueError for one that no model gives whose worlds are `like` those.

    Its tensors must have the types and shapes of those, and finite numbers; without `exact` (a model that holds all of its
    history) those of history and decoder only finite numbers.
    """
    if not isinstance(state, WorldState):
        raise TypeError(f"a world is a WorldState, got {type(state).__name__}")
    lacking = [own.name for own in fields(WorldState) if own.name not in vars(state)]
    if lacking:
        raise ValueError(f"the world lacks its {lacking[0]}")
    count = len(state.seeds) if isinstance(state.seeds, tuple) else 0
    parts = {"steps": state.steps, "texts": state.texts, "outcomes": state.outcomes}
    for name, part in parts.items():
        wanted = 0 if name == "outcomes" and not like.outcomes else count
        if not count or not isinstance(part, tuple) or len(part) != wanted:
            raise ValueError(f"a world of {count} seeds needs a tuple of {wanted or 'no'} {name}, got {short(part)}")
    whole = [*state.seeds, *state.steps]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in whole) or min(state.steps) < 0:
        raise ValueError("the world's seeds and steps must be whole numbers, steps 0 or more")
    if not all(isinstance(text, str) for text in state.texts):
        raise ValueError("the world's texts must be str")
    loose = () if exact else ("worlds.history", "worlds.cache")
    batch.check_alike(state.worlds, like.worlds, "worlds", loose, count)
    for outcome in state.outcomes:
        batch.check_alike(outcome, like.outcomes[0] if like.outcomes else outcome, "outcomes", (), 1)
    if float(state.worlds.picture.abs().max()) > 1.001 or int(state.worlds.frame.min()) < 0:
        raise ValueError("the world's picture must be within -1..1 and its frame 0 or more")


def _put(values: tuple[Value, ...], numbers: Sequence[int], others: Sequence[Value]) -> tuple[Value, ...]:
    new = dict(zip(numbers, others))
    return tuple(new.get(number, value) for number, value in enumerate(values))


def collate_states(states: Sequence[WorldState]) -> WorldState:
    """One batch of several."""
    if len(states) == 1:
        return states[0]
    return WorldState(
        worlds=collate_worlds([state.worlds for state in states]),
        seeds=tuple(seed for state in states for seed in state.seeds),
        steps=tuple(step for state in states for step in state.steps),
        texts=tuple(text for state in states for text in state.texts),
        outcomes=tuple(outcome for state in states for outcome in state.outcomes),
    )
