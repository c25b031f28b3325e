"""Optimizer states of one parameter under the names that its optimizer gives them, whoever keeps them.

The core keeps states under names of its own (native_recipe.file_keys translates) and one step count for all parameters; a torch
optimizer keeps them over fragments (fragment_state.py). Which states exist is known on every rank without communication.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepspeed.runtime import fragment_state
from deepspeed.runtime.native_recipe import file_keys

_STEP = "step"


def core_keys(engine: Any, index: int) -> dict[str, str]:
    """State names of a parameter -> the core's names; empty for parameters that the core does not train itself."""
    group = engine.core_groups[index]
    if group < 0 or engine._stepper is None or not engine._stepper.native:
        return {}
    return {name: key for key, name in file_keys(engine.basic_optimizer, engine._stepper.groups[group], engine._core.state_keys()).items()}


def _in_python(engine: Any, index: int) -> bool:
    return engine.core_groups[index] >= 0 and not engine._stepper.native


def _core_step(engine: Any, index: int) -> Tensor | None:
    count = engine._core.get_step() if core_keys(engine, index) else 0
    return torch.tensor(float(count)) if count > 0 else None


def read_full(engine: Any, index: int, name: str) -> Tensor | None:
    """The whole state, fp32. Collective."""
    if _in_python(engine, index):
        return fragment_state.read_full_state(engine, index, name)
    if name == _STEP:
        return _core_step(engine, index)
    key = core_keys(engine, index).get(name)
    return None if key is None else engine._core.read_full(index, key)


def read_local(engine: Any, index: int, name: str) -> Tensor | None:
    """This rank's piece, 1-D."""
    if _in_python(engine, index):
        value = fragment_state.local_state(engine, index).get(name)
        return value.reshape(-1) if isinstance(value, Tensor) and value.dim() > 0 else value
    if name == _STEP:
        return _core_step(engine, index)
    key = core_keys(engine, index).get(name)
    return None if key is None else engine._core.read_local(index, key)


def _writable_key(engine: Any, index: int, name: str) -> str:
    keys = core_keys(engine, index)
    if name not in keys:
        known = ", ".join(keys) or "none (it is not trained)"
        hint = ": the step count belongs to all parameters together and is set by loading a checkpoint" if name == _STEP else ""
        raise ValueError(f"optimizer state {name!r} of parameter {engine.core_params[index][0]} cannot be set{hint}; its states: {known}")
    return keys[name]


def write_full(engine: Any, index: int, name: str, value: Tensor) -> None:
    """Every rank gives the whole value."""
    if _in_python(engine, index):
        fragment_state.write_full_state(engine, index, name, value)
    else:
        engine._core.write_full(index, _writable_key(engine, index, name), value)


def write_local(engine: Any, index: int, name: str, value: Tensor) -> None:
    """This rank gives its piece."""
    if _in_python(engine, index):
        fragment_state.write_local_state(engine, index, name, value)
    else:
        engine._core.write_local(index, _writable_key(engine, index, name), value.detach().reshape(-1).float())
