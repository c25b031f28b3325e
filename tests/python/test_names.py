"""Every name that the ecosystem imports exists at its path, and importing the package is quick and quiet."""
from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys

import pytest

NAMES = """
accelerator:get_accelerator accelerator:is_current_accelerator_supported checkpoint.utils:clone_tensors_for_torch_save
checkpointing:configure checkpointing:checkpoint checkpointing:non_reentrant_checkpoint checkpointing:is_configured
compression.helper:recursive_getattr compression.helper:recursive_setattr launcher.runner:DEEPSPEED_ENVIRONMENT_NAME
moe.layer:MoE moe.utils:split_params_into_different_moe_groups_for_optimizer moe.utils:is_moe_param
ops.adagrad:DeepSpeedCPUAdagrad ops.adam:DeepSpeedCPUAdam ops.adam:FusedAdam ops.aio:AsyncIOBuilder ops.lion:DeepSpeedCPULion
ops.lion:FusedLion ops.lamb:FusedLamb ops.op_builder:CPUAdamBuilder ops:__compatible_ops__
runtime.base_optimizer:DeepSpeedOptimizer runtime.base_optimizer:ZeROOptimizer runtime.bf16_optimizer:BF16_Optimizer
runtime.config:DeepSpeedConfig runtime.config:DeepSpeedConfigError runtime.engine:DeepSpeedEngine
runtime.fp16.fused_optimizer:FP16_Optimizer runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer
runtime.fp16.loss_scaler:DynamicLossScaler runtime.lr_schedules:VALID_LR_SCHEDULES runtime.lr_schedules:WarmupLR
runtime.sequence_parallel.ulysses_sp:UlyssesSPAttentionHF runtime.sequence_parallel.ulysses_sp:UlyssesSPDataLoaderAdapter
runtime.swap_tensor.utils:MIN_SWAPPABLE_BYTES runtime.utils:move_to_device runtime.utils:set_random_seed
runtime.zero.config:DeepSpeedZeroConfig runtime.zero.config:ZeroStageEnum runtime.zero.muon:MuonWithAuxAdam
runtime.zero.offload_config:OffloadDeviceEnum runtime.zero.offload_config:OffloadStateTypeEnum
runtime.zero.parameter_offload:DeepSpeedZeRoOffload runtime.zero.partition_parameters:GatheredParameters
runtime.zero.partition_parameters:Init runtime.zero.partition_parameters:ZeroParamStatus
runtime.zero.partition_parameters:_orig_torch_arange runtime.zero.partition_parameters:get_accelerator
runtime.zero.partition_parameters:restore_init_context runtime.zero.partition_parameters:shutdown_init_context
runtime.zero.partition_parameters:zero_wrapper_for_fp_tensor_constructor runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3
runtime.zero.stage3:estimate_zero3_model_states_mem_needs_all_live runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer
runtime.zero.utils:ZeRORuntimeException utils:RepeatingLoader utils:groups utils:is_initialized utils:log_dist utils:logger
utils:OnDevice utils:safe_get_full_fp32_param utils:safe_get_full_grad utils:safe_get_full_optimizer_state
utils:safe_get_local_fp32_param utils:safe_set_full_fp32_param utils:safe_set_full_grad utils:safe_set_full_optimizer_state
utils:safe_update_full_grad_vectorized utils:set_z3_leaf_modules utils:set_z3_leaf_modules_by_name utils:get_numactl_cmd
utils.groups:_get_sequence_parallel_group utils.groups:_get_sequence_parallel_world_size utils.logging:logger
utils.zero_to_fp32:convert_zero_checkpoint_to_fp32_state_dict utils.zero_to_fp32:get_fp32_state_dict_from_zero_checkpoint
utils.zero_to_fp32:get_model_state_file utils.zero_to_fp32:get_optim_files utils.zero_to_fp32:load_state_dict_from_zero_checkpoint
zero:GatheredParameters zero:Init zero:TiledLinear zero:TiledLinearReturnBias zero:ZeroParamStatus zero:register_external_parameter
zero:unwrap_model_for_generation pipe:PipelineModule pipe:LayerSpec git_version_info:torch_info
runtime.pipe.topology:PipeModelDataParallelTopology monitor.monitor:MonitorMaster constants:TORCH_DISTRIBUTED_DEFAULT_PORT
runtime.config_utils:DeepSpeedConfigModel comm.constants:NCCL_BACKEND comm:in_aml comm:in_aws_sm comm.comm:init_distributed
comm.comm:destroy_process_group comm.comm:mpi_discovery runtime.zero.offload_config:DeepSpeedZeroOffloadParamConfig
runtime.zero.offload_config:DeepSpeedZeroOffloadOptimizerConfig runtime.utils:CheckOverflow runtime.utils:get_global_norm
runtime.utils:get_weight_norm runtime.utils:noop_context runtime.utils:memory_status utils.logging:print_configuration
launcher.launch:main env_report:main env_report:cli_main runtime.pipe.dualpipev:DualPipeVEngine
moe.utils:split_params_into_shared_and_expert_params moe.utils:split_params_grads_into_shared_and_expert_params
moe.utils:configure_moe_param_groups ops.adam:ZenFlowCPUAdam ops.adam:ZenFlowSelectiveAdamW ops.adam:ZenFlowSelectiveAdamW_stage3
""".split()

