"""Which optimizer runs and what the client sees of it; options of sharding and placement."""
from __future__ import annotations

import copy
import os

import pytest
import torch

from common import run_ranks, single_rank
from deepspeed._C import CheckpointError
from models import batch, config, full_weights, make_model, train, train_plain

STAGES = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def engine_for(stage: int, **more):
    import deepspeed
    return deepspeed.initialize(model=make_model(), config=config(stage, **more))[0]


def test_groups_have_their_own_rates_and_schedules_change_them():
    import deepspeed
    model = make_model()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "lr": 1e-2}, {"params": rest, "lr": 0.0}], weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    engine, shown, _, kept = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config(2))
    before = full_weights(engine.module)
    train(engine, 2)
    assert kept is scheduler and shown.param_groups[0]["lr"] == pytest.approx(2.5e-3) and engine.get_lr() == [2.5e-3, 0.0]
    after = full_weights(engine.module)
    assert torch.equal(after["norm.weight"], before["norm.weight"]) and not torch.equal(after["up.weight"], before["up.weight"])


@pytest.mark.parametrize("layout", ("deepspeed", "native"))
@pytest.mark.parametrize("kind", (torch.optim.AdamW, torch.optim.NAdam))
@pytest.mark.parametrize("stage", STAGES)
def test_groups_without_trained_parameters_keep_their_place_for_schedulers(kind, stage, layout, tmp_path):
    """LoRA under a trainer: one of its two groups is frozen whole, and its scheduler was made before the engine."""
    import deepspeed

    def make():
        model = make_model()
        frozen, trained = ([p for p in model.parameters() if (p.dim() > 1) == big] for big in (False, True))
        for param in frozen:
            param.requires_grad_(False)
        optimizer = kind([{"params": frozen, "lr": 1.0}, {"params": trained, "lr": 1e-2}, {"params": [], "lr": 2.0}])
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # reckons from the groups' present rates
        more = {"zero_allow_untested_optimizer": True, "checkpoint": {"format": layout}}
        return deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config(stage, **more))[0]

    engine = make()
    train(engine, 2)
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.25, 2.5e-3, 0.5] == engine.get_lr()
    engine.save_checkpoint(str(tmp_path))
    losses = train(engine, 2)
    again = make()
    again.load_checkpoint(str(tmp_path))
    assert train(again, 2) == losses and again.get_lr()[:2] == engine.get_lr()[:2] == [0.0625, 6.25e-4]
    assert torch.equal(full_weights(again.module)["norm.weight"], full_weights(make_model())["norm.weight"])
    engine.destroy()
    assert len(engine.basic_optimizer.param_groups) == 3


