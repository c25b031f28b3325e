"""Counts what a model's forward does, module by module, while its hooks are installed.

Forward hooks keep the stack of modules that are running. While there is any, the functions of TABLE are replaced by ones that charge
their cost to the innermost of them, and only on the thread that runs it; as soon as the outermost module returns, or fails, torch is as
it was. Operators (`a + b`) do not go through these names and are not counted, with DeepSpeed as here.

Figures are attributes of each module, under the names that programs read: `__flops__` and `__macs__` of the calls made by the module
itself, `__duration__` (seconds, of everything below it too), `__params__`, `__expert_params__`, `__model_expert_params__`.
"""
from __future__ import annotations

import functools
import threading
import time
from typing import Any, Callable, NamedTuple, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from deepspeed.accelerator import get_accelerator
from deepspeed.profiling.flops_profiler import formulas

FIGURES = ("__flops__", "__macs__", "__duration__", "__params__", "__expert_params__", "__model_expert_params__")
_EXPERT_GROUP = "ep_size_"


def _table() -> list[tuple[Any, str, Callable[..., formulas.Cost]]]:
    """(owner, name, formula) of every function that counts. A name that this torch lacks is left out."""
    found = [(F, "linear", formulas.linear), (F, "scaled_dot_product_attention", formulas.attention),
             (F, "batch_norm", formulas.batch_norm), (F, "layer_norm", formulas.layer_norm),
             (F, "instance_norm", formulas.instance_norm), (F, "group_norm", formulas.group_norm),
             (F, "interpolate", formulas.per_result), (torch, "einsum", formulas.einsum), (torch, "baddbmm", formulas.addmm)]
    found += [(F, name, formulas.per_element) for name in ("relu", "prelu", "elu", "leaky_relu", "relu6", "silu", "gelu", "softmax")]
    for dims in ("1d", "2d", "3d"):
        found += [(F, f"conv{dims}", formulas.convolution), (F, f"conv_transpose{dims}", formulas.transposed_convolution)]
        found += [(F, f"{kind}_pool{dims}", formulas.per_element) for kind in ("avg", "max", "adaptive_avg", "adaptive_max")]
    for owner in (torch, torch.Tensor):
        found += [(owner, name, formulas.matmul) for name in ("matmul", "mm", "bmm")]
        found += [(owner, "addmm", formulas.addmm), (owner, "mul", formulas.per_result), (owner, "add", formulas.per_result)]
    found.append((torch.Tensor, "__matmul__", formulas.matmul))
    return [(owner, name, formula) for owner, name, formula in found if hasattr(owner, name)]


class _Running(NamedTuple):
    """A module in forward."""

    module: nn.Module
    begin: float  # seconds of time.perf_counter


class ForwardCounter:
    """The hooks on one model. install() before the forward that is to be counted, remove() after it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._stack: list[_Running] = []
        self._thread = 0
        self._replaced: list[tuple[Any, str, Any]] = []

    def install(self, ignored: Sequence[type[nn.Module]] | None = None) -> None:
        """Hooks for every module below the model except those of exactly the types `ignored`."""
        for module in self._model.modules():
            if not ignored or type(module) not in ignored:
                # First of all hooks: the gathering of sharded parameters is a part of the module's time.
                self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()
        self._restore()

    def _enter(self, module: nn.Module, _inputs: tuple) -> None:
        if not self._stack:
            self._thread = threading.get_ident()
            self._replace()
        get_accelerator().synchronize()
        self._stack.append(_Running(module, time.perf_counter()))

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if not any(running.module is module for running in self._stack):
            return  # a hook before ours has failed
        get_accelerator().synchronize()
        while (running := self._stack.pop()).module is not module:
            pass  # they failed before their hooks could run
        module.__duration__ += time.perf_counter() - running.begin
        if formulas.is_recurrent(module) and inputs and output is not None:
            self._charge(module, formulas.recurrent(module, inputs[0]))
        if not self._stack:
            self._restore()

    @staticmethod
    def _charge(module: nn.Module, cost: formulas.Cost) -> None:
        module.__flops__ += cost[0]
        module.__macs__ += cost[1]

    def _replace(self) -> None:
        for owner, name, formula in _table():
            original = owner.__dict__.get(name)
            self._replaced.append((owner, name, original))
            setattr(owner, name, self._counting(getattr(owner, name), formula))

    def _restore(self) -> None:
        for owner, name, original in reversed(self._replaced):
            if original is None:  # inherited, as torch.Tensor's methods are
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._replaced.clear()

    def _counting(self, function: Callable, formula: Callable[..., formulas.Cost]) -> Callable:

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if self._stack and threading.get_ident() == self._thread:
                self._charge(self._stack[-1].module, formula(result, *args, **kwargs))
            return result

        return counted


# ---------------------------------------------------------------- figures of modules

def reset_figures(model: nn.Module) -> None:
    """Sets every module's figures to zero, and its parameters to what they are."""
    for module in model.modules():
        module.__flops__ = module.__macs__ = 0
        module.__duration__ = 0.0
        module.__params__, module.__expert_params__, module.__model_expert_params__ = count_params(module)


def forget_figures(model: nn.Module) -> None:
    for module in model.modules():
        for name in FIGURES:
            module.__dict__.pop(name, None)


def count_params(module: nn.Module) -> tuple[int, int, int]:
    """Elements of (shared parameters, this rank's experts, the experts of all ranks); whole ones where they are sharded (ZeRO-3)."""
    shared = experts = all_experts = 0
    for param in module.parameters():
        numel, ranks = getattr(param, "ds_numel", param.numel()), _expert_ranks(param)
        shared += 0 if ranks else numel
        experts += numel if ranks else 0
        all_experts += numel * ranks
    return shared, experts, all_experts


def _expert_ranks(param: nn.Parameter) -> int:
    """Ranks over which a parameter's layer of experts is spread: its group is named "ep_size_N". 0: it is no expert."""
    group = getattr(param, "group_name", None) or ""
    size = group.removeprefix(_EXPERT_GROUP)
    return int(size) if group.startswith(_EXPERT_GROUP) and size.isdigit() else 0


def get_module_flops(module: nn.Module) -> int:
    """Floating-point operations of the module and everything below it; a module used in several places counts once."""
    return sum(part.__flops__ for part in module.modules())


def get_module_macs(module: nn.Module) -> int:
    """Multiply-accumulates, likewise."""
    return sum(part.__macs__ for part in module.modules())


def get_module_duration(module: nn.Module) -> float:
    """Seconds in the module's forward; of one that is never called itself, such as nn.ModuleList, those of its children."""
    return module.__duration__ or sum(get_module_duration(child) for child in module.children())
