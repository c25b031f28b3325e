"""Gathered parameters where ranks share no memory: what was gathered ahead, kept, or is held, is never out of date."""
from __future__ import annotations

import os

import pytest
import torch

from common import run_ranks, single_rank
from models import batch, config, full_weights, make_model


class Chain(torch.nn.Module):
    """Layers of which one can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor, skipped: int = -1) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            if index != skipped:
                x = torch.tanh(layer(x))
        return x.pow(2).mean()


def gathering_engine(model: torch.nn.Module, optimizer: str = "AdamW", **zero):
    import deepspeed
    settings = {"stage": 3, "stage3_param_persistence_threshold": 0, **zero}
    params = {"lr": 0.05, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.05}
    return deepspeed.initialize(model=model, config=config(3, zero_optimization=settings, optimizer={"type": optimizer, "params": params}))[0]


def inputs(step: int) -> torch.Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(step))


def body_skipped(shared: bool):
    """A layer that was gathered ahead and then left out has new weights in the next iteration."""
    os.environ["DEEPSCALE_HOST_COMM"] = "1" if shared else "0"
    engine = gathering_engine(make_model(cls=Chain), "SGD")
    losses = []
    for step, skipped in enumerate((-1, -1, 2, -1, 2, -1)):
        loss = engine(inputs(step), skipped)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    plain = make_model(cls=Chain)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    expected = []
    for step, skipped in enumerate((-1, -1, 2, -1, 2, -1)):
        loss = plain(inputs(step), skipped)
        loss.backward()
        for param in plain.parameters():
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad  # a skipped layer's gradient counts as zero
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_layer_gathered_ahead_and_left_out_is_not_used_with_old_weights(shared):
    run_ranks(body_skipped, 2, {"shared": shared})


def body_evaluation(path: str):
    os.environ["DEEPSCALE_HOST_COMM"] = "0"
    engine = gathering_engine(make_model(cls=Chain), stage3_max_reuse_distance=0)
    with torch.no_grad():
        start = engine(inputs(0)).item()
    engine.save_checkpoint(path)
    for step in range(3):
        engine.backward(engine(inputs(step)))
        engine.step()
    with torch.no_grad():
        assert engine(inputs(0)).item() != start
        engine(inputs(1))
    engine.load_checkpoint(path)
    with torch.no_grad():
        assert engine(inputs(0)).item() == start


def test_evaluation_after_loading_uses_the_loaded_weights(tmp_path):
    run_ranks(body_evaluation, 2, {"path": str(tmp_path)})


def gathered_layers(model: torch.nn.Module) -> list[int]:
    return [index for index, layer in enumerate(model.layers) if layer.weight.numel() > 0]


def body_kept():
    """What forward keeps for backward is released there; a forward without backward keeps nothing."""
    os.environ["DEEPSCALE_HOST_COMM"] = "0"
    engine = gathering_engine(make_model(cls=Chain), stage3_prefetch_bucket_size=0)
    seen: list[list[int]] = []
    for step in range(3):
        loss = engine(inputs(step))
        handle = engine.module.layers[0].weight.register_hook(lambda grad: seen.append(gathered_layers(engine.module)))
        engine.backward(loss)
        handle.remove()
        engine.step()
    assert seen[-1] == [0], "in backward, layers are released when their gradients are there"
    with torch.no_grad():
        engine(inputs(0))
        engine(inputs(1))
    assert gathered_layers(engine.module) == []


def test_layers_are_released_in_backward_and_after_evaluation():
    run_ranks(body_kept, 2)


def body_held(shared: bool):
    """GatheredParameters around a backward pass: the caller's values survive it."""
    import deepspeed
    os.environ["DEEPSCALE_HOST_COMM"] = "1" if shared else "0"
    engine = gathering_engine(make_model(cls=Chain))
    weight = engine.module.layers[1].weight
    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        engine.backward(engine(inputs(0)))
        assert weight.shape == (16, 16)
        weight.data.fill_(0.25)
    assert torch.equal(full_weights(engine.module)["layers.1.weight"], torch.full((16, 16), 0.25))
    engine.step()
    engine.backward(engine(inputs(1)))
    engine.step()
    assert gathered_layers(engine.module) == []


@pytest.mark.parametrize("shared", [True, False])
def test_a_backward_inside_gathered_parameters_keeps_the_callers_values(shared):
    run_ranks(body_held, 2, {"shared": shared})


