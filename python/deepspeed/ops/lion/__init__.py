"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms") over native kernels."""
from .lion import DeepSpeedCPULion, FusedLion

__all__ = ["DeepSpeedCPULion", "FusedLion"]