@pytest.mark.parametrize("layout", ("deepspeed", "native"))
def test_files_that_have_only_groups_with_trained_parameters(layout, tmp_path):
    """Of a scheduler that did not know the others either: older files, and those of DeepSpeed where groups were empty."""
    import deepspeed

    def make(with_frozen: bool, frozen_options: dict | None = None):
        model = make_model()
        frozen, trained = ([p for p in model.parameters() if (p.dim() > 1) == big] for big in (False, True))
        for param in frozen:
            param.requires_grad_(False)
        groups = [{"params": frozen, "lr": 1.0, **(frozen_options or {})}] * with_frozen + [{"params": trained, "lr": 1e-2}]
        return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=config(1, checkpoint={"format": layout}),
                                    lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))[0]

    old, new = make(False), make(True, {"amsgrad": True})
    assert new._stepper.native  # what the frozen group asks for does not matter
    train(old, 2)
    old.save_checkpoint(str(tmp_path))
    new.load_checkpoint(str(tmp_path))
    assert train(new, 2) == train(old, 2) and new.get_lr()[1:] == old.get_lr() == [6.25e-4]
    new.save_checkpoint(str(tmp_path), tag="new")
    with pytest.raises(CheckpointError, match="scheduler has rates of 2 parameter groups, this one of 1|has 2 parameter groups, the optimizer 1"):
        old.load_checkpoint(str(tmp_path), tag="new")


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: torch.optim.Adagrad(p, lr=0.05),
    lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1), lambda p: torch.optim.RMSprop(p, lr=1e-3),
    lambda p: torch.optim.NAdam(p, lr=1e-3)
])
@pytest.mark.parametrize("stage", STAGES)
def test_any_torch_optimizer_trains_as_it_does_alone(make, stage):
    import deepspeed
    plain = make_model()
    optimizer = make([p for p in plain.parameters() if p.requires_grad])
    expected = []
    for step in range(4):
        loss = plain(*batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    engine = deepspeed.initialize(model=make_model(), optimizer=make, config=config(stage, gradient_clipping=0.0,
                                                                                    zero_allow_untested_optimizer=True))[0]
    assert train(engine, 4) == pytest.approx(expected, abs=2e-5)


def body_client_state(name: str, options: dict, stage: int, through_file: bool):
    import deepspeed
    deepspeed.init_distributed()
    plain = make_model()
    optimizer = getattr(torch.optim, name)([p for p in plain.parameters() if p.requires_grad], lr=1e-2, **options)

    def plain_step(step: int) -> float:
        loss = plain(*batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    for step in range(3):
        plain_step(step)
    model = copy.deepcopy(plain)
    given = getattr(torch.optim, name)([p for p in model.parameters() if p.requires_grad], lr=1e-2, **options)
    if through_file:
        given.load_state_dict(optimizer.state_dict())
    else:
        given.state.update({new: copy.deepcopy(optimizer.state[old]) for new, old in zip(given.param_groups[0]["params"],
                                                                                         optimizer.param_groups[0]["params"])})
    engine = deepspeed.initialize(model=model, optimizer=given,
                                  config=config(stage, gradient_clipping=0.0, zero_allow_untested_optimizer=True))[0]
    assert train(engine, 4, first=3) == pytest.approx([plain_step(step) for step in range(3, 7)], abs=2e-5)


CLIENT_STATES = [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {}), ("Adagrad", {"lr_decay": 0.1}), ("NAdam", {})]


@pytest.mark.parametrize("name,options", CLIENT_STATES)
@pytest.mark.parametrize("stage", STAGES)
def test_steps_that_the_clients_optimizer_made_before_count(name, options, stage):
    body_client_state(name, options, stage, through_file=stage % 2 == 0)


@pytest.mark.parametrize("stage,name", [(2, "AdamW"), (3, "NAdam")])
def test_a_state_loaded_into_the_clients_optimizer_is_shared_out(stage, name):
    run_ranks(body_client_state, 2, {"name": name, "options": {}, "stage": stage, "through_file": True})


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.NAdam])
@pytest.mark.parametrize("stage", STAGES)
def test_a_clients_optimizer_is_its_own_again_after_destroy(cls, stage):
    import deepspeed
    model, settings = make_model(), config(stage, gradient_clipping=0.0, zero_allow_untested_optimizer=True)
    optimizer = cls([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    trained = list(optimizer.param_groups[0]["params"])
    for first in (0, 2):
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
        losses = train(engine, 2, first=first)
        engine.destroy()
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], trained, strict=True))
        assert not optimizer.state and not {"step", "zero_grad", "state_dict", "overflow"} & set(vars(optimizer))
    alone = deepspeed.initialize(model=make_model(), optimizer=lambda p: cls(p, lr=1e-2), config=settings)[0]
    train(alone, 2)
    assert losses[0] == pytest.approx(alone(*batch(2)).item(), abs=1e-6)


@pytest.mark.parametrize("stage", (2, 3))
def test_a_client_state_of_another_model_is_refused(stage):
    import deepspeed
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.state[model.up.weight] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter up.weight in AdamW has shape \[3\], expected \[15, 8\]") as problem:
        deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage))
    optimizer.state.clear()
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage))[0]  # while `problem` keeps the first one alive
    train(engine, 2)
    assert engine.get_global_grad_norm() > 0 and problem.value is not None


