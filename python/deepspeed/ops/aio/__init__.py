"""Asynchronous file I/O: the builder's name only, until the operator exists."""
from deepspeed.ops.op_builder import AsyncIOBuilder

__all__ = ["AsyncIOBuilder"]
