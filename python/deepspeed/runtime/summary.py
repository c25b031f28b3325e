"""The one table that initialize() prints: what was made of model and configuration."""
from __future__ import annotations

import logging
import sys
from typing import Any

from deepspeed.git_version_info import version
from deepspeed.utils.logging import logger

_GIB = 1024**3


def _precision(config: Any) -> str:
    if config.torch_autocast.enabled:
        return f"torch_autocast to {str(config.torch_autocast.dtype).removeprefix('torch.')}"
    if config.fp16.enabled:
        return "fp16, " + (f"loss scale {config.fp16.loss_scale:g}" if config.fp16.loss_scale else "dynamic loss scale")
    return "bf16" if config.bf16.enabled else "fp32"


def _sharding(config: Any) -> str:
    placed = [f"{what} on {place}" for what in ("optimizer", "param") if (place := config.offload_device(what)) != "none"]
    return ", ".join([f"stage {config.zero_optimization_stage}", *placed])


def _optimizer(engine: Any) -> str:
    optimizer = engine.basic_optimizer
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups if "lr" in group})
    scheduler = f", {type(engine.lr_scheduler).__name__}" if engine.lr_scheduler is not None else ""
    where = "" if engine._stepper.native else ", stepped in Python"
    name = type(optimizer).__name__ if engine.client_optimizer is not None else engine._config.optimizer.type
    return f"{name}{where}, lr {', '.join(f'{rate:g}' for rate in rates[:4])}{' ...' if len(rates) > 4 else ''}{scheduler}"


def rows(engine: Any) -> list[tuple[str, str]]:
    """(what, value) of an engine that is ready."""
    made = [("ranks", engine.communicator.description), ("ZeRO", _sharding(engine._config)), ("precision", _precision(engine._config))]
    plan = engine._memory_plan
    if plan is not None:
        made.append(("parameters", f"{plan['parameters']:,}, {plan['trainable_parameters']:,} trained"))
    if engine.basic_optimizer is not None:
        made.append(("optimizer", _optimizer(engine)))
        made.append(("batch", f"{engine.train_batch_size()}, micro-batch {engine.train_micro_batch_size_per_gpu()}, accumulation "
                              f"{engine.gradient_accumulation_steps()}"))
    if plan is not None:
        held = {place: count / _GIB for place, count in plan["rank_bytes"].items() if count > 0}
        made.append(("memory", "a rank, without activations: " + (", ".join(f"{count:.2f} GiB {place}" for place, count in held.items()) or "0 GiB")))
    return made


def print_summary(engine: Any) -> None:
    """To rank 0's standard error, which programs do not read; not where only errors are wanted."""
    if engine.global_rank != 0 or not logger.isEnabledFor(logging.WARNING):
        return
    found = [("DeepScale", version), *rows(engine)]
    print("\n".join(f"{what:<12}{value}" for what, value in found), file=sys.stderr, flush=True)
