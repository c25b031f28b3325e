"""Small helpers that programs import from here."""
from __future__ import annotations

import os
import random
from typing import Any, Callable, Iterable

import torch
from torch import Tensor

from deepspeed.utils.logging import logger


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


def see_memory_usage(message: str, force: bool = False) -> None:
    """Logs the device's memory when `force`."""
    if not force:
        return
    from deepspeed.accelerator import get_accelerator
    accelerator, gib = get_accelerator(), 2**30
    logger.info(f"{message}: MA {accelerator.memory_allocated() / gib:.2f} GB, Max_MA {accelerator.max_memory_allocated() / gib:.2f} GB")


def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2, mpu: Any = None) -> Tensor:
    """torch's clipping, for gradients outside an engine."""
    if mpu is not None:
        raise NotImplementedError("clip_grad_norm_(mpu=...): model parallelism is not built yet")
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)


def empty_cache() -> None:
    from deepspeed.accelerator import get_accelerator
    get_accelerator().empty_cache()


def noop_decorator(func: Callable) -> Callable:
    return func
