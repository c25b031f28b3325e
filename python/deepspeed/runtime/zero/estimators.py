"""What the memory estimators of all stages share: counting parameters, and the table that they print."""
from __future__ import annotations

import torch


def live_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(elements of all distinct parameters, elements of the largest module's own parameters)."""
    distinct = {id(p): getattr(p, "ds_numel", p.numel()) for p in model.parameters()}
    largest = max((sum(getattr(p, "ds_numel", p.numel()) for p in m.parameters(recurse=False)) for m in model.modules()), default=0)
    return sum(distinct.values()), largest


class Table:
    """Needs per CPU and per device, one line per combination of options."""

    def __init__(self, model_line: str, num_nodes: int, num_gpus_per_node: int) -> None:
        nodes = "1 node" if num_nodes == 1 else f"{num_nodes} nodes"
        gpus = "1 GPU" if num_gpus_per_node == 1 else f"{num_gpus_per_node} GPUs"
        self.lines = ["Estimated memory needed for params, optim states and gradients for a:",
                      f"HW: Setup with {nodes}, {gpus} per node.", model_line, "  per CPU  |  per GPU |   Options"]

    def add(self, cpu_bytes: int, gpu_bytes: int, options: str) -> None:
        self.lines.append(f"{cpu_bytes / 2**30:7.2f}GB | {gpu_bytes / 2**30:6.2f}GB | {options}")

    def print(self) -> None:
        print("\n".join(self.lines))
