"""optimizer.params and scheduler.params: what cannot be used is refused with its JSON path."""
from __future__ import annotations

import pytest

from common import single_rank
from models import config, make_model, train


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def initialize(**more):
    import deepspeed
    return deepspeed.initialize(model=make_model(), config=config(1, **more))[0]


@pytest.mark.parametrize("kind,params,match", [
    ("Adam", {"lr": -1}, r"optimizer.params.lr is -1; expected a finite number that is not negative"),
    ("AdamW", {"lr": 1e999}, r"optimizer.params.lr is (inf|None); expected a finite number"),
    ("AdamW", {"lr": None}, r"optimizer.params.lr is None"),
    ("SGD", {"lr": [1e-3]}, r"optimizer.params.lr is \[0.001\]"),
    ("Lion", {"lr": "1e-3"}, r"optimizer.params.lr is '1e-3'"),
    ("Adam", {"betas": [1.0, 0.9]}, r"optimizer.params.betas is \[1.0, 0.9\]; expected two numbers"),
    ("Lamb", {"betas": [0.9, 1.0]}, "optimizer.params.betas"), ("Adam", {"betas": [1.5, 0.9]}, "optimizer.params.betas"),
    ("Adam", {"betas": [0.9]}, "optimizer.params.betas"), ("Muon", {"betas": 0.9}, "optimizer.params.betas is 0.9"),
    ("Adam", {"eps": -1}, "optimizer.params.eps"), ("Adagrad", {"eps": -1}, "optimizer.params.*eps"),
    ("AdamW", {"weight_decay": -0.1}, "optimizer.params.weight_decay"), ("Adam", {"adam_w_mode": "false"}, "optimizer.params.adam_w_mode"),
    ("Adam", {"learning_rate": 1}, r"optimizer.params.learning_rate \(found 1\) is not an option of Adam \(FusedAdam\): did you mean 'lr'\?"),
    ("AdamW", {"lr": 1e-3, "weight_deca": 0}, "did you mean 'weight_decay'"), ("RMSprop", {"alhpa": 0.9}, "did you mean 'alpha'"),
    ("RMSprop", {"alpha": -1}, "optimizer.params .*alpha.* cannot be used by RMSprop")])
def test_optimizer_params_are_refused_by_path(kind, params, match):
    from deepspeed import DeepSpeedConfigError
    with pytest.raises(DeepSpeedConfigError, match=match):
        initialize(optimizer={"type": kind, "params": params})


@pytest.mark.parametrize("kind,params", [
    ("Adam", {"lr": 0, "betas": [0, 0.5], "eps": 0, "bias_correction": 1, "adam_w_mode": False, "fp32_optimizer_states": True}),
    ("AdamW", {"lr": "auto", "betas": "auto", "eps": 1e-8, "weight_decay": "auto"}),
    ("AdamW", {"torch_adam": True, "foreach": False, "lr": 1}), ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    ("Adafactor", {"eps": [None, 1e-3]})])
def test_optimizer_params_that_are_meant_so_are_taken(kind, params):
    train(initialize(optimizer={"type": kind, "params": params}, zero_allow_untested_optimizer=True), 1)


@pytest.mark.parametrize("kind,params,match", [
    ("WarmupDecayLR", {}, "scheduler.params.total_num_steps must be given"),
    ("WarmupDecayLR", {"total_num_steps": "auto"}, "scheduler.params.total_num_steps must be given.*auto"),
    ("WarmupCosineLR", {"total_num_steps": None}, "scheduler.params.total_num_steps is None; expected an integer"),
    ("WarmupLR", {"warmup_steps": 5}, r"scheduler.params.warmup_steps \(found 5\) is not an option of WarmupLR: did you mean 'warmup_num_steps'"),
    ("WarmupLR", {"warmup_max_lr": "0.1"}, "scheduler.params.warmup_max_lr is '0.1'; expected a finite number or a list of numbers or null"),
    ("WarmupLR", {"warmup_num_steps": -3}, "scheduler.params .*warmup_num_steps must be a positive integer"),
    ("OneCycle", {}, "scheduler.params.cycle_min_lr and scheduler.params.cycle_max_lr must be given"),
    ("CosineAnnealingLR", {}, "scheduler.params.T_max must be given"), ("LambdaLR", {}, "scheduler.params.lr_lambda must be given.*Python object"),
    ("StepLR", {"step_size": "x"}, "scheduler.params.step_size is 'x'; expected an integer")])
def test_scheduler_params_are_refused_by_path(kind, params, match):
    from deepspeed import DeepSpeedConfigError
    with pytest.raises(DeepSpeedConfigError, match=match):
        initialize(scheduler={"type": kind, "params": params})


def test_options_that_muon_does_not_have_are_named(monkeypatch):
    from deepspeed.runtime import optimizer_config
    said = []
    monkeypatch.setattr(optimizer_config, "warning_once", said.append)
    initialize(optimizer={"type": "Muon", "params": {"lr": 1e-3, "nesterov": True}})
    assert len(said) == 1 and said[0].startswith("optimizer.params.nesterov (found True) is not an option of Muon")
