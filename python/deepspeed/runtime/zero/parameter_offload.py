"""Module hooks of a model with sharded parameters: gather a module's units before its forward, release them after it.

One hook before and one after the forward of every module that needs units (and of the root of a model that has any, which owns
accesses that no hooked module claims). Each hook makes one call into the core per unit; the core arms what backward needs on
the outputs. Reading a released parameter inside a forward gathers it for the module that is running and registers it as external
from then on.
"""
from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any, Iterator, Mapping

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd import profiler

from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.external import externals_of
from deepspeed.runtime.zero.parameter import is_sharded, slot_of
from deepspeed.utils.nvtx import open_range
from deepspeed.utils.z3_leaf_module import z3_leaf_module


HOW_TO_USE_OUTSIDE_FORWARD = (
    "Outside a forward sharded parameters are empty: compute terms of the loss that read parameters (such as a penalty on weights) "
    "inside the module's forward, or keep deepspeed.zero.GatheredParameters(parameters) around both the term and backward()")


def speaks_of_released(error: RuntimeError) -> bool:
    """Whether autograd complains of a shape that a parameter has only while it is released."""
    return re.search(r"got \[0\]|tensor [ab] \(0\)", str(error)) is not None


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name, None))


def _requiring_grad(*values: Any) -> list[Tensor]:
    if not torch.is_grad_enabled():
        return []
    found = []
    for value in values:
        if type(value) is Tensor:
            if value.requires_grad:
                found.append(value)
        else:
            found.extend(t for t in tensors_of(value) if t.requires_grad)
    return found


class GatheringParameters(dict):
    """A module's `_parameters` that gathers a released parameter when a forward reads it."""

    def __init__(self, own: dict, offload: "DeepSpeedZeRoOffload") -> None:
        super().__init__(own)
        self.offload = offload

    def __getitem__(self, name: str) -> nn.Parameter | None:
        param = dict.__getitem__(self, name)
        if param is not None and self.offload.running:
            slot = param.__dict__.get("_ds_slot")
            if slot is not None and slot.unit is not None and not slot.unit.gathered:
                self.offload.on_access(param)
        return param

    def __reduce__(self):
        return dict, (dict(self),)

    def __deepcopy__(self, memo) -> dict:
        import copy
        return {name: copy.deepcopy(param, memo) for name, param in dict.items(self)}


class _ParamCoordinator:
    """The recorded order of gathers, by the names under which trainers reset it."""

    def __init__(self, offload: "DeepSpeedZeRoOffload") -> None:
        self._offload = offload

    def is_invalid_trace(self) -> bool:
        return False

    def is_record_trace(self) -> bool:
        return False

    def _invalidate_trace(self) -> None:
        if self._offload.core is not None:
            self._offload.core.reset_order()

    def reset_step(self) -> None:
        self._invalidate_trace()


