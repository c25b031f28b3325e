"""External parameters: sharded parameters that a module uses although another module owns them.

A module gathers the units of its own parameters and of its external ones. Each module of a sharded model answers
ds_external_parameters().
"""
from __future__ import annotations

from typing import Any, Iterator

import torch.nn as nn

from deepspeed.runtime.zero.parameter import is_sharded, slot_of


class ExternalParameters:
    """The external parameters of one module; calling it gives (id, parameter) pairs."""

    def __init__(self) -> None:
        self.by_id: dict[int, nn.Parameter] = {}

    def __call__(self) -> Iterator[tuple[int, nn.Parameter]]:
        return iter(list(self.by_id.items()))


def externals_of(module: nn.Module) -> ExternalParameters:
    found = module.__dict__.get("ds_external_parameters")
    if found is None:
        found = module.__dict__["ds_external_parameters"] = ExternalParameters()
    return found


def register_external_parameter(module: nn.Module, parameter: nn.Parameter) -> None:
    """From now on `module` gathers `parameter` around its forward and backward."""
    if not isinstance(module, nn.Module):
        raise RuntimeError(f"register_external_parameter needs a module, got {type(module).__name__}")
    if not isinstance(parameter, nn.Parameter):
        raise RuntimeError(f"register_external_parameter needs a parameter, got {type(parameter).__name__}")
    slot = slot_of(parameter)
    if slot is None or slot.ds_id is None:
        return  # whole on every rank: nothing to gather
    externals_of(module).by_id[slot.ds_id] = parameter
    offload: Any = module.__dict__.get("_ds_offload")
    if offload is not None and is_sharded(parameter):
        offload.on_external(module, parameter)


def unregister_external_parameter(module: nn.Module, parameter: nn.Parameter) -> None:
    """Undoes register_external_parameter."""
    slot = slot_of(parameter)
    if slot is None or slot.ds_id not in externals_of(module).by_id:
        raise RuntimeError("parameter is not a registered external parameter of module")
    del externals_of(module).by_id[slot.ds_id]
    offload: Any = module.__dict__.get("_ds_offload")
    if offload is not None:
        offload.forget_external(module, parameter)
