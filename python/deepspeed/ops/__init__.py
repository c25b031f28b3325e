"""Optimizers and operators. Submodules load when they are first used."""
from __future__ import annotations

import importlib

_SUBMODULES = ("adagrad", "adam", "aio", "lamb", "lion", "op_builder")
_LATER = ("transformer", "fp_quantizer", "quantizer", "random_ltd", "deepspeed4science", "sparse_attention")


def __getattr__(name: str):
    if name == "__compatible_ops__":
        from deepspeed.ops.op_builder import ALL_OPS
        globals()["__compatible_ops__"] = {op: builder.is_compatible() for op, builder in ALL_OPS.items()}
        return globals()["__compatible_ops__"]
    if name in _SUBMODULES:
        return importlib.import_module(f"deepspeed.ops.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}" + (": not built yet" if name in _LATER else ""))
