"""Batches of worlds, whatever these are made of: trees of frozen dataclasses, tuples and lists, with tensors as their leaves.

Worlds are along a tensor's first dimension, but in dataclasses that say otherwise (`worlds_axis`). What is no tensor is as it is in
the first tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def mapped(function: Callable[..., Tensor], *trees: Tree, axis: int = 0) -> Tree:
    """A tree of `function(axis, *tensors)` for the tensors at each place of `trees`, which are alike; worlds are along `axis`."""
    first: Any = trees[0]
    if isinstance(first, Tensor):
        return function(axis, *trees)  # type: ignore[return-value]
    if dataclasses.is_dataclass(first):
        axis = getattr(first, "worlds_axis", axis)
        names = [field.name for field in dataclasses.fields(first)]
        parts = {name: mapped(function, *(getattr(tree, name) for tree in trees), axis=axis) for name in names}
        return dataclasses.replace(first, **parts)  # type: ignore[type-var, return-value]
    if isinstance(first, tuple | list):
        return type(first)([mapped(function, *part, axis=axis) for part in zip(first, *trees[1:], strict=True)])  # type: ignore[return-value]
    return first


def join(batches: Sequence[Tree]) -> Tree:
    """One batch of several."""
    return mapped(lambda axis, *tensors: torch.cat(tensors, dim=axis), *batches)


def rows(batch: Tree, part: slice | Tensor) -> Tree:
    """Some of a batch's worlds: views of its tensors for a slice, copies for numbers int64 [n]."""
    return mapped(lambda axis, tensor: tensor[(slice(None),) * axis + (part,)], batch)


def put(batch: Tree, numbers: Tensor, others: Tree) -> Tree:
    """A batch with `others` in place of its worlds of these numbers, int64 [n]; a new one, the old one stays as it is."""
    return mapped(
        lambda axis, tensor, new: tensor.clone().index_copy_(axis, numbers.to(tensor.device), new), batch, others
    )


def repeat(batch: Tree, times: int) -> Tree:
    """Every world `times` times in a row."""
    return mapped(lambda axis, tensor: tensor.repeat_interleave(times, dim=axis), batch)


def move(batch: Tree, device: torch.device | str) -> Tree:
    """The same on another device."""
    return mapped(lambda axis, tensor: tensor.to(device), batch)
