"""Bad input: each has a clear error, and nothing hangs or is lost."""
from __future__ import annotations

import ast
import base64
import json
import os
from pathlib import Path

import pytest
import torch

from common import run_ranks, single_rank
from models import batch, config, full_weights, make_model, train


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def initialize(**arguments):
    import deepspeed
    arguments.setdefault("model", make_model())
    return deepspeed.initialize(**arguments)


@pytest.mark.parametrize("bad,match", [
    ({"zero_optimization": {"stage": 4}}, "stage"), ({"zero_optimization": {"stage": "two"}}, "stage"),
    ({"zero_optimization": {"no_such_key": 1}}, "no_such_key"), ({"gradient_clipping": -1}, "gradient_clipping"),
    ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "bf16"), ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu"),
    ({"train_batch_size": 7}, "train_batch_size"), ({"fp16": {"enabled": "perhaps"}}, "fp16"),
    ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -5}}, "reduce_bucket_size")
])
def test_configurations_that_cannot_be_used_name_the_key(bad, match):
    from deepspeed import DeepSpeedConfigError
    for kind in (DeepSpeedConfigError, ValueError, AssertionError):
        with pytest.raises(kind, match=match):
            initialize(config=config(2, **bad))


def test_no_check_goes_with_python_O():
    """Assert statements are not there under `python -O`: what users give is checked by exceptions, of DeepSpeed's class where it asserts."""
    import deepspeed
    found = []
    for path in sorted(Path(deepspeed.__file__).parent.rglob("*.py")):
        found += [f"{path}:{node.lineno}" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert not found, found


def test_no_batch_size_at_all():
    with pytest.raises(AssertionError, match="train_batch_size or train_micro_batch_size_per_gpu"):
        initialize(config={"optimizer": {"type": "Adam", "params": {}}})


def test_configurations_come_in_several_forms(tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig
    text = '{ // comment\n "train_batch_size": 4, # another\n "zero_optimization": {"stage": 2,}, /* and */ "x": "//no comment" }'
    path = tmp_path / "config.json"
    path.write_text(text)
    encoded = base64.urlsafe_b64encode(json.dumps({"train_batch_size": 4}).encode()).decode()
    assert DeepSpeedConfig(str(path))._param_dict["x"] == "//no comment" and DeepSpeedConfig(path).zero_config.stage == 2
    assert DeepSpeedConfig(encoded).train_batch_size == 4 and DeepSpeedConfig({"train_batch_size": 4.0}).train_micro_batch_size_per_gpu == 4
    for wrong in ("/no/such/file.json", 5, None, ["train_batch_size"]):
        with pytest.raises(ValueError):
            DeepSpeedConfig(wrong)
    path.write_text('{"train_batch_size": 4, "train_batch_size": 8}')
    with pytest.raises(ValueError, match="duplicate keys: train_batch_size"):
        DeepSpeedConfig(str(path))


def test_the_users_dictionary_is_kept():
    given = config(1, steps_per_print=float("inf"), zero_optimization=True)
    engine = initialize(config=given)[0]
    assert engine.config is given and engine.zero_optimization_stage() == 1 and engine.steps_per_print() is None


def test_two_configurations_or_none():
    from types import SimpleNamespace
    with pytest.raises(AssertionError, match="Not sure how to proceed"):
        initialize(args=SimpleNamespace(deepspeed_config="x.json", local_rank=0), config=config(0))
    with pytest.raises(AssertionError, match="requires --deepspeed_config"):
        initialize()
    with pytest.raises(AssertionError, match="requires a model"):
        initialize(model=None, config=config(0))


def test_synonyms_of_arguments():
    from types import SimpleNamespace
    model = make_model()
    engine = initialize(model=model, config_params=config(1), parameters=model.up.parameters(), args=SimpleNamespace(device_rank=None))[0]
    assert sum(len(group) for group in engine.optimizer.bit16_groups) == 2


def test_the_local_rank_must_be_this_process():
    from types import SimpleNamespace
    with pytest.raises(AssertionError, match="LOCAL_RANK"):
        initialize(args=SimpleNamespace(local_rank=3), config=config(0))


@pytest.mark.parametrize("stage", (0, 3))
def test_an_optimizer_over_foreign_parameters(stage):
    foreign = torch.optim.AdamW(make_model().parameters())
    with pytest.raises(ValueError, match="does not belong to the model"):
        initialize(optimizer=foreign, config=config(stage))


def test_a_parameter_listed_twice():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model.up.weight]})
    with pytest.raises(AssertionError, match="up.weight occurs multiple times"):
        initialize(model=model, optimizer=optimizer, config=config(1))


