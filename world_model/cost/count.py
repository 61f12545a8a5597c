"""What a computation costs, counted on the meta device without doing it: operations, and bytes alive at once."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclasses.dataclass(frozen=True)
class Cost:
    """flops: of matrix products, convolutions and attention, a multiplication and an addition counting as two; what is done
    element by element is not counted. peak: most bytes that it had alive at once, its result included.
    """

    flops: int = 0
    peak: int = 0


def count(function: Callable[[], Any]) -> tuple[Any, Cost]:
    """Runs `function`, which must compute on meta tensors, twice: its result, and its cost on a device whose attention never
    writes the matrix of scores down (as FlashAttention; torch itself takes attention on the meta device apart).
    """
    with FlopCounterMode(display=False) as counter:
        function()
    with _fused_attention(), LiveBytes() as live:
        result = function()
    return result, Cost(counter.get_total_flops(), live.peak)


def size_of(*values: Any) -> int:
    """Bytes of all tensors in `values` (dataclasses, lists, dicts of tensors); a storage that several share counts once."""
    storages = [t.untyped_storage() for t in _tensors(values)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf):
            yield from _tensors([getattr(leaf, f.name) for f in dataclasses.fields(leaf)])


class LiveBytes(TorchDispatchMode):
    """Follows every storage made while it is on: `now` bytes are alive, `peak` were at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage(), given)
        self.peak = max(self.peak, self.now)
        return out

    def _meet(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._known:  # a view, or written in place
            return
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _FusedAttention(torch.autograd.Function):
    """Shapes of FlashAttention and what it saves: inputs, output and row sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    # a TorchFunctionMode would be off during backward passes, where checkpointing computes blocks again
    original = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *mask: Any, **options: Any) -> Tensor:
        return _FusedAttention.apply(query, key, value)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