@pytest.mark.parametrize("name,params", [("Adam", {"lr": 1e-3}), ("AdamW", {"lr": 1e-3, "torch_adam": True}), ("Lion", {"lr": 1e-4}),
                                         ("Adagrad", {"lr": 1e-2}), ("Lamb", {"lr": 1e-3}), ("SGD", {"lr": 1e-2}), ("Muon", {"lr": 1e-3}),
                                         ("RMSprop", {"lr": 1e-3})])
@pytest.mark.parametrize("stage", STAGES)
def test_optimizers_are_made_by_name(name, params, stage):
    engine = engine_for(stage, optimizer={"type": name, "params": params}, gradient_clipping=0.0)
    losses = [train(engine, 1)[0] for _ in range(8)]  # the same batch again and again
    assert losses[-1] < losses[0]


def test_the_client_sees_classes_by_stage_and_precision():
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    bf16 = {"enabled": True}
    assert type(engine_for(0).optimizer) is FusedAdam
    assert type(engine_for(0, bf16=bf16).optimizer) is FP16_Optimizer
    assert type(engine_for(1).optimizer) is DeepSpeedZeroOptimizer
    assert type(engine_for(1, bf16=bf16, data_types={"grad_accum_dtype": "fp32"}).optimizer) is BF16_Optimizer
    assert type(engine_for(2, bf16=bf16).optimizer) is DeepSpeedZeroOptimizer
    assert type(engine_for(3).optimizer) is DeepSpeedZeroOptimizer_Stage3
    offloaded = engine_for(2, zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}})
    assert type(offloaded.optimizer.optimizer) is DeepSpeedCPUAdam


@pytest.mark.parametrize("stage", STAGES)
def test_calling_the_optimizer_directly_steps(stage):
    reference, engine = engine_for(stage), engine_for(stage)
    expected = train(reference, 3)
    losses = []
    for step in range(3):
        loss = engine(*batch(step))
        engine.backward(loss)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == expected


def test_a_subclass_of_the_optimizers_class_made_at_run_time_works():
    engine = engine_for(2)
    inner = engine.optimizer

    class Wrapper:

        def __init__(self, optimizer):
            self.__class__ = type("Wrapped" + type(optimizer).__name__, (self.__class__, type(optimizer)), {})
            self._optimizer = optimizer

        def __getattr__(self, name):
            return getattr(self.__dict__["_optimizer"], name)

    wrapped = Wrapper(inner)
    assert isinstance(wrapped, type(inner)) and wrapped.param_groups is inner.param_groups and len(wrapped.bit16_groups) == 1


def body_options(extra: dict, stage: int, path: str):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    world, rank = dist.get_world_size(), dist.get_rank()
    expected = train_plain(make_model(), 5, world=world)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10, **extra}
    engine = deepspeed.initialize(model=make_model(), config=config(stage, zero_optimization=zero))[0]
    assert train(engine, 5, rank=rank) == pytest.approx([row[rank] for row in expected], abs=1e-5)
    engine.save_checkpoint(path)
    after = train(engine, 2, first=5, rank=rank)
    engine.load_checkpoint(path)
    assert train(engine, 2, first=5, rank=rank) == after


