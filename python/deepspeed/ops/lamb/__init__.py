"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning") over native kernels."""
from .fused_lamb import FusedLamb

__all__ = ["FusedLamb"]
