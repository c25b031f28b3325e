"""Forward-only engines: parameters in files, weights in 8 and 4 bits, residency, init_inference."""
from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from common import run_ranks, single_rank

BITS = [4, 8]


class Tower(nn.Module):
    """Embedding, blocks of linear layers, a head tied to the embedding on request."""

    def __init__(self, width: int = 64, layers: int = 3, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width)})
                                    for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        for block in self.blocks:
            h = h + block["down"](F.gelu(block["up"](h)))
        return self.head(self.norm(h))


def _tower(**options) -> Tower:
    torch.manual_seed(3)
    return Tower(**options).eval()


def _ids(rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (rows, 5), generator=torch.Generator().manual_seed(seed))


def _zero(folder: object, **param: object) -> dict:
    return {"stage": 3, "stage3_param_persistence_threshold": 10,
            "offload_param": {"device": "nvme", "nvme_path": str(folder), **param}}


def _config(zero: dict, bits: int | None = None, **more: object) -> dict:
    made = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **more}
    if bits is not None:
        made["weight_quantization"] = {"quantized_initialization": {"num_bits": bits, "group_size": 32, "group_dim": 1, "symmetric": False}}
    return made


def _engine(model: nn.Module, config: dict):
    import deepspeed
    return deepspeed.initialize(model=model, config=config)[0]


@torch.no_grad()
def _outputs(model: nn.Module, passes: int = 4) -> list[torch.Tensor]:
    return [model(_ids(4, seed)) for seed in range(passes)]


@pytest.mark.parametrize("param", [{"max_in_cpu": 0}, {}, {"max_in_cpu": 10000}], ids=["all in files", "what fits stays", "a part stays"])
def test_forward_from_files_is_forward_from_memory(param, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    expected = _outputs(_tower())
    engine = _engine(_tower(), _config(_zero(tmp_path, **param)))
    engine.eval()
    for ours, theirs in zip(_outputs(engine), expected):
        assert torch.equal(ours, theirs)


def _build(config: dict, state: dict, **options) -> nn.Module:
    """A model built under zero.Init and loaded as trainers do."""
    import deepspeed
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Tower(**options)
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False)]
        if own:
            with deepspeed.zero.GatheredParameters(own, modifier_rank=0):
                module._load_from_state_dict(state, f"{name}." if name else "", {}, True, [], [], [])
    return model.eval()


