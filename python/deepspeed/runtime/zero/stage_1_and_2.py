"""The optimizer that users see when optimizer states (and gradients) are sharded, and the memory formula for them."""
from __future__ import annotations

import torch

from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.runtime.zero.estimators import Table, live_parameters


class DeepSpeedZeroOptimizer(ZeROOptimizer):
    """Optimizer over shards of optimizer states; parameters are full on every rank."""


def estimate_zero2_model_states_mem_needs(total_params: int, num_gpus_per_node: int = 1, num_nodes: int = 1, cpu_offload: bool = True,
                                          additional_buffer_factor: float = 1.5) -> tuple[int, int]:
    """(bytes of CPU memory per node, bytes of device memory per device) of parameters, gradients and optimizer states."""
    total_gpus = num_nodes * num_gpus_per_node
    if cpu_offload:
        gpu_mem = 2 * total_params
        cpu_mem = total_params * max(4 * total_gpus, 16) * additional_buffer_factor
    else:
        gpu_mem = 2 * total_params + int(18 * total_params / total_gpus)
        cpu_mem = total_params * 4 * num_gpus_per_node * additional_buffer_factor
    return int(cpu_mem), int(gpu_mem)


def estimate_zero2_model_states_mem_needs_all_live(model: torch.nn.Module, num_gpus_per_node: int = 1, num_nodes: int = 1,
                                                   additional_buffer_factor: float = 1.5) -> None:
    """Prints the needs of a model that exists, with and without offload."""
    total, _ = live_parameters(model)
    estimate_zero2_model_states_mem_needs_all_cold(total, num_gpus_per_node, num_nodes, additional_buffer_factor)


def estimate_zero2_model_states_mem_needs_all_cold(total_params: int, num_gpus_per_node: int = 1, num_nodes: int = 1,
                                                   additional_buffer_factor: float = 1.5) -> None:
    """Prints the needs for a number of parameters, with and without offload."""
    table = Table(f"SW: Model with {int(total_params / 1e6)}M total params.", num_nodes, num_gpus_per_node)
    for offload in (True, False):
        cpu, gpu = estimate_zero2_model_states_mem_needs(total_params, num_gpus_per_node, num_nodes, offload, additional_buffer_factor)
        table.add(cpu, gpu, f"offload_optimizer={'cpu' if offload else 'none'}")
    table.print()
