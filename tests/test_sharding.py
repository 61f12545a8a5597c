"""Two processes train as one does: the same losses, checkpoints that either resumes, and a killed one is got over."""

from __future__ import annotations

import json
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as processes
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from configs import with_dit
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from train import distill, foundation
from train.engine import sharding
from train.engine.checkpoints import load_checkpoint_ema
from train.engine.loop import Run
from train.engine.optimization import Optimization, TwoTimescale
from train.engine.pool import PoolSettings
from world_model.config import ChannelConfig, ModelConfig
from world_model.dit import DiT

CONFIGS = sorted((Path(__file__).parents[1] / "train" / "configs").glob("*.yaml"))
STEPS = 4
QUICK = foundation.Settings(
    batch=2,
    noise_samples=2,
    micro_batches=2,
    pool=PoolSettings(4),
    optimization=Optimization(lr=1e-3, warmup=2),
    self_forcing=foundation.SelfForcing(dream_from=1, dream_over=1, dream_share=0.7),
)
DISTIL = distill.Settings(
    batch=2,
    micro_batches=2,
    pool=PoolSettings(4),
    updates=TwoTimescale(generator_lr=1e-3, critic_lr=1e-3, generator_every=2, critic_warmup=1),
    guidance=1.0,
)


@pytest.fixture(scope="module")
def like_released(config) -> ModelConfig:
    """The code paths of yume-5b at the size of the small world: packing that grows, joint attention, velocity, no priors."""
    return with_dit(
        replace(config, priors=()),
        packing="released",
        prediction="velocity",
        positions="grid",
        mlp_conv=False,
        activation="gelu_tanh",
        screen=False,
        pooled_action=False,
        attention="joint",
        patch=(1, 2, 2),
        channel=ChannelConfig(dim=16, heads=2, patch=(2, 4, 4)),
    )


# ---- two processes ----------------------------------------------------------------------------------------------------


