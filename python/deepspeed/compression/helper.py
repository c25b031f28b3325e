"""Dotted-name access, by the path that fine-tuning scripts import."""
from deepspeed.utils.module_utils import recursive_getattr, recursive_setattr

__all__ = ["recursive_getattr", "recursive_setattr"]
