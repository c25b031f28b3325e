"""The engine's configuration getters: one method per key, made from one table."""
from __future__ import annotations

from typing import Any

import torch

from deepspeed.runtime.config import DeepSpeedConfig, to_dtype

# method name: dotted path in the resolved configuration
_PATHS = {
    "wall_clock_breakdown": "wall_clock_breakdown", "memory_breakdown": "memory_breakdown", "dump_state": "dump_state",
    "gradient_clipping": "gradient_clipping", "steps_per_print": "steps_per_print", "log_level": "log_level",
    "gradient_predivide_factor": "gradient_predivide_factor", "dataloader_drop_last": "dataloader_drop_last",
    "managed_gradient_accumulation": "managed_gradient_accumulation", "prescale_gradients": "prescale_gradients",
    "train_batch_size": "train_batch_size", "train_micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "zero_allow_untested_optimizer": "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer": "zero_force_ds_cpu_optimizer",
    "optimizer_params": "optimizer_params", "optimizer_legacy_fusion": "optimizer_legacy_fusion",
    "scheduler_name": "scheduler_name", "scheduler_params": "scheduler_params",
    # precision
    "fp16_enabled": "fp16.enabled", "fp16_auto_cast": "fp16.auto_cast", "loss_scale": "fp16.loss_scale",
    "fp16_master_weights_and_gradients": "fp16.fp16_master_weights_and_grads", "bfloat16_enabled": "bf16.enabled",
    "bf16_master_weights_and_gradients": "bf16.bf16_master_weights_and_grads",
    "bf16_optimizer_states": "bf16.bf16_optimizer_states", "torch_autocast_enabled": "torch_autocast.enabled",
    "torch_autocast_lower_precision_safe_modules": "torch_autocast.lower_precision_safe_modules",
    # ZeRO
    "zero_optimization": "zero_enabled", "zero_optimization_stage": "zero_config.stage",
    "zero_reduce_scatter": "zero_config.reduce_scatter", "zero_overlap_comm": "zero_config.overlap_comm",
    "zero_offload_optimizer": "zero_config.offload_optimizer", "zero_offload_param": "zero_config.offload_param",
    "zero_sub_group_size": "zero_config.sub_group_size", "zero_reduce_bucket_size": "zero_config.reduce_bucket_size",
    "zero_multi_rank_bucket_allreduce": "zero_config.use_multi_rank_bucket_allreduce",
    "zero_allgather_bucket_size": "zero_config.allgather_bucket_size", "zero_compute_grad_norm": "zero_config.compute_grad_norm",
    "zero_optimization_partition_gradients": "shards_gradients", "zero_optimization_partition_weights": "shards_parameters",
    "zero_contiguous_gradients": "zero_config.contiguous_gradients",
    "zero_load_from_fp32_weights": "zero_config.load_from_fp32_weights",
    "zero_elastic_checkpoint": "zero_config.elastic_checkpoint",
    "zero_max_live_parameters": "zero_config.stage3_max_live_parameters",
    "zero_max_reuse_distance": "zero_config.stage3_max_reuse_distance",
    "zero_prefetch_bucket_size": "zero_config.stage3_prefetch_bucket_size",
    "zero_module_granularity_threshold": "zero_config.stage3_module_granularity_threshold",
    "zero_param_persistence_threshold": "zero_config.stage3_param_persistence_threshold",
    "zero_model_persistence_threshold": "zero_config.stage3_model_persistence_threshold",
    "zero_gather_16bit_weights_on_model_save": "zero_config.stage3_gather_16bit_weights_on_model_save",
    "zero_legacy_stage1": "zero_config.legacy_stage1", "zero_ignore_unused_parameters": "zero_config.ignore_unused_parameters",
    "zero_save_muon_momentum_buffer_in_memory": "zero_config.save_muon_momentum_buffer_in_memory",
    "zero_allgather_partitions": "zero_config.allgather_partitions",
    "zero_round_robin_gradients": "zero_config.round_robin_gradients",
    "zero_parameter_alignment": "zero_config.parameter_alignment", "zero_hpz_partition_size": "zero_config.zero_hpz_partition_size",
    "zero_quantized_weights": "zero_config.zero_quantized_weights",
    "zero_quantized_nontrainable_weights": "zero_config.zero_quantized_nontrainable_weights",
    "zero_quantized_gradients": "zero_config.zero_quantized_gradients",
    "zero_log_trace_cache_warnings": "zero_config.log_trace_cache_warnings",
    "zero_allgather_sequential": "zero_config.stage3_allgather_sequential",
    "is_sanity_checks_enabled": "zero_config.enable_sanity_checks", "zenflow_config": "zero_config.zenflow",
    # files, tools
    "use_node_local_storage": "checkpoint.use_node_local_storage", "load_universal_checkpoint": "checkpoint.load_universal",
    "checkpoint_serialization_enabled": "checkpoint.checkpoint_serialization", "aio_config": "aio", "swap_tensor_config": "aio",
    "flops_profiler_recompute_fwd_factor": "flops_profiler.recompute_fwd_factor",
    "flops_profiler_enabled": "flops_profiler.enabled",
    "flops_profiler_profile_step": "flops_profiler.profile_step", "flops_profiler_module_depth": "flops_profiler.module_depth",
    "flops_profiler_top_modules": "flops_profiler.top_modules", "flops_profiler_detailed": "flops_profiler.detailed",
    "flops_profiler_output_file": "flops_profiler.output_file", "autotuning_enabled": "autotuning.enabled",
    "autotuning_metric": "autotuning.metric", "autotuning_metric_path": "autotuning.metric_path",
    "autotuning_start_profile_step": "autotuning.start_profile_step", "autotuning_end_profile_step": "autotuning.end_profile_step",
    "data_efficiency_enabled": "data_efficiency.enabled", "data_efficiency_config": "data_efficiency",
    "data_sampling_enabled": "data_efficiency.data_sampling.enabled", "data_sampling_config": "data_efficiency.data_sampling",
    "curriculum_learning_enabled": "data_efficiency.data_sampling.curriculum_learning.enabled",
    "random_ltd_enabled": "data_efficiency.data_routing.random_ltd.enabled",
    "random_ltd_config": "data_efficiency.data_routing.random_ltd", "tensor_parallel_config": "tensor_parallel",
    "autotp_size": "tensor_parallel.autotp_size", "is_deepcompile_enabled": "compile.deepcompile",
}


