"""States that a torch optimizer keeps over fragments, as whole tensors of their parameters.

A tensor state with as many elements as its fragment is a piece of a whole state; others (step counters) are the same everywhere.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


_NOTHING = torch.iinfo(torch.int32).min


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


def _is_piece(value: Any, fragment: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == fragment.length and (value.dim() > 0 or fragment.master.dim() == 0)


@torch.no_grad()
def read_full_state(engine: Any, index: int, key: str) -> Tensor | None:
    """A whole state, fp32 (a counter: one number); None where no rank has it. Collective."""
    fragment, held = fragment_of(engine, index), local_state(engine, index).get(key)
    name, param = engine.core_params[index]
    shape = getattr(param, "ds_shape", param.shape)
    is_piece = held is not None and _is_piece(held, fragment)
    is_number = not is_piece and (isinstance(held, (int, float)) or isinstance(held, Tensor) and held.numel() == 1)
    partial = fragment is None or fragment.length < shape.numel()
    # Bits as integers, and their maximum: nothing is rounded, and replicas of a shard hold the same elements. The smallest
    # integer, which stands for no value, has the bits of -0.
    number = torch.tensor(float(held)).view(torch.int32).item() if is_number else _NOTHING
    # What any rank has decides for all, so that all make the same calls.
    facts = torch.tensor([is_piece, partial, is_number, held is not None and not is_piece and not is_number, number], device=engine.device)
    engine.communicator.all_reduce(facts, "max", f"state {key}").wait()
    any_piece, any_partial, any_number, any_other, number = facts.tolist()
    if any_other:
        raise ValueError(f"optimizer state {key!r} of parameter {name} is neither of the parameter's shape nor one number on some rank: "
                         "read it rank by rank from engine.optimizer.state")
    if not any_piece:
        return torch.tensor(number, dtype=torch.int32).view(torch.float32) if any_number else None
    full = torch.full((shape.numel(),), _NOTHING, dtype=torch.int32, device=engine.device)
    if is_piece:
        full[fragment.offset:fragment.offset + fragment.length] = held.reshape(-1).to(engine.device, torch.float32).view(torch.int32)
    if any_partial:
        engine.communicator.all_reduce(full, "max", f"state {key}").wait()
    return full.view(torch.float32).view(shape)


def write_full_state(engine: Any, index: int, key: str, value: Tensor) -> None:
    """Stores this rank's piece of a whole state that every rank gives."""
    fragment = fragment_of(engine, index)
    if fragment is not None:
        write_local_state(engine, index, key, value.reshape(-1)[fragment.offset:fragment.offset + fragment.length])


@torch.no_grad()
def write_local_state(engine: Any, index: int, key: str, value: Tensor) -> None:
    """Stores a piece in this rank's state."""
    fragment = fragment_of(engine, index)
    if fragment is None:
        return
    held = local_state(engine, index).get(key)
    if not isinstance(held, Tensor):
        # A state made here alone would keep the optimizer from making its others.
        raise ValueError(f"parameter {engine.core_params[index][0]} has no optimizer state {key!r} yet: make a step first")
    held.copy_(value.detach().reshape(fragment.master.shape))
