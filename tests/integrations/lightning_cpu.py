"""Lightning's DeepSpeedStrategy refuses everything but CUDA. These three replacements are all that training on CPUs needs."""
from __future__ import annotations

import importlib
from typing import Any

import torch


def allow_cpu(package: str) -> Any:
    """The strategy class of `pytorch_lightning`, `lightning.pytorch` or `lightning.fabric`, made to accept CPUs."""
    module = importlib.import_module(f"{package}.strategies.deepspeed")
    strategies = importlib.import_module(f"{package}.strategies")
    strategy = module.DeepSpeedStrategy
    module._validate_device_index_selection = lambda devices: None
    strategy.setup_environment = lambda self: strategies.DDPStrategy.setup_environment(self)
    strategy.root_device = property(lambda self: torch.device("cpu"))
    return strategy
