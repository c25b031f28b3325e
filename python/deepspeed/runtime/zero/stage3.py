"""The optimizer that users see when parameters are sharded, generation helpers, and the memory formula."""
from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch

from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.runtime.zero.estimators import Table, live_parameters
from deepspeed.runtime.zero.parameter import members_of_units, slot_of


class DeepSpeedZeroOptimizer_Stage3(ZeROOptimizer):
    """Optimizer over shards of parameters, gradients and states."""

    @property
    def parameter_offload(self) -> Any:
        """The owner of the module hooks."""
        return self._engine.parameter_offload

    @property
    def module(self) -> torch.nn.Module:
        return self._engine.module

    @property
    def persistent_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self._engine.module.parameters() if hasattr(p, "ds_id") and p.ds_persist]


@contextlib.contextmanager
def unwrap_model_for_generation(model: Any) -> Iterator[torch.nn.Module]:
    """The plain module of an engine with all parameters gathered and hooks removed, for fast generation. Read only."""
    offload = getattr(model, "parameter_offload", None)
    module = model.module
    if offload is None:
        yield module
        return
    units = [slot_of(members[0]).unit for members in members_of_units(module.parameters()).values()]
    for unit in units:
        unit.gather()
    offload.remove_hooks()
    try:
        yield module
    finally:
        for unit in units:
            unit.release()
        offload._register_deepspeed_module(module)


def estimate_zero3_model_states_mem_needs(total_params: int, largest_layer_params: int, num_gpus_per_node: int = 1, num_nodes: int = 1,
                                          cpu_offload: bool = True, cpu_offload_params: bool = True, zero_init: bool = True,
                                          additional_buffer_factor: float = 1.5) -> tuple[int, int, int]:
    """(CPU bytes per node, device bytes per device, bytes of the largest layer) of parameters, gradients and states."""
    total_gpus = num_nodes * num_gpus_per_node
    largest_layer_memory = 4 * largest_layer_params
    per_node = (18 if cpu_offload_params else 16) / num_nodes
    if not cpu_offload:
        gpu_mem = largest_layer_memory + int(18 * total_params / total_gpus)
        whole = largest_layer_params if zero_init else total_params
        cpu_mem = whole * 4 * num_gpus_per_node * additional_buffer_factor
    else:
        gpu_mem = largest_layer_memory + (0 if cpu_offload_params else int(2 * total_params / total_gpus))
        factor = per_node if zero_init else max(4 * num_gpus_per_node, per_node)
        cpu_mem = total_params * factor * additional_buffer_factor
    return int(cpu_mem), int(gpu_mem), largest_layer_memory


def estimate_zero3_model_states_mem_needs_all_live(model: torch.nn.Module, num_gpus_per_node: int = 1, num_nodes: int = 1,
                                                   additional_buffer_factor: float = 1.5) -> None:
    """Prints the needs of a model that exists, for every combination of options."""
    total, largest = live_parameters(model)
    estimate_zero3_model_states_mem_needs_all_cold(total, largest, num_gpus_per_node, num_nodes, additional_buffer_factor)


def estimate_zero3_model_states_mem_needs_all_cold(total_params: int, largest_layer_params: int, num_gpus_per_node: int = 1,
                                                   num_nodes: int = 1, additional_buffer_factor: float = 1.5) -> None:
    """Prints the needs for a number of parameters, for every combination of options."""
    table = Table(f"SW: Model with {int(total_params / 1e6)}M total params, {int(largest_layer_params / 1e6)}M largest layer params.",
                  num_nodes, num_gpus_per_node)
    for offload, offload_params in ((True, True), (True, False), (False, False)):
        for zero_init in (True, False):
            cpu, gpu, _ = estimate_zero3_model_states_mem_needs(total_params, largest_layer_params, num_gpus_per_node, num_nodes, offload,
                                                                offload_params, zero_init, additional_buffer_factor)
            table.add(cpu, gpu, f"offload_param={'cpu ' if offload_params else 'none'}, "
                      f"offload_optimizer={'cpu ' if offload else 'none'}, zero_init={int(zero_init)}")
    table.print()
