"""The configuration of one engine: the user's dictionary beside the validated one.

Validation, defaults, aliases and the batch equation are the core's (`_C.parse_config`); this file gives its result the
attribute names that programs read. It is also the only Python file that looks at the ZeRO stage: it answers what the
stage means (are parameters sharded, which optimizer class does the user see), so that nobody else has to ask.
"""
from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch

from deepspeed import _C
from deepspeed.runtime.config_source import read_source
from deepspeed.utils.logging import logger, warning_once

DeepSpeedConfigError = _C.DeepSpeedConfigError

ADAM_OPTIMIZER, ADAMW_OPTIMIZER, LAMB_OPTIMIZER, LION_OPTIMIZER = "adam", "adamw", "lamb", "lion"
ADAGRAD_OPTIMIZER, MUON_OPTIMIZER = "adagrad", "muon"
ONEBIT_ADAM_OPTIMIZER, ONEBIT_LAMB_OPTIMIZER, ZERO_ONE_ADAM_OPTIMIZER = "onebitadam", "onebitlamb", "zerooneadam"
MUADAM_OPTIMIZER, MUADAMW_OPTIMIZER, MUSGD_OPTIMIZER = "muadam", "muadamw", "musgd"
DEEPSPEED_OPTIMIZERS = [ADAM_OPTIMIZER, ADAMW_OPTIMIZER, LAMB_OPTIMIZER, LION_OPTIMIZER, ADAGRAD_OPTIMIZER, MUON_OPTIMIZER,
                        ONEBIT_ADAM_OPTIMIZER, ONEBIT_LAMB_OPTIMIZER, ZERO_ONE_ADAM_OPTIMIZER, MUADAM_OPTIMIZER,
                        MUADAMW_OPTIMIZER, MUSGD_OPTIMIZER]
TORCH_ADAM_PARAM, ADAM_W_MODE, ADAM_W_MODE_DEFAULT = "torch_adam", "adam_w_mode", True

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ConfigValidationError(DeepSpeedConfigError, ValueError, AssertionError):
    """A configuration that cannot be used. Also a ValueError and an AssertionError, which older programs catch."""


class Section(SimpleNamespace):
    """One section of the configuration; also readable like a dictionary."""

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)

    def __contains__(self, key: str) -> bool:
        return hasattr(self, key)


def resolved_section(name: str, given: dict) -> dict[str, Any]:
    """A section by itself with all its keys, for programs that have no whole configuration. Raises ConfigValidationError."""
    enabled = given.get("enabled", False)
    if not isinstance(enabled, bool):
        raise ConfigValidationError(f"{name}.enabled must be true or false, found {enabled!r}")
    try:
        resolved, _ = _C.parse_config(json.dumps({name: given}), 1, False)
    except DeepSpeedConfigError as error:
        raise ConfigValidationError(str(error)) from None
    return json.loads(resolved)[name]


# Free-form parts that stay dictionaries: their keys are somebody else's.
_PLAIN = ("params", "different_groups", "shared_parameters")


def _section(value: Any, key: str = "") -> Any:
    if isinstance(value, dict) and key not in _PLAIN:
        return Section(**{str(k): _section(v, str(k)) for k, v in value.items()})
    return value


def to_dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else _DTYPES[name]


def data_parallel_size(mpu: Any = None, mesh_device: Any = None) -> int:
    """Ranks that share the training batch: what the mpu or mesh says, otherwise torch.distributed's world."""
    import torch.distributed as dist
    if mpu is not None and hasattr(mpu, "get_data_parallel_world_size"):
        return mpu.get_data_parallel_world_size()
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if mpu is not None and hasattr(mpu, "get_sequence_parallel_world_size"):
        return world // mpu.get_sequence_parallel_world_size()
    if mesh_device is not None:
        return mesh_device.get_group(mesh_dim="data_parallel").size()
    return world