class DeepSpeedZeRoOffload:
    """Owns the hooks of one model. Without an optimizer it is what initialize() returns in the optimizer's place."""

    def __init__(self, module: nn.Module, core: Any = None) -> None:
        self.module = module
        self.core = core
        self.forward_hooks: list[Any] = []
        self.backward_hooks: list[Any] = []  # backward is armed by the core; the list is for callers that remove hooks
        self.running: list[tuple[nn.Module, tuple]] = []  # modules in forward, outermost first, with their inputs
        self._units: dict[nn.Module, list[Any]] = {}
        self._hooked: dict[nn.Module, list[Any]] = {}
        self.param_coordinator = _ParamCoordinator(self)
        self._device_ranges = not get_accelerator().is_synchronized_device()
        self._register_deepspeed_module(module)

    def get_param_coordinator(self, *_unused: Any) -> _ParamCoordinator:
        return self.param_coordinator

    # ---- installation
    def _register_deepspeed_module(self, module: nn.Module, count: Any = None) -> None:
        """Puts hooks on `module` and everything below it; called again after hooks were removed."""
        self._units.clear()
        self._hooked.clear()
        self._visit(module, is_root=any(is_sharded(p) for p in module.parameters()))

    def _visit(self, module: nn.Module, is_root: bool = False) -> None:
        module.__dict__["_ds_offload"] = self
        externals = externals_of(module)
        leaf = z3_leaf_module(module)
        own = list(dict.values(module._parameters)) if not leaf else list(module.parameters())
        units = self._units_of(own + list(externals.by_id.values()))
        if leaf:
            for param in own:
                if is_sharded(param):
                    param.ds_z3_leaf_module = module
        self._watch_parameters(module)
        if units or is_root:
            self._hook(module, units)
        for child in module._modules.values():
            if child is not None:
                if leaf:
                    for part in child.modules():
                        part.__dict__["_ds_offload"] = self
                        externals_of(part)
                        self._watch_parameters(part)
                else:
                    self._visit(child)

    def _watch_parameters(self, module: nn.Module) -> None:
        own = module._parameters
        if not isinstance(own, GatheringParameters) and any(p is not None and is_sharded(p) for p in own.values()):
            module.__dict__["_parameters"] = GatheringParameters(own, self)

    @staticmethod
    def _units_of(params: list) -> list[Any]:
        units: dict[int, Any] = {}
        for param in params:
            if param is not None and is_sharded(param):
                unit = slot_of(param).unit
                units.setdefault(id(unit), unit)
        return list(units.values())

    def _hook(self, module: nn.Module, units: list[Any]) -> None:
        self._units[module] = units
        if module in self._hooked:
            return
        before = module.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        after = module.register_forward_hook(self._after_forward, always_call=True)
        self._hooked[module] = [before, after]
        self.forward_hooks += [before, after]

    # ---- running
    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is self.module:
            self.running.clear()  # an earlier forward may have ended in an exception
        inputs = _requiring_grad(*args, *kwargs.values())
        self.running.append((module, inputs))
        for unit in self._units.get(module, ()):
            self._gather(unit, inputs)

    def _gather(self, unit: Any, inputs: list[Tensor]) -> None:
        if not (self._device_ranges or profiler._is_profiler_enabled):  # once a unit and forward: 0.1 us
            self.core.pre_forward(unit, inputs)
            return
        close = open_range("gather ", unit)
        try:
            self.core.pre_forward(unit, inputs)
        finally:
            if close is not None:
                close()

    def _after_forward(self, module: nn.Module, _args: tuple, output: Any) -> None:
        while self.running and self.running.pop()[0] is not module:
            pass
        units = self._units.get(module, ())
        if units:
            outputs = _requiring_grad(output)
            for unit in units:
                self.core.post_forward(unit, outputs)
            self._claim_returned(output)

    def _claim_returned(self, output: Any) -> None:
        """A parameter that a forward returns is used by the module around it."""
        if isinstance(output, nn.Parameter) or (isinstance(output, (tuple, list)) and any(isinstance(o, nn.Parameter) for o in output)):
            for param in ([output] if isinstance(output, nn.Parameter) else output):
                if isinstance(param, nn.Parameter) and is_sharded(param) and self.running and not slot_of(param).unit.gathered:
                    self.on_access(param)

    def on_access(self, param: nn.Parameter) -> None:
        """A forward reads `param`: if it is released, the running module takes it over as external."""
        unit = slot_of(param).unit
        owner, inputs = self.running[-1]
        externals_of(owner).by_id[slot_of(param).ds_id] = param
        self._units[owner] = [*self._units[owner], unit]
        self._gather(unit, inputs)

    # ---- external parameters registered by hand
    def on_external(self, module: nn.Module, param: nn.Parameter) -> None:
        unit = slot_of(param).unit
        units = self._units.get(module, [])
        if all(known is not unit for known in units):
            inside = any(running is module for running, _ in self.running)
            if inside:
                self._gather(unit, next(inputs for running, inputs in self.running if running is module))
            if module not in self._hooked:
                self._hook(module, [*units, unit])
            else:
                self._units[module] = [*units, unit]

    def forget_external(self, module: nn.Module, param: nn.Parameter) -> None:
        unit = slot_of(param).unit
        own = self._units_of(list(dict.values(module._parameters)) + list(externals_of(module).by_id.values()))
        if unit is not None and all(known is not unit for known in own):
            self._units[module] = [known for known in self._units.get(module, []) if known is not unit]

    def __deepcopy__(self, _memo) -> "DeepSpeedZeRoOffload":
        return self  # a copied module keeps hooks that know nothing of it and do nothing

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a module with sharded parameters cannot be pickled: this rank holds pieces of them. Save weights with "
                        "engine.save_16bit_model() or engine.save_checkpoint(), or the module's state_dict() inside "
                        "deepspeed.zero.GatheredParameters(module.parameters())")

    # ---- removal
    def remove_hooks(self) -> None:
        for hook in self.forward_hooks + self.backward_hooks:
            hook.remove()
        self.forward_hooks, self.backward_hooks = [], []
        self._hooked.clear()

    def destroy(self) -> None:
        """Hooks and watched parameters go; parameters stay as they are."""
        self.remove_hooks()
        for module in self.module.modules():
            module.__dict__.pop("_ds_offload", None)
            module.__dict__.pop("ds_external_parameters", None)
            if isinstance(module._parameters, GatheringParameters):
                module.__dict__["_parameters"] = dict(module._parameters)

    def empty_partition_cache(self) -> None: ...

    def partition_all_parameters(self) -> None: ...

    def _restore_from_bit16_weights(self) -> None:
        """Nothing to restore: there are no master weights."""
