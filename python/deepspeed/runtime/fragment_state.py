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


def _is_piece(value: Any, fragment: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == fragment.length and (value.dim() > 0 or fragment.master.dim() == 0)


@torch.no_grad()
def read_full_state(engine: Any, index: int, key: str) -> Tensor | None:
    """A whole state, fp32 (a counter: one number); None where no rank has it. Collective."""
    fragment, held = fragment_of(engine, index), local_state(engine, index).get(key)
    param = engine.core_params[index][1]
    shape = getattr(param, "ds_shape", param.shape)
    is_piece = held is not None and _is_piece(held, fragment)
    number = float(held) if held is not None and not is_piece else -torch.inf
    partial = fragment is None or fragment.length < shape.numel()
    # What any rank has decides for all, so that all make the same calls.
    facts = torch.tensor([is_piece, partial, number], dtype=torch.float32, device=engine.device)
    engine.communicator.all_reduce(facts, "max", f"state {key}").wait()
    any_piece, any_partial, number = facts.tolist()
    if not any_piece:
        return torch.tensor(number) if number > -torch.inf else None
    full = torch.full((shape.numel(),), -torch.inf, device=engine.device)
    if is_piece:
        full[fragment.offset:fragment.offset + fragment.length] = held.reshape(-1).to(full)
    if any_partial:
        # The maximum, not the sum: replicas of a shard hold the same elements.
        engine.communicator.all_reduce(full, "max", f"state {key}").wait()
    return full.view(shape)


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
    state = engine.basic_optimizer.state[fragment.master]
    piece = value.detach().reshape(fragment.master.shape)
    if isinstance(state.get(key), Tensor):
        state[key].copy_(piece)
    else:
        state[key] = piece.to(fragment.master).clone()
