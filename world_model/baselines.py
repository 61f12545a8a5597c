"""Other ways to remember, to compare TSCM with: each makes a model of it, at any size. `--baseline NAME` trains one.

spatial-only     the model's own packing without the channel path (the paper's ablation)
sliding-window   the first frame and the newest at the finest size, about as many tokens; what leaves the window is forgotten
rolling-cache    the same, keys and values of the history computed once a block (Self-Forcing's rolling KV cache)
full-history     every frame at the finest size: tokens grow by a block's with every block
full-cache       the same, keys and values of the history computed once a block
framepack        the released packing alone (FramePack, Yume 1.0): old frames in ever larger patches; tokens grow slowly
retrieval        the sliding window's tokens, half of them old frames that show most of what the keys are about to show (WorldMem,
                 arXiv:2504.12369): tokens stay, what is held grows. WorldMem's pose embeddings in the network are not rebuilt
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from world_model.config import HistoryConfig, ModelConfig, Retrieval, Tiers


def window(packing: Tiers) -> Tiers:
    """The newest frames at the finest size, as many as have about the tokens of all tiers of `packing`; nothing older but the first
    frame, which `Tiers` always holds."""
    frames = sum(count / ratio**2 for count, ratio in (*packing.recent, packing.old))
    return Tiers(recent=((max(1, round(frames)), 1),), initial=packing.initial, old=(0, 1))


def _window(history: HistoryConfig) -> Tiers:
    """Of a model whose packing grows: as many frames as our own packing has tokens of."""
    return window(history.packing if isinstance(history.packing, Tiers) else Tiers())


def _retrieval(history: HistoryConfig) -> Retrieval:
    frames = max(2, _window(history).recent_frames)
    return Retrieval(recent=frames // 2, retrieved=frames - frames // 2)


BASELINES: dict[str, Callable[[HistoryConfig], HistoryConfig]] = {
    "spatial-only": lambda h: h,
    "sliding-window": lambda h: replace(h, packing=_window(h), attention="joint"),
    "rolling-cache": lambda h: replace(h, packing=_window(h), attention="cached"),
    "full-history": lambda h: replace(h, packing="full", attention="joint"),
    "full-cache": lambda h: replace(h, packing="full", attention="cached"),
    "framepack": lambda h: replace(h, packing="released", attention="joint"),
    "retrieval": lambda h: replace(h, packing=_retrieval(h), attention="joint"),
}


def baseline(config: ModelConfig, name: str) -> ModelConfig:
    """`config` with another memory and no channel path; everything else is the same. Raises ValueError for an unknown name."""
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}: known are {', '.join(BASELINES)}")
    history = replace(BASELINES[name](config.dit.history), channel=None)
    return replace(config, name=f"{config.name} {name}", dit=replace(config.dit, history=history))