def test_nothing_to_train():
    model = make_model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        initialize(model=model, config=config(1))


def test_an_untested_optimizer_needs_permission_under_zero():
    with pytest.raises(AssertionError, match="zero_allow_untested_optimizer"):
        initialize(optimizer=lambda p: torch.optim.RMSprop(p), config=config(2))
    initialize(optimizer=lambda p: torch.optim.RMSprop(p), config=config(0))


def test_offload_wants_its_own_optimizer():
    from deepspeed.runtime.zero.utils import ZeRORuntimeException
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(ZeRORuntimeException, match="zero_force_ds_cpu_optimizer"):
        initialize(optimizer=lambda p: torch.optim.AdamW(p), config=config(2, zero_optimization=zero))
    initialize(optimizer=lambda p: torch.optim.AdamW(p), config=config(2, zero_optimization=zero, zero_force_ds_cpu_optimizer=False))


@pytest.mark.parametrize("optimizer,match", [({"type": "Nope", "params": {}}, "not a supported DeepSpeed Optimizer"),
                                             ({"type": "Adam", "params": {"max_grad_norm": 1.0}}, "gradient_clipping"),
                                             ({"type": "Adam", "params": {"learning": 1.0}}, "learning"),
                                             ({"type": "OneBitAdam", "params": {}}, "not built yet")])
def test_optimizer_sections_that_cannot_be_used(optimizer, match):
    with pytest.raises((AssertionError, ValueError, TypeError, NotImplementedError), match=match):
        initialize(config=config(1, optimizer=optimizer))


def test_a_scheduler_object_needs_its_optimizer():
    other = torch.optim.AdamW(make_model().parameters())
    with pytest.raises(AssertionError, match="Client LR Scheduler"):
        initialize(lr_scheduler=torch.optim.lr_scheduler.ConstantLR(other), config=config(1))
    with pytest.raises(ValueError, match="scheduler.type 'Nope'"):
        initialize(config=config(1, scheduler={"type": "Nope", "params": {}}))


def test_losses_that_are_not_scalar():
    engine = initialize(config=config(1))[0]
    with pytest.raises(AssertionError, match="scalar"):
        engine.backward(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("stage", (0, 2))
def test_a_parameter_resized_behind_our_back_is_named(stage):
    engine = initialize(config=config(stage))[0]
    train(engine, 1)
    loss = engine(*batch(1))
    engine.backward(loss)
    engine.module.up.bias.data = torch.zeros(3)
    with pytest.raises(RuntimeError, match="up.bias"):
        engine.step()


@pytest.mark.parametrize("stage", (0, 2, 3))
def test_a_parameter_replaced_or_added_behind_our_back_is_named(stage):
    engine = initialize(config=config(stage))[0]
    train(engine, 1)
    down, module = engine.module.down, engine.module
    down.weight, before = torch.nn.Parameter(torch.zeros(8, 15)), down.weight
    with pytest.raises(RuntimeError, match=r"parameter down.weight of shape \[8, 15\] was replaced"):
        train(engine, 1)
    down.weight = before
    train(engine, 1)
    module.extra = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="parameter extra.weight of shape .* was added"):
        train(engine, 1)
    module.extra.requires_grad_(False)
    module.down = torch.nn.Sequential(module.down)  # wrapped: the same parameters under other names
    train(engine, 1)


def test_looking_for_replaced_parameters_costs_next_to_nothing():
    import timeit
    from deepspeed.runtime.module_watch import ModuleWatch
    module = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(200)])
    watch = ModuleWatch(module, list(module.named_parameters()))
    assert min(timeit.repeat(watch.check, number=10, repeat=5)) / 10 < 300e-6


@pytest.mark.parametrize("shape", [(3,), (15, 8)])
def test_values_for_a_sharded_parameter_are_not_lost(shape):
    engine = initialize(config=config(3))[0]
    train(engine, 1)
    with pytest.raises(RuntimeError, match=r"parameter up.weight is sharded.*GatheredParameters.*\[15, 8\]"):
        engine.module.up.weight.data = torch.zeros(shape)
    engine.module.to(torch.device("cpu"))
    train(engine, 1)


