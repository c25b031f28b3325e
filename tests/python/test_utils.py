"""Accelerator, logger, helpers, memory estimators, activation checkpointing, loaders, context managers."""
from __future__ import annotations

import argparse
import logging
import os

import pytest
import torch
import torch.nn as nn

from common import single_rank


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def test_the_accelerator_is_one_object_and_its_device_usable():
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    accelerator = get_accelerator()
    assert accelerator is deepspeed.get_accelerator() and accelerator.is_available()
    assert torch.zeros(1, device=accelerator.current_device()).device == torch.zeros(1, device=accelerator.current_device_name()).device
    assert torch.bfloat16 in accelerator.supported_dtypes() and accelerator.device_name() in accelerator.current_device_name()


def test_the_cpu_accelerator(monkeypatch):
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    cpu = CPU_Accelerator()
    monkeypatch.setenv("LOCAL_SIZE", "7")
    assert cpu.device_count() == 7 and cpu.communication_backend_name() == "gloo" and cpu.device_name(3) == "cpu"
    monkeypatch.delenv("LOCAL_SIZE")
    assert cpu.device_count() >= 1 and cpu.is_synchronized_device() and cpu.use_host_timers()
    before = dict(os.environ)
    cpu.set_device(5)
    assert dict(os.environ) == before
    used = cpu.memory_allocated()
    assert 0 < used <= cpu.max_memory_allocated() <= cpu.total_memory() and cpu.available_memory() > 0
    state = cpu.get_rng_state()
    first = torch.rand(3)
    cpu.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))
    assert cpu.FloatTensor([1.0]).dtype == torch.float32 and cpu.on_accelerator(torch.ones(1))
    with cpu.stream(cpu.current_stream()):
        cpu.synchronize()
    assert cpu.create_op_builder("CPUAdamBuilder").NAME == "cpu_adam" and cpu.get_op_builder("Nothing") is None


def test_accelerators_are_chosen_by_environment(monkeypatch):
    from deepspeed.accelerator import real_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    kept = real_accelerator.ds_accelerator
    try:
        for wanted, error in (("toaster", ValueError), ("xpu", NotImplementedError)):
            real_accelerator.ds_accelerator = None
            monkeypatch.setenv("DS_ACCELERATOR", wanted)
            with pytest.raises(error, match=wanted):
                real_accelerator.get_accelerator()
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        assert isinstance(real_accelerator.get_accelerator(), CPU_Accelerator)
        mine = CPU_Accelerator()
        set_accelerator(mine)
        assert real_accelerator.get_accelerator() is mine
        with pytest.raises(TypeError):
            set_accelerator("cpu")
    finally:
        real_accelerator.ds_accelerator = kept


def test_config_arguments():
    import deepspeed
    parser = deepspeed.add_config_arguments(argparse.ArgumentParser())
    given = parser.parse_args(["--deepspeed", "--deepspeed_config", "x.json"])
    assert given.deepspeed and given.deepspeed_config == "x.json" and not given.deepscale and given.deepscale_config is None


def test_the_logger_writes_to_standard_output_and_honours_ranks(capsys):
    from deepspeed.utils import log_dist, logger, set_log_level_from_string
    from deepspeed.utils.logging import log_dist_once, should_log_le, warning_once
    assert isinstance(logger, logging.Logger) and logger.level == logging.WARNING and logger.name == "DeepSpeed"
    log_dist("hidden", ranks=[0])
    logger.warning("shown")
    set_log_level_from_string("info")
    try:
        log_dist("for all")
        log_dist("for zero", ranks=[0])
        log_dist_once("only once here")
        log_dist_once("only once here")
        assert should_log_le("info") and not should_log_le("debug")
    finally:
        logger.setLevel("WARNING")
    warning_once("a warning that comes once")
    warning_once("a warning that comes once")
    out = capsys.readouterr().out
    assert "hidden" not in out and "[WARNING] [test_utils.py:" in out and out.count("only once here") == 1
    assert "[INFO] [test_utils.py:" in out and "for zero" in out and out.count("that comes once") == 1
    with pytest.raises(ValueError, match="not one of"):
        set_log_level_from_string("loud")


