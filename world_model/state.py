"""`WorldState`: worlds between two steps, as a value. Saving, restoring and forking a world is keeping a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from world_model.heads import Outcome
from world_model.worlds import Worlds, join_worlds, put_worlds, take_worlds

Value = TypeVar("Value")


@dataclass(frozen=True)
class WorldState:
    """Worlds between two steps: their tensors, and for each its seed, its step number and its start text ("" for none).

    outcomes: what each world's last block was worth, as batches of one (`Outcome.none` after a start); () of models without heads.
    """

    worlds: Worlds
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    texts: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, numbers: Sequence[int]) -> WorldState:
        """The worlds of these numbers, in this order, in memory of their own. Raises IndexError for a number out of range."""
        return WorldState(
            worlds=take_worlds(self.worlds, numbers, copy=True),
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
            worlds=put_worlds(self.worlds, numbers, others.worlds),
            seeds=_put(self.seeds, numbers, others.seeds),
            steps=_put(self.steps, numbers, others.steps),
            texts=_put(self.texts, numbers, others.texts),
            outcomes=_put(self.outcomes, numbers, others.outcomes),
        )


def _put(values: tuple[Value, ...], numbers: Sequence[int], others: Sequence[Value]) -> tuple[Value, ...]:
    new = dict(zip(numbers, others))
    return tuple(new.get(number, value) for number, value in enumerate(values))


def join_states(states: Sequence[WorldState]) -> WorldState:
    """One batch of several."""
    if len(states) == 1:
        return states[0]
    return WorldState(
        worlds=join_worlds([state.worlds for state in states]),
        seeds=tuple(seed for state in states for seed in state.seeds),
        steps=tuple(step for state in states for step in state.steps),
        texts=tuple(text for state in states for text in state.texts),
        outcomes=tuple(outcome for state in states for outcome in state.outcomes),
    )
