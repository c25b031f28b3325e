"""zero.Init, GatheredParameters and the registration of external parameters.

Other packages replace names of this module while they build models (zero_wrapper_for_fp_tensor_constructor) and compare
with others (_orig_torch_arange), so both are looked up here at the moment of use.
"""
from __future__ import annotations

from enum import Enum
from typing import Any, Callable, Iterable

import torch
import torch.nn as nn
from torch.nn.parameter import UninitializedParameter

from deepspeed import _C
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero import construction
from deepspeed.runtime.zero.external import register_external_parameter, unregister_external_parameter
from deepspeed.runtime.zero.parameter import (HeapTrimmer, ZeroParameter, ZeroParamStatus, ZeroParamType, is_sharded, members_of_units, shard,
                                              slot_of)
from deepspeed.runtime.zero.plan_groups import data_communicator, plan_groups
from deepspeed.runtime.zero.utils import is_zero_param
from deepspeed.utils.logging import warning_once

_orig_torch_tensor = torch.tensor
_orig_torch_empty = torch.empty
_orig_torch_zeros = torch.zeros
_orig_torch_ones = torch.ones
_orig_torch_full = torch.full
_orig_torch_arange = torch.arange
_orig_torch_eye = torch.eye
_orig_torch_randn = torch.randn
_DEFAULT_MAX_IN_CPU = 1_000_000_000
_CONSTRUCTORS = ("tensor", "empty", "zeros", "ones", "full", "arange", "eye", "randn")


class DeepSpeedTensorOverride(Enum):
    """What zero.Init imposes on tensors made by torch's constructors."""

    dtype = "dtype"
    device = "device"


