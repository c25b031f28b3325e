"""Plain fp32 training: the user's torch optimizer stays the visible object, and the core makes its steps."""
from __future__ import annotations

from types import MethodType
from typing import Any, Callable

import torch

from deepspeed.runtime.base_optimizer import ZeROOptimizer

_SCHEDULER_MARK = "_wrapped_by_lr_sched"  # torch's


_REPLACED = ("step", "zero_grad", "state_dict", "load_state_dict")


def attach_step(optimizer: torch.optim.Optimizer, wrapper: ZeROOptimizer) -> Callable[[], None]:
    """Makes step, zero_grad and state dictionary of this object the core's. Class and groups stay its own. Returns what undoes it."""
    own = {name: vars(optimizer)[name] for name in _REPLACED if name in vars(optimizer)}  # torch's schedulers replace methods too

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

    def detach() -> None:
        for name in (*_REPLACED, "overflow"):
            vars(optimizer).pop(name, None)
        vars(optimizer).update(own)

    return detach
