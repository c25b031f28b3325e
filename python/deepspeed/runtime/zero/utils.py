"""Small things of ZeRO that other packages import."""
from __future__ import annotations

import torch


class ZeRORuntimeException(Exception):
    """Something that ZeRO cannot do with the given objects or files."""


def _tested_classes() -> set[type]:
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from deepspeed.runtime.zero.muon import MuonWithAuxAdam
    return {torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, FusedAdam, DeepSpeedCPUAdam, DeepSpeedCPUAdagrad,
            DeepSpeedCPULion, FusedLion, MuonWithAuxAdam}


def is_zero_supported_optimizer(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this exact class is known to work on shards (its arithmetic is elementwise, or ours)."""
    return type(optimizer) in _tested_classes()


def is_zero_param(parameter) -> bool:
    """Whether ZeRO manages this tensor as a sharded parameter."""
    return torch.is_tensor(parameter) and hasattr(parameter, "ds_id")
