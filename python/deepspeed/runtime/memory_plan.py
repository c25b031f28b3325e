"""The memory plan of an engine before it allocates: printed at info level, an error when the machine has not got it (docs/memory_plan.md).

DEEPSCALE_MEMORY_PLAN=warn makes the error a warning, =off leaves the plan out.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn

from deepspeed import _C
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.parameter import is_sharded, slot_of
from deepspeed.utils.logging import log_dist


class MemoryPlanError(RuntimeError):
    """The run does not fit; the message says what is short, by how much, and the nearest setting that fits."""


def _shapes(module: nn.Module, config: DeepSpeedConfig, trains: bool) -> list[tuple[str, list[int], torch.dtype, bool, str]]:
    """Name, shape, dtype, whether it may be trained, and module of every parameter, as the engine will have it."""
    packed = {} if trains else _packed_numels(module, config)
    found = []
    for name, param in module.named_parameters():
        if not param.dtype.is_floating_point:
            continue
        shape = list(getattr(param, "ds_shape", param.shape) if is_sharded(param) else param.shape)
        owner = name.rpartition(".")[0] or type(module).__name__
        numel, stays = packed.get(id(param), (0, True))
        if stays:
            found.append((name, shape, param.dtype, param.requires_grad, owner))
        if numel > 0:
            found.append((name, [numel], param.dtype, False, owner))
    return found


def _packed_numels(module: nn.Module, config: DeepSpeedConfig) -> dict[int, tuple[int, bool]]:
    rules = {} if config.weight_quantization is None else vars(config.weight_quantization.post_init_quant)
    if not rules:
        return {}
    from deepspeed.inference.quantization.quantization import packed_numels
    return packed_numels(module, rules, config.model_dtype if config.fp16.enabled or config.bf16.enabled else None)


def _held(module: nn.Module) -> tuple[int, int, int]:
    """Bytes that are taken for the model's parameters already: in host memory (pools of files too), in files, and on a device."""
    memory = files = device = 0
    tiers: list[Any] = []
    for param in module.parameters():
        if is_sharded(param):
            slot = slot_of(param)
            size = slot.shape.numel() // max(1, slot.communicator.size) * param.element_size()
            if slot.unit.in_file:
                files += size
                tier = slot.unit.tier
                if tier not in tiers:
                    tiers.append(tier)
            else:
                memory += size
        elif param.device.type == "cpu":
            memory += param.numel() * param.element_size()
        elif param.device.type != "meta":
            device += param.numel() * param.element_size()
    return memory + sum(tier.facts()["pool_bytes"] for tier in tiers), files, device


def _states(optimizer: Any) -> tuple[int | None, bool]:
    """States per parameter of an optimizer that the program passes, and whether Python computes its step."""
    if optimizer is None or not isinstance(optimizer, torch.optim.Optimizer):
        return None, False
    from deepspeed.runtime.native_recipe import native_recipe
    return (None, False) if native_recipe(optimizer) else (2, True)


def _host_mark() -> list[int]:
    """Eight small numbers that two processes have in common where they run on one machine under one name. (Containers on one machine
    have names of their own, and mostly memory limits of their own too.)"""
    boot = Path("/proc/sys/kernel/random/boot_id")
    identity = platform.node() + (boot.read_text() if boot.is_file() else "")
    return list(hashlib.sha256(identity.encode()).digest()[:8])


def ranks_per_host(communicator: Any, device: torch.device) -> int:
    """Ranks of the communicator on this machine. Collective: launchers differ in what they say about it, so it is counted. In a group that
    is a part of the run, a launcher's number (LOCAL_SIZE, LOCAL_WORLD_SIZE) counts where it is larger: ranks of other groups on
    this machine hold as much."""
    if communicator.size == 1:
        here = 1
    else:
        mine = torch.tensor(_host_mark(), dtype=torch.int64, device=device)
        all_marks = torch.empty(communicator.size * mine.numel(), dtype=torch.int64, device=device)
        communicator.all_gather(mine, all_marks, "memory plan: machines of the ranks").wait()
        here = int((all_marks.view(communicator.size, -1) == mine).all(dim=1).sum())
    if communicator.size == (dist.get_world_size() if dist.is_initialized() else 1):
        return here
    said = next((int(value) for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE") if (value := os.environ.get(name))), 0)
    return max(here, min(said, communicator.size))


def announce(module: nn.Module, config: DeepSpeedConfig, optimizer: Any, trains: bool, communicator: Any,
             device: torch.device) -> dict[str, Any] | None:
    """Plans, logs, and raises MemoryPlanError when something that the run cannot do without is short. Returns the plan (keys as `ds_plan
    --json` prints them), None when it was left out. Collective."""
    mode = os.environ.get("DEEPSCALE_MEMORY_PLAN", "error")
    if mode not in ("error", "warn", "off"):
        raise ValueError(f"DEEPSCALE_MEMORY_PLAN is {mode!r}: error, warn or off is expected")
    local_ranks = ranks_per_host(communicator, device)  # also without a plan: the others may want one
    if mode == "off":
        return None
    accelerator = get_accelerator()
    on_device = accelerator.device_name() != "cpu"
    states, external = _states(optimizer)
    memory, files, on_devices = _held(module)
    world = {"ranks": communicator.size, "ranks_per_host": local_ranks, "accelerator": on_device,
             "trains": trains, "states": states, "external": external, "held_memory_bytes": memory, "held_file_bytes": files,
             "device_bytes": accelerator.available_memory() + on_devices if on_device else None}
    plan = _C.plan_memory(config.resolved_json, _shapes(module, config, trains), world)
    log_dist("memory plan\n" + plan["table"].rstrip(), ranks=[0])
    if plan["misfit"] and mode == "error":
        raise MemoryPlanError(plan["misfit"].rstrip() + "\nDEEPSCALE_MEMORY_PLAN=warn starts nevertheless.")
    if plan["misfit"]:
        log_dist(plan["misfit"].rstrip(), ranks=[0], level=logging.WARNING)
    return json.loads(plan["json"])


__all__ = ["MemoryPlanError", "announce"]
