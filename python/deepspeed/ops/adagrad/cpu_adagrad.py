"""Adagrad: g += wd p; v += g^2; p -= lr g / (sqrt(v) + eps)."""
from __future__ import annotations

import itertools
from typing import Iterable

from torch import Tensor

from deepspeed import _C
from deepspeed.ops._base import KernelOptimizer, kernel_state, state_like


class DeepSpeedCPUAdagrad(KernelOptimizer):
    """Adagrad for parameters on the CPU, of any floating dtype."""

    optimizer_id = 0
    cpu_only = True
    _ids = itertools.count()

    def __init__(self, model_params: Iterable, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0, amsgrad: bool = False,
                 fp32_optimizer_states: bool = True) -> None:
        self.opt_id = next(DeepSpeedCPUAdagrad._ids)
        self.fp32_optimizer_states = fp32_optimizer_states
        super().__init__(model_params, dict(lr=lr, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad), amsgrad=amsgrad)

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        state["step"] = 0
        state["exp_avg_sq"] = state_like(param)

    def _update(self, group: dict, param: Tensor, grad: Tensor, state: dict) -> None:
        state["step"] += 1
        squares = kernel_state(state["exp_avg_sq"])
        _C.adagrad_step(param, grad, squares, float(group["lr"]), group["eps"], group["weight_decay"])
        if squares is not state["exp_avg_sq"]:
            state["exp_avg_sq"].copy_(squares)
