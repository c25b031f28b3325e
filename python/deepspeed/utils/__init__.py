"""Helpers around engines and models. Each name loads its module when it is first used."""
from __future__ import annotations

import importlib

from .logging import log_dist, log_dist_once, logger, set_log_level_from_string
from .z3_leaf_module import z3_leaf_module  # at once: a later import of the file of this name must not hide the function

_FRAGMENT = [f"safe_{verb}_{scope}_{what}" for verb in ("get", "set") for scope in ("full", "local")
             for what in ("fp32_param", "grad", "optimizer_state")]
_LEAF = ["set_z3_leaf_modules", "unset_z3_leaf_modules", "get_z3_leaf_modules", "z3_leaf_parameter",
         "set_z3_leaf_module", "set_z3_leaf_modules_by_name", "set_z3_leaf_modules_by_suffix"]

# name: the module that defines it
_HOME: dict[str, str] = {
    **{name: "deepspeed.utils.tensor_fragment" for name in (*_FRAGMENT, "safe_update_full_grad_vectorized", "fragment_address",
                                                            "tensor_fragment")},
    **{name: "deepspeed.utils.z3_leaf_module" for name in _LEAF},
    "OnDevice": "deepspeed.utils.init_on_device",
    "instrument_w_nvtx": "deepspeed.utils.nvtx",
    "RepeatingLoader": "deepspeed.runtime.dataloader",
    "get_numactl_cmd": "deepspeed.utils.numa",
    "recursive_getattr": "deepspeed.utils.module_utils",
    "recursive_setattr": "deepspeed.utils.module_utils",
}
_SUBMODULES = ("bwc", "comms_logging", "exceptions", "groups", "init_on_device", "logging", "module_utils", "numa", "nvtx",
               "tensor_fragment", "timer", "torch", "types", "zero_to_fp32", "zero_to_torch")

__all__ = ["z3_leaf_module", "log_dist", "log_dist_once", "logger", "set_log_level_from_string", "is_initialized", *_HOME, *_SUBMODULES]


def is_initialized() -> bool:
    """Whether a distributed job is set up."""
    import torch.distributed as dist
    return dist.is_available() and dist.is_initialized()


def __getattr__(name: str):
    if name == "tensor_fragment":
        return importlib.import_module("deepspeed.utils.tensor_fragment")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"deepspeed.utils.{name}")
    groups = importlib.import_module("deepspeed.utils.groups")
    if name.startswith(("get_", "_get_", "set_")) and hasattr(groups, name):
        return getattr(groups, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
