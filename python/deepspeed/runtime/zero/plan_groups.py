"""The groups of ranks that a sharding plan may name, made from the data-parallel group and the configuration.

`shard` and `replica` are consecutive and strided ranks of MiCS/HSDP; `node` is hpZ's secondary group.
"""
from __future__ import annotations

from typing import Any

import torch.distributed as dist

from deepspeed import _C
from deepspeed.runtime.config import DeepSpeedConfig


def data_communicator(process_group: Any = None) -> Any:
    """The communicator of a torch process group (default: all ranks), whose operations the communications logger sees."""
    from deepspeed.comm import get_communicator
    from deepspeed.comm.communicators import engine_operations
    return engine_operations.recorded(get_communicator(process_group))


def _blocks(size: int, rank: int, block: int) -> tuple[list[int], list[int]]:
    """(consecutive ranks of this rank's block, ranks at the same place in every block)."""
    start = rank // block * block
    return list(range(start, start + block)), list(range(rank % block, size, block))


def _subgroup(data: Any, ranks: list[int], process_group: Any) -> Any:
    """The communicator over `ranks`, numbers within `data`. Every rank calls with the subset that it belongs to."""
    try:
        return data.subgroup(ranks)
    except NotImplementedError:  # torch's groups are made by torch
        everyone = dist.get_process_group_ranks(process_group or dist.group.WORLD)
        return data_communicator(dist.new_group([everyone[r] for r in ranks], use_local_synchronization=True))


def plan_groups(data: Any, config: DeepSpeedConfig | None, process_group: Any = None) -> Any:
    """_C.PlanGroups over `data`, the communicator of `process_group`. Collective when the configuration asks for sub-groups."""
    zero = config.zero_config if config is not None else None
    shard_size = getattr(zero, "mics_shard_size", -1) or -1
    node_size = getattr(zero, "zero_hpz_partition_size", 1) or 1
    shard = replica = node = None
    if 0 < shard_size < data.size:
        _check("mics_shard_size", shard_size, data.size)
        block, across = _blocks(data.size, data.rank, shard_size)
        shard, replica = _subgroup(data, block, process_group), _subgroup(data, across, process_group)
    if 1 < node_size:
        _check("zero_hpz_partition_size", node_size, data.size)
        node = _subgroup(data, _blocks(data.size, data.rank, node_size)[0], process_group)
    return _C.PlanGroups(data, shard, replica, node)


def _check(key: str, value: int, world: int) -> None:
    if world % value != 0:
        raise _C.DeepSpeedConfigError(f"zero_optimization.{key} is {value}, which does not divide the {world} data-parallel ranks: "
                                      "choose a divisor")
