"""Adam and AdamW over native kernels."""
from .cpu_adam import DeepSpeedCPUAdam
from .fused_adam import FusedAdam

__all__ = ["DeepSpeedCPUAdam", "FusedAdam", "ZenFlowCPUAdam", "ZenFlowSelectiveAdamW"]


def __getattr__(name: str):
    if name in ("ZenFlowCPUAdam", "ZenFlowSelectiveAdamW", "ZenFlowSelectiveAdamW_stage3"):
        raise NotImplementedError(f"{name}: ZenFlow is not built yet")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
