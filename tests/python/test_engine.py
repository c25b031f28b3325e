"""The engine's training against plain torch, and its methods."""
from __future__ import annotations

import pytest
import torch

from common import ranks, run_ranks, single_rank
from models import TinyLanguageModel, batch, config, full_weights, make_model, train, train_plain

STAGES = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def engine_for(stage: int, **more):
    import deepspeed
    return deepspeed.initialize(model=make_model(), config=config(stage, **more))[0]


def rank_of() -> int:
    import torch.distributed as dist
    return dist.get_rank() if dist.is_initialized() else 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [1, 3])
def test_losses_and_weights_equal_plain_torch(stage, steps):
    plain = make_model()
    expected = [row[0] for row in train_plain(plain, 6, accumulate=steps)]
    engine = engine_for(stage, steps=steps)
    assert train(engine, 6) == pytest.approx(expected, abs=1e-5)
    for name, value in full_weights(engine.module).items():
        torch.testing.assert_close(value, dict(plain.named_parameters())[name].detach(), atol=1e-5, rtol=1e-5)
    assert engine.global_steps == 6 // steps and engine.micro_steps == 6 and engine.global_samples == engine.global_steps * 4 * steps
    engine.destroy()


def body_two_ranks_equal_plain_torch(stage: int, steps: int):
    import deepspeed
    import torch.distributed as dist
    plain = make_model()
    expected = train_plain(plain, 6, world=2, accumulate=steps)
    deepspeed.init_distributed()
    engine = deepspeed.initialize(model=make_model(seed=1 + dist.get_rank()), config=config(stage, steps=steps))[0]
    losses = train(engine, 6, rank=dist.get_rank())
    assert losses == pytest.approx([row[dist.get_rank()] for row in expected], abs=1e-5)
    for name, value in full_weights(engine.module).items():
        torch.testing.assert_close(value, dict(plain.named_parameters())[name].detach(), atol=1e-5, rtol=1e-5)
    engine.destroy()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [1, 3])
def test_two_ranks_equal_plain_torch_on_both_batches(stage, steps):
    run_ranks(body_two_ranks_equal_plain_torch, 2, {"stage": stage, "steps": steps})


def body_same_bits(tmp_path: str):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    results = []
    for stage in STAGES:
        engine = deepspeed.initialize(model=make_model(), config=config(stage))[0]
        losses = train(engine, 5, rank=dist.get_rank())
        results.append((losses, full_weights(engine.module)))
        engine.destroy()
    for losses, weights in results[1:]:
        assert losses == results[0][0]
        assert all(torch.equal(weights[name], results[0][1][name]) for name in weights)


