"""Small helpers that programs import from here."""
from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import random
import re
from typing import Any, Callable, Iterable

import torch
from torch import Tensor

from deepspeed._lazy import not_built, not_built_class
from deepspeed.utils.bwc import bwc_tensor_model_parallel_rank, bwc_tensor_model_parallel_world_size  # noqa: F401  (by their old path)
from deepspeed.utils.logging import logger  # noqa: F401

partition_balanced = not_built("deepspeed.runtime.utils.partition_balanced", "pipeline parallelism")
PartitionedTensor = not_built_class("deepspeed.runtime.utils.PartitionedTensor", "pipeline parallelism with partitioned activations")


class DummyOptim:
    """Holds parameters in the place of an optimizer."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.param_groups = [{"params": list(params)}]


def set_random_seed(seed: int) -> None:
    """Seeds Python, numpy, torch and the device."""
    import numpy
    from deepspeed.accelerator import get_accelerator
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    get_accelerator().manual_seed_all(seed)


def ensure_directory_exists(filename: str) -> None:
    os.makedirs(os.path.dirname(filename) or ".", exist_ok=True)


def copy_to_device(item: Any, device: Any, criterion_func: Callable[[Any], bool]) -> Any:
    """The nested structure with a copy on `device` of every item for which criterion_func holds."""
    return _map_items(item, lambda value: value.to(device) if criterion_func(value) else value)


def move_to_device(item: Any, device: Any, criterion_func: Callable[[Any], bool] | None = None) -> Any:
    """The nested structure with tensors on `device`. With a criterion the chosen tensors move in place, so that references to them
    follow."""

    def move(value: Any) -> Any:
        if criterion_func is None:
            return value.to(device) if isinstance(value, Tensor) else value
        if criterion_func(value):
            value.data = value.to(device).data
        return value

    return _map_items(item, move)


def _map_items(item: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(item, list):
        return [_map_items(value, function) for value in item]
    if isinstance(item, tuple):
        return tuple(_map_items(value, function) for value in item)
    if isinstance(item, dict):
        return {key: _map_items(value, function) for key, value in item.items()}
    return function(item)


def partition_uniform(num_items: int, num_parts: int) -> list[int]:
    """Boundaries of num_parts runs of nearly equal length; the first ones get what is left over."""
    size, rest = divmod(num_items, num_parts)
    bounds = [0]
    for part in range(num_parts):
        bounds.append(bounds[-1] + size + (part < rest))
    return bounds


def prefix_sum_inc(weights: Iterable[float]) -> list:
    """Sums of the first one, two, three, ... weights."""
    return list(itertools.accumulate(weights))


def call_to_str(base: str, *args: Any, **kwargs: Any) -> str:
    """A call as text: name(1, key='value')."""
    listed = [*(repr(arg) for arg in args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{base}({', '.join(listed)})"


def get_only_unique_item(items: Iterable[Any]) -> Any:
    """The value that all items have. Raises RuntimeError when they differ or there are none."""
    values = set(items)
    if len(values) != 1:
        raise RuntimeError(f"expected there to be only one unique element in {items}, found {len(values)}")
    return values.pop()


def required_torch_version(min_version: float | str | None = None, max_version: float | str | None = None) -> bool:
    """Whether torch's version lies between the two, both allowed ("2.11", or 2.6 as a number)."""
    if not (min_version or max_version):
        raise AssertionError("give a min_version, a max_version or both")
    installed = _version_numbers(torch.__version__)

    def compared(bound: float | str) -> list[int]:  # to as many numbers as the bound has: 2.11.3 is not above "2.11"
        return installed[:len(_version_numbers(str(bound)))]

    return (not min_version or compared(min_version) >= _version_numbers(str(min_version))) and \
        (not max_version or compared(max_version) <= _version_numbers(str(max_version)))


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split(".")]


def is_model_parallel_parameter(p: Tensor) -> bool:
    """Whether model-parallel ranks hold different parts of it (they mark it so)."""
    return bool(getattr(p, "model_parallel", False) or getattr(p, "tensor_model_parallel", False))


def get_ma_status() -> int:
    """Bytes that the device holds now; 0 on other ranks than 0."""
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator
    return get_accelerator().memory_allocated() if not comm.is_initialized() or comm.get_rank() == 0 else 0


