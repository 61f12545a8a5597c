"""What every training stage shares: a run folder, EMA, exact resumption, TensorBoard and contact sheets.

A run folder holds `config.json` (the model), `settings.json` (the stage's numbers), `checkpoint/` (written whole or not at
all), `sheets/*.png` and TensorBoard's event files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from train.sheet import save_sheet
from world_model.config import ModelConfig


def prepare_cpu() -> None:
    """Call before anything else: denormal numbers (zero-initialised branches are full of them) cost CPUs tenfold time."""
    torch.set_flush_denormal(True)


def warm_average(decay: float) -> Callable:
    """An exponential moving average that begins short: decay min(decay, (1 + n) / (10 + n)) at update n."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


@dataclasses.dataclass
class Progress:
    """Counters that a checkpoint keeps."""

    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


class Kept(Protocol):
    """What else a checkpoint can hold: tensors, numbers, lists and dicts of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Run:
    """One training run: `for step in run.steps(n)` counts on from the last checkpoint in `folder`.

    `models` (name -> module) and `optimizers` are prepared by accelerate and saved together with the EMA of the models named
    in `averaged` (name -> decay) and all of `kept` (name -> object; one that an older checkpoint lacks stays as it is, which
    is said). Draw random numbers from `generator(settings.seed, step)` alone and a resumed run equals an unbroken one.
    """

    def __init__(
        self, stage: str, config: ModelConfig, settings: Any, folder: Path, models: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer], averaged: dict[str, float], kept: Mapping[str, Kept] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        # data, pools and averages live on the CPU, so that is where models belong, whatever else the machine has
        self.accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=folder)
        self.accelerator.init_trackers(stage)
        (folder / "config.json").write_text(config.to_json())
        (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings), indent=1, default=str))
        self.ema = {
            name: AveragedModel(models[name], multi_avg_fn=warm_average(decay)) for name, decay in averaged.items()
        }
        for average in self.ema.values():
            average.requires_grad_(False)
        self.models = {name: self.accelerator.prepare(model) for name, model in models.items()}
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in optimizers]
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress, *self.ema.values())
        self.kept = dict(kept or {})
        self._checkpoint, self._replaced = folder / "checkpoint", folder / "checkpoint.old"
        self._load()
        self._started = time.monotonic() - self.progress.seconds

    def steps(self, last: int, minutes: float | None = None) -> Iterator[int]:
        """Step numbers from the checkpoint's up to `last`, or until `minutes` of training are over, with a progress bar.

        `save` and `log` inside the loop belong to the end of a step: they count it as done.
        """
        bar = tqdm(initial=self.progress.step, total=last, desc=str(self.folder), dynamic_ncols=True, mininterval=5)
        while self.progress.step < last:
            if minutes is not None and self.minutes > minutes:
                break
            self.progress.step += 1
            yield self.progress.step - 1
            bar.update()
        bar.close()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._started) / 60

    def log(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.progress.step)
        tqdm.write(
            f"step {self.progress.step} ({self.minutes:.1f} min) " + " ".join(f"{k} {v:.4g}" for k, v in values.items())
        )

    def sheet(self, name: str, rows: list[list[np.ndarray]]) -> None:
        """A contact sheet of uint8 pictures, sheets/<name>.png."""
        save_sheet(self.folder / "sheets" / f"{name}.png", rows)

    def average(self, name: str) -> None:
        """One EMA update of the model `name`."""
        self.ema[name].update_parameters(self.accelerator.unwrap_model(self.models[name]))

    def save(self) -> None:
        """Writes the checkpoint beside the old one, then swaps: an interrupted save leaves the old one."""
        self.progress.seconds = time.monotonic() - self._started
        fresh = self.folder / "checkpoint.new"
        shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.save_state(str(fresh))
        for name, thing in self.kept.items():
            torch.save(thing.state_dict(), fresh / f"{name}.pt")
        shutil.rmtree(self._replaced, ignore_errors=True)
        if self._checkpoint.exists():
            os.replace(self._checkpoint, self._replaced)
        os.replace(fresh, self._checkpoint)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def finish(self) -> None:
        self.save()
        self.accelerator.end_training()

    def _load(self) -> None:
        if not self._checkpoint.exists() and self._replaced.exists():  # a save was stopped between its two renames
            os.replace(self._replaced, self._checkpoint)
        if not self._checkpoint.exists():
            return
        self.accelerator.load_state(str(self._checkpoint))
        for name, thing in self.kept.items():
            path = self._checkpoint / f"{name}.pt"
            if path.exists():
                thing.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            else:
                tqdm.write(f"{self._checkpoint} holds no {name}: it begins afresh")
