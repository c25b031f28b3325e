"""Parameters, gradients and optimizer state in files (offload device "nvme"): the same training as in memory, bit for bit."""
from __future__ import annotations

import os

import pytest
import torch

from common import run_ranks, single_rank
from models import config, full_weights, make_model, train


def _zero(stage: int, folder: object, params: bool, **optimizer: object) -> dict:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10,
            "offload_optimizer": {"device": "nvme", "nvme_path": str(folder), **optimizer}}
    if params:
        zero["offload_param"] = {"device": "nvme", "nvme_path": str(folder), "max_in_cpu": 0}
    return zero


def _engine(zero: dict, model: torch.nn.Module | None = None, **more: object):
    import deepspeed
    return deepspeed.initialize(model=make_model() if model is None else model, config=config(zero["stage"], zero_optimization=zero, **more))[0]


def _same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("more", [{}, {"bf16": {"enabled": True}}, {"gradient_accumulation_steps": 2}], ids=["fp32", "bf16", "accumulation"])
@pytest.mark.parametrize("stage, params", [(1, False), (2, False), (3, False), (3, True)])
def test_training_is_the_same_as_in_memory(stage, params, more, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    reference = _engine({"stage": stage, "stage3_param_persistence_threshold": 10}, **more)
    expected = train(reference, 4), full_weights(reference.module)
    reference.destroy()
    engine = _engine(_zero(stage, tmp_path, params, buffer_count=5), **more)
    assert train(engine, 4) == expected[0]
    _same(full_weights(engine.module), expected[1])
    assert not os.listdir(tmp_path), "the file has no name that could be left behind"


@pytest.mark.parametrize("stage, params", [(2, False), (3, True)])
def test_gradients_of_a_single_rank_leave_memory(stage, params, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = _engine(_zero(stage, tmp_path, params), torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)))
    for _ in range(2):
        engine.backward(engine(torch.ones(1, 256)).sum())
    gradients = 2 * 256 * 256 * 4
    assert engine._core.memory_bytes()["gradients"] < gradients / 8
    engine.step()
    assert engine.file_tier_facts()["optimizer"]["written_bytes"] > gradients


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    """The small normalisation weights share one unit, which is complete only when backward is over: nothing may wait for it."""
    single_rank(monkeypatch)
    width, layers = 512, 64
    parts = [part for _ in range(layers) for part in (torch.nn.LayerNorm(width, bias=False), torch.nn.Linear(width, width, bias=False))]
    engine = _engine({**_zero(3, tmp_path, True), "stage3_param_persistence_threshold": width}, torch.nn.Sequential(*parts))
    for _ in range(2):
        engine.backward(engine(torch.ones(1, width)).sum())
        engine.step()
    facts = engine.file_tier_facts()["optimizer"]
    assert facts["peak_pool_bytes"] < layers * width * width * 4 and facts["beyond_pool_bytes"] == 0


def _ranks_train(stage: int, params: bool, folder: str) -> None:
    reference = _engine({"stage": stage, "stage3_param_persistence_threshold": 10})
    rank = int(os.environ["RANK"])
    expected = train(reference, 3, rank=rank), full_weights(reference.module)
    reference.destroy()
    engine = _engine(_zero(stage, folder, params))
    assert train(engine, 3, rank=rank) == expected[0]
    _same(full_weights(engine.module), expected[1])


@pytest.mark.parametrize("stage, params", [(2, False), (3, True)])
def test_two_ranks_train_as_in_memory(stage, params, tmp_path):
    run_ranks(_ranks_train, 2, {"stage": stage, "params": params, "folder": str(tmp_path)})


@pytest.mark.parametrize("place", ["file", "memory"])
@pytest.mark.parametrize("how", ["in place", "by a new tensor", "not at all", "before an exception", "while gathered by another"])
def test_changes_of_gathered_parameters_are_stored(how, place, tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    zero = _zero(3, tmp_path, True) if place == "file" else {"stage": 3}
    with deepspeed.zero.Init(config_dict_or_path=config(3, zero_optimization=zero)):
        layer = torch.nn.Linear(16, 4)
    with deepspeed.zero.GatheredParameters(list(layer.parameters())):
        before = layer.weight.detach().clone()
    # One rank writes to its memory itself, without a copy: that an exception follows does not undo it.
    unchanged = ("not at all", "before an exception") if place == "file" else ("not at all",)
    expected = before if how in unchanged else before + 1
    outer = deepspeed.zero.GatheredParameters([layer.bias]) if how == "while gathered by another" else None
    if outer is not None:
        outer.__enter__()
    modifier = None if how == "not at all" else 0
    try:
        with deepspeed.zero.GatheredParameters([layer.weight], modifier_rank=modifier):
            if how == "by a new tensor":
                layer.weight.data = layer.weight.data + 1
            else:
                layer.weight.data.add_(1)
            if how == "before an exception":
                raise KeyError
    except KeyError:
        pass
    if outer is not None:
        outer.__exit__(None, None, None)
    assert layer.weight.numel() == 0
    with deepspeed.zero.GatheredParameters(list(layer.parameters())):
        assert torch.equal(layer.weight, expected)


def test_a_model_is_built_in_files_and_gathered_from_them(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    import deepspeed
    whole = make_model()
    settings = config(3, zero_optimization=_zero(3, tmp_path, True))
    torch.manual_seed(1)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        from models import TinyLanguageModel
        model = TinyLanguageModel()
    assert model.up.weight.shape == (0,)
    with deepspeed.zero.GatheredParameters([model.up.weight]):
        assert torch.equal(model.up.weight, whole.up.weight)
    engine = deepspeed.initialize(model=model, config=settings)[0]
    assert train(engine, 3)[-1] < train(engine, 1)[0] * 2


def test_a_checkpoint_goes_from_files_to_memory_and_back(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    swap, saved = tmp_path / "swap", tmp_path / "saved"
    engine = _engine(_zero(3, swap, True))
    train(engine, 2)
    engine.save_checkpoint(str(saved))
    expected = train(engine, 2, first=2)
    for zero in ({"stage": 3, "stage3_param_persistence_threshold": 10}, _zero(3, swap, True)):
        other = _engine(zero)
        other.load_checkpoint(str(saved))
        assert train(other, 2, first=2) == expected
        other.destroy()


def test_state_is_read_and_written_through_the_usual_functions(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_fp32_param
    engine = _engine(_zero(3, tmp_path, True))
    train(engine, 1)
    weight = engine.module.up.weight
    assert safe_get_full_optimizer_state(weight, "exp_avg").abs().sum() > 0
    safe_set_full_fp32_param(weight, torch.ones(weight.ds_shape))
    assert torch.equal(safe_get_full_fp32_param(weight), torch.ones(weight.ds_shape))


def test_a_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="file"):
        _engine(_zero(3, tmp_path / "file" / "below", False))


def test_an_optimizer_that_needs_whole_parameters_is_refused(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    for kind in ("Lamb", "Muon"):
        with pytest.raises(Exception, match="needs whole parameters"):
            _engine(_zero(2, tmp_path, False), optimizer={"type": kind, "params": {"lr": 1e-3}})
