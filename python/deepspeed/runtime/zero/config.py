"""The `zero_optimization` section as a class of its own, for programs that build or inspect it."""
from __future__ import annotations

import json
from enum import Enum
from typing import Any

from deepspeed import _C
from deepspeed.runtime.config import ConfigValidationError, Section, _section


class ZeroStageEnum(int, Enum):
    """What is sharded."""

    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3
    max_stage = 3


class DeepSpeedZeroConfig(Section):
    """A validated section: DeepSpeedZeroConfig(stage=3).stage3_max_live_parameters and so on."""

    def __init__(self, **settings: Any) -> None:
        text = json.dumps({"train_batch_size": 1, "zero_optimization": settings}, default=lambda v: getattr(v, "value", str(v)))
        try:
            resolved, _ = _C.parse_config(text, 1, False)
        except _C.DeepSpeedConfigError as error:
            raise ConfigValidationError(str(error)) from None
        super().__init__(**{key: _section(value, key) for key, value in json.loads(resolved)["zero_optimization"].items()})


def get_zero_config(param_dict: dict) -> DeepSpeedZeroConfig:
    """The section of a whole configuration; true and false mean stage 1 and 0."""
    section = param_dict.get("zero_optimization", {})
    return DeepSpeedZeroConfig(**({"stage": int(section)} if isinstance(section, bool) else section))
