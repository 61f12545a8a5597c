"""One training loop for every stage of a generator: time budget, learning rate, moving average, log, resumption.

A stage's folder holds `checkpoint.pt` (written whole or not at all) and TensorBoard's event files. A resumed stage draws the random
numbers of an unbroken one, since a step draws by its number alone; only its learning rate depends on the clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train.engine.loop import warm_average

SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 25  # steps


class Kept(Protocol):
    """What else a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Budget:
    """When a stage ends: after `minutes` of training or `steps`, whichever comes first.

    Its learning rate rises over `warmup` steps and falls over the last share `cooldown`."""

    minutes: float
    steps: int = 1_000_000_000
    warmup: int = 100
    cooldown: float = 0.3
    least: float = 0.05  # share of the learning rate at the end

    def done(self, step: int, seconds: float) -> float:
        """Share of the stage that is over, 0..1; a stage without minutes is."""
        if not self.minutes:
            return 1.0
        return min(1.0, max(step / self.steps, seconds / 60 / self.minutes))

    def rate(self, step: int, done: float) -> float:
        """Share of the learning rate at a step."""
        return min(1.0, (step + 1) / self.warmup, max(self.least, (1 - done) / self.cooldown))


class Stage:
    """A stage of training: `models` by name, their optimizers, averages of those named in `averaged` (name -> decay).

    `run(step)` calls ``step(number, done)`` until the budget is spent; it makes the gradient steps itself, through `update`, and
    returns what to log, as tensors (reading a number from a GPU makes it wait).
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        budget: Budget,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, list[torch.optim.Optimizer]],
        averaged: Mapping[str, float],
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        self.name, self.folder, self.budget = name, folder, budget
        self.models, self.optimizers, self.kept = dict(models), dict(optimizers), dict(kept or {})
        self.average: dict[str, AveragedModel] = {
            key: AveragedModel(self.models[key], multi_avg_fn=warm_average(decay), use_buffers=False)
            for key, decay in averaged.items()
        }
        for average in self.average.values():
            average.requires_grad_(False)
        self._bases = {
            key: [group["lr"] for o in own for group in o.param_groups] for key, own in self.optimizers.items()
        }
        self.step, self.seconds = 0, 0.0
        self._load()

    def run(self, step: Callable[[int, float], dict[str, Tensor]], bar: tqdm | None = None) -> None:
        """Trains until the budget is spent; `bar` counts seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(self.folder))
        began, saved, logged = time.monotonic() - self.seconds, time.monotonic(), []
        while (done := self.budget.done(self.step, self.seconds)) < 1:
            self._set_rates(self.budget.rate(self.step, done))
            logged.append(step(self.step, done))
            self.step += 1
            passed = time.monotonic() - began - self.seconds
            self.seconds += passed
            if bar is not None:
                bar.update(min(passed, bar.total - bar.n))
            if self.step % LOG_EVERY == 0:
                self._log(writer, logged, bar)
                logged = []
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        writer.close()

    def update(self, name: str, loss: Tensor, clip: float = 1.0) -> None:
        """One gradient step of the model `name`, and of its average. A gradient that is not finite teaches nothing."""
        model = self.models[name]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)  # all of it is no number if a part of it is not
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        for optimizer in self.optimizers[name]:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if name in self.average:
            self.average[name].update_parameters(model)

    def save(self) -> None:
        """Writes the checkpoint beside the old one, then replaces it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "models": {n: m.state_dict() for n, m in self.models.items()},
            "averages": {n: m.state_dict() for n, m in self.average.items()},
            "optimizers": {n: [o.state_dict() for o in own] for n, own in self.optimizers.items()},
            "kept": {n: k.state_dict() for n, k in self.kept.items()},
        }
        unfinished = self.folder / "checkpoint.pt.unfinished"
        torch.save(state, unfinished)
        os.replace(unfinished, self.folder / "checkpoint.pt")

    def averaged(self, name: str) -> nn.Module:
        """The average of the model `name`, or the model itself where it has none."""
        return self.average[name].module if name in self.average else self.models[name]

    def _load(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        device = next(next(iter(self.models.values())).parameters()).device
        state = torch.load(path, map_location=device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        try:
            for own, key in ((self.models, "models"), (self.average, "averages")):
                for name, module in own.items():
                    module.load_state_dict(state[key][name])
            for name, optimizers in self.optimizers.items():
                for optimizer, values in zip(optimizers, state["optimizers"][name], strict=True):
                    optimizer.load_state_dict(values)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is of another model or stage: delete it, or use another folder ({error})"
            ) from error
        for name, kept in self.kept.items():
            kept.load_state_dict(state["kept"][name])

    def _set_rates(self, share: float) -> None:
        for name, optimizers in self.optimizers.items():
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            for group, base in zip(groups, self._bases[name], strict=True):
                group["lr"] = base * share

    def _log(self, writer: SummaryWriter, logged: list[dict[str, Tensor]], bar: tqdm | None) -> None:
        names = sorted({name for values in logged for name in values})
        means = {
            name: float(torch.stack([v[name].detach().float() for v in logged if name in v]).mean()) for name in names
        }
        for name, value in means.items():
            writer.add_scalar(f"{self.name}/{name}", value, self.step)
        if bar is not None:
            bar.set_postfix_str(f"{self.name} {self.step} " + " ".join(f"{n} {v:.3g}" for n, v in means.items()))
