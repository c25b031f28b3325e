"""What the optimizer classes over native kernels share: the walk over parameters, and fp32 copies of 16-bit tensors.

The kernels compute in fp32 on contiguous CPU tensors; results are rounded when they are stored into a 16-bit parameter.
"""
from __future__ import annotations

from typing import Any, Callable, Iterable

import torch
from torch import Tensor


class KernelOptimizer(torch.optim.Optimizer):
    """A torch optimizer whose arithmetic for one parameter is `_update`."""

    cpu_only = False

    def __init__(self, params: Iterable, defaults: dict[str, Any], amsgrad: bool = False) -> None:
        if amsgrad:
            raise RuntimeError(f"{type(self).__name__} does not support the AMSGrad variant: use amsgrad=False")
        super().__init__(params, defaults)

    def _init_state(self, group: dict, param: Tensor, state: dict) -> None:
        raise NotImplementedError

    def _update(self, group: dict, param: Tensor, grad: Tensor, state: dict) -> None:
        """One step for one fp32, contiguous parameter."""
        raise NotImplementedError

    def _begin_group(self, group: dict) -> None:
        """Called once per group and step, before its parameters."""

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._begin_group(group)
            for param in group["params"]:
                if param.grad is not None:
                    self._step_parameter(group, param, self.state[param])
        return loss

    def _step_parameter(self, group: dict, param: Tensor, state: dict) -> None:
        if self.cpu_only:
            if param.device.type != "cpu":
                raise AssertionError(f"{type(self).__name__} works on CPU tensors, found a parameter on {param.device}: "
                                     "move it to the CPU or use the fused optimizer")
        if param.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if not state:
            self._init_state(group, param, state)
        data = param.data
        if data.dtype == torch.float32 and data.is_contiguous():
            self._update(group, data, param.grad.float().contiguous(), state)
            return
        working = data.float().contiguous()
        self._update(group, working, param.grad.float().contiguous(), state)
        data.copy_(working)


def state_like(param: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros shaped like `param` for one optimizer state."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format)


def kernel_state(state: Tensor) -> Tensor:
    """The fp32 tensor that a kernel may update for `state`: itself, or a copy to be stored back by the caller."""
    return state if state.dtype == torch.float32 else state.float()
