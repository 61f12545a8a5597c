"""The optimizer of a diffusion transformer, and its settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from train.engine.muon import Muon


@dataclass(frozen=True)
class Optimization:
    """The optimizer and the course of its learning rate."""

    optimizer: str = "muon"  # or "adamw": large networks on many GPUs
    lr: float = 1.5e-3
    warmup: int = 60  # steps over which the learning rate rises
    cooldown: float = 0.3  # last share of the run over which the learning rate falls to a twentieth
    weight_decay: float = 0.01


@dataclass(frozen=True)
class TwoTimescale:
    """Learning rates of generator and critic, and how often each learns (two time-scale update rule)."""

    generator_lr: float = 2e-5
    critic_lr: float = 2e-4
    generator_every: int = 4  # critic steps a generator step
    critic_warmup: int = 50  # steps in which the critic alone learns


def optimizers(dit: nn.Module, lr: float, weight_decay: float, kind: str = "muon") -> list[torch.optim.Optimizer]:
    """ "muon": Muon for the matrices inside the blocks, AdamW for everything else. "adamw": AdamW alone."""
    if kind not in ("muon", "adamw"):
        raise ValueError(f"unknown optimizer {kind!r}: choose muon or adamw")
    named = [(n, p) for n, p in dit.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if n.startswith("blocks.") and p.dim() == 2] if kind == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    return [Muon(matrices, lr=lr, weight_decay=weight_decay), adam] if matrices else [adam]
