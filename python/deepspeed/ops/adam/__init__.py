"""Adam and AdamW over native kernels."""
from deepspeed._lazy import not_built_class as _later

from .cpu_adam import DeepSpeedCPUAdam
from .fused_adam import FusedAdam

ZenFlowCPUAdam, ZenFlowSelectiveAdamW, ZenFlowSelectiveAdamW_stage3 = (
    _later(f"deepspeed.ops.adam.{name}", "ZenFlow")
    for name in ("ZenFlowCPUAdam", "ZenFlowSelectiveAdamW", "ZenFlowSelectiveAdamW_stage3"))

__all__ = ["DeepSpeedCPUAdam", "FusedAdam", "ZenFlowCPUAdam", "ZenFlowSelectiveAdamW", "ZenFlowSelectiveAdamW_stage3"]
