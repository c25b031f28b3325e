"""zero.Init for the layers that quantisation makes anew."""
from __future__ import annotations

from typing import Any

from deepspeed.runtime.zero.partition_parameters import Init


class QuantizationContext(Init):
    """zero.Init with a configuration alone; `param_swapper` is accepted and not needed."""

    def __init__(self, config_dict_or_path: Any, param_swapper: Any = None) -> None:
        super().__init__(config_dict_or_path=config_dict_or_path)
