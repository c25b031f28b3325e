"""Plain fp32 training: the user's torch optimizer stays the visible object, and the core makes its steps."""
from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from deepspeed.runtime.base_optimizer import ZeROOptimizer

_SCHEDULER_MARK = "_wrapped_by_lr_sched"  # torch's


def attach_step(optimizer: torch.optim.Optimizer, wrapper: ZeROOptimizer) -> torch.optim.Optimizer:
    """The same object, whose step, zero_grad and state dictionary are now the core's. Class and groups stay its own."""

    def step(self: torch.optim.Optimizer, closure: Any = None) -> None:
        wrapper.step(closure)
        self.overflow = wrapper.overflow

    if hasattr(optimizer.step, _SCHEDULER_MARK):  # of a scheduler made earlier: it looks for its mark at every step
        setattr(step, _SCHEDULER_MARK, True)
    optimizer.step = MethodType(step, optimizer)  # torch's schedulers wrap a method, not a function
    optimizer.zero_grad = wrapper.zero_grad
    optimizer.state_dict = wrapper.state_dict
    optimizer.load_state_dict = wrapper.load_state_dict
    optimizer.overflow = False
    return optimizer
