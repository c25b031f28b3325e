"""Which dtype buffers have beside 16-bit weights: [Note: dtype of buffers] in deepspeed/runtime/precision.py."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn

from common import ranks, single_rank
from models import config, make_model, train

STAGES = (0, 1, 2, 3)
MODES = {"bf16": (torch.bfloat16, {"bf16": {"enabled": True}}), "fp16": (torch.float16, {"fp16": {"enabled": True, "initial_scale_power": 4}})}
WIDTH = 8


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


class Positions(nn.Module):
    """Adds a table of positions, which is a buffer, to its input before a layer that takes one dtype only."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("positions", torch.linspace(-1, 1, 5 * WIDTH).view(5, WIDTH), persistent=persistent)
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.norm(x + self.positions)).float().pow(2).mean()


class Rotary(nn.Module):
    """Angles from a table of inverse frequencies, as Transformers makes them. Persistent or not is each model's own habit."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, 64, 2) / 64), persistent=persistent)


class Normalised(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).float().pow(2).mean()


def engine_for(model: nn.Module, stage: int = 0, **more):
    import deepspeed
    return deepspeed.initialize(model=model, config=config(stage, **more))[0]


def steps(engine, x: torch.Tensor, count: int = 3) -> list[float]:
    losses = []
    for _ in range(count):
        loss = engine(x)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_table_of_the_state_dict_goes_with_the_weights(stage, mode):
    dtype, section = MODES[mode]
    engine = engine_for(Positions(), stage, **section)
    losses = steps(engine, torch.ones(2, 5, WIDTH, dtype=dtype))
    assert engine.module.positions.dtype == dtype and losses[-1] < losses[0] and all(map(math.isfinite, losses))


@ranks(2)
def test_also_under_zero_init_on_two_ranks():
    import deepspeed
    sections = {"bf16": {"enabled": True}}
    with deepspeed.zero.Init(config_dict_or_path=config(3, **sections)):
        model = Positions()
    engine = engine_for(model, 3, **sections)
    steps(engine, torch.ones(2, 5, WIDTH, dtype=torch.bfloat16))
    assert engine.module.positions.dtype == torch.bfloat16
    engine.destroy()


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_says_what_stays_keeps_its_tables(mode, persistent):
    model = nn.Module()
    model._keep_in_fp32_modules = None  # what every model of Transformers has
    model.rotary, model.up = Rotary(persistent), nn.Linear(WIDTH, WIDTH)
    wrapped = nn.Sequential(model, nn.Linear(WIDTH, WIDTH))
    expected = model.rotary.inv_freq.clone()
    engine_for(wrapped, **MODES[mode][1])
    assert torch.equal(model.rotary.inv_freq, expected) and model.up.weight.dtype == MODES[mode][0]


@pytest.mark.parametrize("stage", STAGES)
def test_tables_outside_the_state_dict_keep_their_digits(stage):
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), Rotary(persistent=False))
    expected = module[1].inv_freq.clone()
    engine_for(module, stage, bf16={"enabled": True})
    assert torch.equal(module[1].inv_freq, expected)


def test_rotary_tables_of_transformers_keep_their_digits():
    transformers = pytest.importorskip("transformers")
    shape = dict(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_key_value_heads=2))
    # Its table is in the state dictionary.
    esm = transformers.EsmModel(transformers.EsmConfig(**shape, pad_token_id=1, position_embedding_type="rotary"))
    for model in (llama, esm):
        tables = {name: value.clone() for name, value in model.named_buffers() if name.endswith("inv_freq")}
        assert tables and all(value.dtype == torch.float32 for value in tables.values())
        engine_for(model, 2, bf16={"enabled": True})
        assert all(torch.equal(dict(model.named_buffers())[name], value) for name, value in tables.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_keeps_tables_outside_the_state_dict_and_casts_the_rest(dtype):
    import deepspeed
    model = nn.Sequential(Rotary(persistent=False), Positions(), Normalised())
    model[1].register_buffer("routing_bias", torch.linspace(0, 1, 5))
    model._keep_in_fp32_modules = model._keep_in_fp32_modules_strict = ["routing_bias"]
    expected = {name: model.get_buffer(name).clone() for name in ("0.inv_freq", "1.routing_bias")}
    model = deepspeed.init_inference(model, dtype=dtype).module
    assert all(torch.equal(model.get_buffer(name), value) for name, value in expected.items())
    assert model[1].positions.dtype == model[2].norm.running_var.dtype == model[2].conv.weight.dtype == dtype
    with torch.no_grad():
        assert torch.isfinite(model[1](torch.ones(2, 5, WIDTH, dtype=dtype)))
        assert torch.isfinite(model[2](torch.rand(2, 3, 6, 6).to(dtype)))


def test_rotary_tables_of_transformers_keep_their_digits_in_inference():
    transformers = pytest.importorskip("transformers")
    import deepspeed
    shape = transformers.LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(shape)
    expected = model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        deepspeed.init_inference(model, dtype=torch.bfloat16)(torch.arange(8).view(1, 8))
    assert torch.equal(model.model.rotary_emb.inv_freq, expected) and model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_a_batch_norm_go_with_its_weights(mode):
    dtype, section = MODES[mode]
    model = Normalised()
    model._keep_in_fp32_modules = None  # also in a model that cares: torch's kernel takes one dtype for both
    engine = engine_for(model, 1, **section)
    losses = steps(engine, torch.rand(2, 3, 6, 6).to(dtype))
    norm = engine.module.norm
    assert norm.running_mean.dtype == norm.running_var.dtype == dtype and norm.running_mean.abs().max() > 0
    assert norm.num_batches_tracked.item() == 3 and norm.num_batches_tracked.dtype == torch.int64
    assert all(map(math.isfinite, losses))


def test_settings_decide_first():
    half = {"bf16": {"enabled": True}}
    assert engine_for(Positions(), **half, data_types={"buffer_dtype": "fp32"}).module.positions.dtype == torch.float32
    kept = engine_for(nn.Sequential(Positions(), Positions()), **half, data_types={"keep_in_fp32_modules": ["0.positions"]}).module
    assert [part.positions.dtype for part in kept] == [torch.float32, torch.bfloat16]
    everything = engine_for(Positions(persistent=False), **half, data_types={"buffer_dtype": "bf16"}).module
    assert everything.positions.dtype == torch.bfloat16


def test_without_a_16_bit_mode_buffers_stay():
    model = nn.Sequential(Positions(), nn.BatchNorm1d(4))
    model[0].positions, model[1].running_mean = model[0].positions.half(), model[1].running_mean.double()
    engine_for(model)
    assert model[0].positions.dtype == torch.float16 and model[1].running_mean.dtype == torch.float64


def test_what_was_cast_is_said(capfd):
    from deepspeed.utils import logger
    logger.setLevel("INFO")
    try:
        engine_for(nn.Sequential(Positions(), Positions()), bf16={"enabled": True})
    finally:
        logger.setLevel("WARNING")
    out = capfd.readouterr().out
    assert "2 buffers took the weights' dtype, bfloat16; the first is 0.positions" in out


@pytest.mark.parametrize("kept_by", ["writer", "reader"])
@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_checkpoints_come_back_whichever_side_keeps_fp32(layout, kept_by, tmp_path):
    half, keep = {"bf16": {"enabled": True}, "checkpoint": {"format": layout}}, {"data_types": {"buffer_dtype": "fp32"}}
    writer = engine_for(make_model(), 1, **half, **(keep if kept_by == "writer" else {}))
    train(writer, 2)
    writer.save_checkpoint(tmp_path)
    reader = engine_for(make_model(seed=5), 2, **half, **(keep if kept_by == "reader" else {}))
    reader.module.table.fill_(9)
    reader.load_checkpoint(tmp_path)
    assert reader.module.table.dtype == (torch.float32 if kept_by == "reader" else torch.bfloat16)
    assert torch.equal(reader.module.table.bfloat16(), writer.module.table.bfloat16())
    assert train(reader, 2, first=2) == pytest.approx(train(writer, 2, first=2), rel=1e-2)
