"""Muon (Jordan et al. 2024; scale of Liu et al. 2025, eq. 4): momentum, orthogonalised, for weight matrices.

torch.optim.Muon (2.9+) always orthogonalises in bfloat16, which CPUs without bfloat16 arithmetic run a hundred times slower than
float32. Here it is bfloat16 where that is fast. Matrices of one shape are orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from train.engine.precision import has_fast_bfloat16
from train.engine.sharding import full_tensor, shard_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration


def orthogonalise(matrices: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n, rows, columns] -> nearly orthogonal matrices with the same singular vectors (singular values within about .7..1.2).

    Products are in `dtype`.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-1, -2) if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(iterations):
        gram = x @ x.transpose(-1, -2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(-1, -2) if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For 2-D parameters. Updates have a root mean square of 0.2, like AdamW's, so that one learning rate serves both.

    Of sharded parameters momentum is sharded too, but every process gathers and orthogonalises every whole matrix: the same
    numbers as alone, at that price.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        wrong = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.dim() != 2]
        if wrong:
            raise ValueError(f"Muon takes matrices only, got a parameter of shape {wrong[0]}: give it to AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                by_shape[tuple(p.shape)].append((p, p.grad.lerp(state["momentum"], group["momentum"])))
            for shape, pairs in by_shape.items():
                whole = torch.stack([full_tensor(update) for _, update in pairs])
                fast = has_fast_bfloat16(whole.device)
                updates = orthogonalise(whole, dtype=torch.bfloat16 if fast else torch.float32)
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                        shard_like(update, p), alpha=-group["lr"] * scale
                    )
