"""Profiler ranges around functions."""
from __future__ import annotations

import functools
from typing import Callable


def instrument_w_nvtx(func: Callable) -> Callable:
    """Shows `func` as a range in device profilers; costs nothing on devices without ranges."""

    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        from deepspeed.accelerator import get_accelerator
        accelerator = get_accelerator()
        accelerator.range_push(func.__qualname__)
        try:
            return func(*args, **kwargs)
        finally:
            accelerator.range_pop()

    return wrapped