def test_all_stages_give_the_same_bits_on_two_ranks(tmp_path):
    run_ranks(body_same_bits, 2, {"tmp_path": str(tmp_path)})


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_fp32_within_its_rounding(stage):
    expected = [row[0] for row in train_plain(make_model(), 5)]
    engine = engine_for(stage, bf16={"enabled": True})
    assert engine.module.up.weight.dtype == torch.bfloat16
    assert train(engine, 5) == pytest.approx(expected, abs=3e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_scales_the_loss_and_skips_overflows(stage):
    engine = engine_for(stage, fp16={"enabled": True, "initial_scale_power": 8, "hysteresis": 1})
    assert engine.optimizer.loss_scale == 256
    train(engine, 2)
    assert engine.was_step_applied() and engine.skipped_steps == 0
    before = full_weights(engine.module)
    loss = engine(*batch(2))
    engine.backward(loss * float("inf"))
    engine.step()
    assert not engine.was_step_applied() and engine.skipped_steps == 1 and engine.optimizer.overflow
    assert engine.get_global_grad_norm() == float("inf")
    assert all(torch.equal(value, before[name]) for name, value in full_weights(engine.module).items())
    assert engine.optimizer.loss_scale == 128
    train(engine, 1)
    assert engine.was_step_applied()


@pytest.mark.parametrize("stage", STAGES)
def test_nan_gradient_in_fp32_leaves_weights_and_names_the_parameter(stage):
    engine = engine_for(stage)
    before = full_weights(engine.module)
    engine.backward(engine(*batch(0)) * float("nan"))
    engine.step()
    assert not engine.was_step_applied()
    assert engine._core.nonfinite_parameter in dict(engine.module.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in full_weights(engine.module).items())


@pytest.mark.parametrize("stage", STAGES)
def test_backward_on_the_loss_itself_counts_as_engine_backward(stage):
    first, second = engine_for(stage, steps=2), engine_for(stage, steps=2)
    expected = train(first, 4)
    losses = []
    for step in range(4):
        loss = second(*batch(step))
        loss.backward()
        second.step()
        losses.append(loss.item())
    assert losses == expected and second.global_steps == 2


class TwoOutputs(TinyLanguageModel):

    def forward(self, tokens, targets):
        hidden = self.head(self.down(self.norm(self.up(self.embedding(tokens)))))
        return torch.nn.functional.cross_entropy(hidden.flatten(0, 1), targets.flatten()), hidden


def test_an_output_behind_another_output_is_divided_once():
    import deepspeed
    results = []
    for own in (False, True):
        engine = deepspeed.initialize(model=make_model(cls=TwoOutputs), config=config(2, steps=2))[0]
        for step in range(4):
            loss, _hidden = engine(*batch(step))
            loss.backward() if own else engine.backward(loss)
            engine.step()
        results.append((engine.get_global_grad_norm(), full_weights(engine.module)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("own", [False, True])
def test_a_step_with_several_outputs_keeps_no_graph_alive(stage, own):
    import gc
    import weakref

    import deepspeed
    engine = deepspeed.initialize(model=make_model(cls=TwoOutputs), config=config(stage, steps=2))[0]
    gc.collect()
    gc.disable()
    try:
        for step in range(2):
            loss, hidden = engine(*batch(step))
            loss.backward() if own else engine.backward(loss)
            engine.step()
            alive = [weakref.ref(loss), weakref.ref(hidden)]
            del loss, hidden
            assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()


def test_unscaled_backward_under_a_loss_scale_is_an_error():
    engine = engine_for(2, fp16={"enabled": True, "initial_scale_power": 8})
    with pytest.raises(RuntimeError, match="Loss scaling is required"):
        engine(*batch(0)).backward()
    engine.scale(engine(*batch(0))).backward()
    engine.step()
    assert engine.was_step_applied()


@pytest.mark.parametrize("stage", (0, 1))
def test_no_sync_accumulates_and_forbids_stepping(stage):
    engine = engine_for(stage, steps=2)
    with engine.no_sync():
        engine.backward(engine(*batch(0)))
        with pytest.raises(AssertionError, match="no_sync"):
            engine.step()
        with pytest.raises(AssertionError, match="reentry"), engine.no_sync():
            pass
    engine.step()
    engine.backward(engine(*batch(1)))
    engine.step()
    reference = engine_for(stage, steps=2)
    train(reference, 2)
    assert engine.get_global_grad_norm() == reference.get_global_grad_norm()


@pytest.mark.parametrize("stage", (2, 3))
def test_no_sync_is_refused_when_gradients_are_sharded(stage):
    with pytest.raises(AssertionError, match="incompatible with gradient partitioning"), engine_for(stage).no_sync():
        pass


def test_the_boundary_can_be_set_by_hand():
    engine = engine_for(1, steps=4)
    engine.set_gradient_accumulation_boundary(False)
    train(engine, 3)
    assert engine.global_steps == 0
    engine.set_gradient_accumulation_boundary(is_boundary=True)
    train(engine, 1, first=3)
    assert engine.global_steps == 1 and engine.is_gradient_accumulation_boundary()


def test_unmanaged_accumulation_steps_whenever_asked():
    engine = engine_for(1, steps=1, managed_gradient_accumulation=False)
    for step in range(3):
        engine.backward(engine(*batch(step)))
    engine.step()
    assert engine.global_steps == 1 and engine.global_samples == 12


@pytest.mark.parametrize("stage", STAGES)
def test_an_unused_parameter_does_not_disturb(stage):
    import deepspeed

    class Partly(TinyLanguageModel):

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Linear(8, 8)

    engine = deepspeed.initialize(model=make_model(cls=Partly), config=config(stage))[0]
    before = full_weights(engine.module)["unused.weight"]
    train(engine, 3)
    after = full_weights(engine.module)["unused.weight"]
    torch.testing.assert_close(after, before * (1 - 1e-2 * 0.1)**3)


@pytest.mark.parametrize("stage", STAGES)
def test_full_values_are_readable_and_writable(stage):
    from deepspeed.utils import (safe_get_full_fp32_param, safe_get_full_grad, safe_get_full_optimizer_state, safe_get_local_fp32_param,
                                 safe_set_full_fp32_param, safe_set_full_grad, safe_set_full_optimizer_state)
    plain = make_model()
    plain(*batch(0)).backward()
    engine = engine_for(stage)
    weight = engine.module.up.weight
    assert safe_get_full_grad(weight) is None
    engine.backward(engine(*batch(0)))
    torch.testing.assert_close(safe_get_full_grad(weight), plain.up.weight.grad)
    assert safe_get_full_grad(engine.module.frozen.weight) is None
    safe_set_full_grad(weight, torch.full((15, 8), 0.25))
    assert torch.equal(safe_get_full_grad(weight), torch.full((15, 8), 0.25))
    engine.step()
    assert safe_get_full_optimizer_state(weight, "exp_avg").shape == (15, 8)
    safe_set_full_optimizer_state(weight, torch.ones(15, 8), "exp_avg")
    assert torch.equal(safe_get_full_optimizer_state(weight, "exp_avg"), torch.ones(15, 8))
    safe_set_full_fp32_param(weight, torch.full((15, 8), 2.0))
    assert torch.equal(safe_get_full_fp32_param(weight), torch.full((15, 8), 2.0))
    assert torch.equal(full_weights(engine.module)["up.weight"], torch.full((15, 8), 2.0))
    assert safe_get_local_fp32_param(weight).numel() == 120
    assert safe_get_full_fp32_param(torch.nn.Parameter(torch.ones(2))) is None


def test_attributes_fall_through_to_the_module():
    engine = engine_for(2)
    assert engine.param_names[engine.module.up.weight] == "up.weight" and engine.loaded_checkpoint_dp_world_size is None
    assert engine.mesh_device is None and engine.num_experts == [] and not engine.checkpoint_writer_enabled()
    assert engine.all_gather_scalar(torch.tensor([2.0]), engine.data_parallel_group) == [torch.tensor([2.0])]
    engine.optimizer.set_lr(0.25)
    assert engine.optimizer.get_lr() == 0.25 and engine.get_lr() == [0.25] and engine.optimizer.is_gradient_accumulation_boundary()
    assert not engine.monitor.enabled and engine.flops_profiler is None
    engine.monitor.write_events([("Train/Samples/lr", 0.1, 1)])
    assert engine.embedding is engine.module.embedding
    engine.note = 5
    assert engine.note == 5
    with pytest.raises(AttributeError, match="'DeepSpeedEngine' object has no attribute 'nothing'"):
        _ = engine.nothing
    assert not hasattr(engine, "clip_grad_norm")


def test_getters_and_batch_sizes():
    engine = engine_for(2, steps=3, wall_clock_breakdown=False, steps_per_print=float("inf"))
    assert engine.get_batch_info() == (12, 4, 3) and engine.gradient_clipping() == 1.0
    assert engine.zero_optimization() and engine.zero_optimization_stage() == 2 and engine.zero_optimization_partition_gradients()
    assert not engine.zero_optimization_partition_weights() and not engine.fp16_enabled() and engine.dynamic_loss_scale()
    assert engine.optimizer_name() == "adamw" and engine.postscale_gradients() and engine.get_mom() == [(0.9, 0.999)]
    engine.set_train_batch_size(20)
    assert engine.get_batch_info() == (20, 4, 5)
    engine.set_train_micro_batch_size(2)
    assert engine.get_batch_info() == (10, 2, 5)
    with pytest.raises(ValueError, match="divisible by micro-batch"):
        engine.set_train_batch_size(11)
    assert engine.config["gradient_accumulation_steps"] == 3


def test_training_data_becomes_a_loader():
    import deepspeed
    tokens, targets = batch(0, size=10)
    data = torch.utils.data.TensorDataset(tokens, targets)
    engine, _, loader, _ = deepspeed.initialize(model=make_model(), training_data=data, config=config(1, micro=3))
    assert len(loader) == 4
    for x, y in loader:
        engine.backward(engine(x, y))
        engine.step()
    assert engine.global_steps == 4
    from deepspeed.utils import RepeatingLoader
    endless = RepeatingLoader(loader)
    assert len([next(endless) for _ in range(9)]) == 9


def test_several_engines_live_side_by_side():
    first, second = engine_for(2), engine_for(3)
    losses = []
    for step in range(3):
        losses.append((train(first, 1, step)[0], train(second, 1, step)[0]))
    assert all(a == pytest.approx(b, abs=1e-6) for a, b in losses)
    first.destroy()
    train(second, 1)


@pytest.mark.parametrize("following", [2, 3])
def test_a_model_can_be_given_to_a_second_engine_after_destroy(following):
    import deepspeed
    model = make_model()
    engine = deepspeed.initialize(model=model, config=config(3))[0]
    train(engine, 2)
    engine.destroy()
    engine.destroy()
    again = deepspeed.initialize(model=model, config=config(following))[0]
    losses = train(again, 2, first=2)
    reference = engine_for(2)
    train(reference, 2)
    assert losses[0] == pytest.approx(train(reference, 2, first=2)[0], abs=1e-6)


@pytest.mark.parametrize("first,following", [(0, 1), (2, 0), (2, 2), (3, 0), (3, 2), (3, 3)])
def test_a_second_engine_over_the_same_model_takes_over(first, following, caplog):
    import deepspeed
    engine = engine_for(first)
    train(engine, 2)
    again = deepspeed.initialize(model=engine.module, config=config(following))[0]
    assert [record.levelname for record in caplog.records if "another engine" in record.getMessage()] == ["WARNING"]
    losses = train(again, 3, first=2)
    alone = engine_for(first)
    train(alone, 2)
    alone.destroy()
    expected = train(deepspeed.initialize(model=alone.module, config=config(following))[0], 3, first=2)
    assert losses == expected and again.get_global_grad_norm() > 0


def test_inference_without_optimizer():
    import deepspeed
    plain = make_model()
    for stage in (0, 3):
        inference = {"train_batch_size": 1, "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10}}
        engine, optimizer, _, _ = deepspeed.initialize(model=make_model(), config=inference)
        engine.eval()
        with torch.no_grad():
            torch.testing.assert_close(engine(*batch(0)), plain(*batch(0)))
            torch.testing.assert_close(engine.module(*batch(0)), plain(*batch(0)))
        with pytest.raises(AssertionError, match="must provide optimizer"):
            engine.backward(torch.zeros((), requires_grad=True))
        assert (optimizer is None) == (stage == 0)


def test_autocast_computes_low_and_keeps_parameters_high():
    engine = engine_for(2, torch_autocast={"enabled": True, "dtype": "bf16"})
    seen = []
    engine.module.up.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    train(engine, 1)
    assert seen == [torch.bfloat16] and engine.module.up.weight.dtype == torch.float32


def test_half_inputs_are_made_when_configured():
    import deepspeed
    model = torch.nn.Linear(4, 4)
    engine = deepspeed.initialize(model=model, config=config(0, fp16={"enabled": True, "auto_cast": True}))[0]
    assert engine(torch.ones(2, 4)).dtype == torch.float16


def test_wall_clock_breakdown_prints_a_line_per_step(capfd):
    train(engine_for(1, wall_clock_breakdown=True), 2)
    lines = [line for line in capfd.readouterr().out.splitlines() if "time (ms)" in line]
    assert len(lines) == 2 and all(f"{name}:" in lines[0] for name in ("fwd", "bwd", "bwd_inner", "bwd_allreduce", "step"))


def test_progress_and_throughput_lines(caplog, capfd):
    from deepspeed.utils import logger
    logger.setLevel("INFO")
    try:
        train(engine_for(1, steps_per_print=2), 6)
    finally:
        logger.setLevel("WARNING")
    out = capfd.readouterr().out
    assert "DeepSpeed info" in out and "step=2, skipped=0, lr=[0.01], mom=[(0.9, 0.999)]" in out
    assert "RunningAvgSamplesPerSec=" in out and "[Rank 0]" in out


def test_training_is_quiet_by_default(capfd):
    """One table from initialize(), and nothing else."""
    engine = engine_for(2, bf16={"enabled": True})
    out, table = capfd.readouterr()
    lines = dict(line.split(None, 1) for line in table.splitlines())
    assert out == "" and list(lines) == ["DeepScale", "ranks", "ZeRO", "precision", "parameters", "optimizer", "batch", "memory"]
    assert lines["ZeRO"] == "stage 2" and lines["precision"] == "bf16" and lines["parameters"] == f"{engine.parameter_count()}, 430 trained"
    assert lines["optimizer"] == "AdamW, lr 0.01" and lines["batch"] == "4, micro-batch 4, accumulation 1"
    train(engine, 2)
    assert capfd.readouterr() == ("", "")
    engine_for(2, log_level="error")
    assert capfd.readouterr() == ("", "")


def test_a_schedule_without_an_optimizer_is_said_to_have_no_effect(capfd):
    import deepspeed
    scheduler = deepspeed.initialize(model=make_model(), config={"train_micro_batch_size_per_gpu": 1, "log_level": "warning",
                                                                 "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 7}}})[3]
    assert scheduler is None and "scheduler (WarmupLR) has no effect: there is no optimizer" in capfd.readouterr().out


def test_leftovers_of_auto_are_named(capfd):
    engine_for(2, bf16={"enabled": "auto"}, log_level="warning")
    assert 'bf16.enabled: is still "auto"' in capfd.readouterr().out


def test_an_engine_without_an_optimizer_leaves_the_models_classes(tmp_path):
    import copy
    import pickle
    import deepspeed
    for stage in (0, 2, 3):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        engine = deepspeed.initialize(model=model, config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}})[0]
        assert stage == 3 or all(type(layer) is torch.nn.Linear for layer in model)
        engine(torch.ones(2, 4))
        if stage < 3:
            for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
                assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
        engine.destroy()
        assert all(type(layer) is torch.nn.Linear for layer in model)


def test_copies_of_layers_that_only_run_forward_are_torchs_own(tmp_path):
    from deepspeed.inference.decode import stream_linears
    layer = torch.nn.Linear(3, 2)
    expected = layer(torch.ones(1, 3))
    stream_linears(layer)
    torch.save(layer, tmp_path / "layer.pt")
    again = torch.load(tmp_path / "layer.pt", weights_only=False)
    assert type(layer) is not torch.nn.Linear and type(again) is torch.nn.Linear and torch.allclose(again(torch.ones(1, 3)), expected)


@ranks(2)
def test_loader_gives_each_rank_its_own_samples():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    data = torch.utils.data.TensorDataset(torch.arange(8).float().view(8, 1))
    engine, _, loader, _ = deepspeed.initialize(model=torch.nn.Linear(1, 1), training_data=data, config=config(1, micro=2))
    mine = torch.cat([x for (x,) in loader]).flatten()
    everyone = [torch.empty(4) for _ in range(2)]
    dist.all_gather(everyone, mine)
    assert sorted(torch.cat(everyone).tolist()) == list(range(8))


@ranks(2)
def test_buffers_come_from_rank_zero():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    model = make_model()
    model.table.fill_(float(dist.get_rank() + 3))
    engine = deepspeed.initialize(model=model, config=config(1))[0]
    assert torch.equal(engine.module.table, torch.full((8,), 3.0))
