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


def _core_of(param: Tensor) -> tuple[Any, int] | None:
    """(core, index) of the engine that trains `param`."""
    from deepspeed.runtime.zero.parameter import slot_of
    slot = slot_of(param)
    engine = slot.engine() if slot is not None and slot.engine is not None else None
    return None if engine is None or engine._core is None else (engine._core, slot.engine_index)


def _read_full(param: Tensor, key: str) -> Tensor | None:
    found = _core_of(param)
    return None if found is None else found[0].read_full(found[1], key)


def _write_full(param: Tensor, key: str, value: Tensor, what: str) -> None:
    found = _core_of(param)
    if found is None:
        raise ValueError(f"{what}: the parameter of shape {list(getattr(param, 'ds_shape', param.shape))} belongs to no engine")
    shape = getattr(param, "ds_shape", param.shape)
    if value.shape != shape and value.numel() != shape.numel():
        raise ValueError(f"{what}: the parameter has shape {list(shape)}, the value {list(value.shape)}")
    found[0].write_full(found[1], key, value.detach().reshape(shape).float())




def safe_get_full_fp32_param(param: Tensor) -> Tensor | None:
    """The whole fp32 master value."""
    return _read_full(param, "fp32")


def safe_get_full_grad(param: Tensor) -> Tensor | None:
    """The whole reduced gradient, unscaled, fp32."""
    return _read_full(param, "grad")


def safe_get_full_optimizer_state(param: Tensor, optim_state_key: str) -> Tensor | None:
    """A whole optimizer state, e.g. "exp_avg"."""
    from_python = _python_state(param, optim_state_key)
    return from_python if from_python is not None else _read_full(param, optim_state_key)


def _python_state(param: Tensor, key: str) -> Tensor | None:
    """A state that a torch optimizer keeps over fragments, put together. None for the core's own optimizers."""
    from deepspeed.runtime.fragment_state import read_full_state
    found = _engine_of(param)
    return None if found is None else read_full_state(found[0], found[1], key)


def _engine_of(param: Tensor) -> tuple[Any, int] | None:
    from deepspeed.runtime.zero.parameter import slot_of
    slot = slot_of(param)
    engine = slot.engine() if slot is not None and slot.engine is not None else None
    return None if engine is None or engine._core is None or engine._stepper is None or engine._stepper.native else \
        (engine, slot.engine_index)


def safe_set_full_fp32_param(param: Tensor, value: Tensor) -> None:
    """Every rank gives the whole value; the model's parameter follows."""
    _write_full(param, "fp32", value, "safe_set_full_fp32_param")


def safe_set_full_grad(param: Tensor, value: Tensor) -> None:
    _write_full(param, "grad", value, "safe_set_full_grad")


def safe_set_full_optimizer_state(param: Tensor, value: Tensor, optim_state_key: str) -> None:
    found = _engine_of(param)
    if found is not None:
        from deepspeed.runtime.fragment_state import write_full_state
        write_full_state(found[0], found[1], optim_state_key, value)
        return
    _write_full(param, optim_state_key, value, "safe_set_full_optimizer_state")


def safe_update_full_grad_vectorized(param_list: Sequence[Tensor], update_func: Callable[[Tensor, Tensor], Tensor]) -> None:
    """gradient = update_func(gradient, parameter) for each parameter that has one."""
    for param in param_list:
        grad = safe_get_full_grad(param)
        if grad is not None:
            safe_set_full_grad(param, update_func(grad, param))


# ---- this rank's pieces (1-D)
def _read_local(param: Tensor, key: str) -> Tensor | None:
    found = _core_of(param)
    return None if found is None else found[0].read_local(found[1], key)


def _write_local(param: Tensor, key: str, value: Tensor, what: str) -> None:
    found = _core_of(param)
    if found is None:
        raise ValueError(f"{what}: the parameter belongs to no engine")
    found[0].write_local(found[1], key, value.detach().reshape(-1).float())


def safe_get_local_fp32_param(param: Tensor) -> Tensor | None:
    return _read_local(param, "fp32")


def safe_get_local_grad(param: Tensor) -> Tensor | None:
    return _read_local(param, "grad")


def safe_get_local_optimizer_state(param: Tensor, optim_state_key: str) -> Tensor | None:
    return _read_local(param, optim_state_key)


def safe_set_local_fp32_param(param: Tensor, value: Tensor) -> None:
    _write_local(param, "fp32", value, "safe_set_local_fp32_param")
    found = _core_of(param)
    found[0].refresh_parameters()


def safe_set_local_grad(param: Tensor, value: Tensor) -> None:
    _write_local(param, "grad", value, "safe_set_local_grad")


def safe_set_local_optimizer_state(param: Tensor, value: Tensor, optim_state_key: str) -> None:
    _write_local(param, optim_state_key, value, "safe_set_local_optimizer_state")


