"""Questions about experts, answered for models that have none."""
from __future__ import annotations

from typing import Any, Iterable

import torch


def is_moe_param(param: torch.Tensor) -> bool:
    """Expert parameters carry `allreduce = False`."""
    return hasattr(param, "allreduce") and not param.allreduce


def has_moe_layers(m: torch.nn.Module) -> tuple[bool, int]:
    """(whether the model has expert parameters, number of experts of the first such layer)."""
    return any(is_moe_param(p) for p in m.parameters()), 0


def is_moe_param_group(param_group: dict) -> bool:
    """Whether a parameter group holds experts."""
    return bool(param_group.get("moe", False))


def split_params_into_shared_and_expert_params(params: Iterable[torch.nn.Parameter]) -> tuple[list, list]:
    """(parameters that all ranks share, expert parameters)."""
    shared: list = []
    experts: list = []
    for param in params:
        (experts if is_moe_param(param) else shared).append(param)
    return shared, experts


def split_params_grads_into_shared_and_expert_params(group: Iterable[torch.nn.Parameter]) -> tuple[list, list]:
    """(gradients of shared parameters, of expert parameters), in each parameter's dtype; those without a gradient are left out."""
    split = split_params_into_shared_and_expert_params(param for param in group if param.grad is not None)
    shared, experts = ([param.grad.to(param.dtype) for param in params] for params in split)
    return shared, experts


def configure_moe_param_groups(model_parameters: list) -> list[dict]:
    """Groups for an optimizer from a list of parameters or of groups; groups that already mention experts stay as they are."""
    if not isinstance(model_parameters, list) or not model_parameters:
        raise AssertionError(f"model_parameters must be a list that is not empty, got {type(model_parameters).__name__}")
    wrong = [item for item in model_parameters if not isinstance(item, (torch.Tensor, dict))]
    if wrong:
        raise TypeError(f"model_parameters must hold parameters or groups (dictionaries), found {type(wrong[0]).__name__}")
    if isinstance(model_parameters[0], dict):
        grouped = any("moe" in group for group in model_parameters)
        return model_parameters if grouped else split_params_into_different_moe_groups_for_optimizer(model_parameters)
    return split_params_into_different_moe_groups_for_optimizer({"params": model_parameters, "name": "dense-params"})


def split_params_into_different_moe_groups_for_optimizer(param_groups: Any, max_group_size: int | float = 178956971) -> list[dict]:
    """The groups as a list; expert parameters would get groups of their own."""
    groups = list(param_groups) if isinstance(param_groups, (list, tuple)) else [param_groups]
    for group in groups:
        if any(is_moe_param(p) for p in group["params"]):
            raise NotImplementedError("split_params_into_different_moe_groups_for_optimizer: mixture of experts is not built yet")
    return groups