TOP_LEVEL = """initialize init_distributed init_inference add_config_arguments tp_model_init default_inference_config DeepSpeedEngine
DeepSpeedConfig DeepSpeedConfigError DeepSpeedOptimizer DeepSpeedDataLoader PipelineEngine PipelineModule DualPipeVEngine InferenceEngine OnDevice
get_accelerator log_dist logger zero checkpointing comm dist moe ops runtime utils accelerator compression __version__
__git_hash__ __git_branch__ HAS_TRITON""".split()


@pytest.mark.parametrize("name", NAMES)
def test_name_is_importable_and_an_attribute(name):
    module, _, attribute = name.partition(":")
    imported = getattr(importlib.import_module(f"deepspeed.{module}"), attribute)
    import deepspeed
    found = deepspeed
    for part in [*module.split("."), attribute]:
        found = getattr(found, part)
    assert found is imported


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level_name_exists(name):
    import deepspeed
    assert hasattr(deepspeed, name)


def test_names_that_load_late_are_listed_and_there():
    import deepspeed
    import deepspeed.monitor
    import deepspeed.runtime.pipe.topology as alias
    assert {"DeepSpeedEngine", "zero", "comm", "ops", "OnDevice", "initialize"} <= set(dir(deepspeed))
    assert "monitor" in dir(deepspeed.monitor) and "ProcessTopology" in dir(alias)
    for name in dir(deepspeed):
        getattr(deepspeed, name)


def test_classes_live_where_callers_look_for_them():
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    assert DeepSpeedEngine.__module__ == "deepspeed.runtime.engine"
    assert DeepSpeedZeroOptimizer_Stage3.__module__ == "deepspeed.runtime.zero.stage3"
    assert type(DeepSpeedEngine) is type


def test_engine_can_be_imitated_by_mock():
    from unittest import mock

    import deepspeed
    with mock.patch("deepspeed.DeepSpeedEngine", autospec=True) as fake:
        assert deepspeed.DeepSpeedEngine is fake
    assert deepspeed.DeepSpeedEngine.__name__ == "DeepSpeedEngine"
    with mock.patch("deepspeed.initialize", autospec=True), mock.patch("deepspeed.init_distributed", autospec=True), \
            mock.patch("deepspeed.zero.Init"), mock.patch("deepspeed.checkpointing.configure", autospec=True):
        pass


def test_the_other_name_of_the_package_is_the_same_package():
    import deepscale
    import deepscale.runtime.lr_schedules as other
    import deepspeed
    import deepspeed.runtime.lr_schedules as one
    assert deepscale is deepspeed and other is one


def test_signatures_that_callers_inspect():
    import inspect

    import deepspeed
    expected = ["args", "model", "optimizer", "model_parameters", "training_data", "lr_scheduler", "distributed_port", "mpu",
                "dist_init_required", "collate_fn", "config", "mesh_param", "config_params"]
    assert list(inspect.signature(deepspeed.initialize).parameters)[:13] == expected
    assert "exclude_frozen_parameters" in inspect.signature(deepspeed.DeepSpeedEngine.save_checkpoint).parameters
    assert list(inspect.signature(deepspeed.DeepSpeedEngine.backward).parameters) == ["self", "loss", "retain_graph", "scale_wrt_gas"]


@pytest.mark.parametrize("name", ["pipe.PipelineModule", "moe.layer.MoE", "DualPipeVEngine",
                                  "ops.adam.ZenFlowCPUAdam", "ops.adam.DeepSpeedCPUAdam.rollback_subgroup"])
def test_features_of_later_say_so_when_used(name):
    import deepspeed
    found = deepspeed
    for part in name.split("."):
        found = getattr(found, part)
    with pytest.raises(NotImplementedError, match="not built yet"):
        found()


def test_the_report_is_the_programs():
    run = subprocess.run([sys.executable, "-m", "deepspeed.env_report"], capture_output=True, text=True, check=True)
    assert "deepspeed" in run.stdout.lower() and "torch" in run.stdout


def test_shutdown_does_not_exist():
    import deepspeed
    assert not hasattr(deepspeed, "shutdown")


def test_import_is_quick_quiet_and_loads_little():
    code = ("import sys, time, torch, os, threading\n"
            "before, env, threads = set(sys.modules), dict(os.environ), threading.active_count()\n"
            "best = time.perf_counter(); import deepspeed; took = time.perf_counter() - best\n"
            "heavy = [m for m in ('transformers', 'tensorboard', 'wandb', 'numba') if m in sys.modules]\n"
            "assert not heavy, heavy\n"
            "assert dict(os.environ) == env and threading.active_count() == threads\n"
            "print('seconds', took)\n")
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.splitlines()[-1].startswith("seconds") and len(run.stdout.splitlines()) == 1, run.stdout
        seconds.append(float(run.stdout.split()[-1]))
    assert min(seconds) < 0.1


def test_the_package_is_known_as_a_distribution():
    """Transformers and Accelerate call the package only where importlib.metadata finds it, in a build's folder as when installed."""
    import deepspeed
    distribution = importlib.metadata.distribution("deepspeed")
    assert distribution.version == deepspeed.__version__
    assert distribution.locate_file("deepspeed/__init__.py").samefile(deepspeed.__file__)
