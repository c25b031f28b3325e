"""The functions of the cpu_adam operator as its builder loads them: Adam by an integer id."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepspeed import _C


@dataclass
class _Settings:
    adamw_mode: bool


_settings: dict[int, _Settings] = {}


def create_adam(optimizer_id: int, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
                weight_decay: float = 0.0, adamw_mode: bool = True, should_log: bool = False) -> int:
    _settings[optimizer_id] = _Settings(bool(adamw_mode))
    return 0


def adam_update(optimizer_id: int, step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                bias_correction: bool, params: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> int:
    if optimizer_id not in _settings:
        raise RuntimeError(f"adam_update: no optimizer with id {optimizer_id}: call create_adam first")
    working = params.float()
    _C.adam_step(working, grads.float(), exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay,
                 _settings[optimizer_id].adamw_mode, bool(bias_correction), int(step))
    if working is not params:
        params.copy_(working)
    return 0


def adam_rollback(*_args) -> int:
    raise NotImplementedError("adam_rollback: SuperOffload is not built yet")


def destroy_adam(optimizer_id: int) -> int:
    _settings.pop(optimizer_id, None)
    return 0
