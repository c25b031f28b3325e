"""Who shares a sequence with whom: groups of consecutive ranks. The object that says so is given to initialize(mpu=)."""
from __future__ import annotations

from typing import Any

import torch.distributed as dist

from deepspeed.utils import groups

get_sequence_parallel_group = groups._get_sequence_parallel_group
get_sequence_parallel_world_size = groups._get_sequence_parallel_world_size
get_sequence_parallel_rank = groups._get_sequence_parallel_rank
get_sequence_data_parallel_group = groups._get_sequence_data_parallel_group
get_sequence_data_parallel_world_size = groups._get_sequence_data_parallel_world_size
get_sequence_data_parallel_rank = groups._get_sequence_data_parallel_rank


class SequenceParallelUnit:
    """Answers of a world in which `size` consecutive ranks share a sequence and all ranks share parameters and gradients."""

    def __init__(self, group: Any, size: int) -> None:
        self._group, self._size = group, size

    def is_alive(self) -> bool:
        """Whether its group still exists: destroy_process_group() ends it, and a new world has other groups."""
        try:
            return bool(dist.get_process_group_ranks(self._group))
        except (KeyError, RuntimeError, ValueError):
            return False

    def get_sequence_parallel_group(self) -> Any:
        return self._group

    def get_sequence_parallel_world_size(self) -> int:
        return self._size

    def get_sequence_parallel_rank(self) -> int:
        return dist.get_rank(self._group)

    def get_sequence_data_parallel_group(self) -> Any:
        return dist.group.WORLD

    def get_sequence_data_parallel_world_size(self) -> int:
        return dist.get_world_size()

    def get_sequence_data_parallel_rank(self) -> int:
        return dist.get_rank()

    def get_model_parallel_group(self) -> None:
        return None

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_rank(self) -> int:
        return 0


def initialize_sequence_parallel(sequence_parallel_size: int) -> SequenceParallelUnit:
    """Makes the groups, or returns those that exist. Collective."""
    known = groups.mpu
    size, world = sequence_parallel_size, dist.get_world_size() if dist.is_initialized() else 1
    if size < 2 or world % size != 0:
        raise ValueError(f"sequence_parallel_size must be at least 2 and divide the number of ranks, {world}, got {size}")
    if isinstance(known, SequenceParallelUnit) and known.get_sequence_parallel_world_size() == size and known.is_alive():
        return known
    made = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    unit = SequenceParallelUnit(made[dist.get_rank() // size], size)
    groups.set_mpu(unit)
    return unit
