"""Named ranges in profilers: torch.profiler's traces, and the device's own profiler (NVTX)."""
from __future__ import annotations

import functools
from typing import Any, Callable

from torch.autograd import profiler

from deepspeed.accelerator import get_accelerator


def open_range(title: str, named: Any = None) -> Callable[[], None] | None:
    """Begins a range where somebody records one, and returns what ends it; None elsewhere. `named`: an object whose `name` follows the
    title, and is only then asked for. Without a profiler, and on devices without ranges of their own, this costs 0.2 us."""
    accelerator = get_accelerator()
    if not profiler._is_profiler_enabled:
        if accelerator.is_synchronized_device():
            return None
        accelerator.range_push(_full(title, named))
        return accelerator.range_pop
    title = _full(title, named)
    recorded = profiler.record_function(title)
    recorded.__enter__()
    accelerator.range_push(title)

    def close() -> None:
        accelerator.range_pop()
        recorded.__exit__(None, None, None)

    return close


def _full(title: str, named: Any) -> str:
    return title if named is None else f"{title}{named.name}"


def instrument_w_nvtx(func: Callable) -> Callable:
    """Shows `func` as a range in profilers."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        close = open_range(func.__qualname__)
        try:
            return func(*args, **kwargs)
        finally:
            if close is not None:
                close()

    return wrapped