@pytest.mark.parametrize("world,stage,extra", [
    (2, 3, {"mics_shard_size": 1}), (4, 3, {"mics_shard_size": 2}), (4, 3, {"zero_hpz_partition_size": 2}),
    (2, 2, {"offload_optimizer": {"device": "cpu"}}), (2, 3, {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}),
    (2, 2, {"round_robin_gradients": True}), (2, 3, {"sub_group_size": 50}), (2, 2, {"reduce_bucket_size": 100, "overlap_comm": True}),
    (2, 1, {"allgather_bucket_size": 100, "overlap_comm": False}), (2, 3, {"stage3_param_persistence_threshold": 0}),
    (2, 3, {"stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0})
])
def test_options_of_sharding_change_no_result(world, stage, extra, tmp_path):
    run_ranks(body_options, world, {"extra": extra, "stage": stage, "path": str(tmp_path)})


def body_without_shared_memory(extra: dict, stage: int, path: str):
    os.environ["DEEPSCALE_HOST_COMM"] = "0"
    body_options(extra, stage, path)


@pytest.mark.parametrize("world,stage,extra", [(2, 0, {}), (2, 1, {}), (2, 2, {"overlap_comm": True}), (2, 3, {}), (4, 3, {"mics_shard_size": 2}),
                                               (4, 3, {"zero_hpz_partition_size": 2}),
                                               (2, 3, {"stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0})])
def test_the_same_through_a_torch_process_group(world, stage, extra, tmp_path):
    run_ranks(body_without_shared_memory, world, {"extra": extra, "stage": stage, "path": str(tmp_path)})


def body_second_shard():
    os.environ["DEEPSCALE_HOST_COMM"] = "0"
    import deepspeed
    deepspeed.init_distributed()
    moved = {}
    for size in (1, 2):
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0, "zero_hpz_partition_size": size}
        engine = deepspeed.initialize(model=make_model(), config=config(3, zero_optimization=zero))[0]
        train(engine, 1)
        before = engine.communicator.bytes_moved
        train(engine, 1, first=1)
        moved[size] = engine.communicator.bytes_moved - before
    assert moved[2] < moved[1], "backward takes parameters from the node's own shards"


def test_hpz_gathers_inside_the_node_for_backward():
    run_ranks(body_second_shard, 4)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("section,states,bytes_each", [
    ({"bf16": {"enabled": True}}, {}, 12), ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, {}, 8),
    ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}, {}, 4),
    ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, {"fp32_optimizer_states": False}, 4),
    ({"fp16": {"enabled": True, "fp16_master_weights_and_grads": True, "loss_scale": 128}}, {}, 8)
])
def test_sixteen_bit_masters_and_states_save_memory_and_train(stage, section, states, bytes_each):
    def engine_with(section, states):
        zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
        engine = engine_for(stage, zero_optimization=zero, optimizer={"type": "Adam", "params": {"lr": 5e-3, **states}}, **section)
        memory = engine._core.memory_bytes()
        return engine, memory["master"] + memory["optimizer"]

    engine, memory = engine_with(section, states)
    assert memory * 12 == engine_with({"bf16": {"enabled": True}}, {})[1] * bytes_each
    losses = [train(engine, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.isfinite(w).all() for w in full_weights(engine).values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["config", "function"])
def test_torch_schedulers_are_stepped_with_the_optimizer(stage, how, recwarn):
    import deepspeed
    section = {"scheduler": {"type": "StepLR", "params": {"step_size": 2, "gamma": 0.5}}} if how == "config" else {}
    given = None if how == "config" else (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5))
    engine, _, _, scheduler = deepspeed.initialize(model=make_model(), lr_scheduler=given, config=config(stage, **section))
    train(engine, 4)
    assert isinstance(scheduler, torch.optim.lr_scheduler.StepLR) and engine.get_lr() == [pytest.approx(2.5e-3)]
    assert not [w for w in recwarn if "lr_scheduler.step" in str(w.message)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_scheduler_object_of_torch_is_content(stage, recwarn):
    import deepspeed
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config(stage))[0]
    train(engine, 2)
    assert engine.get_lr() == [pytest.approx(2.5e-3)] and not [w for w in recwarn if "optimizer.step" in str(w.message)]


@pytest.mark.parametrize("make", [lambda p: torch.optim.AdamW(p, lr=1e-2), lambda p: torch.optim.NAdam(p, lr=1e-2)])
def test_a_client_keeps_its_state_when_initialize_fails(make):
    import deepspeed
    model = make_model()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    model(*batch(0)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = optimizer.state[model.up.weight]["exp_avg"].clone()
    with pytest.raises(ValueError, match="lr_scheduler"):
        deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=5, config=config(2, zero_allow_untested_optimizer=True))
    deepspeed.initialize(model=model, optimizer=optimizer, config=config(2, zero_allow_untested_optimizer=True))[0].destroy()
    assert torch.equal(optimizer.state[model.up.weight]["exp_avg"], before) and float(optimizer.state[model.up.weight]["step"]) == 1.0
