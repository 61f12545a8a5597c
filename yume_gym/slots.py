"""What the N worlds of a vector environment are between two calls, and how its arguments are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from world_model.action_spaces import ActionSpec
from world_model.checks import check_seed, short
from yume_gym.episode import EpisodeState, read_options
from yume_gym.keyboard import check_action

EACH, MASK = "each", "reset_mask"


@dataclass(frozen=True, eq=False)
class Slot:
    """One world's part in a batch: where its episode stands (its `world` is None: that is a row of the batch), its random
    numbers and their seed, whether its episode has ended, and what `info` says of its start."""

    episode: EpisodeState
    random: np.random.Generator
    seed: int | None
    ended: bool = False
    start_info: Mapping[str, Any] = field(default_factory=dict)


def read_reset(
    options: Mapping[str, Any] | None, count: int, accepted: tuple[str, ...]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Options of each of `count` worlds, and the numbers of those that are to be reset.

    Raises TypeError or ValueError for options that are none, keys that are not `accepted`, an `each` that is no list of
    `count` mappings or None, and a `reset_mask` that is no array bool (count,) with a True in it.
    """
    common = read_options(options, (*accepted, EACH, MASK))
    each = common.pop(EACH, [None] * count)
    mask = common.pop(MASK, np.ones(count, np.bool_))
    if not isinstance(each, Sequence) or isinstance(each, str) or len(each) != count:
        got = f"{len(each)} of them" if isinstance(each, Sequence) and not isinstance(each, str) else short(each)
        raise ValueError(f"options['{EACH}'] must be a list of {count} mappings or None, one for each world; got {got}")
    wanted = [common | read_options(own, accepted, f"options['{EACH}'][{number}]") for number, own in enumerate(each)]
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        got = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else short(mask)
        raise TypeError(f"options['{MASK}'] must be a NumPy array of bool; got {got}")
    if mask.shape != (count,) or not mask.any():
        raise ValueError(
            f"options['{MASK}'] must have shape ({count},) and a True in it; got {mask.shape}, {mask.sum()} True"
        )
    return wanted, np.flatnonzero(mask).tolist()


def read_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """A seed for each of `count` worlds: None for none, an int counts up, or as many as there are worlds.

    Raises TypeError for what are no whole numbers, ValueError for negative ones or another number of them.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes):
        if len(seed) != count:
            raise ValueError(f"{count} worlds need as many seeds in a list, got {len(seed)}: give one int or {count}")
        return [None if one is None else check_seed(one) for one in seed]
    first = check_seed(seed)
    return [first + number for number in range(count)]


def read_actions(spec: ActionSpec, actions: Any, count: int, going: Sequence[int]) -> list[Any]:
    """The actions of the worlds `going`, out of those of all `count`, as `ActionSpec.check` gives them.

    Raises TypeError or ValueError for what are no `count` actions, or one of a world going that is not in the space.
    """
    if not isinstance(actions, np.ndarray | Sequence) or isinstance(actions, str | bytes):
        raise TypeError(
            f"actions must be an array or a list of {count} actions, one for each world; got {short(actions)}"
        )
    if isinstance(actions, np.ndarray) and not actions.shape:
        raise ValueError(f"actions must be {count} actions, one for each world; got one number, {actions!r}")
    if len(actions) != count:
        raise ValueError(f"actions must be {count} actions, one for each world; got {len(actions)}")
    held = []
    for number in going:
        try:
            held.append(check_action(spec, actions[number]))
        except (TypeError, ValueError) as error:
            error.add_note(f"this was the action of world {number} of {count}")
            raise
    return held
