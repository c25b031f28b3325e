"""Adam on the CPU by SIMD kernels: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= lr/bc1 * m / (sqrt(v)/sqrt(bc2) + eps)."""
from __future__ import annotations

import itertools
from typing import Any, Callable, Iterable

import torch
from torch import Tensor

from deepspeed import _C
from deepspeed._lazy import not_built
from deepspeed.ops._base import KernelOptimizer, kernel_state, state_like


class DeepSpeedCPUAdam(KernelOptimizer):
    """Adam (adamw_mode=False) or AdamW (True) for parameters on the CPU, of any floating dtype."""

    optimizer_id = 0
    cpu_only = True
    _ids = itertools.count()

    def __init__(self, model_params: Iterable, lr: float = 1e-3, bias_correction: bool = True, betas: tuple = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False, adamw_mode: bool = True,
                 fp32_optimizer_states: bool = True) -> None:
        self.opt_id = next(DeepSpeedCPUAdam._ids)
        self.adam_w_mode = adamw_mode
        self.fp32_optimizer_states = fp32_optimizer_states
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=bias_correction, amsgrad=amsgrad)
        super().__init__(model_params, defaults, amsgrad=amsgrad)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("amsgrad", False)

    @torch.no_grad()
    def step_subgroup(self, subgroup_id: int, closure: Callable | None = None) -> Any:
        """One step of the parameter that has a gradient, with the state kept under `subgroup_id`: for callers that show one flat
        sub-group after another through the same parameter."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = [(group, param) for group in self.param_groups for param in group["params"] if param.grad is not None]
        if len(ready) > 1:
            raise ValueError(f"step_subgroup({subgroup_id}): {len(ready)} parameters have gradients, but a sub-group has one state: "
                             "flatten the sub-group into one parameter")
        for group, param in ready:
            self._step_parameter(group, param, self.state[subgroup_id])
        return loss

    rollback_subgroup = not_built("DeepSpeedCPUAdam.rollback_subgroup", "undoing a step of Adam (SuperOffload)")

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        dtype = torch.float32 if self.fp32_optimizer_states else param.dtype
        state["step"] = 0
        state["exp_avg"] = state_like(param, dtype)
        state["exp_avg_sq"] = state_like(param, dtype)

    def _update(self, group: dict, param: Tensor, grad: Tensor, state: dict) -> None:
        state["step"] += 1
        adam_update(group, param, grad, state, int(state["step"]), decoupled=self.adam_w_mode)


def adam_update(group: dict, param: Tensor, grad: Tensor, state: dict, step: int, *, decoupled: bool) -> None:
    """One Adam step of one parameter by the native kernel; 16-bit states are widened and rounded back."""
    first, second = kernel_state(state["exp_avg"]), kernel_state(state["exp_avg_sq"])
    beta1, beta2 = group["betas"]
    _C.adam_step(param, grad, first, second, float(group["lr"]), beta1, beta2, group["eps"], group["weight_decay"],
                 decoupled, bool(group["bias_correction"]), step)
    for key, value in (("exp_avg", first), ("exp_avg_sq", second)):
        if value is not state[key]:
            state[key].copy_(value)
