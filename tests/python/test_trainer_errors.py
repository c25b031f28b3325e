"""What trainers and their users hand to initialize() by mistake: messages name the key or the object, and the remedy."""
from __future__ import annotations

import logging

import pytest
import torch

from common import single_rank
from models import batch, config, full_weights, make_model, train


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


@pytest.fixture
def warnings_of(monkeypatch):
    """Texts of our logger's warnings, also of those that other tests have seen, which are logged once."""
    from deepspeed.utils import logger, logging as deepspeed_logging
    monkeypatch.setattr(deepspeed_logging, "_printed_once", set())
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def initialize(**arguments):
    import deepspeed
    arguments.setdefault("model", make_model())
    return deepspeed.initialize(**arguments)


def without(*keys: str, stage: int = 2, **more) -> dict:
    return {key: value for key, value in config(stage, **more).items() if key not in keys}


@pytest.mark.parametrize("section", ["train_micro_batch_size_per_gpu", "scheduler"])
def test_an_auto_that_nothing_replaced(section):
    from deepspeed import DeepSpeedConfigError
    bad = {"train_micro_batch_size_per_gpu": "auto"} if section != "scheduler" else \
        {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}}
    key = "train_micro_batch_size_per_gpu" if section != "scheduler" else "scheduler.params.total_num_steps"
    with pytest.raises(DeepSpeedConfigError, match=f'(?s){key}.*"auto"'):
        initialize(config=config(2, **bad))


def test_an_auto_with_a_default_is_named_and_has_it(warnings_of):
    engine = initialize(config=config(2, optimizer={"type": "AdamW", "params": {"lr": "auto"}}, gradient_clipping="auto"))[0]
    assert engine.optimizer.param_groups[0]["lr"] == 1e-3 and engine.gradient_clipping() == 1.0
    for key in ("optimizer.params.lr", "gradient_clipping"):
        assert any(text.startswith(f'{key}: is still "auto"') for text in warnings_of), warnings_of


@pytest.mark.parametrize("stage", (0, 1, 2))
def test_a_model_of_zero_init_at_a_lower_stage(stage, warnings_of):
    """It trains, whole, and says what happened."""
    import deepspeed
    with deepspeed.zero.Init(config_dict_or_path=config(3)):
        model = make_model()
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad], lr=1e-2, weight_decay=0.1)
    engine = initialize(model=model, optimizer=optimizer, config=without("optimizer", stage=stage))[0]
    said = [text for text in warnings_of if "zero_optimization.stage is" in text]
    assert len(said) == 1 and f"stage is {stage}" in said[0] and "10 parameters are sharded (scale is" in said[0]
    assert "to 3" in said[0] and "outside zero.Init" in said[0]
    losses = train(engine, 3)
    plain = make_model()
    whole = initialize(model=plain, config=config(stage))[0]
    assert losses == train(whole, 3) and len([text for text in warnings_of if "zero_optimization.stage is" in text]) == 1
    assert all(param.numel() == param.ds_numel for param in model.parameters()) and full_weights(model)


class DummyOptim:
    """By this name Accelerate has a stand-in for the configuration's optimizer."""

    def __init__(self, params):
        self.params = params


class DummyScheduler:
    """The same for the schedule."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_stand_ins_for_sections_that_are_not_there():
    model = make_model()
    with pytest.raises(AssertionError, match="add `optimizer` with `type` and `params`"):
        initialize(model=model, optimizer=DummyOptim(model.parameters()), config=without("optimizer"))
    with pytest.raises(AssertionError, match="leave it out here"):
        initialize(model=model, optimizer=DummyOptim(model.parameters()), config=config(2))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="section `scheduler`: add it"):
        initialize(model=model, optimizer=optimizer, lr_scheduler=DummyScheduler(optimizer), config=without("optimizer"))


def test_the_optimizer_of_another_engine():
    first = initialize(config=config(2))[1]
    with pytest.raises(AssertionError, match="earlier deepspeed.initialize.*new torch.optim.Optimizer"):
        initialize(optimizer=first, config=config(3))


def test_an_engine_is_no_model():
    engine = initialize(config=config(2))[0]
    with pytest.raises(ValueError, match="engine already .ZeRO stage 2.*engine.module"):
        initialize(model=engine, config=config(3))
    assert train(engine, 1), "the engine that was given still works"


@pytest.mark.parametrize("stage", (0, 3))
def test_training_without_an_optimizer_says_where_one_comes_from(stage):
    engine = initialize(config=without("optimizer", stage=stage))[0]
    loss = engine(*batch(0))
    for use in (lambda: engine.backward(loss), lambda: engine.step(), lambda: engine.scale(loss)):
        with pytest.raises(AssertionError, match="must provide optimizer during init.*section `optimizer`"):
            use()


@pytest.mark.parametrize("section,argument", [("optimizer", "optimizer="), ("scheduler", "lr_scheduler=")])
@pytest.mark.parametrize("kind", [{}, {"type": "auto"}, {"type": None}])
def test_a_section_without_a_type(kind, section, argument):
    from deepspeed import DeepSpeedConfigError
    params = {"lr": 1e-3} if section == "optimizer" else {"warmup_num_steps": 2}
    with pytest.raises(DeepSpeedConfigError, match=f"{section}.type is .*{argument}"):
        initialize(config=config(2, **{section: {**kind, "params": params}}))
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config(2, **{section: {**kind, "params": params}}))
