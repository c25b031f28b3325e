"""The device that this process computes on, behind one interface."""
from deepspeed._lazy import attach

from .abstract_accelerator import DeepSpeedAccelerator
from .real_accelerator import get_accelerator, is_current_accelerator_supported, set_accelerator

__getattr__, __dir__ = attach(__name__)
__all__ = ["DeepSpeedAccelerator", "get_accelerator", "is_current_accelerator_supported", "set_accelerator"]
