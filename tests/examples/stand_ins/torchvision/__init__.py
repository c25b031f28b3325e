"""Stands in for torchvision where the CIFAR-10 program runs offline: ten classes of coloured noise instead of photographs.

Only that program has this folder on its path; nothing else may take it for torchvision.
"""
from . import datasets, transforms

__all__ = ["datasets", "transforms"]