def test_dotted_access():
    from deepspeed.compression.helper import recursive_getattr, recursive_setattr
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 2)))
    assert recursive_getattr(model, "0.0") is model[0][0]
    recursive_setattr(model, "0.0", nn.Linear(1, 3))
    assert model[0][0].out_features == 3


def test_models_are_built_on_meta_without_memory():
    import deepspeed
    before = (torch.empty, torch.zeros, torch.ones, torch.full)
    with deepspeed.OnDevice(dtype=torch.bfloat16, device="meta"):
        layer = nn.Linear(10**5, 10**5)
    assert layer.weight.is_meta and layer.weight.dtype == torch.bfloat16
    assert before == (torch.empty, torch.zeros, torch.ones, torch.full)
    with deepspeed.OnDevice(dtype=torch.float16, device="cpu", enabled=False):
        assert nn.Linear(2, 2).weight.dtype == torch.float32


def test_repeating_loader_starts_again():
    from deepspeed.utils import RepeatingLoader
    loader = RepeatingLoader([1, 2])
    assert [next(loader) for _ in range(5)] == [1, 2, 1, 2, 1]


def test_core_lists(monkeypatch):
    from deepspeed.utils import get_numactl_cmd, numa
    assert numa.parse_range_list("0-2,5,7-8") == [0, 1, 2, 5, 7, 8]
    for wrong in ("3-1", "0-4,2", "x"):
        with pytest.raises(ValueError):
            numa.parse_range_list(wrong)
    monkeypatch.setattr(numa.shutil, "which", lambda name: "/usr/bin/numactl")
    monkeypatch.setattr(numa, "get_numa_cores", lambda: [[0, 1, 2, 3], [4, 5, 6, 7]])
    monkeypatch.delenv("KMP_AFFINITY", raising=False)
    assert get_numactl_cmd("0-7", 2, 1) == (4, ["numactl", "-m", "1", "-C", "4-7"])
    assert get_numactl_cmd("0-1,4-5", 2, 0) == (2, ["numactl", "-m", "0", "-C", "0-1"])
    assert get_numactl_cmd("1,3,5,6", 1, 0) == (4, ["numactl", "-C", "1,3,5-6"])
    monkeypatch.setattr(numa, "get_numa_cores", lambda: [[0, 1], []])
    assert get_numactl_cmd("0-1", 1, 0) == (2, ["numactl", "-p", "1", "-C", "0-1"])
    monkeypatch.setattr(numa, "get_numa_cores", lambda: [[0, 1], [0, 1]])
    assert get_numactl_cmd("0-1", 1, 0)[1][1:3] == ["-m", "0,1"]
    with pytest.raises(ValueError, match="at least one"):
        get_numactl_cmd("0", 2, 0)
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    with pytest.raises(ValueError, match="KMP_AFFINITY"):
        get_numactl_cmd("0-7", 2, 1)


def test_zero2_memory_formula():
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as needs
    million = 10**6
    assert needs(million, 1, 1, cpu_offload=True) == (24 * million, 2 * million)
    assert needs(million, 8, 1, cpu_offload=True) == (48 * million, 2 * million)
    assert needs(million, 2, 2, cpu_offload=False) == (12 * million, int(6.5 * million))


