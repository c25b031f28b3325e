"""LAMB: an Adam direction scaled per tensor by ||p|| / ||update||, clamped to [min_coeff, max_coeff]."""
from __future__ import annotations

from typing import Callable, Iterable

from torch import Tensor

from deepspeed import _C
from deepspeed.ops._base import KernelOptimizer, state_like


class FusedLamb(KernelOptimizer):
    """LAMB with the trust ratios of the last step in get_lamb_coeffs()."""

    def __init__(self, params: Iterable, lr: float = 1e-3, bias_correction: bool = True, betas: tuple = (0.9, 0.999), eps: float = 1e-8,
                 eps_inside_sqrt: bool = False, weight_decay: float = 0.0, max_grad_norm: float = 0.0, max_coeff: float = 10.0,
                 min_coeff: float = 0.01, amsgrad: bool = False) -> None:
        if max_grad_norm:
            raise ValueError("FusedLamb: max_grad_norm is not supported, set gradient_clipping in the configuration instead")
        self.eps_inside_sqrt = bool(eps_inside_sqrt)
        self.lamb_coeffs: list[float] = []
        defaults = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay,
                        max_grad_norm=max_grad_norm, max_coeff=max_coeff, min_coeff=min_coeff)
        super().__init__(params, defaults, amsgrad=amsgrad)

    def step(self, closure: Callable | None = None, **_unused):
        self.lamb_coeffs = []
        return super().step(closure)

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        state["step"] = 0
        state["exp_avg"] = state_like(param)
        state["exp_avg_sq"] = state_like(param)

    def _update(self, group: dict, param: Tensor, grad: Tensor, state: dict) -> None:
        if param.device.type != "cpu":
            raise NotImplementedError("FusedLamb outside an engine works on CPU tensors: hand it to deepspeed.initialize")
        state["step"] += 1
        beta1, beta2 = group["betas"]
        self.lamb_coeffs.append(
            _C.lamb_step(param, grad, state["exp_avg"], state["exp_avg_sq"], float(group["lr"]), beta1, beta2, group["eps"],
                         group["weight_decay"], bool(group["bias_correction"]), int(state["step"]), self.eps_inside_sqrt,
                         group["max_coeff"], group["min_coeff"]))

    def get_lamb_coeffs(self) -> list[float]:
        """Trust ratios of the last step, one per parameter."""
        return list(self.lamb_coeffs)
