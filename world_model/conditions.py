"""What a block is dreamt from: where and when it is (`Target`), and what all its sampler steps share (`Conditions`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from world_model.blocks import Grid
from world_model.layers import KeyValue
from world_model.tscm import ChannelMemory


@dataclass(frozen=True)
class Target:
    """Where and when the block to dream is: yaw, pitch [B, K] float64 radians (commanded), frame [B, K] int64."""

    yaw: Tensor
    pitch: Tensor
    frame: Tensor


@dataclass(frozen=True)
class Conditions:
    """All that a block's sampler steps share."""

    context: list[KeyValue | None]  # of every layer; None for a model without text
    history: list[KeyValue]  # of every layer if attention is "cached", else empty
    tokens: Tensor | None  # embedded history [B, n, D] if attention is "joint"
    grids: list[Grid]  # of the history groups
    table: Tensor  # rotary table of the tokens attended to together with the target
    memory: ChannelMemory | None
    memory_table: Tensor | None
    bias: Tensor | None  # [B, L, D] added to the target's tokens: screen places and the guide
    pooled: Tensor | None  # [B, D] pooled action
    guide: Tensor | None = None  # [B, C, K, h, w]: a data prediction starts from it
    variance: Tensor | None = None  # [B, C, K, h, w] of the data around the guide

    def repeat(self, times: int) -> Conditions:
        """The same conditions for `times` noise draws of every world (draws of one world are neighbours)."""

        def again(x: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if x is None else x.repeat_interleave(times, dim=dim)

        def pair(item: KeyValue) -> KeyValue:
            return item[0].repeat_interleave(times, 0), item[1].repeat_interleave(times, 0)

        return Conditions(
            [item and pair(item) for item in self.context], [pair(item) for item in self.history], again(self.tokens), self.grids,
            again(self.table),  # type: ignore[arg-type]
            self.memory.repeat(times) if self.memory else None, again(self.memory_table),
            again(self.bias), again(self.pooled),
            again(self.guide), again(self.variance),
        )  # fmt: skip
