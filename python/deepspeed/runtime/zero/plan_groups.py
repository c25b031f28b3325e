"""The groups of ranks that a sharding plan may name, made from the data-parallel group and the configuration.

`shard` and `replica` are consecutive and strided ranks of MiCS/HSDP; `node` is hpZ's secondary group.
"""
from __future__ import annotations

from typing import Any

from deepspeed import _C
from deepspeed.runtime.config import DeepSpeedConfig


def data_communicator(process_group: Any = None) -> Any:
    """The communicator of a torch process group (default: all ranks)."""
    from deepspeed.comm import get_communicator
    return get_communicator(process_group)


def _blocks(size: int, rank: int, block: int) -> tuple[list[int], list[int]]:
    """(consecutive ranks of this rank's block, ranks at the same place in every block)."""
    start = rank // block * block
    return list(range(start, start + block)), list(range(rank % block, size, block))


def plan_groups(data: Any, config: DeepSpeedConfig | None) -> Any:
    """_C.PlanGroups over `data`. Collective when the configuration asks for sub-groups."""
    zero = config.zero_config if config is not None else None
    shard_size = getattr(zero, "mics_shard_size", -1) or -1
    node_size = getattr(zero, "zero_hpz_partition_size", 1) or 1
    shard = replica = node = None
    if 0 < shard_size < data.size:
        _check("mics_shard_size", shard_size, data.size)
        block, across = _blocks(data.size, data.rank, shard_size)
        shard, replica = data.subgroup(block), data.subgroup(across)
    if 1 < node_size:
        _check("zero_hpz_partition_size", node_size, data.size)
        node = data.subgroup(_blocks(data.size, data.rank, node_size)[0])
    return _C.PlanGroups(data, shard, replica, node)


def _check(key: str, value: int, world: int) -> None:
    if world % value != 0:
        raise _C.DeepSpeedConfigError(f"zero_optimization.{key} is {value}, which does not divide the {world} data-parallel ranks: "
                                      "choose a divisor")
