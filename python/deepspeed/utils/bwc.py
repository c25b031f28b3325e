"""Questions to an object for model parallelism (mpu), whichever of the two naming schemes it follows; without one there is one rank."""
from __future__ import annotations

from typing import Any


def _ask(mpu: Any, question: str, default: Any, kinds: tuple[str, ...]) -> Any:
    for kind in kinds:
        method = getattr(mpu, f"get_{kind}_{question}", None)
        if method is not None:
            return method()
    return default


_TENSOR, _PIPELINE = ("tensor_model_parallel", "slice_parallel", "model_parallel"), ("pipeline_model_parallel", "pipe_parallel")


def bwc_tensor_model_parallel_rank(mpu: Any = None) -> int:
    """This process's rank among those that share a layer."""
    return _ask(mpu, "rank", 0, _TENSOR)


def bwc_tensor_model_parallel_world_size(mpu: Any = None) -> int:
    """Number of ranks that share a layer."""
    return _ask(mpu, "world_size", 1, _TENSOR)


def bwc_tensor_model_parallel_group(mpu: Any = None) -> Any:
    """The group of ranks that share a layer; None without one."""
    return _ask(mpu, "group", None, _TENSOR)


def bwc_pipeline_parallel_world_size(mpu: Any = None) -> int:
    """Number of pipeline stages."""
    return _ask(mpu, "world_size", 1, _PIPELINE)


def bwc_pipeline_parallel_group(mpu: Any = None) -> Any:
    """The group of a pipeline's stages; None without one."""
    return _ask(mpu, "group", None, _PIPELINE)
