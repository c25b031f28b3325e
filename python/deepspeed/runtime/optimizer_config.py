"""From the configuration's `optimizer` section, or what the client gave, to a torch optimizer over the model's parameters.

The object holds parameter groups and hyper-parameters, which schedulers and users change; who does the arithmetic is decided
afterwards (native_recipe.py).
"""
from __future__ import annotations

import inspect
import logging
from typing import Any, Callable, Iterable

import torch
import torch.nn as nn

from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.section_params import check_values, construct, given, unknown_key
from deepspeed.runtime.zero.utils import ZeRORuntimeException, is_zero_supported_optimizer
from deepspeed.utils.logging import log_dist, warning_once

# What initialize() takes in place of an optimizer and of a scheduler: a function that makes one.
DeepSpeedOptimizerCallable = Callable[[Iterable[nn.Parameter] | list[dict[str, Any]]], torch.optim.Optimizer]
DeepSpeedSchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

_LATER = {"onebitadam": "1-bit Adam", "zerooneadam": "0/1 Adam", "onebitlamb": "1-bit LAMB"}
_MUP = {"muadam": "MuAdam", "muadamw": "MuAdamW", "musgd": "MuSGD"}


def as_groups(parameters: Any, module: nn.Module) -> list[dict]:
    """`model_parameters` as a list of groups, without empty groups."""
    items = list(module.parameters()) if parameters is None else \
        [parameters] if isinstance(parameters, (dict, torch.Tensor)) else list(parameters)
    if items and isinstance(items[0], (tuple, list)):  # named_parameters()
        items = [param for _, param in items]
    groups = [dict(item) for item in items] if items and isinstance(items[0], dict) else [{"params": items}]
    kept = []
    for group in groups:
        group["params"] = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        if group["params"]:
            kept.append(group)
    return kept


def full_numel(param: torch.Tensor) -> int:
    """Elements of the whole parameter, also while it is sharded."""
    return getattr(param, "ds_numel", param.numel())