def _getter(name: str, path: str):
    keys = path.split(".")

    def get(self) -> Any:
        value = self._config
        for key in keys:
            value = getattr(value, key, None)
        return value

    get.__name__ = name
    get.__qualname__ = f"DeepSpeedEngine.{name}"
    get.__doc__ = f"The value in force of `{path}`."
    return get


class ConfigGetters:
    """Mixin of the engine; `self._config` is its DeepSpeedConfig."""

    _config: DeepSpeedConfig

    def optimizer_name(self) -> str | None:
        """Class name of the client's optimizer, otherwise the configured name."""
        client = getattr(self, "client_optimizer", None)
        return type(client).__name__ if client is not None else self._config.optimizer_name

    def postscale_gradients(self) -> bool:
        """Whether gradients are divided by the number of ranks after their reduction."""
        return not self._config.prescale_gradients

    def dynamic_loss_scale(self) -> bool:
        """Whether the loss scale follows overflows (`fp16.loss_scale` is 0)."""
        return self._config.fp16.loss_scale == 0

    def initial_dynamic_scale(self) -> float:
        return 2.0**self._config.fp16.initial_scale_power

    def dynamic_loss_scale_args(self) -> dict | None:
        fp16 = self._config.fp16
        if fp16.loss_scale != 0:
            return None
        return {"init_scale": self.initial_dynamic_scale(), "scale_window": fp16.loss_scale_window, "delayed_shift": fp16.hysteresis,
                "consecutive_hysteresis": fp16.consecutive_hysteresis, "min_scale": fp16.min_loss_scale}

    def torch_autocast_dtype(self) -> torch.dtype | None:
        return to_dtype(self._config.torch_autocast.dtype)

    def get_data_types(self) -> tuple[torch.dtype, torch.dtype]:
        """(model dtype, dtype in which gradients are accumulated)."""
        model = self._config.model_dtype
        return model, to_dtype(self._config.data_types.grad_accum_dtype) or model

    @property
    def communication_data_type(self) -> torch.dtype:
        return to_dtype(self._config.communication_data_type) or self._config.model_dtype

    def zero_use_cpu_optimizer(self) -> bool:
        return self._config.offload_device("optimizer") != "none"

    def zero_cpu_offload(self) -> bool:
        return self._config.offload_device("optimizer") == "cpu"

    def zero_nvme_offload_optimizer(self) -> bool:
        return self._config.offload_device("optimizer") == "nvme"

    def zero_partial_offload(self) -> float | None:
        offload = self._config.zero_config.offload_optimizer
        return getattr(offload, "ratio", None)

    def super_offload(self) -> bool:
        return bool(getattr(self._config.zero_config.offload_optimizer, "super_offload", False))

    def cpuadam_cores_perc(self) -> float:
        return getattr(self._config.zero_config.offload_optimizer, "cpuadam_cores_perc", 0.9)

    def checkpoint_tag_validation_enabled(self) -> bool:
        return self._config.checkpoint.tag_validation.lower() != "ignore"

    def checkpoint_tag_validation_fail(self) -> bool:
        return self._config.checkpoint.tag_validation.lower() == "fail"

    def is_first_weights_partition_group(self) -> bool:
        return self._config.shards_parameters

    def is_deepcompile_active(self) -> bool:
        return False

    # ---- batch sizes
    def get_batch_info(self) -> tuple[int, int, int]:
        """(train batch size, micro batch size per rank, gradient accumulation steps)."""
        return self.train_batch_size(), self.train_micro_batch_size_per_gpu(), self.gradient_accumulation_steps()

    def set_train_batch_size(self, train_batch_size: int) -> None:
        """Another global batch by another number of accumulation steps; the micro batch stays."""
        per_step = self.train_micro_batch_size_per_gpu() * self.dp_world_size
        if train_batch_size % per_step != 0:
            raise ValueError(f"Train batch size must be divisible by micro-batch data parallelism: {train_batch_size} is not a "
                             f"multiple of {self.train_micro_batch_size_per_gpu()} * {self.dp_world_size}")
        self._config.train_batch_size = train_batch_size
        self._config.gradient_accumulation_steps = train_batch_size // per_step

    def set_train_micro_batch_size(self, micro_batch_size: int) -> None:
        """Another micro batch; accumulation steps stay, so the global batch changes."""
        self._config.train_micro_batch_size_per_gpu = micro_batch_size
        self._config.train_batch_size = micro_batch_size * self.gradient_accumulation_steps() * self.dp_world_size


for _name, _path in _PATHS.items():
    setattr(ConfigGetters, _name, _getter(_name, _path))
