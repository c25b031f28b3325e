"""Which optimizers the core computes itself: their fixed options, and a group's hyper-parameters for one step.

An optimizer is native when its class is known exactly and no option asks for arithmetic that the kernels lack; everything else
runs as it is, over the fragments of this rank.
"""
from __future__ import annotations

from typing import Any, Callable, Container

import torch

Recipe = dict[str, Any]


def _groups(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Those that train something: what frozen ones ask for does not matter."""
    return [group for group in optimizer.param_groups if group["params"]]


def _same(optimizer: torch.optim.Optimizer, key: str) -> bool:
    return len({group.get(key) for group in _groups(optimizer)}) == 1


def _off(group: dict, *keys: str) -> bool:
    return not any(group.get(key) for key in keys)


def _torch_adam(optimizer: torch.optim.Optimizer) -> Recipe | None:
    groups = _groups(optimizer)
    if not all(_off(g, "amsgrad", "maximize", "differentiable", "capturable") for g in groups):
        return None
    decoupled = [bool(g.get("decoupled_weight_decay", type(optimizer) is torch.optim.AdamW)) for g in groups]
    if len(set(decoupled)) != 1 or any(isinstance(b, torch.Tensor) for g in groups for b in g["betas"]):
        return None
    return {"type": "adam", "decoupled": decoupled[0], "bias_correction": True}


def _torch_sgd(optimizer: torch.optim.Optimizer) -> Recipe | None:
    if not all(_off(g, "maximize", "differentiable") for g in _groups(optimizer)) or not _same(optimizer, "nesterov"):
        return None
    return {"type": "sgd", "nesterov": bool(_groups(optimizer)[0]["nesterov"]),
            "momentum": any(g["momentum"] != 0 for g in _groups(optimizer))}


def _torch_adagrad(optimizer: torch.optim.Optimizer) -> Recipe | None:
    if not all(_off(g, "maximize", "differentiable", "lr_decay", "initial_accumulator_value") for g in _groups(optimizer)):
        return None
    return {"type": "adagrad"}


def _cpu_adam(optimizer: Any) -> Recipe | None:
    if not _same(optimizer, "bias_correction"):
        return None
    return {"type": "adam", "decoupled": bool(optimizer.adam_w_mode),
            "bias_correction": bool(_groups(optimizer)[0]["bias_correction"]),
            "state_dtype": "fp32" if getattr(optimizer, "fp32_optimizer_states", True) else "param"}


def _lamb(optimizer: Any) -> Recipe | None:
    if not all(_same(optimizer, key) for key in ("bias_correction", "max_coeff", "min_coeff")):
        return None
    first = _groups(optimizer)[0]
    return {"type": "lamb", "bias_correction": bool(first["bias_correction"]), "eps_inside_sqrt": optimizer.eps_inside_sqrt,
            "max_coeff": float(first["max_coeff"]), "min_coeff": float(first["min_coeff"])}


def _recipes() -> dict[type, Callable[[Any], Recipe | None]]:
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from deepspeed.runtime.zero.muon import MuonWithAuxAdam
    lion = {"type": "lion"}
    return {torch.optim.Adam: _torch_adam, torch.optim.AdamW: _torch_adam, torch.optim.SGD: _torch_sgd,
            torch.optim.Adagrad: _torch_adagrad, DeepSpeedCPUAdam: _cpu_adam, FusedAdam: _cpu_adam, FusedLamb: _lamb,
            DeepSpeedCPULion: lambda _: dict(lion), FusedLion: lambda _: dict(lion),
            DeepSpeedCPUAdagrad: lambda _: {"type": "adagrad"}, MuonWithAuxAdam: lambda _: {"type": "muon"}}


def native_recipe(optimizer: torch.optim.Optimizer) -> Recipe | None:
    """The core's optimizer options for this object, or None when Python must do its update."""
    if getattr(optimizer, "_optimizer_step_pre_hooks", None) or getattr(optimizer, "_optimizer_step_post_hooks", None):
        return None  # hooks want to see the optimizer's own step
    make = _recipes().get(type(optimizer))
    return make(optimizer) if make is not None else None


_SCALARS = ("eps", "weight_decay", "momentum", "dampening", "use_muon")


def hyper_parameters(group: dict) -> dict[str, float]:
    """One group's numbers for one step, as the core wants them."""
    hyper = {"lr": float(group["lr"])}
    betas = group.get("betas")
    if betas is not None:
        hyper["beta1"], hyper["beta2"] = float(betas[0]), float(betas[1])
    for key in _SCALARS:
        value = group.get(key)
        if value is not None:
            hyper[key] = float(value)
    return hyper


# Adagrad's sum of squares: torch's name, and that of DeepSpeed's own class, which takes its place when states are offloaded.
_SAME = {"sum": "exp_avg_sq", "exp_avg_sq": "sum"}


def stored_name(name: str, stored: Container[str]) -> str:
    """Under which name a state of file_keys() is stored: its own, or the other one that it has in other configurations."""
    other = _SAME.get(name)
    return other if name not in stored and other is not None and other in stored else name


def file_keys(optimizer: torch.optim.Optimizer, group: dict, keys: list[str]) -> dict[str, str]:
    """The core's state names -> the names under which this optimizer's own state dictionary has them."""
    if type(optimizer) is torch.optim.Adagrad:
        return {"exp_avg_sq": "sum"}
    if group.get("use_muon"):
        return {"exp_avg": "momentum_buffer"}
    return {key: key for key in keys}