def optimizer_from_config(config: DeepSpeedConfig, parameters: Any, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over the given parameters (default: all of the module)."""
    name, params = config.optimizer_name, given(config.optimizer_params)
    if "max_grad_norm" in params:
        raise ValueError("'max_grad_norm' is not supported as an optimizer parameter: use the key 'gradient_clipping' beside "
                         "'optimizer' instead")
    if name in _LATER:
        raise NotImplementedError(f"optimizer.type {config.optimizer.type!r}: {_LATER[name]} is not built yet")
    check_values("optimizer", params)
    if "betas" in params:
        params["betas"] = tuple(params["betas"])
    if name == "muon":
        from deepspeed.runtime.zero.muon import MUON_OPTIONS, MuonWithAuxAdam, muon_groups
        for key in [key for key in params if key not in MUON_OPTIONS]:
            warning_once(unknown_key("optimizer", key, params[key], "Muon", MUON_OPTIONS) + "; it has no effect")
        return MuonWithAuxAdam(muon_groups(as_groups(parameters, module), module, params))
    groups = as_groups(parameters, module)
    if not groups:
        raise ValueError("the configuration names an optimizer, but there are no parameters: check model_parameters")
    optimizer = _MAKERS.get(name, _from_torch)(config, groups, params)
    _refuse_closures(optimizer)
    return optimizer


def _construct(config: DeepSpeedConfig, make: type, groups: list, params: dict, **more: Any) -> torch.optim.Optimizer:
    return construct("optimizer", make, groups, params, called=config.optimizer.type, **more)


def _adam(config: DeepSpeedConfig, groups: list, params: dict) -> torch.optim.Optimizer:
    # "Adam" means AdamW unless adam_w_mode says otherwise.
    decoupled = params.pop("adam_w_mode", True) or config.optimizer_name == "adamw"
    states_in_fp32 = params.pop("fp32_optimizer_states", True)
    own = ("adam_w_mode", "fp32_optimizer_states", "torch_adam")
    if params.pop("torch_adam", False):
        params.pop("bias_correction", None)
        return _construct(config, torch.optim.AdamW if decoupled else torch.optim.Adam, groups, params, also=own)
    if config.offload_device("optimizer") != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        fixed = {"adamw_mode": decoupled, "fp32_optimizer_states": states_in_fp32 and not config.bf16.bf16_optimizer_states}
        return _construct(config, DeepSpeedCPUAdam, groups, params, fixed=fixed, also=own)
    from deepspeed.ops.adam import FusedAdam
    return _construct(config, FusedAdam, groups, params, fixed={"adam_w_mode": decoupled}, also=own)


def _lion(config: DeepSpeedConfig, groups: list, params: dict) -> torch.optim.Optimizer:
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    make = FusedLion if config.offload_device("optimizer") == "none" else DeepSpeedCPULion
    return _construct(config, make, groups, params)


def _adagrad(config: DeepSpeedConfig, groups: list, params: dict) -> torch.optim.Optimizer:
    if config.offload_device("optimizer") == "none":
        return _construct(config, torch.optim.Adagrad, groups, params)
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    return _construct(config, DeepSpeedCPUAdagrad, groups, params)


def _lamb(config: DeepSpeedConfig, groups: list, params: dict) -> torch.optim.Optimizer:
    from deepspeed.ops.lamb import FusedLamb
    if config.fp16.enabled and config.fp16.loss_scale != 0:
        raise AssertionError("optimizer.type Lamb with fp16 needs dynamic loss scaling: set fp16.loss_scale to 0")
    return _construct(config, FusedLamb, groups, params)


def _from_torch(config: DeepSpeedConfig, groups: list, params: dict) -> torch.optim.Optimizer:
    name = config.optimizer_name
    if name in _MUP:
        import mup
        return getattr(mup, _MUP[name])(groups, **params)
    found = getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise AssertionError(f"{name} is not a supported DeepSpeed Optimizer: optimizer.type is one of Adam, AdamW, Lamb, Lion, "
                             "Adagrad, Muon, or the exact name of a class in torch.optim")
    return _construct(config, found, groups, params)


_MAKERS: dict[str, Callable[[DeepSpeedConfig, list, dict], torch.optim.Optimizer]] = {
    "adam": _adam, "adamw": _adam, "lion": _lion, "adagrad": _adagrad, "lamb": _lamb}


def _refuse_closures(optimizer: torch.optim.Optimizer) -> None:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(f"{type(optimizer).__name__} evaluates the loss again inside step(), but here gradients come from "
                         "engine.backward(): use an optimizer whose step() needs no closure")


def optimizer_from_client(client: Any, config: DeepSpeedConfig, parameters: Any, module: nn.Module) -> torch.optim.Optimizer:
    """The client's optimizer object, or what its function makes of the parameters; checked against the configuration."""
    if isinstance(client, torch.optim.Optimizer):
        optimizer = client
    elif callable(client):
        optimizer = client(list(module.parameters()) if parameters is None else
                           parameters if isinstance(parameters, list) else list(parameters))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"the function given as optimizer returned {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    else:
        raise AssertionError(f"Client Optimizer is of unexpected type {type(client)}: {_remedy(client, config)}")
    _refuse_closures(optimizer)
    offloaded = config.offload_device("optimizer") != "none"
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.lion import DeepSpeedCPULion
    if offloaded and config.zero_force_ds_cpu_optimizer and not isinstance(optimizer, (DeepSpeedCPUAdam, DeepSpeedCPULion)):
        raise ZeRORuntimeException(f"offload_optimizer with a client optimizer of type {type(optimizer).__name__}: use "
                                   "deepspeed.ops.adam.DeepSpeedCPUAdam or name the optimizer in the configuration; to use it all the "
                                   "same set \"zero_force_ds_cpu_optimizer\": false")
    if config.shards_optimizer and not is_zero_supported_optimizer(optimizer):
        if not config.zero_allow_untested_optimizer:
            raise AssertionError(f"You are using an untested ZeRO Optimizer ({type(optimizer).__name__}): its update may need whole tensors, but "
                                 "it will see shards. Add \"zero_allow_untested_optimizer\": true to the configuration to use it")
        log_dist("**** You are using ZeRO with an untested optimizer, proceed with caution *****", ranks=[0], level=logging.WARNING)
    return optimizer


def _remedy(client: Any, config: DeepSpeedConfig) -> str:
    """What to pass instead of an object that is no optimizer."""
    if isinstance(client, DeepSpeedOptimizer):
        return ("it is what an earlier deepspeed.initialize() returned, and belongs to that engine's stage and model: pass a new torch.optim.Optimizer "
                "over this model's parameters, or leave it out and let the configuration's section `optimizer` make one")
    if type(client).__name__ == "DummyOptim":
        section = "leave it out here, since the configuration has that section" if config.optimizer_name is not None else \
            "add `optimizer` with `type` and `params` to the configuration, or pass a real optimizer"
        return f"Accelerate's DummyOptim stands for the configuration's section `optimizer` and is resolved by Accelerator.prepare(): {section}"
    return "pass a torch.optim.Optimizer, or a function from parameters to one"


class FileNumbers:
    """The groups that checkpoints have: those that were given parameters, also where all of them are frozen. Files in torch's own format
    number the parameters of all groups as they were given."""

    def __init__(self) -> None:
        self.trained: list[list[int]] = []  # per group that trains something
        self.all: dict[int, list[int]] = {}  # place in the optimizer -> all of its parameters


def clean_groups(optimizer: torch.optim.Optimizer, module: nn.Module) -> FileNumbers:
    """Removes frozen and empty parameters; refuses parameters listed twice or foreign to the model. Groups that this leaves empty stay:
    FragmentStepper.groups are the others."""
    names = {id(p): name for name, p in module.named_parameters(remove_duplicate=False)}
    seen: set[int] = set()
    numbers = FileNumbers()
    for index, group in enumerate(optimizer.param_groups):
        kept, kept_numbers, first = [], [], len(seen)
        for param in group["params"]:
            if id(param) not in names:
                raise ValueError(f"parameter group {index} of {type(optimizer).__name__} holds a parameter of shape "
                                 f"{list(getattr(param, 'ds_shape', param.shape))} that does not belong to the model: build the optimizer "
                                 "from the parameters of the model that is given to initialize()")
            if id(param) in seen:
                raise AssertionError(f"Parameter with name: {names[id(param)]} occurs multiple times in optimizer.param_groups. "
                                     "Make sure it only appears once to prevent undefined behavior.")
            if param.requires_grad and full_numel(param) > 0:
                kept.append(param)
                kept_numbers.append(len(seen))
            seen.add(id(param))
        group["params"] = kept
        if len(seen) > first:
            numbers.all[index] = list(range(first, len(seen)))
        if kept:
            numbers.trained.append(kept_numbers)
    if not numbers.trained:
        raise ValueError(f"{type(optimizer).__name__} has no trainable parameter: check requires_grad and model_parameters")
    return numbers


def group_index(optimizer: torch.optim.Optimizer | None) -> dict[int, int]:
    """id(parameter) -> index of its group among those that hold parameters."""
    groups: Iterable[dict] = optimizer.param_groups if optimizer is not None else ()
    held = [group["params"] for group in groups if group["params"]]
    return {id(param): index for index, params in enumerate(held) for param in params}