def _child(rank: int, port: int, environment: dict[str, str], function: Callable, arguments: tuple, log: Path) -> None:
    os.environ.update(
        environment,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        ACCELERATE_USE_CPU="true",
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except BaseException:
        (log / f"error_{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def in_two(function: Callable, *arguments, log: Path, **environment: str) -> list[int]:
    """Runs a function in two processes, forked so that they start at once; their exit codes. Errors are written to `log`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log.mkdir(parents=True, exist_ok=True)
    settings = {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}
    context = processes.get_context("fork")
    children = [
        context.Process(target=_child, args=(rank, port, settings | environment, function, arguments, log))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode or 0 for child in children]


def errors(log: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(log.glob("error_*.txt")))


class Watched(Run):
    """Writes the losses of every backward pass beside the run; saves and kills processes as the environment asks."""

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        backward, self.losses = self.accelerator.backward, []

        def watch(loss: Tensor) -> None:
            self.losses.append((self.progress.step - 1, float(loss.detach())))
            backward(loss)

        self.accelerator.backward = watch

    def steps(self, last: int, minutes: float | None = None) -> Iterator[int]:
        for step in super().steps(last, minutes):
            yield step
            (self.folder / f"losses_{sharding.process_state().process_index}.json").write_text(json.dumps(self.losses))
            if step == int(os.environ.get("TEST_SAVE_AFTER", -1)):
                self.save()
            if step == int(os.environ.get("TEST_KILL_AFTER", -1)) and not self.main:
                os._exit(9)


def learn(monkeypatch, config, data, vae, out, settings=QUICK, steps=STEPS) -> None:
    monkeypatch.setattr(foundation, "Run", Watched)
    initial = foundation.Initial(depth=vae if config.priors else None)
    foundation.train(config, data, vae, out, settings, steps, None, initial)


def curve(out: Path) -> tuple[list[int], np.ndarray]:
    """The last sitting, step by step: the step of each backward pass, and the losses as the mean over micro-batches takes them."""
    parts = [json.loads(path.read_text()) for path in sorted(out.glob("losses_*.json"))]
    pairs = sorted((step, loss / len(parts)) for part in parts for step, loss in part)
    return [step for step, _ in pairs], np.array([loss for _, loss in pairs])


def assert_alike(a: Path, b: Path, tolerance: float, since: int = 0, until: int = STEPS) -> None:
    """The curve of `a` is that of `b` from step `since` on, up to and without `until`."""
    (steps, losses), (expected_steps, expected) = curve(a), curve(b)
    part = slice(expected_steps.index(since), sum(step < until for step in expected_steps))
    assert steps == expected_steps[part] and set(steps) == set(range(since, until))
    np.testing.assert_allclose(losses, expected[part], rtol=tolerance)


def average(config: ModelConfig, out: Path) -> tuple[dict[str, Tensor], int]:
    """The averaged weights that a run left, and its steps."""
    found = AveragedModel(DiT(config))
    progress = load_checkpoint_ema(out / "checkpoint", found)
    return found.module.state_dict(), progress["step"]


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---- foundation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(config, data_folder, vae_folder, tmp_path_factory) -> Path:
    """One process, two micro-batches, unbroken."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        learn(patch, config, data_folder, vae_folder, out)
    return out


def test_two_processes_learn_as_one_also_after_one_was_killed(
    config, data_folder, vae_folder, alone, tmp_path, monkeypatch
):
    """With Muon, a guide, dreamt histories and activation checkpointing; and evaluation works sharded. One process is killed, and
    both two and one go on from the checkpoint."""
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = (monkeypatch, config, data_folder, vae_folder, out)
    codes = in_two(learn, *arguments, log=log, TEST_SAVE_AFTER="1", TEST_KILL_AFTER="2")
    assert codes[1] == 9 and codes[0] != 0  # the other cannot go on without it
    assert_alike(out, alone, 1e-4, until=3)
    assert average(config, out)[1] == 2
    for path in [*log.iterdir(), *out.glob("losses_*.json")]:
        path.unlink()
    shutil.copytree(out, tmp_path / "single")
    assert in_two(learn, *arguments, log=log) == [0, 0], errors(log)
    learn(monkeypatch, config, data_folder, vae_folder, tmp_path / "single")
    expected, _ = average(config, alone)
    for folder in (out, tmp_path / "single"):
        assert_alike(folder, alone, 1e-4, since=2)
        weights, steps = average(config, folder)
        assert steps == STEPS
        assert_close(weights, expected, 1e-4)
    assert sorted(path.name for path in (out / "checkpoint").iterdir()) == [
        "pool_0.pt",
        "pool_1.pt",
        "progress.pt",
        "shards",
    ]


def test_the_released_code_path_learns_as_one_and_in_half_precision(
    like_released, data_folder, vae_folder, tmp_path, monkeypatch
):
    """Histories of different lengths, AdamW alone; in bfloat16 losses are near, weights are kept in float32."""
    settings = replace(QUICK, optimization=replace(QUICK.optimization, optimizer="adamw"))
    one, two, half = (tmp_path / name for name in ("one", "two", "half"))
    learn(monkeypatch, like_released, data_folder, vae_folder, one, settings)
    for out, precision in ((two, "no"), (half, "bf16")):
        arguments = (monkeypatch, like_released, data_folder, vae_folder, out, settings)
        codes = in_two(learn, *arguments, log=tmp_path, ACCELERATE_MIXED_PRECISION=precision)
        assert codes == [0, 0], errors(tmp_path)
    assert_alike(two, one, 1e-4)
    assert_close(average(like_released, two)[0], average(like_released, one)[0], 1e-4)
    assert_alike(half, one, 0.1)
    assert not np.array_equal(curve(half)[1], curve(two)[1])
    assert all(value.dtype == torch.float32 for value in average(like_released, half)[0].values())


# ---- distillation -----------------------------------------------------------------------------------------------------


def distil(monkeypatch, config, data, vae, initial, out) -> None:
    monkeypatch.setattr(distill, "Run", Watched)
    distill.train(config, data, vae, initial, out, DISTIL, STEPS, None)


def test_two_processes_distil_as_one(config, data_folder, vae_folder, weights_folder, tmp_path, monkeypatch):
    """Generator, fake and real score are sharded."""
    one, two = tmp_path / "one", tmp_path / "two"
    distil(monkeypatch, config, data_folder, vae_folder, weights_folder, one)
    codes = in_two(distil, monkeypatch, config, data_folder, vae_folder, weights_folder, two, log=tmp_path)
    assert codes == [0, 0], errors(tmp_path)
    assert_alike(two, one, 1e-3)
    assert len(set(curve(one)[0])) == STEPS < len(curve(one)[0]) // 2  # the generator learns too
    assert_close(average(config, two)[0], average(config, one)[0], 1e-3)


# ---- micro-batches ----------------------------------------------------------------------------------------------------


def test_one_micro_batch_is_the_run_itself_and_several_share_it():
    settings = replace(QUICK, batch=4, pool=PoolSettings(8), micro_batches=1)
    assert sharding.settings_by_micro_batch(settings) == {"pool": settings}
    four = sharding.settings_by_micro_batch(replace(settings, micro_batches=4))
    assert list(four) == ["pool_0", "pool_1", "pool_2", "pool_3"]
    assert {(own.batch, own.pool.size) for own in four.values()} == {(1, 2)}
    assert len({own.seed for own in four.values()}) == 4
    for wrong, message in (
        ({"micro_batches": 3}, "--batch 4"),
        ({"micro_batches": 4, "pool": PoolSettings(9)}, "--pool 9"),
        ({"micro_batches": 0}, "0 micro-batches"),
    ):
        with pytest.raises(ValueError, match=message):
            sharding.settings_by_micro_batch(replace(settings, **wrong))


def test_a_process_alone_asks_nobody():
    assert sharding.any_process(True) and not sharding.any_process(False)
    assert sharding.mean_over_processes([1.0, 2.0]) == [1.0, 2.0]
    value = torch.ones(2)
    assert sharding.local_part(value) is sharding.full_tensor(value) is sharding.shard_like(value, value) is value
    with pytest.raises(TypeError, match="Linear"):
        sharding.shard(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_what_accelerate_reads(path):
    values = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))
    assert config.distributed_type == "FSDP"
    assert config.num_processes == values["num_processes"]
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_activation_checkpointing"] is True


def test_there_are_configurations_for_8_16_and_64_gpus():
    assert {"gpus8", "gpus16", "gpus64", "cpu2"} == {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("environment", "gpu", "on_cpu"),
    [
        ({}, True, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True, False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False, True),
        ({"WORLD_SIZE": "2"}, True, False),
    ],
    ids=["alone", "launched", "launched without a GPU", "many"],
)
def test_a_process_takes_the_gpu_only_if_it_was_launched(environment, gpu, on_cpu, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(sharding, "PartialState", lambda cpu: cpu)
    assert sharding.process_state() == on_cpu
