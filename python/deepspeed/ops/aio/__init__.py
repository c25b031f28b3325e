"""Asynchronous file input and output: AsyncIOBuilder().load(), and the same names here."""
from __future__ import annotations

from typing import Any

from deepspeed.ops.op_builder import AsyncIOBuilder, GDSBuilder

_NATIVE = ("aio_handle", "aio_read", "aio_write", "deepspeed_memcpy")
__all__ = ["AsyncIOBuilder", "GDSBuilder", *_NATIVE]


def __getattr__(name: str) -> Any:
    if name in _NATIVE:
        from deepspeed.ops.aio import native
        return getattr(native, name)
    if name == "gds_handle":
        return GDSBuilder().load().gds_handle  # says what to use instead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