def test_zero3_memory_formula():
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as needs
    million, layer = 10**6, 10**5
    assert needs(million, layer, 2, 1) == (27 * million, 4 * layer, 4 * layer)
    assert needs(million, layer, 8, 2, zero_init=False) == (48 * million, 4 * layer, 4 * layer)
    assert needs(million, layer, 2, 2, cpu_offload_params=False) == (12 * million, 4 * layer + million // 2, 4 * layer)
    assert needs(million, layer, 2, 1, cpu_offload=False) == (12 * layer, 4 * layer + 9 * million, 4 * layer)
    assert needs(million, layer, 2, 1, cpu_offload=False, zero_init=False)[0] == 12 * million


def test_estimators_print_a_table(capsys):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs_all_live
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs_all_cold
    estimate_zero3_model_states_mem_needs_all_live(nn.Linear(1000, 2000), num_gpus_per_node=2)
    out = capsys.readouterr().out
    assert "1 node, 2 GPUs per node" in out and "2M total params, 2M largest layer params" in out and out.count("zero_init=1") == 3
    estimate_zero2_model_states_mem_needs_all_cold(total_params=int(3e9), num_nodes=2)
    assert "offload_optimizer=cpu" in capsys.readouterr().out


def test_tensors_are_cloned_for_saving():
    from deepspeed.checkpoint.utils import clone_tensors_for_torch_save
    flat = torch.arange(10.0)
    item = {"a": flat[2:4], "b": [flat[:1], (flat[1:2], "text")], "c": 5}
    copy = clone_tensors_for_torch_save(item)
    assert copy["a"].untyped_storage().nbytes() == 8 and torch.equal(copy["a"], item["a"]) and copy["b"][1][1] == "text" and copy["c"] == 5
    assert copy["b"][1][0].data_ptr() != item["b"][1][0].data_ptr()


def test_tied_weights_are_cloned_apart(tmp_path):
    """safetensors refuses tensors that share memory."""
    from deepspeed.checkpoint.utils import clone_tensors_for_torch_save
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
    model["head"].weight = model["embedding"].weight
    copy = clone_tensors_for_torch_save(model.state_dict())
    assert len({copy["head.weight"].data_ptr(), copy["embedding.weight"].data_ptr(), model["head"].weight.data_ptr()}) == 3
    assert torch.equal(copy["head.weight"], model["head"].weight) and torch.equal(copy["embedding.weight"], model["head"].weight)
    number = torch.tensor([1 + 2j])
    both = clone_tensors_for_torch_save({"plain": number, "conjugate": number.conj()})
    assert both["plain"].item() == 1 + 2j and both["conjugate"].item() == 1 - 2j
    assert [tuple(value.shape) for value in clone_tensors_for_torch_save([torch.empty(0), torch.empty(0, 3)])] == [(0,), (0, 3)]
    functional = torch.func.vmap(lambda row: clone_tensors_for_torch_save(row))(torch.ones(2, 3))  # its rows have no storage
    assert torch.equal(functional, torch.ones(2, 3))
    save_file = pytest.importorskip("safetensors.torch", reason="needs safetensors (pip install safetensors)").save_file
    save_file(copy, tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_size > 2 * 32


def test_tensors_move_in_nested_structures():
    from deepspeed.runtime.utils import move_to_device, set_random_seed
    moved = move_to_device({"a": [torch.ones(1)], "b": (2, torch.ones(1))}, "meta")
    assert moved["a"][0].is_meta and moved["b"][1].is_meta and moved["b"][0] == 2
    set_random_seed(3)
    first = torch.rand(2)
    set_random_seed(3)
    assert torch.equal(first, torch.rand(2))


def test_timers_accumulate_and_the_throughput_skips_the_first_steps():
    from types import SimpleNamespace

    from deepspeed.utils.timer import SynchronizedWallClockTimer, ThroughputTimer, trim_mean
    timers = SynchronizedWallClockTimer()
    for _ in range(2):
        timers("work").start()
        timers("work").stop(record=True)
    assert timers("work").elapsed(reset=False) > 0 and len(timers("work").records) == 2
    with pytest.raises(AssertionError, match="not started"):
        timers("work").stop()
    lines = []
    timer = ThroughputTimer(SimpleNamespace(enabled=True, synchronized=True), 8, steps_per_output=2, logging_fn=lines.append)
    assert timer.avg_samples_per_sec() == float("-inf")
    for _ in range(6):
        timer.start()
        timer.stop(global_step=True)
    timer.update_epoch_count()
    assert timer.avg_samples_per_sec() > 0 and len(lines) == 2 and "global_step=4" in lines[0] and timer.epoch_count == 1
    assert trim_mean([100, 1, 2, 3, -50], 0.2) == 2 and trim_mean([], 0.1) == 0


def test_checkpointed_functions_give_the_same_gradients_with_dropout_and_odd_arguments():
    import deepspeed
    layer = nn.Linear(6, 6)

    def work(x, factor, *, flag):
        assert flag == "on"
        return torch.dropout(layer(x), 0.5, True) * factor, "text"

    x = torch.randn(4, 6, requires_grad=True)
    gradients = []
    for run in (lambda *a, **k: work(*a, **k), lambda *a, **k: deepspeed.checkpointing.checkpoint(work, *a, **k)):
        torch.manual_seed(0)
        layer.zero_grad()
        output, text = run(x, 3, flag="on")
        assert text == "text"
        (gradient,) = torch.autograd.grad(output.sum(), x)
        gradients.append(gradient)
    assert torch.equal(*gradients)


def test_tracker_states_are_replayed_and_named():
    import deepspeed
    from deepspeed import checkpointing
    checkpointing.model_parallel_cuda_manual_seed(7)
    tracker = checkpointing.get_cuda_rng_tracker()
    with pytest.raises(Exception, match="already exists"):
        tracker.add("another", 7 + 2718)
    with pytest.raises(Exception, match="already exists"):
        tracker.add("model-parallel-rng", 1)
    with pytest.raises(Exception, match="not added"), tracker.fork("nothing"):
        pass
    masks = []

    def work(x):
        with tracker.fork():
            mask = torch.rand(5)
        masks.append(mask)
        return (x * mask).sin()

    x = torch.ones(5, requires_grad=True)
    deepspeed.checkpointing.checkpoint(work, x).sum().backward()
    assert len(masks) == 2 and torch.equal(*masks)
    with tracker.fork():
        assert not torch.equal(torch.rand(5), masks[0])
    tracker.reset()
    assert tracker.get_states() == {}


def test_activation_checkpointing_is_configured_from_arguments_or_file():
    from deepspeed import checkpointing
    checkpointing.configure(mpu_=None, partition_activations=True, contiguous_checkpointing=False, checkpoint_in_cpu=False, profile=False)
    assert checkpointing.is_configured() and checkpointing.PARTITION_ACTIVATIONS
    checkpointing.configure(None, deepspeed_config={"train_batch_size": 1, "activation_checkpointing": {"number_checkpoints": 4}})
    assert checkpointing.num_layers == 4 and not checkpointing.PARTITION_ACTIVATIONS
    with pytest.raises(AssertionError, match="partitioned activations"):
        checkpointing.configure(None, contiguous_checkpointing=True)
    checkpointing.configure(None, contiguous_checkpointing=False)


def test_groups_of_a_world_of_one():
    from deepspeed.utils import groups
    assert groups._get_sequence_parallel_world_size() == 1 and groups._get_sequence_parallel_rank() == 0
    assert groups._get_sequence_parallel_group() is None and groups._get_model_parallel_world_size() == 1
    with pytest.raises(NotImplementedError, match="expert parallelism"):
        groups._get_expert_parallel_group("x")


def test_moe_helpers_on_models_without_experts():
    from deepspeed.moe.utils import has_moe_layers, is_moe_param, split_params_into_different_moe_groups_for_optimizer
    layer = nn.Linear(2, 2)
    group = {"name": "all", "params": list(layer.parameters())}
    assert split_params_into_different_moe_groups_for_optimizer(group) == [group]
    assert has_moe_layers(layer) == (False, 0) and not is_moe_param(layer.weight)


def test_zero_section_on_its_own():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig, ZeroStageEnum, get_zero_config
    assert DeepSpeedZeroConfig(stage=3).stage3_max_live_parameters == 10**9
    assert get_zero_config({"zero_optimization": True}).stage == ZeroStageEnum.optimizer_states
    with pytest.raises(ValueError, match="nonsense"):
        DeepSpeedZeroConfig(nonsense=1)


def test_loss_scaler_schedule():
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler, DynamicLossScaler, LossScaler
    scaler = DynamicLossScaler(init_scale=16, scale_window=2, min_scale=4, delayed_shift=2)
    history = []
    for overflow in (True, True, False, False, False, True):
        scaler.update_scale(overflow)
        history.append(scaler.cur_scale)
    assert history == [16, 8, 8, 8, 16, 16]
    scaler.update_scale(True)
    scaler.update_scale(True)
    with pytest.raises(Exception, match="already at minimum"):
        scaler.update_scale(True)
    assert isinstance(CreateLossScaler(torch.float, 0, True, None), LossScaler)


def test_expert_parameters_are_told_from_shared_ones():
    from deepspeed.moe.utils import (configure_moe_param_groups, split_params_grads_into_shared_and_expert_params,
                                     split_params_into_shared_and_expert_params)
    shared, expert, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    expert.allreduce = False
    assert split_params_into_shared_and_expert_params([expert, shared, unused]) == ([shared, unused], [expert])
    shared.grad, expert.grad = torch.zeros(2), torch.ones(2)
    grads = split_params_grads_into_shared_and_expert_params([expert, shared, unused])
    assert [len(part) for part in grads] == [1, 1] and grads[0][0] is shared.grad and grads[1][0] is expert.grad
    assert configure_moe_param_groups([shared, unused]) == [{"params": [shared, unused], "name": "dense-params"}]
    marked = [{"params": [expert], "moe": True}]
    assert configure_moe_param_groups(marked) is marked
    with pytest.raises(NotImplementedError, match="not built yet"):
        configure_moe_param_groups([shared, expert])
    with pytest.raises(TypeError, match="found int"):
        configure_moe_param_groups([shared, 5])


def test_norms_and_overflow_of_loose_tensors(caplog):
    from deepspeed.runtime.utils import CheckOverflow, get_global_norm, get_weight_norm, memory_status, noop_context
    params = [nn.Parameter(torch.full((4,), 2.0)), nn.Parameter(torch.full((9,), -3.0)), nn.Parameter(torch.ones(2))]
    assert get_weight_norm(params[:2]) == pytest.approx((16 + 81)**0.5) and get_weight_norm(params[1], float("inf")) == 3
    assert get_weight_norm([torch.tensor([float("nan")])]) == -1
    assert get_global_norm([3.0, 4.0]) == 5 and get_global_norm([1.0, -1]) == get_global_norm([float("nan")]) == float("inf")
    params[0].grad, params[1].grad = torch.ones(4), torch.ones(9)
    checker = CheckOverflow([params[:2], params[2:]])
    assert not checker.check() and not checker.check_using_norm([1.0, 2.0])
    params[1].grad[5] = float("nan")
    assert checker.check() and not checker.check([params[:1]]) and checker.check_using_norm([float("inf")])
    with noop_context():
        memory_status("now", reset_max=True)


def test_offload_sections_as_classes():
    from deepspeed import DeepSpeedConfigError
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig
    assert DeepSpeedZeroOffloadParamConfig(device="cpu").pin_memory in (True, False)
    assert DeepSpeedZeroOffloadOptimizerConfig(device="cpu", ratio=0.5).ratio == 0.5
    with pytest.raises(DeepSpeedConfigError, match="offload_param.devic"):
        DeepSpeedZeroOffloadParamConfig(devic="cpu")