@pytest.mark.parametrize("bits", BITS)
def test_quantized_initialization_gives_the_dequantised_model(bits, tmp_path, monkeypatch):
    from deepspeed.inference.quantization.layers import QuantizedEmbedding, QuantizedLinear
    single_rank(monkeypatch)
    reference = _tower()
    config = _config(_zero(tmp_path, max_in_cpu=0), bits)
    engine = _engine(_build(config, reference.state_dict()), config)
    engine.eval()
    assert type(engine.module.head) is QuantizedLinear and type(engine.module.embed) is QuantizedEmbedding
    _dequantise_in_place(reference, bits)
    for ours, theirs in zip(_outputs(engine), _outputs(reference)):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def _dequantise_in_place(model: nn.Module, bits: int) -> None:
    """What the published formula makes of every Linear and Embedding weight."""
    from deepspeed.inference.quantization.utils import DeQuantizer, Quantizer
    options = {"num_bits": bits, "group_size": 32, "group_dim": 1, "symmetric": False}
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            layer.weight.copy_(DeQuantizer(options, layer.weight.dtype).dequantize(*Quantizer(options).quantize(layer.weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_packed_weights_have_the_bits_of_the_formula(bits, dtype):
    from deepspeed import _C
    from deepspeed.inference.quantization.utils import DeQuantizer, Quantizer, unpack_with_torch
    options = {"num_bits": bits, "group_size": 16, "group_dim": 1, "symmetric": False}
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    shape = _C.PackedShape(24, 64, bits, 16)
    packed = _C.pack_weight(weight, shape)
    values, scale, low = Quantizer(options).quantize(weight)
    concatenated = torch.cat([values.flatten(), scale.flatten().view(torch.uint8), low.flatten().view(torch.uint8)])
    assert torch.equal(packed.view(torch.uint8), concatenated)
    expected = DeQuantizer(options, dtype).dequantize(values, scale, low)
    assert torch.equal(_C.unpack_weight(packed, shape), expected)
    assert torch.equal(unpack_with_torch(packed, shape), expected)


def test_symmetric_packing_agrees_on_every_device():
    from deepspeed import _C
    from deepspeed.inference.quantization.utils import unpack_with_torch
    shape = _C.PackedShape(8, 32, 4, 32, True)
    packed = _C.pack_weight(torch.randn(8, 32), shape)
    assert torch.equal(unpack_with_torch(packed, shape), _C.unpack_weight(packed, shape))


@pytest.mark.parametrize("group_dim", [0, 1])
def test_post_init_quant_quantises_the_named_layers(group_dim, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    from deepspeed.inference.quantization.layers import QuantizedLinear
    expected = _outputs(_tower())
    rules = {"up": {"num_bits": 8, "group_size": 32, "group_dim": group_dim}, "embed": {"num_bits": 8, "group_size": 32}}
    engine = _engine(_tower(), {"train_micro_batch_size_per_gpu": 1, "zero_optimization": _zero(tmp_path, max_in_cpu=0),
                                "weight_quantization": {"post_init_quant": rules}})
    engine.eval()
    kinds = [type(block["up"]) is QuantizedLinear and type(block["down"]) is not QuantizedLinear for block in engine.module.blocks]
    assert all(kinds)
    for ours, theirs in zip(_outputs(engine), expected):
        assert torch.allclose(ours, theirs, atol=0.05) and not torch.equal(ours, theirs)


def test_names_that_choose_nothing_are_said_once(tmp_path, monkeypatch, capsys):
    single_rank(monkeypatch)
    rules = {"up": {"num_bits": 8, "group_size": 32}, "mpl": {"num_bits": 8}, "norm": {"num_bits": 4}}
    _engine(_tower(), {"train_micro_batch_size_per_gpu": 1, "weight_quantization": {"post_init_quant": rules}})
    said = [line for line in capsys.readouterr().out.splitlines() if "post_init_quant" in line and "[WARNING]" in line]
    assert len(said) == 1
    assert 'weight_quantization.post_init_quant: "mpl", "norm" changes nothing' in said[0]
    assert said[0].endswith("Those of this model: embed, blocks.0.up, blocks.0.down, head")


def test_a_model_without_layers_to_quantise_says_so(tmp_path, monkeypatch, capsys):
    single_rank(monkeypatch)
    import deepspeed
    with deepspeed.zero.Init(config_dict_or_path=_config({"stage": 3}, 8)):
        nn.Sequential(nn.Conv1d(4, 4, 3), nn.LayerNorm(4))
    said = capsys.readouterr().out
    assert "quantized_initialization changes nothing" in said and "Conv1d" in said
    with deepspeed.zero.Init(config_dict_or_path=_config({"stage": 3}, 8)):
        nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    assert "quantized_initialization" not in capsys.readouterr().out


def _whole_numel(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters() if param.numel() > 10)


def _quantise_in_files(folder: str, threshold: int) -> None:
    """A model in files is quantised with one module at a time in memory, stays there, is what its plan says, and computes what a model
    that was quantised in memory does."""
    import deepspeed
    from deepspeed.inference.quantization import _init_group_wise_weight_quantization, quantization
    from deepspeed.runtime import engine_build
    from deepspeed.runtime.zero.parameter import slot_of
    rules = {"up": {"num_bits": 8, "group_size": 32}, "embed": {"num_bits": 4, "group_size": 32}, "down": {"num_bits": 8, "group_size": 32},
             "head": {"num_bits": 8, "group_size": 32}}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": _zero(folder, max_in_cpu=0),
              "weight_quantization": {"post_init_quant": rules}}
    config["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
    plain = _tower(layers=12)
    largest = max(sum(param.numel() for param in part.parameters(recurse=False)) for part in plain.modules())
    quantised = _init_group_wise_weight_quantization(_tower(layers=12), {"weight_quantization": {"post_init_quant": rules}})
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = _tower(layers=12)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0):
        for ours, theirs in zip(model.parameters(), plain.parameters()):
            ours.data.copy_(theirs)
    seen = []
    quantize_layer, shard = quantization.quantize_layer, engine_build.shard
    quantization.quantize_layer = lambda *arguments: (seen.append(_whole_numel(model)), quantize_layer(*arguments))[1]
    engine_build.shard = lambda *arguments: (seen.append(_whole_numel(model)), shard(*arguments))[1]
    try:
        engine = _engine(model, config).eval()
    finally:
        quantization.quantize_layer, engine_build.shard = quantize_layer, shard
    small = sum(param.numel() for param in plain.parameters() if param.numel() <= threshold)
    assert len(seen) >= 25 and max(seen) <= largest + small
    units = {id(slot.unit): slot.unit for param in model.parameters() if (slot := slot_of(param)).unit is not None}
    assert all(unit.in_file for unit in units.values())
    assert all(slot_of(block["up"].weight).unit is not None for block in model.blocks)
    rows = {(row["state"], row["place"]): row["bytes"] for row in engine.memory_plan()["rows"]}
    pages = sum(-(-unit.shard(0).nbytes // 4096) for unit in units.values())
    assert rows["parameters", "file"] <= 4096 * (pages + len(units))
    held = sum(slot.unit.shard(slot.index).nbytes for param in model.parameters() if (slot := slot_of(param)).unit is not None)
    assert rows["parameters", "file"] >= held > 0
    with torch.no_grad():
        assert torch.equal(engine(_ids()), quantised(_ids()))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("threshold", [10, 200])
def test_a_model_in_files_is_quantised_module_by_module(world, threshold, tmp_path):
    run_ranks(_quantise_in_files, world, {"folder": str(tmp_path), "threshold": threshold})


def test_post_init_quant_contradicts_training(monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    config = {"train_micro_batch_size_per_gpu": 1, "weight_quantization": {"post_init_quant": {"up": {"num_bits": 8}}},
              "optimizer": {"type": "AdamW"}}
    with pytest.raises(deepspeed.DeepSpeedConfigError, match="post_init_quant is for inference"):
        deepspeed.initialize(model=_tower(), config=config)


def test_shared_weights_stay_shared(monkeypatch):
    from deepspeed.inference.quantization import _init_group_wise_weight_quantization
    model = _tower(tied=True)
    expected = model(_ids())
    rules = {"head": {"num_bits": 8, "group_size": 32}, "embed": {"num_bits": 8, "group_size": 32}}
    _init_group_wise_weight_quantization(model, {"weight_quantization": {"post_init_quant": rules}})
    assert model.head.weight is model.embed.weight
    assert torch.allclose(model(_ids()), expected, atol=0.3)


def test_a_shared_weight_that_one_rule_misses_stays_for_the_layer_that_reads_it(tmp_path, monkeypatch):
    import deepspeed
    from deepspeed.inference.quantization import _init_group_wise_weight_quantization
    rules = {"head": {"num_bits": 8, "group_size": 32}}
    model = _tower(tied=True)
    before = model.embed.weight.clone()
    _init_group_wise_weight_quantization(model, {"weight_quantization": {"post_init_quant": rules}})
    assert torch.equal(model.embed.weight, before) and model.head.weight is not model.embed.weight
    single_rank(monkeypatch)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": _zero(tmp_path, max_in_cpu=0),
              "weight_quantization": {"post_init_quant": rules}}
    with deepspeed.zero.Init(config_dict_or_path=config):
        sharded = _tower(tied=True)
    with deepspeed.zero.GatheredParameters(list(sharded.parameters()), modifier_rank=0):
        for ours, theirs in zip(sharded.parameters(), _tower(tied=True).parameters()):
            ours.data.copy_(theirs)
    engine = _engine(sharded, config).eval()
    with torch.no_grad():
        assert torch.allclose(engine(_ids()), model(_ids()), atol=1e-5)


def test_a_name_that_matches_two_rules_is_refused():
    from deepspeed.inference.quantization import _init_group_wise_weight_quantization
    rules = {"blocks": {"num_bits": 8}, "up": {"num_bits": 8}}
    with pytest.raises(AssertionError, match="matched multiple quantization key word"):
        _init_group_wise_weight_quantization(_tower(), {"weight_quantization": {"post_init_quant": rules}})


def test_a_cast_of_a_quantised_layer_converts_what_its_bytes_mean():
    from deepspeed.inference.quantization.layers import QuantizedLinear
    layer = QuantizedLinear({"num_bits": 8, "group_size": 32}, nn.Linear(64, 32))
    before = layer.dequantized_weight()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.allclose(layer.dequantized_weight().float(), before, atol=0.01)


def test_gradients_of_the_input_pass_through_quantised_layers():
    from deepspeed.inference.quantization.layers import QuantizedLinear
    layer = QuantizedLinear({"num_bits": 8, "group_size": 32}, nn.Linear(64, 32))
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantized_weight().sum(0).expand(3, -1))


def test_files_shrink_with_the_bits(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    state = _tower().state_dict()
    sizes = {}
    for bits in (None, 8, 4):
        config = _config(_zero(tmp_path, max_in_cpu=0), bits)
        model = _build(config, state)
        sizes[bits] = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    assert sizes[4] < sizes[8] * 0.65 and sizes[8] < sizes[None] * 0.4


def _fill_with_threes(tensor: torch.Tensor, *_args, **_kwargs) -> torch.Tensor:
    return tensor.data.fill_(3.0)


@pytest.mark.parametrize("bits", [None, 8])
def test_weights_that_nobody_initialised_are_not_kept(bits, tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    config = _config(_zero(tmp_path, max_in_cpu=0), bits)
    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda *args, **kwargs: None)
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Tower()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        assert not model.head.weight.any() and not model.embed.weight.any()
        assert (model.norm.weight == 1).all()  # set by no initialiser of torch


def test_initialisers_of_others_are_respected(tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, _fill_with_threes)
    with deepspeed.zero.Init(config_dict_or_path=_config(_zero(tmp_path, max_in_cpu=0))):
        model = Tower()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        assert (model.head.weight == 3).all() and (model.embed.weight == 3).all() and (model.blocks[0]["up"].bias == 3).all()


def test_an_engine_is_made_without_reading_the_files(tmp_path, monkeypatch):
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters
    single_rank(monkeypatch)
    config = _config(_zero(tmp_path, max_in_cpu=0))
    context = partition_parameters.Init(config_dict_or_path=config)
    with context:
        model = Tower(width=512)
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        pass  # waits for what is still being written
    before = context._file_tier.facts()["read_bytes"]
    _engine(model, config)
    assert context._file_tier.facts()["read_bytes"] - before < 10000, "small persistent parameters only"


# ---- init_inference
def test_init_inference_with_zero_is_the_model(tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    expected = _outputs(_tower())
    engine = deepspeed.init_inference(_tower(), dtype=torch.float32, zero=_zero(tmp_path, max_in_cpu=0))
    for ours, theirs in zip(_outputs(engine), expected):
        assert torch.equal(ours, theirs)
    assert not os.listdir(tmp_path)
    engine.destroy()


def test_init_inference_quantises(tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    expected = _outputs(_tower())
    quant = {"weight": {"post_init_quant": {"blocks": {"num_bits": 8, "group_size": 32}}}}
    for settings in ({}, {"zero": _zero(tmp_path, max_in_cpu=0)}):
        engine = deepspeed.init_inference(_tower(), {"dtype": "fp32", "quant": quant, **settings})
        for ours, theirs in zip(_outputs(engine), expected):
            assert torch.allclose(ours, theirs, atol=0.05) and not torch.equal(ours, theirs)


def test_init_inference_names_what_is_wrong():
    import deepspeed
    with pytest.raises(ValueError, match="dtype is 'fp32' in the configuration and 'fp16' as a keyword"):
        deepspeed.init_inference(_tower(), {"dtype": "fp32"}, dtype="fp16")
    with pytest.raises(deepspeed.DeepSpeedConfigError, match="inference.dtype"):
        deepspeed.init_inference(_tower(), dtype="fp7")
    with pytest.raises(NotImplementedError, match="8 bits"):
        deepspeed.init_inference(_tower(), dtype=torch.int8)
    assert deepspeed.default_inference_config()["max_out_tokens"] == 1024


def test_model_times_are_measured(monkeypatch):
    import deepspeed
    engine = deepspeed.init_inference(_tower(), dtype="fp32")
    engine.profile_model_time()
    engine(_ids())
    engine(_ids())
    assert len(engine.model_times()) == 2 and engine.model_times() == []


# ---- ranks
def _ranks_run(folder: str, bits: int | None) -> None:
    reference = _tower()
    config = _config(_zero(folder, max_in_cpu=0), bits)
    engine = _engine(_build(config, reference.state_dict()), config)
    engine.eval()
    if bits is not None:
        _dequantise_in_place(reference, bits)
    for ours, theirs in zip(_outputs(engine), _outputs(reference)):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [None, 4])
def test_two_ranks_share_the_files(bits, tmp_path):
    run_ranks(_ranks_run, 2, {"folder": str(tmp_path), "bits": bits})


def test_quantised_layers_can_be_copied_and_pickled():
    import copy
    import pickle
    from deepspeed._C import PackedShape
    shape = PackedShape(8, 64, 4, 32, True)
    for other in (copy.deepcopy(shape), pickle.loads(pickle.dumps(shape))):
        assert (other.rows, other.cols, other.bits, other.group_size, other.symmetric) == (8, 64, 4, 32, True)


@pytest.mark.parametrize("place", ["plain", "cpu", "nvme"])
def test_a_checkpoint_is_loaded_whatever_holds_the_weights(place, tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    expected = model(torch.ones(2, 64))
    other = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    zero = {"stage": 3, "offload_param": {"device": place, "nvme_path": str(tmp_path), "max_in_cpu": 0}}
    options = {} if place == "plain" else {"zero": zero}
    engine = deepspeed.init_inference(other, dtype=torch.float32, checkpoint=str(tmp_path / "weights.pt"), **options)
    with torch.no_grad():
        torch.testing.assert_close(engine(torch.ones(2, 64)), expected)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:500])
    with pytest.raises(Exception, match="cut.pt"):
        deepspeed.init_inference(nn.Linear(2, 2), checkpoint=str(tmp_path / "cut.pt"))
    with pytest.raises(Exception, match="missing"):
        deepspeed.init_inference(nn.Sequential(nn.Linear(64, 64), nn.Linear(9, 9)), checkpoint=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("rows", [4, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_dtypes_of_products_do_not_depend_on_their_rows(rows, bias):
    from deepspeed.inference.decode import stream_linears
    from deepspeed.inference.quantization.layers import QuantizedLinear
    x = torch.randn(rows, 64)
    plain = nn.Sequential(nn.Linear(64, 32, bias=bias))
    quantised = QuantizedLinear({"num_bits": 8, "group_size": 32}, copy.deepcopy(plain[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = plain(x)
        stream_linears(plain)
        assert expected.dtype == torch.bfloat16 and torch.equal(plain(x), expected)
        assert quantised(x).dtype == torch.bfloat16 and torch.allclose(quantised(x), expected, atol=0.1)
    with torch.no_grad():
        low = QuantizedLinear({"num_bits": 8, "group_size": 32}, nn.Linear(64, 32, bias=bias, dtype=torch.bfloat16))
        assert low(x).dtype == torch.float32
    assert low(x.requires_grad_()).dtype == torch.float32
