"""Errors of elastic training, and its section as an object."""
from __future__ import annotations

import json
from typing import Any

from deepspeed import _C
from deepspeed.elasticity.constants import *  # noqa: F401,F403  (programs import them from here too)
from deepspeed.elasticity.constants import ELASTICITY, ENABLED, MAX_ACCEPTABLE_BATCH_SIZE, MICRO_BATCHES

ElasticityError = _C.ElasticityError
ElasticityConfigError = _C.ElasticityConfigError
ElasticityIncompatibleWorldSize = _C.ElasticityIncompatibleWorldSize


class ElasticityConfig:
    """The validated section. Raises ElasticityConfigError for unusable values."""

    def __init__(self, param_dict: dict[str, Any]) -> None:
        for key in (MAX_ACCEPTABLE_BATCH_SIZE, MICRO_BATCHES) if param_dict.get(ENABLED) else ():
            if key not in param_dict:
                raise ElasticityConfigError(f"{ELASTICITY}.{key} is missing; elastic training needs it")
        try:
            # As a section that is off: only the values are of interest here.
            resolved, _ = _C.parse_config(json.dumps({ELASTICITY: {**param_dict, ENABLED: False}}), 1, False)
        except _C.DeepSpeedConfigError as error:
            raise ElasticityConfigError(str(error)) from None
        section = {**json.loads(resolved)[ELASTICITY], ENABLED: bool(param_dict.get(ENABLED, False))}
        if section["max_gpus"] < section["min_gpus"]:
            raise ElasticityConfigError(f"{ELASTICITY}.min_gpus ({section['min_gpus']}) must not be greater than "
                                        f"{ELASTICITY}.max_gpus ({section['max_gpus']})")
        self.enabled: bool = section[ENABLED]
        self.max_acceptable_batch_size: int = section[MAX_ACCEPTABLE_BATCH_SIZE]
        self.micro_batches: list[int] = section[MICRO_BATCHES]
        self.min_gpus: int = section["min_gpus"]
        self.max_gpus: int = section["max_gpus"]
        self.model_parallel_size: int = section["model_parallel_size"]
        self.num_gpus_per_node: int = section["num_gpus_per_node"]
        self.min_time: int = section["min_time"]
        self.version: float = section["version"]
        self.prefer_larger_batch_size: bool = section["prefer_larger_batch"]
        self.ignore_non_elastic_batch_info: bool = section["ignore_non_elastic_batch_info"]

    def repr(self) -> dict[str, Any]:
        return self.__dict__

    def __repr__(self) -> str:
        return json.dumps(self.__dict__, sort_keys=True, indent=4)
