"""States that a torch optimizer keeps over fragments, as whole tensors of their parameters.

A tensor state with as many elements as its fragment is a piece of a whole state; others (step counters) are the same everywhere.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fragment_of(engine: Any, index: int) -> Any:
    """This rank's fragment of a parameter, or None when it holds nothing of it."""
    for fragment in engine._stepper.fragments:
        if fragment.index == index and fragment.length > 0:
            return fragment
    return None


def local_state(engine: Any, index: int) -> dict[str, Any]:
    """The torch optimizer's state of this rank's piece of a parameter."""
    fragment = fragment_of(engine, index)
    return {} if fragment is None else engine.basic_optimizer.state.get(fragment.master, {})


def _is_piece(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.numel() == length and (value.dim() > 0 or length == 1)


@torch.no_grad()
def read_full_state(engine: Any, index: int, key: str) -> Tensor | None:
    """A whole state, fp32; None where no rank has it. Collective."""
    fragment, held = fragment_of(engine, index), local_state(engine, index).get(key)
    param = engine.core_params[index][1]
    shape = getattr(param, "ds_shape", param.shape)
    present = torch.tensor([1.0 if held is not None else 0.0], device=engine.device)
    engine.communicator.all_reduce(present, "max", f"state {key}").wait()
    if present.item() == 0:
        return None
    full = torch.zeros(shape.numel(), dtype=torch.float32, device=engine.device)
    if fragment is not None and held is not None and _is_piece(held, fragment.length):
        full[fragment.offset:fragment.offset + fragment.length] = held.reshape(-1).to(full)
    if fragment is None or fragment.length < shape.numel() or engine.communicator.size > 1 and _sharded(engine, index):
        engine.communicator.all_reduce(full, "sum", f"state {key}").wait()
    return full.view(shape)


def _sharded(engine: Any, index: int) -> bool:
    _, length = engine._core.fragment_of(index)
    param = engine.core_params[index][1]
    return length < getattr(param, "ds_shape", param.shape).numel()


@torch.no_grad()
def write_full_state(engine: Any, index: int, key: str, value: Tensor) -> None:
    """Stores this rank's piece of a whole state that every rank gives."""
    fragment = fragment_of(engine, index)
    if fragment is None:
        return
    state = engine.basic_optimizer.state[fragment.master]
    piece = value.detach().reshape(-1)[fragment.offset:fragment.offset + fragment.length].view(fragment.master.shape)
    if isinstance(state.get(key), Tensor):
        state[key].copy_(piece)
    else:
        state[key] = piece.to(fragment.master).clone()
