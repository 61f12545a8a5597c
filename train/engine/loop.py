"""What every training stage shares: a run folder, EMA, exact resumption, TensorBoard and contact sheets.

A run folder holds `config.json` (the model), `settings.json` (the stage's numbers), `checkpoint/` (written whole or not at
all), `sheets/*.png` and TensorBoard's event files. One process alone or many that `accelerate launch` started: the loop is the
same, and a checkpoint of many processes is resumed by any number of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from train.engine import sharding
from train.engine.checkpoints import PROGRESS
from train.evaluation.sheet import save_sheet
from world_model.config import ModelConfig

Network = TypeVar("Network", bound=nn.Module)


def prepare_cpu() -> None:
    """Call before anything else: denormal numbers (zero-initialised branches are full of them) cost CPUs tenfold time."""
    torch.set_flush_denormal(True)


def warm_average(decay: float) -> Callable:
    """An exponential moving average that begins short: decay min(decay, (1 + n) / (10 + n)) at update n."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        mine, new = [sharding.local_part(t) for t in averages], [sharding.local_part(t) for t in current]
        torch._foreach_lerp_(mine, new, 1 - min(decay, (1 + n) / (10 + n)))

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


class Stateful(Protocol):
    """Whatever a checkpoint can hold besides: its state is tensors, numbers, lists and dicts of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Networks:
    """What a run trains, and what it only calls."""

    models: dict[str, nn.Module]  # by their names in a checkpoint
    optimizers: list[torch.optim.Optimizer]
    averaged: dict[str, float]  # decays of the EMAs, by names of models
    frozen: Sequence[nn.Module] = ()  # networks that are called and not trained; no checkpoint holds them


class Run:
    """One training run: `for step in run.steps(n)` counts on from the last checkpoint in `folder`.

    Models, optimizers and averages are saved, and all of `extra_state` (name -> object; one that an older checkpoint lacks stays
    as it is, which is said). Learning rates are those of the optimizers given, not the checkpoint's. Draw random numbers from
    `generator(settings.seed, step)` alone and a resumed run equals an unbroken one.

    With several processes all models, their averages and the frozen ones, which are DiTs then, are sharded in place, and
    `extra_state` holds what belongs to this process alone, under names that no other process uses.
    """

    def __init__(
        self,
        stage: str,
        config: ModelConfig,
        settings: Any,
        folder: Path,
        networks: Networks,
        extra_state: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.folder, self.settings = folder, settings
        models, optimizers, frozen = networks.models, networks.optimizers, networks.frozen
        process = sharding.process_state()
        self.main, self.many = process.is_main_process, process.num_processes > 1
        self.device = sharding.own_device()
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", log_with="tensorboard", project_dir=folder)
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(config.to_json())
            (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings), indent=1, default=str))
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers(stage)
        for network in () if self.many else (*models.values(), *frozen):
            network.to(self.device)
        self.ema = {
            name: AveragedModel(models[name], multi_avg_fn=warm_average(decay))
            for name, decay in networks.averaged.items()
        }
        for average in self.ema.values():
            average.requires_grad_(False)
        self.models, self.optimizers = models, list(optimizers)
        self._plain = list(optimizers)
        if self.many:
            self._shard(frozen)
        else:
            self.models = {name: self.accelerator.prepare(model) for name, model in models.items()}
            self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in optimizers]
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress, *self.ema.values())
        self.extra_state = dict(extra_state or {})
        self._checkpoint, self._replaced = folder / "checkpoint", folder / "checkpoint.old"
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._plain]
        self._load()
        for optimizer, given in zip(self._plain, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = rate
        self._started = time.monotonic() - self.progress.seconds

    def steps(self, last: int, minutes: float | None = None) -> Iterator[int]:
        """Step numbers from the checkpoint's up to `last`, or until `minutes` of training are over, with a progress bar.

        `save` and `log` inside the loop belong to the end of a step: they count it as done.
        """
        bar = tqdm(
            initial=self.progress.step,
            total=last,
            desc=str(self.folder),
            dynamic_ncols=True,
            mininterval=5,
            disable=not self.main,
        )
        while self.progress.step < last:
            if minutes is not None and sharding.any_process(self.minutes > minutes):
                break
            self.progress.step += 1
            yield self.progress.step - 1
            bar.update()
        bar.close()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._started) / 60

    def rate(self, steps: int, minutes: float | None, warmup: int, cooldown: float, least: float) -> float:
        """Share of the learning rate at this step: rises over `warmup` steps, stays, and falls to `least` over the last share
        `cooldown` of the run, which ends after `steps` or `minutes`."""
        done = (self.progress.step - 1) / steps if minutes is None else self.minutes / minutes
        return min(1.0, self.progress.step / warmup, max(least, (1 - done) / cooldown))

    def log(self, values: dict[str, float]) -> None:
        if not self.main:
            return
        self.accelerator.log(values, step=self.progress.step)
        tqdm.write(
            f"step {self.progress.step} ({self.minutes:.1f} min) " + " ".join(f"{k} {v:.4g}" for k, v in values.items())
        )

    def sheet(self, name: str, rows: list[list[np.ndarray]]) -> None:
        """A contact sheet of uint8 pictures, sheets/<name>.png."""
        if self.main:
            save_sheet(self.folder / "sheets" / f"{name}.png", rows)

    def average(self, name: str) -> None:
        """One EMA update of the model `name`."""
        model = self.models[name] if self.many else self.accelerator.unwrap_model(self.models[name])
        self.ema[name].update_parameters(model)

    def averaged(self, name: str, kind: type[Network]) -> Network:
        """The EMA of the model `name`, which is a `kind`."""
        module = self.ema[name].module
        assert isinstance(module, kind)
        return module

    def save(self) -> None:
        """Writes the checkpoint beside the old one, then swaps: an interrupted save leaves the old one."""
        self.progress.seconds = time.monotonic() - self._started
        fresh = self.folder / "checkpoint.new"
        if self.main:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.many:
            sharding.save_shards(fresh / sharding.SHARDS, self._tensors())
            if self.main:
                torch.save(self.progress.state_dict(), fresh / PROGRESS)
        else:
            self.accelerator.save_state(str(fresh))
        for name, thing in self.extra_state.items():
            torch.save(thing.state_dict(), fresh / f"{name}.pt")
        self.accelerator.wait_for_everyone()
        if self.main:
            shutil.rmtree(self._replaced, ignore_errors=True)
            if self._checkpoint.exists():
                os.replace(self._checkpoint, self._replaced)
            os.replace(fresh, self._checkpoint)
            shutil.rmtree(self._replaced, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        self.save()
        self.accelerator.end_training()

    def _shard(self, frozen: Sequence[nn.Module]) -> None:
        for name, model in self.models.items():
            before: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
            if name in self.ema:
                sharding.shard(self.ema[name].module)
            sharding.shard(model)
            sharding.replace_parameters(self.optimizers, before, dict(model.named_parameters()))
        for model in frozen:
            sharding.shard(model, frozen=True)

    def _tensors(self, made: dict[str, torch.Size] | None = None) -> dict[str, Tensor]:
        """All that is saved, by name; with `made` (sizes in a checkpoint) also what optimizers do not have yet."""
        found: dict[str, Tensor] = {}
        names: dict[Tensor, str] = {}
        for name, model in self.models.items():
            plain = model if self.many else self.accelerator.unwrap_model(model)
            found |= {f"model.{name}.{key}": value for key, value in plain.state_dict().items()}
            names |= {p: f"{name}.{key}" for key, p in plain.named_parameters()}
        for name, average in self.ema.items():
            found |= {f"average.{name}.{key}": value for key, value in average.state_dict().items()}
        for i, optimizer in enumerate(self._plain):
            found |= sharding.optimizer_tensors(optimizer, names, f"optimizer.{i}.", made)
        return found

    def _load(self) -> None:
        if self.main and not self._checkpoint.exists() and self._replaced.exists():
            os.replace(self._replaced, self._checkpoint)  # a save was stopped between its two renames
        self.accelerator.wait_for_everyone()
        if not self._checkpoint.exists():
            return
        shards = self._checkpoint / sharding.SHARDS
        if shards.exists():
            sharding.load_shards(shards, self._tensors(sharding.sizes_in(shards)))
            self.progress.load_state_dict(torch.load(self._checkpoint / PROGRESS, weights_only=True))
        elif self.many:
            raise RuntimeError(
                f"{self._checkpoint} was written by one process: go on with one, or start anew from its landed weights "
                "(python -m train.export, then --initial)"
            )
        else:
            self.accelerator.load_state(str(self._checkpoint))
        for name, thing in self.extra_state.items():
            path = self._checkpoint / f"{name}.pt"
            if path.exists():
                thing.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
            else:
                tqdm.write(f"{self._checkpoint} holds no {name}: it begins afresh")
