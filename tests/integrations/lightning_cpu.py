"""Lightning's DeepSpeedStrategy refuses everything but CUDA. These three replacements are all that training on CPUs needs."""
from __future__ import annotations

import importlib
from typing import Any

import torch


def allow_cpu(package: str, index: int | None = None) -> Any:
    """The strategy class of `pytorch_lightning`, `lightning.pytorch` or `lightning.fabric`, made to accept CPUs.

    DeepSpeed 0.19.8 needs a device with an index; ours takes one without."""
    module = importlib.import_module(f"{package}.strategies.deepspeed")
    strategies = importlib.import_module(f"{package}.strategies")
    strategy = module.DeepSpeedStrategy
    module._validate_device_index_selection = lambda devices: None
    strategy.setup_environment = lambda self: strategies.DDPStrategy.setup_environment(self)
    strategy.root_device = property(lambda self: torch.device("cpu") if index is None else torch.device("cpu", index))
    return strategy
