"""Asynchronous file input and output: AsyncIOBuilder().load(), and the same names here."""
from __future__ import annotations

import os
from typing import Any

from deepspeed.ops.op_builder import AsyncIOBuilder, GDSBuilder

_NATIVE = ("aio_handle", "aio_read", "aio_write", "deepspeed_memcpy")
__all__ = ["AsyncIOBuilder", "GDSBuilder", "tuned_settings", *_NATIVE]


def tuned_settings(folder: str) -> dict[str, Any]:
    """What suits the disk of `folder`: "block_size" and "queue_depth" as aio_handle takes them, and how that is known. The first
    call for a disk measures for less than a second, later ones remember (DEEPSCALE_IO_CALIBRATION)."""
    from deepspeed import _C
    return _C.aio_tuned_settings(os.fspath(folder))


def __getattr__(name: str) -> Any:
    if name in _NATIVE:
        from deepspeed.ops.aio import native
        return getattr(native, name)
    if name == "gds_handle":
        return GDSBuilder().load().gds_handle  # says what to use instead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
