"""Adam in one pass over each tensor: native kernels on the CPU, torch's fused kernels on other devices."""
from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import Tensor

from deepspeed.ops._base import KernelOptimizer, state_like
from deepspeed.ops.adam.cpu_adam import adam_update


class FusedAdam(KernelOptimizer):
    """Adam or AdamW (adam_w_mode=True) with one step counter per parameter group."""

    def __init__(self, params: Iterable, lr: float = 1e-3, bias_correction: bool = True, betas: tuple = (0.9, 0.999),
                 eps: float = 1e-8, adam_w_mode: bool = True, weight_decay: float = 0.0, amsgrad: bool = False,
                 set_grad_none: bool = True) -> None:
        self.adam_w_mode = 1 if adam_w_mode else 0
        self.set_grad_none = set_grad_none
        defaults = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults, amsgrad=amsgrad)

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        super().zero_grad(set_to_none=self.set_grad_none if set_to_none is None else set_to_none)

    def step(self, closure: Callable | None = None, grads=None, output_params=None, scale=None, grad_norms=None, grad_scaler=None):
        if any(argument is not None for argument in (grads, output_params, scale, grad_norms)):
            raise RuntimeError("FusedAdam.step() takes only a closure: gradients are read from the parameters")
        return super().step(closure)

    def _begin_group(self, group: dict) -> None:
        group["step"] = group.get("step", 0) + 1

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        state["step"] = group["step"] - 1
        state["exp_avg"] = state_like(param)
        state["exp_avg_sq"] = state_like(param)

    def _update(self, group: dict, param: Tensor, grad: Tensor, state: dict) -> None:
        state["step"] = group["step"]
        if param.device.type == "cpu":
            adam_update(group, param, grad, state, group["step"], decoupled=bool(self.adam_w_mode))
            return
        _update_on_device(group, param, grad, state, decoupled=bool(self.adam_w_mode))


def _update_on_device(group: dict, param: Tensor, grad: Tensor, state: dict, *, decoupled: bool) -> None:
    if not group["bias_correction"]:
        raise RuntimeError("FusedAdam outside an engine needs bias_correction=True on this device")
    beta1, beta2 = group["betas"]
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    kernel([param], [grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [torch.tensor(float(group["step"]), device=param.device)],
           lr=float(group["lr"]), beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
           maximize=False, grad_scale=None, found_inf=None)
