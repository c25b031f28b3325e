"""Muon (Jordan et al. 2024): momentum orthogonalised by five Newton-Schulz iterations, for weight matrices; Adam for the rest.

Inside an engine the core computes the update (whole matrices are assembled from their shards); step() of this class is for use
without an engine.
"""
from __future__ import annotations

from typing import Any, Callable, Iterable

import torch
import torch.nn as nn

_MUON_KEYS = ("lr", "momentum", "weight_decay", "ns_method")
_ADAM_KEYS = ("lr", "betas", "eps", "weight_decay")
MUON_OPTIONS = tuple(dict.fromkeys([*_MUON_KEYS, *_ADAM_KEYS, "muon_lr", "adam_lr", "per_head_muon"]))
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def _is_matrix(name: str, param: torch.Tensor) -> bool:
    dims = len(getattr(param, "ds_shape", param.shape))
    return dims >= 2 and "embed" not in name.lower() and "lm_head" not in name.lower()


def muon_groups(groups: list[dict], module: nn.Module, params: dict[str, Any]) -> list[dict]:
    """Splits every group into its matrices (use_muon) and the rest, each with the options that apply to it."""
    params = dict(params)
    muon_lr, adam_lr = params.pop("muon_lr", None), params.pop("adam_lr", None)
    if params.pop("per_head_muon", False):
        raise NotImplementedError("optimizer.params.per_head_muon: Muon per attention head is not built yet")
    names = {id(p): name for name, p in module.named_parameters()}
    made = []
    for group in groups:
        rest = {key: value for key, value in group.items() if key != "params"}
        for use_muon, keys, own_lr in ((True, _MUON_KEYS, muon_lr), (False, _ADAM_KEYS, adam_lr)):
            chosen = [p for p in group["params"] if p.requires_grad and _is_matrix(names.get(id(p), ""), p) is use_muon]
            if not chosen:
                continue
            options = {key: params[key] for key in keys if key in params}
            if own_lr is not None:
                options["lr"] = own_lr
            made.append({**options, **rest, "params": chosen, "use_muon": use_muon})  # the group's own settings win
    return made


class MuonWithAuxAdam(torch.optim.Optimizer):
    """Groups carry use_muon: True for weight matrices, False for everything else."""

    def __init__(self, param_groups: Iterable[dict], **_options: Any) -> None:
        groups = []
        for group in param_groups:
            if "use_muon" not in group:
                raise AssertionError("every parameter group of MuonWithAuxAdam needs the key use_muon")
            defaults = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0} if group["use_muon"] else \
                {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
            groups.append({**defaults, **group})
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    (self._muon if group["use_muon"] else self._adam)(group, param)
        return loss

    def _muon(self, group: dict, param: torch.Tensor) -> None:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param, dtype=torch.float32)
        grad = param.grad.float()
        state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(state["momentum_buffer"], group["momentum"])
        update = newton_schulz(update.flatten(1)).view_as(param)
        param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(param.dtype), alpha=-group["lr"])

    def _adam(self, group: dict, param: torch.Tensor) -> None:
        from deepspeed import _C
        state = self.state[param]
        if not state:
            state["step"], state["exp_avg"], state["exp_avg_sq"] = 0, *(torch.zeros_like(param, dtype=torch.float32) for _ in range(2))
        state["step"] += 1
        working = param.data.float().contiguous()
        _C.adam_step(working, param.grad.float().contiguous(), state["exp_avg"], state["exp_avg_sq"], float(group["lr"]),
                     *group["betas"], group["eps"], group["weight_decay"], True, True, state["step"])
        param.data.copy_(working)


def newton_schulz(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """An approximately orthogonal matrix with the singular directions of `matrix`, times sqrt(max(1, rows / columns))."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    if tall:
        x = x.mT
    return x.float() * max(1.0, matrix.size(0) / matrix.size(1))**0.5
