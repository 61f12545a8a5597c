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


def collate(batches: Sequence[Tree]) -> Tree:
    """One batch of several."""
    return mapped(lambda axis, *tensors: torch.cat(tensors, dim=axis), *batches)


def rows(batch: Tree, part: slice | Tensor) -> Tree:
    """Some of a batch's worlds: views of its tensors for a slice, copies for numbers int64 [n]."""
    return mapped(lambda axis, tensor: tensor[(slice(None),) * axis + (part,)], batch)


def replace_rows(batch: Tree, numbers: Tensor, others: Tree) -> Tree:
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


def check_alike(tree: Any, like: Any, name: str, loose: Sequence[str], worlds: int, axis: int = 0) -> None:
    """Raises ValueError, with the place's `name`, where a tree is not made like another of one world, or holds a number that is
    not finite. Shapes may differ at the places `loose`, and in how many `worlds` there are."""
    if isinstance(like, Tensor):
        if not isinstance(tree, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tree).__name__}")
        shape = (*like.shape[:axis], worlds, *like.shape[axis + 1 :])
        if tree.dtype != like.dtype or (tree.shape != shape and not name.startswith(tuple(loose) or "\0")):
            raise ValueError(
                f"{name} must be {like.dtype} of shape {shape}, got {tree.dtype} of shape {tuple(tree.shape)}"
            )
        if tree.is_floating_point() and not bool(tree.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
        return
    if dataclasses.is_dataclass(like):
        if type(tree) is not type(like):
            raise ValueError(f"{name} must be a {type(like).__name__}, got {type(tree).__name__}")
        axis = getattr(like, "worlds_axis", axis)
        for field in dataclasses.fields(like):
            if not hasattr(tree, field.name):
                raise ValueError(f"{name} lacks its {field.name}")
            own = getattr(like, field.name)
            check_alike(getattr(tree, field.name), own, f"{name}.{field.name}", loose, worlds, axis)
    elif isinstance(like, tuple | list):
        if type(tree) is not type(like) or (len(tree) != len(like) and name not in loose):
            raise ValueError(f"{name} must be a {type(like).__name__} of {len(like)}, got {type(tree).__name__}")
        for number, (own, other) in enumerate(zip(tree, like)):
            check_alike(own, other, f"{name}[{number}]", loose, worlds, axis)
    elif tree != like:
        raise ValueError(f"{name} must be {like!r}, got {tree!r}")
