"""How an engine's core is made: which parameters form units, which group trains each, what the core is told.

Order matters for numeric equality: device and dtype first, then rank 0's values, then the optimizer's fp32 copies.
"""
from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn as nn

from deepspeed import _C
from deepspeed.runtime.config import ConfigValidationError, DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.runtime.native_recipe import native_recipe
from deepspeed.runtime.optimizer_config import group_index
from deepspeed.runtime.precision import cast_parameters, training_dtype
from deepspeed.runtime.zero.parameter import HeapTrimmer, bind_engine, dissolve, is_sharded, manage, members_of_units, shard, slot_of
from deepspeed.utils.logging import log_dist
from deepspeed.utils.z3_leaf_module import apply_zero_leaf_module_config, z3_leaf_module


def _owners(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module, list[tuple[str, nn.Parameter]]]]:
    """(module name, module, its parameters) of every module that forms a unit: leaf modules with all below, others with their own."""
    found = []
    if z3_leaf_module(module):
        named = [(f"{prefix}{name}", p) for name, p in module.named_parameters()]
        return [(prefix.rstrip("."), module, named)]
    own = [(f"{prefix}{name}", p) for name, p in module._parameters.items() if p is not None]
    if own:
        found.append((prefix.rstrip("."), module, own))
    for name, child in module._modules.items():
        if child is not None:
            found.extend(_owners(child, f"{prefix}{name}."))
    return found


def _persistent(named: list[tuple[str, nn.Parameter]], config: DeepSpeedConfig) -> set[int]:
    """ids of small parameters that stay whole, up to the model's total."""
    zero = config.zero_config
    left = zero.stage3_model_persistence_threshold
    chosen: set[int] = set()
    for _, param in named:
        numel = getattr(param, "ds_numel", param.numel())
        small = numel <= zero.stage3_param_persistence_threshold and numel <= left
        if not param.is_floating_point() or numel == 0 or small:
            chosen.add(id(param))
            left -= numel if small else 0
    return chosen


def check_section_types(config: DeepSpeedConfig, optimizer: Any, scheduler: Any) -> None:
    """A section without `type` would be nothing, and training without it a surprise."""
    for section, client in (("optimizer", optimizer), ("scheduler", scheduler)):
        written = config._param_dict.get(section)
        if client is None and isinstance(written, dict) and written.get("params") and written.get("type") in (None, "auto"):
            raise ConfigValidationError(f"{section}.type is {written.get('type')!r}, but {section}.params are given: name the {section} in {section}.type, "
                                        f"remove the section, or pass {'optimizer' if section == 'optimizer' else 'lr_scheduler'}= to initialize()")


def make_whole(module: nn.Module, config: DeepSpeedConfig) -> None:
    """Parameters that zero.Init, or an engine that is gone, sharded: all of them on every rank. Collective."""
    sharded = [(name, param) for name, param in module.named_parameters() if is_sharded(param)]
    if not sharded:
        return
    log_dist(f"{len(sharded)} parameters are sharded ({sharded[0][0]} is the first), as deepspeed.zero.Init and stage 3 do it, but "
             f"zero_optimization.stage is {config.zero_config.stage}, which keeps whole parameters: every rank now holds all of them. Set "
             "zero_optimization.stage to 3 in the configuration of initialize(), or build the model outside zero.Init (Transformers enters it while "
             "an HfDeepSpeedConfig with stage 3 is alive)", ranks=[0], level=logging.WARNING)
    dissolve(param for _, param in sharded)


def shard_model(module: nn.Module, config: DeepSpeedConfig, groups: Any, communicator: Any, process_group: Any) -> None:
    """Every parameter becomes part of a unit, or persistent (whole). Units that zero.Init made are kept where they fit. Collective."""
    leaf = config.zero_config.leaf_module
    apply_zero_leaf_module_config(module, leaf.classes, leaf.names, leaf.name_suffixes)
    named = list(module.named_parameters())
    persistent = _persistent(named, config)
    misfits = _misfits(module, config, persistent)
    tiers: dict[int, Any] = {}  # id(parameter) -> tier of the files that it was taken out of
    for _, param in named:
        manage(param, communicator, process_group)
    seen: set[int] = set()
    trimmer = HeapTrimmer()
    for name, owner, params in _owners(module):
        # One module at a time, so that no more than its parameters are whole in memory.
        dissolved_bytes = _dissolve_units([p for _, p in params if id(p) in misfits and is_sharded(p)], misfits, tiers)
        for part in owner.modules() if z3_leaf_module(owner) else [owner]:
            cast_parameters(part, config, is_sharded)
        by_dtype: dict[torch.dtype, list[tuple[str, nn.Parameter]]] = {}
        for full_name, param in params:
            if id(param) in seen or id(param) in persistent or is_sharded(param):
                continue
            seen.add(id(param))
            by_dtype.setdefault(training_dtype(param, config), []).append((full_name, param))
        for dtype, fresh in by_dtype.items():
            tier = next((tiers[id(p)] for _, p in fresh if tiers.get(id(p)) is not None), None)
            shard(name or type(module).__name__, [n for n, _ in fresh], [p for _, p in fresh], groups, dtype, communicator, process_group,
                  tier)
        trimmer.left(dissolved_bytes)


