"""Process groups by role. Without model, sequence or expert parallelism every role but data has one rank."""
from __future__ import annotations

from typing import Any

import torch.distributed as dist

mpu: Any = None
mesh_device: Any = None


def set_mpu(unit: Any) -> None:
    """Uses the caller's object for model-parallel questions (as given to initialize)."""
    global mpu
    mpu = unit


def ask(unit: Any, *names: str) -> Any:
    """The first of these methods that `unit` (an mpu or None) has, called; None without one."""
    for name in names:
        method = getattr(unit, name, None)
        if method is not None:
            return method()
    return None


def _ask(*names: str) -> Any:
    return ask(mpu, *names)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _world_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _world_group():
    return dist.group.WORLD if dist.is_initialized() else None


# ---- data
def _get_data_parallel_group():
    """Ranks that train on different data."""
    return _or(_ask("get_data_parallel_group"), _world_group())


def _get_data_parallel_world_size() -> int:
    """Number of ranks that train on different data."""
    size = _ask("get_data_parallel_world_size")
    return size if size is not None else _world_size() // _get_model_parallel_world_size()


def _get_data_parallel_rank() -> int:
    """This process's rank among those."""
    return _or(_ask("get_data_parallel_rank"), _world_rank())


def _get_data_parallel_group_ranks() -> list[int]:
    """The world's ranks of the data-parallel group."""
    return dist.get_process_group_ranks(_get_data_parallel_group())


def _get_broadcast_src_rank() -> int:
    return dist.get_global_rank(_get_data_parallel_group(), 0)


# ---- model (tensor)
def _get_model_parallel_world_size() -> int:
    """Number of ranks that share each layer."""
    return _or(_ask("get_model_parallel_world_size", "get_tensor_model_parallel_world_size"), 1)


def _get_model_parallel_rank() -> int:
    """This process's rank among those."""
    return _or(_ask("get_model_parallel_rank", "get_tensor_model_parallel_rank"), 0)


def _get_model_parallel_group():
    """Ranks that share each layer; None without an mpu."""
    return _ask("get_model_parallel_group", "get_tensor_model_parallel_group")


# ---- sequence
def _get_sequence_parallel_world_size() -> int:
    """Number of ranks that share each sequence."""
    return _or(_ask("get_sequence_parallel_world_size"), 1)


def _get_sequence_parallel_rank() -> int:
    """This process's rank among those."""
    return _or(_ask("get_sequence_parallel_rank"), 0)


def _get_sequence_parallel_group():
    """Ranks that share each sequence; None without an mpu."""
    return _ask("get_sequence_parallel_group")


def _get_sequence_data_parallel_world_size() -> int:
    """Number of ranks over which gradients are averaged."""
    return _or(_ask("get_sequence_data_parallel_world_size"), _get_data_parallel_world_size())


def _get_sequence_data_parallel_rank() -> int:
    """This process's rank among those."""
    return _or(_ask("get_sequence_data_parallel_rank"), _get_data_parallel_rank())


def _get_sequence_data_parallel_group():
    """Ranks over which gradients are averaged."""
    return _or(_ask("get_sequence_data_parallel_group"), _get_data_parallel_group())


get_data_parallel_group = _get_data_parallel_group
get_data_parallel_world_size = _get_data_parallel_world_size
get_data_parallel_rank = _get_data_parallel_rank
get_model_parallel_group = get_tensor_model_parallel_group = _get_model_parallel_group
get_model_parallel_world_size = get_tensor_model_parallel_world_size = _get_model_parallel_world_size
get_model_parallel_rank = get_tensor_model_parallel_rank = _get_model_parallel_rank


def _zero_param_parallel_is_initialized() -> bool:
    return False


_EXPERT_NAMES = ("_get_expert_parallel_group", "_get_expert_parallel_group_ranks", "_get_expert_parallel_group_dict",
                 "_get_expert_data_parallel_group", "_get_expert_data_parallel_group_ranks", "_get_expert_data_parallel_group_dict",
                 "_get_expert_parallel_world_size", "_get_expert_data_parallel_world_size", "_get_expert_parallel_rank",
                 "_get_expert_data_parallel_rank", "_get_max_expert_size", "_get_max_expert_size_name",
                 "_get_max_expert_parallel_group", "_create_expert_and_data_parallel", "_create_model_parallel")


def __getattr__(name: str):
    if name in _EXPERT_NAMES:

        def later(*_args, **_kwargs):
            raise NotImplementedError(f"groups.{name}: expert parallelism is not built yet")

        later.__name__, later.__doc__ = name, "Expert parallelism: not built yet."
        return later
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
