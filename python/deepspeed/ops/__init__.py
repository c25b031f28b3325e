"""Optimizers and operators. Submodules load when they are first used."""
from __future__ import annotations

from typing import Any

from deepspeed._lazy import attach

_found, __dir__ = attach(__name__, {name: f"deepspeed.ops.transformer:{name}" for name in ("DeepSpeedTransformerLayer", "DeepSpeedTransformerConfig")})


def __getattr__(name: str) -> Any:
    if name != "__compatible_ops__":
        return _found(name)
    from deepspeed.ops.op_builder import ALL_OPS
    globals()[name] = {op: builder.is_compatible() for op, builder in ALL_OPS.items()}
    return globals()[name]
