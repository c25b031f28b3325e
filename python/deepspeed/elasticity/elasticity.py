"""The functions of elastic training; the core computes (src/config/elasticity.h)."""
from __future__ import annotations

import json
import re
from typing import Any

from deepspeed import _C
from deepspeed.elasticity.config import (ElasticityConfig, ElasticityConfigError, ElasticityError,  # noqa: F401
                                         ElasticityIncompatibleWorldSize)
from deepspeed.elasticity.constants import ELASTICITY, ENABLED, MINIMUM_DEEPSPEED_VERSION


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", str(version))
    if found is None:
        raise ElasticityError(f"target_deepspeed_version: {version!r} is not a version like \"0.19.8\"")
    return tuple(int(part) for part in found.group().split("."))


def elasticity_enabled(ds_config: dict[str, Any]) -> bool:
    """Whether the configuration asks for elastic training."""
    return bool(ds_config.get(ELASTICITY, {}).get(ENABLED, False))


def ensure_immutable_elastic_config(runtime_elastic_config_dict: dict[str, Any]) -> None:
    """Raises ElasticityConfigError when the scheduler (DEEPSPEED_ELASTICITY_CONFIG) saw another section than this one."""
    _C.check_scheduler_elasticity(json.dumps({ELASTICITY: {**runtime_elastic_config_dict, ENABLED: True}}))


def compute_elastic_config(ds_config: dict[str, Any], target_deepspeed_version: str, world_size: int = 0,
                           return_microbatch: bool = False) -> tuple:
    """The batch size of elastic training and the data-parallel sizes that can share it; with a `world_size` (data-parallel
    ranks) or `return_microbatch` also the micro-batch size. Version 0.2 without `world_size` reads WORLD_SIZE (all ranks).

    Raises:
        ElasticityConfigError: the section is missing, off or unusable.
        ElasticityIncompatibleWorldSize: `world_size` is none of the valid sizes.
        ElasticityError: `target_deepspeed_version` is too old for elastic training.
    """
    if not isinstance(ds_config, dict):
        raise ValueError(f"ds_config must be a dictionary, found {type(ds_config).__name__}")
    if _release(target_deepspeed_version) < _release(MINIMUM_DEEPSPEED_VERSION):
        raise ElasticityError(f"target_deepspeed_version {target_deepspeed_version} is older than "
                              f"{MINIMUM_DEEPSPEED_VERSION}, the first one with elastic training")
    section = {key: ds_config[key] for key in (ELASTICITY,) if key in ds_config}
    batch, sizes, micro_batch = _C.elastic_batch(json.dumps(section), max(int(world_size), 0), return_microbatch)
    return (batch, sizes, micro_batch) if world_size > 0 or return_microbatch else (batch, sizes)
