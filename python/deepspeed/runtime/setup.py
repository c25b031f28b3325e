"""What happens before an engine exists: arguments of initialize() sorted out, torch.distributed set up, the engine class chosen."""
from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch

from deepspeed.runtime.config import ConfigValidationError, DeepSpeedConfig
from deepspeed.utils.logging import log_dist, set_log_level_from_string


def pick_config(args: Any, config: Any, config_params: Any) -> Any:
    """The one configuration among `config`, `config_params` and args.deepspeed_config."""
    from_args = getattr(args, "deepspeed_config", None) or getattr(args, "deepscale_config", None)
    if config is None:
        config = config_params
    if config is not None and from_args is not None:
        raise AssertionError("Not sure how to proceed, we were given deepspeed configs in the deepspeed arguments and deepspeed.initialize() "
                             "function call")
    chosen = config if config is not None else from_args
    if chosen is None:
        raise AssertionError("DeepSpeed requires --deepspeed_config to specify configuration file, or config= in initialize()")
    return chosen


def ensure_distributed(args: Any, dist_init_required: bool | None, distributed_port: int) -> None:
    """torch.distributed is set up unless it already is (or the caller said that it needs no setting up)."""
    from deepspeed import comm
    if not comm.is_initialized():
        comm.init_distributed(distributed_port=distributed_port, dist_init_required=dist_init_required, verbose=False)
    wanted = getattr(args, "local_rank", None)
    env = os.environ.get("LOCAL_RANK")
    if wanted is not None and env is not None and int(wanted) >= 0:
        if int(env) != int(wanted):
            raise AssertionError(f"LOCAL_RANK in the environment is {env}, but args.local_rank is {wanted}: both must name the "
                                 "same process of this machine")


def what_accelerate_miscounts(ranks: int) -> str:
    """What to say when Accelerate, if the program uses it, counted other processes than the job has ranks: it then fills in wrong batch sizes
    and gives every rank all of the data. "" otherwise."""
    state = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
    counted = getattr(state, "_shared_state", {}).get("num_processes", ranks)
    if counted == ranks:
        return ""
    return (f"Accelerate counts num_processes={counted}, but the job has {ranks} ranks, which would all see the same data. On CPUs it takes no backend by "
            "itself: pass kwargs_handlers=[InitProcessGroupKwargs(backend=\"gloo\")] to Accelerator, or use_cpu=True to TrainingArguments")


def parse_config(source: Any, mpu: Any) -> DeepSpeedConfig:
    """DeepSpeedConfig(source, mpu), with what Accelerate may have got wrong in it beside its errors."""
    from deepspeed import comm
    miscounted = what_accelerate_miscounts(comm.get_world_size())
    try:
        parsed = DeepSpeedConfig(source, mpu)
    except ConfigValidationError as error:
        if not miscounted:
            raise
        raise type(error)(f"{error}\n{miscounted}") from None
    if miscounted:
        log_dist(miscounted, ranks=[0], level=logging.WARNING)
    return parsed


def make_engine(*, args: Any, model: Any, config: Any, config_params: Any, mpu: Any, mesh_param: Any, dist_init_required: bool | None,
                distributed_port: int, **rest: Any) -> Any:
    """The engine for initialize()'s arguments."""
    from deepspeed import comm
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context
    if model is None:
        raise AssertionError("deepspeed.initialize requires a model")
    if not isinstance(model, torch.nn.Module):
        raise AssertionError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, DeepSpeedEngine):
        raise ValueError(f"model is an engine already (ZeRO stage {model.zero_optimization_stage()}): pass its engine.module to make another engine of it")
    source = pick_config(args, config, config_params)
    if mesh_param is not None:
        raise NotImplementedError(f"initialize(mesh_param={mesh_param!r}): meshes are not built. For sequence parallelism use mpu= from "
                                  "UlyssesSPAttentionHF.register_with_transformers(...) instead")
    shutdown_init_context()
    try:
        ensure_distributed(args, dist_init_required, distributed_port)
        from deepspeed import __version__
        log_dist(f"DeepSpeed info: version={__version__}, engine=DeepScale core", ranks=[0])
        parsed = parse_config(source, mpu)
        if parsed.log_level is not None:
            set_log_level_from_string(parsed.log_level)
        if parsed.comms_logger.enabled:
            comm.configure(parsed)
        return DeepSpeedEngine(args=args, model=model, mpu=mpu, config=parsed._param_dict, config_class=parsed,
                               dist_init_required=dist_init_required, **rest)
    finally:
        restore_init_context()