class DeepSpeedConfig:
    """A validated configuration. Sections are attributes with their resolved values; `_param_dict` is what the user gave."""

    def __init__(self, config: Any, mpu: Any = None, mesh_device: Any = None, *, check_batch: bool = True) -> None:
        self.mesh_device = mesh_device
        self.world_size = data_parallel_size(mpu, mesh_device)
        try:
            self._param_dict, text = read_source(config)
        except (DeepSpeedConfigError, ValueError, TypeError) as error:
            raise ConfigValidationError(str(error)) from None
        try:
            self.resolved_json, warnings = _C.parse_config(text, self.world_size, check_batch)
        except _C.ElasticityError:
            raise
        except DeepSpeedConfigError as error:
            raise ConfigValidationError(str(error)) from None
        for warning in warnings:
            warning_once(warning)
        self.resolved: dict = json.loads(self.resolved_json)
        for key, value in self.resolved.items():
            setattr(self, key, _section(value, key))
        self._set_familiar_names()

    def _set_familiar_names(self) -> None:
        """The attribute names that programs know, where they differ from the keys."""
        self.zero_config = self.zero_optimization
        self.elasticity_enabled = self.elasticity.enabled
        self.elastic_model_parallel_size = self.elasticity.model_parallel_size
        self.num_gpus_per_node = self.elasticity.num_gpus_per_node
        self.zero_optimization_stage = self.zero_config.stage
        self.zero_enabled = self.zero_config.stage > 0
        self.float16_config, self.bfloat16_config = self.fp16, self.bf16
        self.fp16_enabled, self.bfloat16_enabled = self.fp16.enabled, self.bf16.enabled
        self.checkpoint_config = self.checkpoint
        self.activation_checkpointing_config = self.activation_checkpointing
        self.comms_config = SimpleNamespace(comms_logger_enabled=self.comms_logger.enabled, comms_logger=self.comms_logger)
        self.timers_config = self.timers
        self.monitor_config = SimpleNamespace(tensorboard=self.tensorboard, csv_monitor=self.csv_monitor, wandb=self.wandb,
                                              comet=self.comet, enabled=any(
                                                  section.enabled for section in (self.tensorboard, self.csv_monitor, self.wandb, self.comet)))
        self.flops_profiler_config = self.flops_profiler
        self.optimizer_name = self._optimizer_name()
        self.optimizer_params = dict(getattr(self.optimizer, "params", None) or {}) if self.optimizer_name else None
        self.optimizer_legacy_fusion = bool(getattr(self.optimizer, "legacy_fusion", False))
        self.scheduler_name = getattr(self.scheduler, "type", None)
        self.scheduler_params = dict(getattr(self.scheduler, "params", None) or {}) if self.scheduler_name else None

    def _optimizer_name(self) -> str | None:
        name = getattr(self.optimizer, "type", None)
        return name.lower() if name is not None and name.lower() in DEEPSPEED_OPTIMIZERS else name

    # ---- what the settings mean
    @property
    def model_dtype(self) -> torch.dtype:
        """The dtype of parameters while the model computes."""
        if self.fp16.enabled:
            return torch.float16
        if self.bf16.enabled:
            return torch.bfloat16
        return to_dtype(self.data_types.param_dtype) or torch.float32

    @property
    def shards_parameters(self) -> bool:
        """Whether full parameters exist only around their use."""
        return self.zero_config.stage >= 3

    @property
    def shards_gradients(self) -> bool:
        return self.zero_config.stage >= 2

    @property
    def shards_optimizer(self) -> bool:
        return self.zero_config.stage >= 1

    def offload_device(self, what: str) -> str:
        """"none", "cpu" or "nvme" for what in ("param", "optimizer")."""
        section = getattr(self.zero_config, f"offload_{what}")
        return "none" if section is None else section.device

    @property
    def optimizer_class_path(self) -> str | None:
        """The class under which the user sees the optimizer; None: the torch optimizer itself."""
        stage = self.zero_config.stage
        if stage == 3:
            return "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
        if stage == 1 and self.bf16.enabled and self.data_types.grad_accum_dtype == "fp32" \
                and self.offload_device("optimizer") == "none":
            return "deepspeed.runtime.bf16_optimizer.BF16_Optimizer"
        if stage >= 1:
            return "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer"
        if self.fp16.enabled or self.bf16.enabled:
            return "deepspeed.runtime.fp16.fused_optimizer.FP16_Optimizer"
        return None

    @property
    def checkpoint_layout(self) -> str:
        """How optimizer states stand in checkpoint files (checkpoint_layout.py)."""
        if self.zero_config.stage == 3:
            return "per_parameter"
        if self.zero_config.stage >= 1:
            return "partitioned"
        return "whole_flat" if self.fp16.enabled or self.bf16.enabled else "whole"

    # ---- output
    def print_user_config(self) -> None:
        logger.info("  json = %s", json.dumps(self._param_dict, sort_keys=True, indent=4, default=repr))

    def print(self, name: str) -> None:
        logger.info("%s:", name)
        for key in sorted(self.resolved):
            logger.info("  %s %s %s", key, "." * (29 - len(key)), self.resolved[key])
        self.print_user_config()
