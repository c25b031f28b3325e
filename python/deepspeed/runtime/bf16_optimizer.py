"""The optimizer that users see for bf16 with sharded states and fp32 gradient accumulation."""
from __future__ import annotations

from deepspeed.runtime.base_optimizer import ZeROOptimizer


class BF16_Optimizer(ZeROOptimizer):
    """bf16 parameters, fp32 master values and accumulated gradients."""
