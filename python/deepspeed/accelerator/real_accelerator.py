"""Which device family this process uses: DS_ACCELERATOR, what set_accelerator() was given, or what is there."""
from __future__ import annotations

import os

from .abstract_accelerator import DeepSpeedAccelerator

SUPPORTED_ACCELERATOR_LIST = ["cuda", "cpu", "xpu", "npu", "mps", "hpu", "mlu", "sdaa", "supa", "klxpu"]
_BUILT = ("cuda", "cpu")

ds_accelerator: DeepSpeedAccelerator | None = None


def is_current_accelerator_supported() -> bool:
    """Whether this process computes on a device that the package knows."""
    return get_accelerator().device_name() in SUPPORTED_ACCELERATOR_LIST


def _chosen_name() -> str:
    wanted = os.environ.get("DS_ACCELERATOR")
    if wanted is None:
        import torch
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted not in SUPPORTED_ACCELERATOR_LIST:
        raise ValueError(f"DS_ACCELERATOR={wanted!r} is not one of {', '.join(SUPPORTED_ACCELERATOR_LIST)}")
    if wanted not in _BUILT:
        raise NotImplementedError(f"DS_ACCELERATOR={wanted}: this device family is not built yet, use one of {', '.join(_BUILT)}")
    return wanted


def get_accelerator() -> DeepSpeedAccelerator:
    """The process's device interface; the same object at every call."""
    global ds_accelerator
    if ds_accelerator is None:
        if _chosen_name() == "cuda":
            from .cuda_accelerator import CUDA_Accelerator
            ds_accelerator = CUDA_Accelerator()
        else:
            from .cpu_accelerator import CPU_Accelerator
            ds_accelerator = CPU_Accelerator()
    return ds_accelerator


def set_accelerator(accel_obj: DeepSpeedAccelerator) -> None:
    """Uses `accel_obj` from now on."""
    global ds_accelerator
    if not isinstance(accel_obj, DeepSpeedAccelerator):
        raise TypeError(f"set_accelerator needs a DeepSpeedAccelerator, got {type(accel_obj).__name__}")
    ds_accelerator = accel_obj
