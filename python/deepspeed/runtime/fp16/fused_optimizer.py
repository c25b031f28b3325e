"""The optimizer that users see for 16-bit models without sharding."""
from __future__ import annotations

from deepspeed.runtime.base_optimizer import ZeROOptimizer


class FP16_Optimizer(ZeROOptimizer):
    """16-bit parameters and fp32 master values on every rank."""