class SharedLayer(torch.nn.Module):
    """One layer that several reentrant checkpoints use, registered before the layer that forward uses first."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = torch.nn.Linear(16, 16)
        self.first = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint
        x = self.first(x)
        for _ in range(3):
            x = checkpoint(lambda t: torch.tanh(self.shared(t)), x, use_reentrant=True)
        return x.pow(2).mean()


def body_reentrant(shared: bool):
    os.environ["DEEPSCALE_HOST_COMM"] = "1" if shared else "0"
    import deepspeed
    weights = {}
    for stage in (0, 2, 3):
        settings = {"stage": stage, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 1}
        made = config(stage, zero_optimization=settings, optimizer={"type": "SGD", "params": {"lr": 0.5}})
        engine = deepspeed.initialize(model=make_model(cls=SharedLayer), config=made)[0]
        for step in range(4):
            engine.backward(engine(inputs(step)))
            engine.step()
        weights[stage] = full_weights(engine.module)
    for stage in (2, 3):
        for name, value in weights[0].items():
            torch.testing.assert_close(weights[stage][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_a_layer_in_several_reentrant_checkpoints_gets_its_whole_gradient(shared):
    run_ranks(body_reentrant, 2, {"shared": shared})


def test_an_engine_that_was_dropped_does_not_take_the_next_ones_gradients(monkeypatch):
    import gc
    single_rank(monkeypatch)
    model = make_model(cls=Chain)
    gathering_engine(model).backward  # never stepped, never destroyed
    gc.collect()
    engine = gathering_engine(model)
    losses = []
    for _ in range(3):
        loss = engine(inputs(0))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0] and engine.get_global_grad_norm() > 0


class _Failing:
    """A unit of which one method fails."""

    def __init__(self, unit: object, method: str) -> None:
        self._unit, self._method = unit, method

    def __getattr__(self, name: str):
        if name == self._method:
            raise OSError(f"{name} fails")
        return getattr(self._unit, name)


@pytest.mark.parametrize("method", ["gather", "store_gathered", "write_full"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_unit_that_fails_leaves_no_other_one_gathered(failing, method, tmp_path, monkeypatch):
    import deepspeed
    from deepspeed.runtime.zero.parameter import slot_of
    single_rank(monkeypatch)
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0}}
    with deepspeed.zero.Init(config_dict_or_path=config(3, zero_optimization=zero)):
        layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(2)]
    weights = [layer.weight for layer in layers]
    units = [slot_of(weight).unit for weight in weights]
    outer = deepspeed.zero.GatheredParameters(weights)  # changes of what others hold are copies, which write_full stores
    if method == "write_full":
        for unit in units:
            unit.gather()
    slot_of(weights[failing]).unit = _Failing(units[failing], method)
    with pytest.raises(OSError, match=f"{method} fails"):
        with deepspeed.zero.GatheredParameters(weights, modifier_rank=0):
            for weight in weights:
                weight.data.fill_(3)
    slot_of(weights[failing]).unit = units[failing]
    if method == "write_full":
        for unit in units:
            assert unit.gathered
            unit.release()
    assert not any(unit.gathered for unit in units)
    assert [weight.numel() for weight in weights] == [0, 0]
    with outer:  # neither nested nor out of order
        other = weights[1 - failing]
        assert bool((other == 3).all()) == (method != "gather")


@pytest.mark.parametrize("own_backward", (False, True))
def test_state_dicts_have_no_small_parameters_either_before_the_first_backward(own_backward, tmp_path):
    """Lightning Fabric's tests tell by it that a model was not trained yet."""
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(3))[0]
    module, names = engine.module, [name for name, _ in engine.module.named_parameters()]
    small = [name for name, param in module.named_parameters() if param.ds_persist]
    assert small and len(small) < len(names)
    assert all(module.state_dict()[name].numel() == 0 for name in names)
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        weights = {name: value.clone() for name, value in module.state_dict().items()}
    assert all(weights[name].numel() > 0 for name in names)
    assert all(module.state_dict(keep_vars=True)[name].numel() > 0 for name in small)
    assert all(torch.equal(value, weights[name]) for name, value in engine._zero3_consolidated_16bit_state_dict().items() if name in weights)
    module.load_state_dict(module.state_dict())
    engine.save_checkpoint(tmp_path)
    engine.load_checkpoint(tmp_path)
    loss = engine(*batch(0))
    assert all(module.state_dict()[name].numel() == 0 for name in names)
    loss.backward() if own_backward else engine.backward(loss)
    assert all((module.state_dict()[name].numel() > 0) == (name in small) for name in names)
    assert all(torch.equal(module.state_dict()[name], weights[name]) for name in small)
