"""Many processes, one run: networks sharded by FSDP2, a step cut into micro-batches, and checkpoints that all write.

A step is cut into `micro_batches`, each with worlds and random numbers of its own; a process runs its share of them. So the
global batch is the same for any number of processes that divides them. Calling a sharded network gathers its weights, which all
processes must do together: where one alone needs a call, `any_process` tells the others to make it too.
Sharding follows the `fsdp_config` given to `accelerate launch` (train/configs), applied to every network of a run.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from world_model.dit import DiT
from world_model.rollout import generator

SHARDS = "shards"  # folder of a checkpoint that many processes wrote
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}


def process_state() -> PartialState:
    """This process among those that accelerate launched; joins them on the first call.

    A process alone stays on the CPU, whatever else the machine has, unless `accelerate launch` started it: then it takes the GPU.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=not launched or not torch.cuda.is_available())


def own_device() -> torch.device:
    """Where this process computes."""
    device = process_state().device
    return torch.device("cpu") if device.type == "cpu" else device  # not cpu:0, which no file is loaded to


def own_micro_batches(micro_batches: int) -> list[int]:
    """Numbers of this process's micro-batches. Raises ValueError where the processes cannot share them evenly."""
    state = process_state()
    if micro_batches < 1 or micro_batches % state.num_processes:
        raise ValueError(
            f"{micro_batches} micro-batches cannot be shared by {state.num_processes} processes: "
            "choose --micro-batches as a multiple of them"
        )
    return list(range(state.process_index, micro_batches, state.num_processes))


def settings_by_micro_batch(settings: Any) -> dict[str, Any]:
    """Settings of this process's micro-batches (their share of batch and pool, a seed of their own) by the name of their pool in a
    checkpoint. One micro-batch has the settings as they are. Raises ValueError for uneven parts.
    """
    numbers = own_micro_batches(settings.micro_batches)
    if settings.micro_batches == 1:
        return {"pool": settings}
    for name, worlds in (("batch", settings.batch), ("pool", settings.pool.size)):
        if worlds % settings.micro_batches:
            raise ValueError(f"--{name} {worlds} must be a multiple of --micro-batches {settings.micro_batches}")
    batch = settings.batch // settings.micro_batches
    pool = replace(settings.pool, size=settings.pool.size // settings.micro_batches)
    seeds = {number: generator(settings.seed, "lane", number).initial_seed() for number in numbers}
    return {f"pool_{number}": replace(settings, batch=batch, pool=pool, seed=seed) for number, seed in seeds.items()}


def any_process(flag: bool) -> bool:
    """Whether any process says so."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=own_device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def mean_over_processes(values: list[float]) -> list[float]:
    """Means over the processes."""
    if not dist.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=own_device())
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


# ---- networks ---------------------------------------------------------------------------------------------------------


def shard(network: nn.Module, frozen: bool = False) -> None:
    """Shards a DiT over all processes, in place: its parameters become DTensors, float32, each process holding its part.

    Units are the blocks, and in them what makes keys of text and channel memory, which `encode_conditions` and `encode_memory`
    call without the rest of the block. A `frozen` network (the real score) is kept in the precision it computes in.
    """
    if not isinstance(network, DiT):
        raise TypeError(f"only a DiT can be sharded, got {type(network).__name__}: train it with one process")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    state = process_state()
    precision = PRECISIONS[os.environ.get("ACCELERATE_MIXED_PRECISION", "no")]
    if frozen:
        for parameter in network.parameters():  # buffers (the priors' deviations) stay as they are
            parameter.data = parameter.data.to(precision)
    network.activation_checkpointing = plugin.activation_checkpointing
    # what no backward pass lets go would keep the weights of its first call: averages are called between updates
    fixed = not any(p.requires_grad for p in network.parameters())
    how: dict[str, Any] = {
        "mesh": init_device_mesh(state.device.type, (state.num_processes,)),
        "reshard_after_forward": bool(plugin.reshard_after_forward) or fixed,
        # inputs stay as they are: noise levels and positions need their float64
        "mp_policy": MixedPrecisionPolicy(precision, torch.float32, cast_forward_inputs=False),
        "offload_policy": plugin.cpu_offload,
    }
    for block in network.layers:
        for part in (block.cross_attn, block.channel):
            if part is not None:
                fully_shard([part.k, part.norm_k, part.v], **how)
        fully_shard(block, **how)
        register_fsdp_forward_method(block, "keys_values")
    # frozen, and called by some processes only: every process keeps the priors whole
    unsharded = set(network.priors.parameters()) or None
    fully_shard(network, **{**how, "reshard_after_forward": True}, ignored_params=unsharded)
    for method in ("encode_conditions", "condition_on", "encode_memory"):
        register_fsdp_forward_method(network, method)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor`, equal on all processes, sharded as `other` is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def replace_parameters(
    optimizers: list[torch.optim.Optimizer], before: dict[Tensor, str], after: dict[str, nn.Parameter]
) -> None:
    """Gives fresh optimizers the sharded parameters `after` (by name) instead of those they were made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [after[before[p]] if p in before else p for p in group["params"]]


# ---- checkpoints ------------------------------------------------------------------------------------------------------


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """All processes write their parts of `tensors` into `folder`."""
    dcp.save(dict(tensors), checkpoint_id=str(folder), no_dist=not dist.is_initialized())


def load_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fills `tensors`, sharded or not, from a folder that any number of processes wrote. Raises KeyError for one it lacks."""
    missing = tensors.keys() - sizes_in(folder).keys()
    if missing:
        raise KeyError(f"{folder} holds no tensor {sorted(missing)[0]!r}: it was written by another version or model")
    dcp.load(dict(tensors), checkpoint_id=str(folder), no_dist=not dist.is_initialized())


def sizes_in(folder: Path) -> dict[str, torch.Size]:
    """Names and whole sizes of the tensors in a folder."""
    metadata = dcp.FileSystemReader(str(folder)).read_metadata()
    return {name: entry.size for name, entry in metadata.state_dict_metadata.items() if hasattr(entry, "size")}


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], prefix: str, made: dict[str, torch.Size] | None = None
) -> dict[str, Tensor]:
    """An optimizer's state by parameter name: `<prefix><parameter>:<entry>`.

    With `made`, the sizes of a checkpoint, entries that it has and the optimizer lacks are made first, to be loaded into.
    """
    by_name = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    for key, size in (made or {}).items():
        name, _, entry = key.removeprefix(prefix).rpartition(":")
        if key.startswith(prefix) and name in by_name and entry not in optimizer.state[by_name[name]]:
            p = by_name[name]
            fresh = torch.zeros_like(p, requires_grad=False) if size == p.shape else torch.zeros(size)
            optimizer.state[p][entry] = fresh
    return {
        f"{prefix}{name}:{entry}": value
        for name, p in by_name.items()
        for entry, value in optimizer.state[p].items()
        if isinstance(value, Tensor)
    }
