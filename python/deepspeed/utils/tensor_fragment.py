"""Full and local values of master parameters, gradients and optimizer states, by parameter.

Valid after backward and before the next step. The full variants are collective: every rank calls them. They return None for a
parameter without the asked-for state (frozen parameters, or before it exists).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence

from torch import Tensor


@dataclass
class fragment_address:
    """A run of elements in a flat tensor."""

    numel: int
    start: int


@dataclass
class tensor_fragment:
    """A piece of a parameter in this rank's flat partition."""

    lp_fragment: Tensor
    lp_fragment_address: fragment_address
    hp_fragment: Tensor
    hp_fragment_address: fragment_address


def _engine_of(param: Tensor) -> tuple[Any, int] | None:
    """(engine that trains `param`, the parameter's index in its core)."""
    from deepspeed.runtime.zero.parameter import slot_of
    slot = slot_of(param)
    engine = slot.engine() if slot is not None and slot.engine is not None else None
    return None if engine is None or engine._core is None else (engine, slot.engine_index)


def _must_have_engine(param: Tensor, what: str) -> tuple[Any, int]:
    found = _engine_of(param)
    if found is None:
        raise ValueError(f"{what}: the parameter of shape {list(getattr(param, 'ds_shape', param.shape))} belongs to no engine")
    return found


def _read_full(param: Tensor, key: str) -> Tensor | None:
    found = _engine_of(param)
    return None if found is None else found[0]._core.read_full(found[1], key)


def _checked_shape(param: Tensor, value: Tensor, what: str) -> Tensor:
    shape = getattr(param, "ds_shape", param.shape)
    if value.shape != shape and value.numel() != shape.numel():
        raise ValueError(f"{what}: the parameter has shape {list(shape)}, the value {list(value.shape)}")
    return value.detach().reshape(shape).float()


def _write_full(param: Tensor, key: str, value: Tensor, what: str) -> None:
    engine, index = _must_have_engine(param, what)
    engine._core.write_full(index, key, _checked_shape(param, value, what))


def safe_get_full_fp32_param(param: Tensor) -> Tensor | None:
    """The whole fp32 master value."""
    return _read_full(param, "fp32")


def safe_get_full_grad(param: Tensor) -> Tensor | None:
    """The whole reduced gradient, unscaled, fp32."""
    return _read_full(param, "grad")


def safe_get_full_optimizer_state(param: Tensor, optim_state_key: str) -> Tensor | None:
    """A whole optimizer state under the name that its optimizer gives it, e.g. "exp_avg"; "step" is a scalar. None on every rank
    for a state that the optimizer does not have."""
    from deepspeed.runtime import optimizer_states
    found = _engine_of(param)
    return None if found is None else optimizer_states.read_full(*found, optim_state_key)


def safe_set_full_fp32_param(param: Tensor, value: Tensor) -> None:
    """Every rank gives the whole value; the model's parameter follows."""
    _write_full(param, "fp32", value, "safe_set_full_fp32_param")


def safe_set_full_grad(param: Tensor, value: Tensor) -> None:
    """Every rank passes the full gradient that the next step is to use."""
    _write_full(param, "grad", value, "safe_set_full_grad")


def safe_set_full_optimizer_state(param: Tensor, value: Tensor, optim_state_key: str) -> None:
    """Every rank passes the full value of one optimizer state, for instance "exp_avg"."""
    from deepspeed.runtime import optimizer_states
    what = "safe_set_full_optimizer_state"
    engine, index = _must_have_engine(param, what)
    optimizer_states.write_full(engine, index, optim_state_key, _checked_shape(param, value, what))


def safe_update_full_grad_vectorized(param_list: Sequence[Tensor], update_func: Callable[[Tensor, Tensor], Tensor]) -> None:
    """gradient = update_func(gradient, parameter) for each parameter that has one."""
    for param in param_list:
        grad = safe_get_full_grad(param)
        if grad is not None:
            safe_set_full_grad(param, update_func(grad, param))


# ---- this rank's pieces (1-D)
def _read_local(param: Tensor, key: str) -> Tensor | None:
    found = _engine_of(param)
    return None if found is None else found[0]._core.read_local(found[1], key)


def _write_local(param: Tensor, key: str, value: Tensor, what: str) -> None:
    engine, index = _must_have_engine(param, what)
    engine._core.write_local(index, key, value.detach().reshape(-1).float())


def safe_get_local_fp32_param(param: Tensor) -> Tensor | None:
    """This rank's piece of the fp32 value, 1-D."""
    return _read_local(param, "fp32")


def safe_get_local_grad(param: Tensor) -> Tensor | None:
    """This rank's piece of the gradient, 1-D."""
    return _read_local(param, "grad")


def safe_get_local_optimizer_state(param: Tensor, optim_state_key: str) -> Tensor | None:
    """This rank's piece of one optimizer state, 1-D."""
    from deepspeed.runtime import optimizer_states
    found = _engine_of(param)
    return None if found is None else optimizer_states.read_local(*found, optim_state_key)


def safe_set_local_fp32_param(param: Tensor, value: Tensor) -> None:
    """Stores this rank's piece of the fp32 value. All ranks call it."""
    _write_local(param, "fp32", value, "safe_set_local_fp32_param")
    _must_have_engine(param, "safe_set_local_fp32_param")[0]._core.refresh_parameters()


def safe_set_local_grad(param: Tensor, value: Tensor) -> None:
    """Stores this rank's piece of the gradient."""
    _write_local(param, "grad", value, "safe_set_local_grad")


def safe_set_local_optimizer_state(param: Tensor, value: Tensor, optim_state_key: str) -> None:
    """Stores this rank's piece of one optimizer state."""
    from deepspeed.runtime import optimizer_states
    optimizer_states.write_local(*_must_have_engine(param, "safe_set_local_optimizer_state"), optim_state_key, value)
