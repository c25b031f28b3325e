"""State that the client's optimizer object already has when the engine takes it over: from steps made in plain torch, from a state
dictionary loaded into it, or made by its constructor. It goes on in the core, or with the fragments of a torch optimizer.

Values are taken from each rank's own object, so all ranks must have made the same steps.
"""
from __future__ import annotations

import copy
from typing import Any, Sequence

import torch
from torch import Tensor

from deepspeed.runtime.native_recipe import file_keys


def take_state(optimizer: torch.optim.Optimizer, core_params: Sequence[tuple[str, Tensor]], native: bool) -> dict[int, dict[str, Any]]:
    """{index of the parameter: its state}, which the optimizer holds no longer. ValueError where a state is not of the parameter."""
    # A constructor that runs when parameters are sharded makes empty states; the core's own begin with the same zeros.
    scalar_or_nothing = (0, 1) if native else (1,)
    taken = {}
    for index, (name, param) in enumerate(core_params):
        state = optimizer.state.get(param)
        if not state:
            continue
        shape = getattr(param, "ds_shape", param.shape)
        for key, value in state.items():
            if isinstance(value, Tensor) and value.numel() not in (*scalar_or_nothing, shape.numel()):
                raise ValueError(f"state {key!r} of parameter {name} in {type(optimizer).__name__} has shape {list(value.shape)}, expected "
                                 f"{list(shape)} as the parameter: load the state of this model, or call optimizer.state.clear() before "
                                 "deepspeed.initialize() to start anew; an optimizer whose constructor makes states must be built before "
                                 "parameters are sharded")
        taken[index] = state
    optimizer.state.clear()
    return taken


@torch.no_grad()
def put_into_core(core: Any, optimizer: torch.optim.Optimizer, groups: list[dict], model_groups: list[list[Tensor]],
                  core_params: Sequence[tuple[str, Tensor]], taken: dict[int, dict[str, Any]]) -> None:
    """Moments and the step count of an optimizer that the core computes."""
    group_of = {id(param): group for params, group in zip(model_groups, groups) for param in params}
    steps = [0]
    for index, state in taken.items():
        group = group_of.get(id(core_params[index][1]))
        if group is None:
            continue
        offset, length = core.fragment_of(index)
        found = {key: state.get(name) for key, name in file_keys(optimizer, group, list(core.state_keys())).items()}
        tensors = {key: value for key, value in found.items() if isinstance(value, Tensor) and value.numel() > 0}
        for key, value in tensors.items():
            core.write_local(index, key, value.reshape(-1)[offset:offset + length].float())
        steps.append(int(state.get("step", 0)))
    core.set_step(max(steps))


@torch.no_grad()
def put_into_fragments(optimizer: torch.optim.Optimizer, fragments: Sequence[Any], core_params: Sequence[tuple[str, Tensor]],
                       taken: dict[int, dict[str, Any]]) -> None:
    """This rank's piece of each state beside the fragment that the optimizer steps."""
    for fragment in fragments:
        state = taken.get(fragment.index)
        if state is None or fragment.length == 0:
            continue
        param = core_params[fragment.index][1]
        shape = getattr(param, "ds_shape", param.shape)
        optimizer.state[fragment.master].update({key: _piece(value, shape, fragment) for key, value in state.items()})


def _piece(value: Any, shape: torch.Size, fragment: Any) -> Any:
    if not isinstance(value, Tensor):
        return copy.copy(value)
    if value.numel() == 1 and value.shape != shape:
        return value.clone()  # a counter
    piece = value.reshape(-1)[fragment.offset:fragment.offset + fragment.length].view(fragment.master.shape)
    return piece.to(fragment.master.device, copy=True)