@pytest.mark.parametrize("stage", (0, 2, 3))
def test_an_engine_that_was_destroyed_says_so(stage, tmp_path):
    engine = initialize(config=config(stage))[0]
    train(engine, 1)
    loss = engine(*batch(1))
    engine.save_checkpoint(tmp_path, tag="last")
    files = sorted(os.listdir(tmp_path / "last"))
    engine.destroy()
    calls = [lambda: engine.save_checkpoint(tmp_path, tag="last"), lambda: engine.load_checkpoint(tmp_path),
             lambda: engine.save_16bit_model(tmp_path), lambda: engine.load_module_state_dict({"module": {}}), engine.zero_grad, engine.step,
             engine.memory_bytes, lambda: engine.backward(loss), lambda: engine.scale(loss)]
    calls += [lambda: engine(*batch(0))] if stage == 3 else []
    for call in calls:
        with pytest.raises(RuntimeError, match=r"engine was destroyed \(engine.destroy\(\) was called\)"):
            call()
    assert sorted(os.listdir(tmp_path / "last")) == files


@pytest.mark.parametrize("stage", (2, 3))
def test_the_optimizer_of_a_destroyed_engine_says_so(stage):
    engine, optimizer, _, _ = initialize(config=config(stage))
    train(engine, 1)
    saved = optimizer.state_dict()
    engine.destroy()
    calls = [optimizer.step, optimizer.zero_grad, optimizer.state_dict, lambda: optimizer.load_state_dict(saved),
             lambda: optimizer.loss_scale, lambda: optimizer.fp32_partitioned_groups_flat]
    for call in calls:
        with pytest.raises(RuntimeError, match="engine was destroyed"):
            call()
    assert len(optimizer.param_groups) == 1 and repr(optimizer)


def test_the_optimizer_of_a_destroyed_engine_has_no_state_left():
    """Lightning moves an optimizer's states to the CPU in its tear-down, when another engine already has the module."""
    engine, optimizer, _, _ = initialize(config=config(2))
    train(engine, 1)
    assert optimizer.state
    initialize(model=engine.module, config=config(0))
    assert optimizer.state == {}


def test_an_engine_whose_module_went_to_another_engine_says_so():
    engine = initialize(config=config(1))[0]
    initialize(model=engine.module, config=config(1))
    with pytest.raises(RuntimeError, match="made another engine over its module"):
        engine.step()


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = make_model()
    with pytest.raises(RuntimeError, match="meta device"):
        initialize(model=model, config=config(1))


def test_features_of_later_are_refused_by_name():
    for section in ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, {"hybrid_engine": {"enabled": True}}):
        with pytest.raises(Exception, match="not built yet"):
            initialize(config=config(3, **section))
    with pytest.raises(NotImplementedError, match=r"mesh_param=\(1, 2\).*use mpu= from UlyssesSPAttentionHF.register_with_transformers"):
        initialize(config=config(1), mesh_param=(1, 2))


def body_a_rank_dies(stage: int):
    import datetime
    import time

    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed(timeout=datetime.timedelta(seconds=10))
    engine = deepspeed.initialize(model=make_model(), config=config(stage))[0]
    train(engine, 1, rank=dist.get_rank())
    loss = engine(*batch(1, dist.get_rank()))
    if dist.get_rank() == 1:
        os._exit(0)  # silently, in the middle of a step
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1"):
        engine.backward(loss)
        engine.step()
    assert time.monotonic() - begin < 40


@pytest.mark.parametrize("stage", (0, 2, 3))
def test_a_rank_that_dies_in_mid_step_ends_the_others(stage):
    run_ranks(body_a_rank_dies, 2, {"stage": stage}, may_leave=(1,))


def test_weights_survive_a_failing_step():
    engine = initialize(config=config(2))[0]
    train(engine, 2)
    before = full_weights(engine.module)
    with pytest.raises(ZeroDivisionError):
        engine.module.down.forward = lambda h: 1 / 0
        engine(*batch(2))
    assert all(torch.equal(v, before[n]) for n, v in full_weights(engine.module).items())


class FailsInBackward(torch.autograd.Function):

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, grad):
        raise ArithmeticError("in backward")


def test_a_backward_that_failed_does_not_hide_a_missing_loss_scale():
    engine = initialize(config=config(2, fp16={"enabled": True, "loss_scale": 128}))[0]
    head = engine.module.embedding.register_forward_hook(lambda _module, _inputs, output: FailsInBackward.apply(output))
    with pytest.raises(ArithmeticError):
        engine.scale(engine(*batch(0))).backward()
    head.remove()
    with pytest.raises(RuntimeError, match="Loss scaling is required"):
        engine(*batch(1)).backward()