def _misfits(module: nn.Module, config: DeepSpeedConfig, persistent: set[int]) -> dict[int, list[nn.Parameter]]:
    """Units that hold a persistent parameter, another dtype, or a part of a leaf module, and have to be undone: id(parameter) -> the
    parameters of its unit."""
    found: dict[int, list[nn.Parameter]] = {}
    in_leaf = {id(p) for m in module.modules() if z3_leaf_module(m) for p in m.parameters()}
    for members in members_of_units(module.parameters()).values():
        whole_unit = len(members) == len(slot_of(members[0]).unit.params)
        dtype = members[0].dtype  # the unit's; asking for its shard would read the file
        wrong_dtype = (config.fp16.enabled or config.bf16.enabled) and dtype != config.model_dtype
        if wrong_dtype or not whole_unit or any(id(p) in persistent or id(p) in in_leaf for p in members):
            found.update((id(param), members) for param in members)
    return found


def _dissolve_units(params: list[nn.Parameter], misfits: dict[int, list[nn.Parameter]], tiers: dict[int, Any]) -> int:
    """Returns how many bytes became whole."""
    whole = 0
    for param in params:
        if is_sharded(param):  # the one before may have been of the same unit
            members = misfits[id(param)]
            tier = slot_of(param).unit.tier
            tiers.update((id(member), tier) for member in members)
            dissolve(members)
            whole += sum(member.numel() * member.element_size() for member in members)
    return whole


def quantize_layers(module: nn.Module, config: DeepSpeedConfig, trains: bool) -> None:
    """`weight_quantization.post_init_quant`: the named layers keep their weights in 8 or 4 bits. Collective."""
    section = config.weight_quantization
    rules = {} if section is None else vars(section.post_init_quant)
    if not rules:
        return
    if trains:
        raise DeepSpeedConfigError("weight_quantization.post_init_quant is for inference, and this engine has an optimizer: remove the section, "
                                   "or the optimizer and its parameters")
    from deepspeed.inference.quantization.quantization import quantize_by_name
    count = quantize_by_name(module, rules, config.model_dtype if config.fp16.enabled or config.bf16.enabled else None)
    log_dist(f"weight_quantization.post_init_quant: {count} layers", ranks=[0])


def make_core(engine: Any, groups: Any) -> Any:
    """The core engine over the module's parameters. Collective."""
    config: DeepSpeedConfig = engine._config
    optimizer = engine.basic_optimizer
    recipe = {"type": "none"} if optimizer is None else native_recipe(optimizer) or {"type": "python"}
    index_of = group_index(optimizer)
    engine.core_params = list(engine.module.named_parameters())
    engine.core_groups = [index_of.get(id(param), -1) for _, param in engine.core_params]
    listed = []
    for (name, param), group in zip(engine.core_params, engine.core_groups):
        slot = slot_of(param)
        listed.append((name, param, group, slot.unit if slot is not None else None))
    core = _C.Engine(config.resolved_json, groups, listed, recipe)
    for index, (_, param) in enumerate(engine.core_params):
        bind_engine(param, engine, index)
    return core, recipe["type"] != "python"


@torch.no_grad()
def broadcast_buffers(module: nn.Module, communicator: Any) -> None:
    """Rank 0's buffers on every rank."""
    if communicator.size == 1:
        return
    for name, buffer in module.named_buffers():
        if buffer.numel() == 0:
            continue
        value = buffer.detach().contiguous()
        raw = value.view(-1).view(torch.uint8) if value.dim() > 0 else value.view(1).view(torch.uint8)
        communicator.broadcast(raw, 0, f"buffer {name}").wait()
        if value.data_ptr() != buffer.data_ptr():
            buffer.copy_(value)


def detach_earlier_engines(module: nn.Module) -> None:
    """Ends engines that still train a parameter of `module`: two cores would take each other's gradients. Of an engine that was
    dropped, the module's own hooks keep the core alive."""
    slots = [slot for param in module.parameters() if (slot := slot_of(param)) is not None and slot.engine is not None]
    earlier = {id(engine): engine for slot in slots if (engine := slot.engine()) is not None}
    for engine in earlier.values():
        engine._end("deepspeed.initialize() made another engine over its module")
        log_dist("deepspeed.initialize(): another engine still trained parameters of this module. It was taken off the module as "
                 "engine.destroy() does, and cannot be used any more; call destroy() on the old engine first", ranks=[0],
                 level=logging.WARNING)
    left = {id(offload): offload for part in module.modules() if (offload := part.__dict__.get("_ds_offload")) is not None}
    for offload in left.values():
        offload.destroy()
        if offload.core is not None:
            offload.core.destroy()


def release_parameters(engine: Any) -> None:
    """After the core let go: parameters forget the engine. Sharded ones stay sharded, so that nothing of the model's size is made."""
    for param in engine.module.parameters():
        slot = slot_of(param)
        if slot is not None and slot.engine is not None and slot.engine() is engine:
            slot.engine, slot.engine_index = None, -1
