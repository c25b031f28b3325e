"""Questions about experts, answered for models that have none."""
from __future__ import annotations

from typing import Any

import torch


def is_moe_param(param: torch.Tensor) -> bool:
    """Expert parameters carry `allreduce = False`."""
    return hasattr(param, "allreduce") and not param.allreduce


def has_moe_layers(m: torch.nn.Module) -> tuple[bool, int]:
    """(whether the model has expert parameters, number of experts of the first such layer)."""
    return any(is_moe_param(p) for p in m.parameters()), 0


def is_moe_param_group(param_group: dict) -> bool:
    return bool(param_group.get("moe", False))


def split_params_into_different_moe_groups_for_optimizer(param_groups: Any, max_group_size: int | float = 178956971) -> list[dict]:
    """The groups as a list; expert parameters would get groups of their own."""
    groups = list(param_groups) if isinstance(param_groups, (list, tuple)) else [param_groups]
    for group in groups:
        if any(is_moe_param(p) for p in group["params"]):
            raise NotImplementedError("split_params_into_different_moe_groups_for_optimizer: mixture of experts is not built yet")
    return groups
