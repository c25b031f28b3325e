"""Names of offload targets and of states that can be moved; the two offload sections as classes of their own."""
from __future__ import annotations

from enum import Enum
from typing import Any

from deepspeed.runtime.config import Section
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig


class OffloadDeviceEnum(str, Enum):
    """Where a state lives."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class OffloadStateTypeEnum(str, Enum):
    """States that offload_states() moves."""

    optim_states = "optim_states"
    hp_params = "hp_params"
    lp_params = "lp_params"
    lp_grads = "lp_grads"
    contiguous_grad_buffer = "contiguous_grad_buffer"


class DeepSpeedZeroOffloadParamConfig(Section):
    """A validated `offload_param` section."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**vars(DeepSpeedZeroConfig(stage=3, offload_param=settings).offload_param))


class DeepSpeedZeroOffloadOptimizerConfig(Section):
    """A validated `offload_optimizer` section."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**vars(DeepSpeedZeroConfig(stage=3, offload_optimizer=settings).offload_optimizer))
