"""Optimizer states by parameter: every name that the optimizer has is found, any other is None, on every rank."""
from __future__ import annotations

import pytest
import torch

from common import ranks, single_rank
from models import config, make_model, train

STAGES = (0, 1, 2, 3)


def engine_with(optimizer, stage: int):
    import deepspeed
    model = make_model()
    extra = {"zero_allow_untested_optimizer": True}
    if isinstance(optimizer, dict):
        return deepspeed.initialize(model=model, config=config(stage, optimizer=optimizer, **extra))[0]
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage, **extra))[0]


CASES = [({"type": "Muon", "params": {"lr": 1e-3}}, "up.weight", ["momentum_buffer"]),
         ({"type": "Muon", "params": {"lr": 1e-3}}, "up.bias", ["exp_avg", "exp_avg_sq"]),
         (lambda p: torch.optim.Adagrad(p, lr=1e-2), "up.weight", ["sum"]),
         (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), "up.weight", ["momentum_buffer"]),
         ({"type": "AdamW", "params": {"lr": 1e-3}}, "up.weight", ["exp_avg", "exp_avg_sq"]),
         (lambda p: torch.optim.NAdam(p, lr=1e-2), "up.weight", ["exp_avg", "exp_avg_sq"])]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optimizer,name,keys", CASES)
def test_states_have_the_names_that_their_optimizer_gives_them(optimizer, name, keys, stage, monkeypatch):
    from deepspeed.utils import (safe_get_full_optimizer_state, safe_get_local_optimizer_state, safe_set_full_optimizer_state,
                                 safe_set_local_optimizer_state)
    single_rank(monkeypatch)
    engine = engine_with(optimizer, stage)
    train(engine, 2)
    param = engine.module.get_parameter(name)
    for key in keys:
        full = safe_get_full_optimizer_state(param, key)
        assert full.abs().sum() > 0 and torch.equal(full.flatten(), safe_get_local_optimizer_state(param, key).flatten())
        safe_set_full_optimizer_state(param, torch.full_like(full, 0.5), key)
        assert torch.equal(safe_get_full_optimizer_state(param, key), torch.full_like(full, 0.5))
        safe_set_local_optimizer_state(param, torch.ones(full.numel()), key)
        assert torch.equal(safe_get_full_optimizer_state(param, key), torch.ones_like(full))
    assert safe_get_full_optimizer_state(param, "step").item() == safe_get_local_optimizer_state(param, "step").item() == 2
    for missing in {"no_such_state", "exp_avg", "exp_avg_sq", "sum", "momentum_buffer"} - set(keys):
        assert safe_get_full_optimizer_state(param, missing) is None and safe_get_local_optimizer_state(param, missing) is None
    assert safe_get_full_optimizer_state(engine.module.frozen.weight, keys[0]) is None


@pytest.mark.parametrize("stage", (1, 3))
def test_optimizer_state_shows_the_optimizers_names(stage, monkeypatch):
    single_rank(monkeypatch)
    engine = engine_with(lambda p: torch.optim.Adagrad(p, lr=1e-2), stage)
    train(engine, 1)
    assert set(engine.optimizer.state[engine.module.up.weight]) == {"step", "sum"}


def test_a_state_that_cannot_be_set_is_named(monkeypatch):
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state
    single_rank(monkeypatch)
    engine = engine_with({"type": "AdamW", "params": {}}, 2)
    train(engine, 1)
    bias = engine.module.up.bias
    with pytest.raises(ValueError, match="'sum' of parameter up.bias.*exp_avg, exp_avg_sq"):
        safe_set_full_optimizer_state(bias, torch.ones(15), "sum")
    with pytest.raises(ValueError, match="all parameters together"):
        safe_set_local_optimizer_state(bias, torch.ones(1), "step")


@ranks(2, timeout_s=30)
def test_ranks_without_a_piece_agree_about_states():
    from deepspeed.utils import safe_get_full_optimizer_state
    for optimizer in ({"type": "AdamW", "params": {"lr": 1e-3}}, lambda p: torch.optim.NAdam(p, lr=1e-2)):
        for stage in (1, 3):
            engine = engine_with(optimizer, stage)
            train(engine, 2)
            for param in engine.module.parameters():
                assert safe_get_full_optimizer_state(param, "no_such_state") is None
                state = safe_get_full_optimizer_state(param, "exp_avg")
                step = safe_get_full_optimizer_state(param, "step")
                if not param.requires_grad:
                    assert state is None and step is None
                    continue
                assert torch.isfinite(state).all() and state.abs().sum() > 0 and step.item() == 2
            engine.destroy()


@ranks(2)
def test_a_state_that_is_no_piece_is_refused_on_every_rank():
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    engine = deepspeed.initialize(model=make_model(), config=config(2, zero_allow_untested_optimizer=True),
                                  optimizer=lambda p: torch.optim.Adafactor(p, lr=1e-2))[0]
    train(engine, 1)
    param = engine.module.up.weight  # whole on one rank
    with pytest.raises(ValueError, match="neither of the parameter's shape nor one number"):
        safe_get_full_optimizer_state(param, "row_var")
    assert safe_get_full_fp32_param(param).shape == param.shape
    assert safe_get_full_optimizer_state(param, "step").item() == 1.0


def test_a_state_that_does_not_exist_yet_is_not_made(monkeypatch):
    from deepspeed.utils import safe_set_full_optimizer_state
    single_rank(monkeypatch)
    engine = engine_with(lambda p: torch.optim.NAdam(p, lr=1e-2), 2)
    param = engine.module.up.weight
    with pytest.raises(ValueError, match="no optimizer state 'exp_avg' yet"):
        safe_set_full_optimizer_state(param, torch.zeros(param.shape), "exp_avg")
    train(engine, 1)
