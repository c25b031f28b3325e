"""Lion: c = b1 m + (1-b1) g; p = p (1 - lr wd) - lr copysign(1, c); m = b2 m + (1-b2) g."""
from __future__ import annotations

import itertools
from typing import Iterable

import torch
from torch import Tensor

from deepspeed import _C
from deepspeed.ops._base import KernelOptimizer, kernel_state, state_like


class _Lion(KernelOptimizer):

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        state["step"] = 0
        state["exp_avg"] = state_like(param)

    def _update(self, group: dict, param: Tensor, grad: Tensor, state: dict) -> None:
        state["step"] += 1
        beta1, beta2 = group["betas"]
        if param.device.type != "cpu":
            direction = torch.lerp(grad, state["exp_avg"], beta1)
            param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                torch.copysign(torch.ones_like(direction), direction), alpha=float(group["lr"]))
            state["exp_avg"].lerp_(grad, 1 - beta2)
            return
        momentum = kernel_state(state["exp_avg"])
        _C.lion_step(param, grad, momentum, float(group["lr"]), beta1, beta2, group["weight_decay"])
        if momentum is not state["exp_avg"]:
            state["exp_avg"].copy_(momentum)


class DeepSpeedCPULion(_Lion):
    """Lion for parameters on the CPU, of any floating dtype."""

    optimizer_id = 0
    cpu_only = True
    _ids = itertools.count()

    def __init__(self, model_params: Iterable, lr: float = 1e-3, betas: tuple = (0.9, 0.999), weight_decay: float = 0,
                 fp32_optimizer_states: bool = True) -> None:
        self.opt_id = next(DeepSpeedCPULion._ids)
        self.fp32_optimizer_states = fp32_optimizer_states
        super().__init__(model_params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        state["step"] = 0
        state["exp_avg"] = state_like(param, torch.float32 if self.fp32_optimizer_states else param.dtype)


class FusedLion(_Lion):
    """Lion on any device."""

    def __init__(self, params: Iterable, lr: float = 1e-3, betas: tuple = (0.9, 0.999), weight_decay: float = 0.0,
                 set_grad_none: bool = True) -> None:
        self.set_grad_none = set_grad_none
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))