def zero_wrapper_for_fp_tensor_constructor(fn: Callable, target_fp_dtype: torch.dtype | None,
                                           target_device: torch.device | None) -> Callable:
    """`fn` with a default device, and floating results in `target_fp_dtype`."""

    def construct(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is None and target_device is not None:
            kwargs["device"] = target_device
        tensor = fn(*args, **kwargs)
        if target_fp_dtype is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(target_fp_dtype)
        return tensor

    return construct


class Init:
    """Context: every module made inside has its parameters cast, taken from rank 0 and sharded right after its __init__.

    With `module` an existing model is converted instead. Collective: all ranks build the same modules in the same order.

    Args:
        module: an existing model to convert.
        data_parallel_group: process group to shard over (default: all ranks); sequence_data_parallel_group is a synonym.
        remote_device: "cpu" keeps shards in host memory, "nvme" in files (the configuration says where: offload_param.nvme_path).
        config_dict_or_path: configuration for dtype and groups; values may still be "auto". `config` is a synonym.
        enabled: False makes the context a no-op.
        dtype: dtype of parameters (default: what the configuration says).
        tensor_overrides: which of dtype and device are imposed on tensors made inside.
    """

    override_module_apply = True  # without a configuration

    def __init__(self, module: nn.Module | None = None, data_parallel_group: Any = None, mem_efficient_linear: bool = True,
                 remote_device: str | None = None, pin_memory: bool = False, config_dict_or_path: Any = None, config: Any = None,
                 enabled: bool = True, dtype: torch.dtype | None = None, mpu: Any = None, zero_param_parallel_group: Any = None,
                 zero_quantized_weights: bool = False, zero_quantized_nontrainable_weights: bool = False,
                 sequence_data_parallel_group: Any = None, param_swapper: Any = None,
                 tensor_overrides: Iterable = (DeepSpeedTensorOverride.dtype, DeepSpeedTensorOverride.device)) -> None:
        self.enabled = enabled
        self._trimmer = HeapTrimmer()
        if not enabled:
            return
        if param_swapper is not None:
            raise NotImplementedError("zero.Init(param_swapper=...): files are chosen by the configuration's offload_param section")
        if zero_quantized_weights or zero_quantized_nontrainable_weights:
            raise NotImplementedError("zero.Init with quantized weights: ZeRO++ quantization is not built yet")
        from deepspeed import comm
        if not comm.is_initialized():
            comm.init_distributed()
        source = config_dict_or_path if config_dict_or_path is not None else config
        self.config = None if source is None else source if isinstance(source, DeepSpeedConfig) else \
            DeepSpeedConfig(source, mpu, check_batch=False)
        if self.config is not None:
            self.override_module_apply = self.config.zero_config.override_module_apply
        self.process_group = sequence_data_parallel_group or data_parallel_group
        if self.process_group is None and mpu is not None and hasattr(mpu, "get_data_parallel_group"):
            self.process_group = mpu.get_data_parallel_group()
        self.communicator = data_communicator(self.process_group)
        self.groups = plan_groups(self.communicator, self.config, self.process_group)
        self.dtype = dtype or (self.config.model_dtype if self.config is not None else torch.get_default_dtype())
        if self.dtype not in (torch.half, torch.bfloat16, torch.float):
            raise AssertionError(f"Invalid data type {self.dtype}, allowed values are [torch.half, torch.bfloat16, torch.float]")
        configured = "none" if self.config is None else self.config.offload_device("param")
        if remote_device == "nvme" and configured != "nvme":
            raise ValueError("zero.Init(remote_device='nvme') needs a configuration whose zero_optimization.offload_param has device "
                             f"\"nvme\" and nvme_path; its device is \"{configured}\"")
        self._file_tier = _C.FileTier(self.config.resolved_json) if configured == "nvme" else None
        self._numel_in_memory = self._resident_numel() if configured == "nvme" else 0
        quantization = None if self.config is None else self.config.weight_quantization
        self._packing = None if quantization is None else quantization.quantized_initialization
        self._packed_layers = 0
        self._other_layers: dict[str, None] = {}  # their classes, in order
        on_host = remote_device == "cpu" or configured in ("cpu", "nvme")
        self.local_device = torch.device("cpu" if on_host else get_accelerator().current_device_name())
        self.tensor_overrides = set(tensor_overrides or ())
        if module is not None:
            if not isinstance(module, nn.Module):
                raise AssertionError(f"zero.Init(module=...) needs a module, got {type(module).__name__}")
            self.convert(module)

    # ---- context
    def __enter__(self) -> "Init":
        if self.enabled:
            construction.enter(self)
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if self.enabled:
            construction.leave(self)
            if exc_type is None:
                self._tell_unpacked()

    def _tell_unpacked(self) -> None:
        if self._packing is None or self._packed_layers > 0 or not self._other_layers:
            return
        warning_once("weight_quantization.quantized_initialization changes nothing: only nn.Linear and nn.Embedding are quantised, and what "
                     f"was built under zero.Init with a weight is {', '.join(list(self._other_layers)[:8])}")

    def tensor_constructors(self) -> dict[str, Callable]:
        """What torch's constructors are replaced by inside the context."""
        device = self.local_device if DeepSpeedTensorOverride.device in self.tensor_overrides else None
        dtype = self.dtype if DeepSpeedTensorOverride.dtype in self.tensor_overrides else None
        if not self.tensor_overrides:
            return {}
        module = globals()
        return {name: module["zero_wrapper_for_fp_tensor_constructor"](module[f"_orig_torch_{name}"], target_fp_dtype=dtype,
                                                                       target_device=device) for name in _CONSTRUCTORS}

    # ---- conversion
    def convert(self, module: nn.Module) -> None:
        """Shards the parameters of a model that exists, one unit per module."""
        for name, part in module.named_modules():
            self.convert_own(part, name)

    def convert_own(self, module: nn.Module, name: str = "") -> None:
        """Shards the parameters that belong to `module` itself and are still whole."""
        keep_values = not construction.without_values(module)
        if self._packing is not None:
            self._pack_own(module, keep_values)
        fresh: list[tuple[str, nn.Parameter]] = []
        for own_name, param in module.named_parameters(recurse=False):
            if is_zero_param(param) or isinstance(param, UninitializedParameter) or param.device.type == "meta" \
                    or not param.is_floating_point():
                continue
            if param.device != self.local_device:
                param.data = param.data.to(self.local_device)
            fresh.append((own_name, param))
        if fresh:
            unit_name = name or type(module).__name__
            numel = sum(param.numel() for _, param in fresh)
            self._numel_in_memory -= numel
            shard(unit_name, [f"{unit_name}.{own}" for own, _ in fresh], [param for _, param in fresh], self.groups, self.dtype,
                  self.communicator, self.process_group, self._file_tier if self._numel_in_memory < 0 else None,
                  keep_values)
            self._trimmer.left(numel * self.dtype.itemsize)

    def _pack_own(self, module: nn.Module, keep_values: bool) -> None:
        from deepspeed.inference.quantization.layers import quantize_layer
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.device.type != "meta" and not is_zero_param(weight):
            if weight.is_floating_point() and weight.dtype != self.dtype:
                weight.data = weight.data.to(self.dtype)
            if quantize_layer(module, self._packing, keep_values):
                self._packed_layers += 1
            else:
                self._other_layers[type(module).__name__] = None

    def _resident_numel(self) -> int:
        """Elements of a model of unknown size that stay in memory: max_in_cpu; at its default no more than a quarter of what is free on the
        rank that has least: which units go into files decides which collectives run. Collective."""
        wanted = self.config.zero_config.offload_param.max_in_cpu
        if wanted == _DEFAULT_MAX_IN_CPU:
            wanted = min(wanted, _C.available_memory() // 4 // self.dtype.itemsize)
        least = torch.tensor([-wanted], dtype=torch.int64, device=get_accelerator().current_device_name())
        self.communicator.all_reduce(least, "max", "zero.Init: elements that stay in memory").wait()
        return -int(least.item())


def shutdown_init_context() -> None:
    """Suspends zero.Init's patches, for an engine that is made inside the context."""
    construction.suspend()


def restore_init_context() -> None:
    """Takes back shutdown_init_context()."""
    construction.resume()


class GatheredParameters:
    """Context: the given sharded parameters are whole inside.

    A term of the loss that reads parameters needs the context around backward() too, because autograd reads them again.

    Args:
        params: a parameter, a module's parameters, any iterable; None entries, buffers and ordinary parameters are left alone.
        modifier_rank: changes that this rank of the group made are stored on all ranks at exit. None: changes are lost. A single rank's
            changes are made where the parameter lives, without a copy; only on several ranks, or in files, does an exception in the
            block discard them.
        fwd_module: registers the parameters as external parameters of this module.
        enabled: False makes the context a no-op.
    """

    def __init__(self, params: Any, modifier_rank: int | None = None, fwd_module: nn.Module | None = None, enabled: bool = True) -> None:
        self.enabled = enabled
        self.params: list[ZeroParameter] = []
        self._outside: dict[int, torch.Tensor] = {}
        self._in_place: dict[int, int] = {}  # ds_id -> address of the unit's own memory, which is written directly
        self.modifier_rank = self.src_rank = modifier_rank
        if not enabled:
            return
        listed = params.parameters() if isinstance(params, nn.Module) else \
            [params] if params is None or isinstance(params, torch.Tensor) else params
        # Callers pass sets and rank-dependent orders: ds_id gives every rank the same order.
        distinct = {id(p): p for p in listed if is_zero_param(p)}
        self.params = sorted(distinct.values(), key=lambda p: p.ds_id)
        if fwd_module is not None:
            for param in self.params:
                register_external_parameter(fwd_module, param)

    def __enter__(self) -> None:
        overlapping = [p.ds_id for p in self.params if slot_of(p).context_depth > 0]
        if overlapping:
            raise RuntimeError("Nested GatheredParameters contexts cannot overlap parameters: those with ds_id "
                               f"{overlapping} are already gathered by an outer context")
        gathered: list[list] = []
        try:
            with torch.no_grad():
                for members in members_of_units(self.params).values():
                    self._gather(members, gathered)
        except BaseException:
            for members in gathered:
                self._end_use(members)
            raise
        for param in self.params:
            slot_of(param).context_depth += 1

    def _gather(self, members: list, gathered: list[list]) -> None:
        unit = slot_of(members[0]).unit
        alone = not unit.gathered
        unit.gather()
        gathered.append(members)
        if alone and self.modifier_rank is not None and unit.writable_in_place:
            self._in_place.update((p.ds_id, p.data_ptr()) for p in members)
            return
        for param in members:
            # A private copy: the unit's own memory may be shared with other ranks, which must not see half-made changes.
            copy = param.data.clone()
            self._outside[param.ds_id] = param.data
            param.data = copy

    def _end_use(self, members: list) -> None:
        """Nothing is stored. Others may still hold the unit gathered."""
        for param in members:
            self._in_place.pop(param.ds_id, None)
            if param.ds_id in self._outside:
                param.data = self._outside.pop(param.ds_id)
        slot_of(members[0]).unit.release()

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        for param in self.params:
            slot_of(param).context_depth -= 1
        store = self.modifier_rank is not None and exc_type is None
        failure: BaseException | None = None
        with torch.no_grad():
            for members in members_of_units(self.params).values():
                try:
                    self._leave(members, store)
                except BaseException as error:  # the other units are not to stay whole for it
                    failure = failure or error
            if failure is not None:
                raise failure
            if store:
                self._store_whole()

    def _leave(self, members: list, store: bool) -> None:
        """Ends the use of a unit. Without `store` what is in a file stays, and so does what was changed in a copy."""
        unit = slot_of(members[0]).unit
        in_place = members[0].ds_id in self._in_place
        changed = [(slot_of(p).index, p.data) for p in members if p.data_ptr() != self._in_place.get(p.ds_id)]
        try:
            if store and in_place:
                unit.store_gathered()
        finally:
            self._end_use(members)
        for index, value in changed if store else ():
            unit.write_full(index, value, self.modifier_rank)

    def _store_whole(self) -> None:
        """Parameters that stay whole on every rank: the modifier's values everywhere, and in the master copy."""
        for param in self.params:
            slot = slot_of(param)
            if slot.unit is not None:
                continue
            value = param.data.contiguous()
            slot.communicator.broadcast(value, self.modifier_rank).wait()
            param.data = value
            engine = slot.engine() if slot.engine is not None else None
            if engine is not None and engine._core is not None:
                engine._core.write_full(slot.engine_index, "fp32", value.float())


__all__ = ["DeepSpeedTensorOverride", "GatheredParameters", "Init", "ZeroParamStatus", "ZeroParamType", "ZeroParameter",
           "is_sharded", "is_zero_param", "register_external_parameter", "restore_init_context", "shutdown_init_context",
           "unregister_external_parameter", "zero_wrapper_for_fp_tensor_constructor"]