def see_memory_usage(message: str, force: bool = False) -> None:
    """Prints on rank 0, when `force`, what the device holds now (MA), has held since the last report (Max_MA), the same with its caches
    (CA, Max_CA), and what the host has in use."""
    if not force:
        return
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator
    from deepspeed.accelerator.cpu_accelerator import host_memory_bytes
    if comm.is_initialized() and comm.get_rank() != 0:
        return
    gc.collect()  # what waits for the collector is not in use
    accelerator, gib = get_accelerator(), 2**30
    held = {"MA": accelerator.memory_allocated(), "Max_MA": accelerator.max_memory_allocated(), "CA": accelerator.memory_reserved(),
            "Max_CA": accelerator.max_memory_reserved()}
    total, available = host_memory_bytes()
    used = f"CPU Virtual Memory:  used = {(total - available) / gib:.2f} GB, percent = {100 * (total - available) / total:.1f}%\n" if total else ""
    # Whatever the log level: the caller asked for it.
    print(f"{message}\n{' '.join(f'{name} {size / gib:.2f} GB' for name, size in held.items())}\n{used}", end="", flush=True)
    accelerator.reset_peak_memory_stats()


def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2, mpu: Any = None) -> Tensor:
    """torch's clipping, for gradients outside an engine."""
    if mpu is not None:
        raise NotImplementedError("clip_grad_norm_(mpu=...): model parallelism is not built yet")
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)


def get_weight_norm(parameters: Any, norm_type: float = 2, mpu: Any = None) -> float:
    """Norm of all parameters as one vector; -1 when it is not finite."""
    if mpu is not None:
        raise NotImplementedError("get_weight_norm(mpu=...): model parallelism is not built yet")
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    norm = float(torch.nn.utils.get_total_norm([p.detach().float() for p in listed], float(norm_type)))
    return norm if math.isfinite(norm) else -1


def get_global_norm(norm_list: Iterable[float]) -> float:
    """One L2 norm from those of parts; inf when any part's norm is not usable (-1, inf or nan)."""
    norms = [float(norm) for norm in norm_list]
    if not all(math.isfinite(norm) and norm != -1 for norm in norms):
        return math.inf
    return math.sqrt(sum(norm * norm for norm in norms))


class CheckOverflow:
    """Looks for gradients that are not finite, here and on the ranks that hold other parts."""

    def __init__(self, param_groups: Iterable[Iterable[Tensor]] | None = None, mpu: Any = None, zero_reduce_scatter: bool = False,
                 deepspeed: Any = None) -> None:
        self.params = [param for group in param_groups or () for param in group]
        self.mpu, self.zero_reduce_scatter = mpu, zero_reduce_scatter

    def check(self, param_groups: Iterable[Iterable[Tensor]] | None = None) -> bool:
        return self.has_overflow(self.params if param_groups is None else [param for group in param_groups for param in group])

    def check_using_norm(self, norm_group: Iterable[float], reduce_overflow: bool = True) -> bool:
        """The same from norms of gradients. Collective over all ranks unless told otherwise."""
        return self._anywhere(math.isinf(get_global_norm(norm_group)), reduce_overflow)

    def has_overflow_serial(self, params: Iterable[Tensor]) -> bool:
        return any(param.grad is not None and not bool(torch.isfinite(param.grad).all()) for param in params)

    def has_overflow(self, params: Iterable[Tensor], has_moe_params: bool | None = None) -> bool:
        return self._anywhere(self.has_overflow_serial(params), self.zero_reduce_scatter)

    def _anywhere(self, found: bool, over_world: bool) -> bool:
        from deepspeed import comm
        if not comm.is_initialized() or not (over_world or self.mpu is not None):
            return found
        from deepspeed.accelerator import get_accelerator
        flag = torch.tensor([float(found)], device=get_accelerator().current_device_name())
        comm.all_reduce(flag, op=comm.ReduceOp.MAX, group=None if over_world else self.mpu.get_model_parallel_group())
        return bool(flag.item())


def memory_status(msg: str, print_rank: int = -1, reset_max: bool = False) -> None:
    """Logs the device's memory on one rank (-1: all), and starts its maximum anew when asked to."""
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator
    if comm.is_initialized() and print_rank not in (-1, comm.get_rank()):
        return
    if reset_max:
        get_accelerator().reset_peak_memory_stats()
    see_memory_usage(msg, force=True)


noop_context = contextlib.nullcontext


def empty_cache() -> None:
    from deepspeed.accelerator import get_accelerator
    get_accelerator().empty_cache()


def noop_decorator(func: Callable) -> Callable:
    return func
