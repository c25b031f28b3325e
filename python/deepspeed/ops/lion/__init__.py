"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms") over native kernels."""
from deepspeed._lazy import attach

from .lion import DeepSpeedCPULion, FusedLion

__getattr__, __dir__ = attach(__name__)
__all__ = ["DeepSpeedCPULion", "FusedLion"]