@pytest.mark.parametrize("stage", (0, 3))
def test_failures_of_the_users_code_leave_timers_and_counters_usable(stage):

    def failing_schedule(step):
        if step == 2:
            raise ArithmeticError("in the scheduler")
        return 1.0

    engine = initialize(config=config(stage, steps=2, wall_clock_breakdown=True),
                        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, failing_schedule))[0]
    with pytest.raises(TypeError):
        engine("not tokens")
    with pytest.raises(ArithmeticError, match="in backward"):
        engine.backward(FailsInBackward.apply(engine(*batch(0))))
    engine.zero_grad()
    train(engine, 3)
    with pytest.raises(ArithmeticError, match="in the scheduler"):
        train(engine, 1, first=3)
    assert engine.micro_steps == 4 and engine.global_steps == 2 and not engine._in_step
    train(engine, 1, first=4)
    assert engine.micro_steps == 5 and engine.global_steps == 2 and not engine.was_step_applied()


def test_a_scheduler_that_is_none():
    for wrong, found in ((5, "5"), (lambda optimizer: None, "None")):
        with pytest.raises(ValueError, match=f"lr_scheduler must be a scheduler.*found {found} from"):
            initialize(lr_scheduler=wrong, config=config(0))


@pytest.mark.parametrize("stage", (0, 2))
def test_optimizers_that_an_engine_cannot_step(stage):
    with pytest.raises(ValueError, match="returned NoneType; expected a torch.optim.Optimizer"):
        initialize(optimizer=lambda parameters: None, config=config(stage))
    with pytest.raises(ValueError, match="LBFGS evaluates the loss again"):
        initialize(optimizer=torch.optim.LBFGS, config=config(stage, zero_allow_untested_optimizer=True))
    with pytest.raises(ValueError, match="LBFGS evaluates the loss again"):
        initialize(config=config(stage, optimizer={"type": "LBFGS", "params": {}}))


def test_arguments_of_checkpoints(tmp_path):
    engine = initialize(config=config(0))[0]
    with pytest.raises(ValueError, match="client_state must be a dictionary, got str: 'x'"):
        engine.save_checkpoint(tmp_path, client_state="x")
    with pytest.raises(ValueError, match="load_dir must be a non-empty string, got None"):
        engine.load_checkpoint(None)


def test_configurations_that_are_not_json(tmp_path):
    from deepspeed import DeepSpeedConfigError
    path = tmp_path / "config.json"
    path.write_text('{"a":')
    for source, match in (('{"a":', "the text given as configuration is not valid JSON"), (str(path), "config.json is not valid JSON"),
                          (str(tmp_path), "is a directory; expected the path of a JSON file"), (5, "found int"),
                          ({"train_batch_size": object()}, "cannot contain object")):
        with pytest.raises(DeepSpeedConfigError, match=match):
            initialize(config=source)


def test_a_penalty_on_released_parameters_is_explained():
    import deepspeed
    engine = initialize(config=config(3))[0]
    params = [p for p in engine.parameters() if p.requires_grad]
    with pytest.raises(RuntimeError, match="released.*GatheredParameters"):
        engine.backward(engine(*batch(0)) + sum((p**2).sum() for p in params))
    engine.zero_grad()
    with pytest.raises(RuntimeError, match="released.*GatheredParameters"):
        loss = engine(*batch(0))
        with deepspeed.zero.GatheredParameters(params):
            loss = loss + sum((p**2).sum() for p in params)
        engine.backward(loss)
    engine.zero_grad()
    loss = engine(*batch(0))
    with deepspeed.zero.GatheredParameters(params):  # as the message says
        engine.backward(loss + sum((p**2).sum() for p in params))
    plain = make_model()
    (plain(*batch(0)) + sum((p**2).sum() for p in plain.parameters() if p.requires_grad)).backward()
    torch.testing.assert_close(deepspeed.utils.safe_get_full_grad(engine.module.up.weight), plain.up.weight.grad)


@pytest.mark.parametrize("stage", (0, 3))
def test_engines_are_not_copied_or_pickled(stage, tmp_path):
    import copy
    engine = initialize(config=config(stage))[0]
    for attempt in (copy.deepcopy, copy.copy, lambda value: torch.save(value, tmp_path / "engine.pt")):
        with pytest.raises(TypeError, match="save_16bit_model"):
            attempt(engine)
    if stage == 3:
        with pytest.raises(TypeError, match="GatheredParameters"):
            torch.save(engine.module, tmp_path / "module.pt")
