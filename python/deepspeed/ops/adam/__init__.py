"""Adam and AdamW over native kernels."""
from deepspeed._lazy import attach

from .cpu_adam import DeepSpeedCPUAdam
from .fused_adam import FusedAdam

__getattr__, __dir__ = attach(__name__, {
    "ZenFlowCPUAdam": "deepspeed.ops.adam.zenflow_cpu_adam:ZenFlowCPUAdam",
    "ZenFlowSelectiveAdamW": "deepspeed.ops.adam.zenflow_torch_adam:ZenFlowSelectiveAdamW",
    "ZenFlowSelectiveAdamW_stage3": "deepspeed.ops.adam.zenflow_torch_adam:ZenFlowSelectiveAdamW_stage3",
})

__all__ = ["DeepSpeedCPUAdam", "FusedAdam", "ZenFlowCPUAdam", "ZenFlowSelectiveAdamW", "ZenFlowSelectiveAdamW_stage3"]
