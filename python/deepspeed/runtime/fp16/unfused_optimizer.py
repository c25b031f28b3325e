"""The other name of the 16-bit optimizer."""
from __future__ import annotations

from deepspeed.runtime.base_optimizer import ZeROOptimizer


class FP16_UnfusedOptimizer(ZeROOptimizer):
    """Kept for isinstance tests; engines return FP16_Optimizer."""
