"""DeepSpeed's Python interface over the DeepScale core.

    model_engine, optimizer, loader, scheduler = deepspeed.initialize(model=model, config="ds_config.json")
    loss = model_engine(batch); model_engine.backward(loss); model_engine.step()

Submodules load when they are first used.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (the core links against torch's libraries, which this loads)

from deepspeed import _aliases, _torch_choice
from deepspeed._lazy import attach
from deepspeed.git_version_info import git_branch as __git_branch__
from deepspeed.git_version_info import git_hash as __git_hash__
from deepspeed.git_version_info import version as __version__

if TYPE_CHECKING:
    from deepspeed.runtime.engine import DeepSpeedEngine

__path__.append(_torch_choice.folder(__path__[0], torch.__version__))  # where deepspeed._C is
_aliases.install()

HAS_TRITON = False
__version_major__, __version_minor__, __version_patch__ = (int(part) for part in __version__.split("+")[0].split(".")[:3])

_NAMES = {
    "DeepSpeedEngine": "deepspeed.runtime.engine:DeepSpeedEngine",
    "DeepSpeedOptimizer": "deepspeed.runtime.base_optimizer:DeepSpeedOptimizer",
    "DeepSpeedOptimizerCallable": "deepspeed.runtime.optimizer_config:DeepSpeedOptimizerCallable",
    "DeepSpeedSchedulerCallable": "deepspeed.runtime.optimizer_config:DeepSpeedSchedulerCallable",
    "DeepSpeedDataLoader": "deepspeed.runtime.dataloader:DeepSpeedDataLoader",
    "DeepSpeedConfig": "deepspeed.runtime.config:DeepSpeedConfig",
    "DeepSpeedConfigError": "deepspeed.runtime.config:DeepSpeedConfigError",
    "DeepSpeedInferenceConfig": "deepspeed.inference.config:DeepSpeedInferenceConfig",
    "DeepSpeedHybridEngine": "deepspeed.runtime.hybrid_engine:DeepSpeedHybridEngine",
    "DeepSpeedTransformerLayer": "deepspeed.ops.transformer:DeepSpeedTransformerLayer",
    "DeepSpeedTransformerConfig": "deepspeed.ops.transformer:DeepSpeedTransformerConfig",
    "DualPipeVEngine": "deepspeed.runtime.pipe.dualpipev:DualPipeVEngine",
    "DualPipeVModule": "deepspeed.runtime.pipe.dualpipev:DualPipeVModule",
    "InferenceEngine": "deepspeed.inference.engine:InferenceEngine",
    "PipelineEngine": "deepspeed.runtime.pipe.engine:PipelineEngine",
    "PipelineModule": "deepspeed.runtime.pipe:PipelineModule",
    "OnDevice": "deepspeed.utils.init_on_device:OnDevice",
    "replace_transformer_layer": "deepspeed.module_inject.replace_module:replace_transformer_layer",
    "revert_transformer_layer": "deepspeed.module_inject.replace_module:revert_transformer_layer",
    "set_autotp_mode": "deepspeed.module_inject.layers:set_autotp_mode",
    "add_tuning_arguments": "deepspeed.runtime.lr_schedules:add_tuning_arguments",
    "get_accelerator": "deepspeed.accelerator:get_accelerator",
    "log_dist": "deepspeed.utils.logging:log_dist",
    "logger": "deepspeed.utils.logging:logger",
    "ADAM_OPTIMIZER": "deepspeed.runtime.config:ADAM_OPTIMIZER",
    "LAMB_OPTIMIZER": "deepspeed.runtime.config:LAMB_OPTIMIZER",
    "MUON_OPTIMIZER": "deepspeed.runtime.config:MUON_OPTIMIZER",
    "TORCH_DISTRIBUTED_DEFAULT_PORT": "deepspeed.constants:TORCH_DISTRIBUTED_DEFAULT_PORT",
    "is_compile_supported": "deepspeed.runtime.compiler:is_compile_supported",
    **{name: f"deepspeed.git_version_info:{name}" for name in ("version", "git_hash", "git_branch")},
    "domino": "deepspeed.runtime.domino",
    "dist": "deepspeed.comm",
    "zero": "deepspeed.runtime.zero",
    "checkpointing": "deepspeed.runtime.activation_checkpointing.checkpointing",
}
__getattr__, __dir__ = attach("deepspeed", _NAMES)


def initialize(args: Any = None, model: torch.nn.Module | None = None, optimizer: Any = None, model_parameters: Any = None,
               training_data: Any = None, lr_scheduler: Any = None, distributed_port: int = 29500, mpu: Any = None,
               dist_init_required: bool | None = None, collate_fn: Any = None, config: Any = None, mesh_param: Any = None,
               config_params: Any = None, *, parameters: Any = None) -> tuple["DeepSpeedEngine", Any, Any, Any]:
    """Wraps a model for training (or, without optimizer and parameters, for inference with sharded parameters).

    Args:
        args: namespace with local_rank and deepspeed_config, both optional.
        model: the module. Required.
        optimizer: an optimizer, or a function from parameters to one; wins over the configuration's `optimizer`.
        model_parameters: parameters or parameter groups to train (default: all); `parameters` is accepted too.
        training_data: a dataset; the third result is then its data loader over the data-parallel ranks.
        lr_scheduler: a scheduler, or a function from an optimizer to one; wins over the configuration's `scheduler`.
        distributed_port: port on rank 0's machine, used where torch.distributed is set up here.
        mpu: an object with get_data_parallel_group() and the like, for ranks that are divided between data and model or sequence parallelism.
        dist_init_required: whether torch.distributed is set up here; None: when it is not yet.
        collate_fn: puts the samples of training_data together to a batch.
        config: dictionary, path of a JSON file, or base64 of JSON; `config_params` and args.deepspeed_config are synonyms. docs/config.md has
            every key.
        mesh_param: not built; None.

    Returns: (engine, optimizer, data loader or None, scheduler or None). Wrong keys and values of the configuration raise ValueError with
        the key's name. Collective: all ranks call it.
    """
    from deepspeed.runtime.setup import make_engine
    if model_parameters is None:
        model_parameters = parameters
    engine = make_engine(args=args, model=model, optimizer=optimizer, model_parameters=model_parameters,
                         training_data=training_data, lr_scheduler=lr_scheduler, distributed_port=distributed_port, mpu=mpu,
                         dist_init_required=dist_init_required, collate_fn=collate_fn, config=config, mesh_param=mesh_param,
                         config_params=config_params)
    return engine, engine.optimizer, engine.training_dataloader, engine.lr_scheduler


def init_distributed(dist_backend: str | None = None, auto_mpi_discovery: bool = True, distributed_port: int = 29500,
                     verbose: bool = True, timeout: Any = None, init_method: str | None = None,
                     dist_init_required: bool | None = None, config: Any = None, rank: int = -1, world_size: int = -1) -> None:
    """Sets up torch.distributed once; see deepspeed.comm.init_distributed."""
    from deepspeed import comm
    optional = {} if timeout is None else {"timeout": timeout}
    comm.init_distributed(dist_backend=dist_backend, auto_mpi_discovery=auto_mpi_discovery, distributed_port=distributed_port,
                          verbose=verbose, init_method=init_method, dist_init_required=dist_init_required, config=config,
                          rank=rank, world_size=world_size, **optional)


def init_inference(model: torch.nn.Module, config: Any = None, **kwargs: Any) -> Any:
    """Wraps a model for inference and returns an InferenceEngine.

    Args:
        model: the module; its values are there, or were sharded by zero.Init.
        config: dictionary, path of a JSON file or DeepSpeedInferenceConfig; keywords are settings too. With `zero` parameters are sharded and
            may live in host memory or files (ZeRO-Inference). See section `inference` of docs/config.md.
    """
    from deepspeed.inference.config import DeepSpeedInferenceConfig, merged
    from deepspeed.inference.engine import InferenceEngine
    return InferenceEngine(model, DeepSpeedInferenceConfig(**merged(config, kwargs)))


def default_inference_config() -> dict:
    """All settings of init_inference() with their defaults."""
    from deepspeed.inference.config import DeepSpeedInferenceConfig
    settings = vars(DeepSpeedInferenceConfig()).copy()
    settings.pop("given")
    return settings


def add_config_arguments(parser: Any) -> Any:
    """Adds --deepspeed and --deepspeed_config (and their old names) to an argparse parser, and returns it."""
    group = parser.add_argument_group("DeepSpeed", "DeepSpeed configurations")
    group.add_argument("--deepspeed", default=False, action="store_true",
                       help="enable DeepSpeed (a flag for the program's own use; it has no effect inside the library)")
    group.add_argument("--deepspeed_config", default=None, type=str, help="path of the JSON configuration")
    group.add_argument("--deepscale", default=False, action="store_true", help="old name of --deepspeed")
    group.add_argument("--deepscale_config", default=None, type=str, help="old name of --deepspeed_config")
    return parser


def tp_model_init(model: torch.nn.Module, tp_size: int, dtype: torch.dtype, config: Any = None, **kwargs: Any) -> torch.nn.Module:
    """Prepares a model for tensor parallelism of `tp_size` ranks; one rank needs no preparation."""
    if tp_size > 1:
        raise NotImplementedError(f"deepspeed.tp_model_init(tp_size={tp_size}): tensor parallelism is not built yet")
    return model
