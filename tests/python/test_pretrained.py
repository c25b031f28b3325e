"""Weights alone in Hugging Face's files: written by an engine, read into engines of any stage and into init_inference()."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

from common import run_ranks, single_rank
from models import config, full_weights, make_model, train

safetensors_torch = pytest.importorskip("safetensors.torch")


def built(stage: int, seed: int = 1, **more: Any) -> Any:
    import deepspeed
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10, "stage3_gather_16bit_weights_on_model_save": True}
    return deepspeed.initialize(model=make_model(seed), config=config(stage, zero_optimization=zero, **more))[0]


def body_round_trip(folder: str) -> None:
    import deepspeed
    deepspeed.init_distributed()
    for stage in (0, 2, 3):
        for name, limit in (("model.safetensors", None), ("model.safetensors", "1KB"), ("pytorch_model.bin", None)):
            engine = built(stage, bf16={"enabled": True})
            train(engine, 2)
            place = os.path.join(folder, f"{stage}_{name}_{limit}")
            assert engine.save_16bit_model(place, name, max_shard_size=limit)
            weights = full_weights(engine.module)
            files = sorted(os.listdir(place))
            assert files == [name] if limit is None else f"{name}.index.json" in files and len(files) > 2, files
            assert not [file for file in files if file.endswith(".partial")]
            for target in (0, 3):
                other = built(target, seed=2, bf16={"enabled": True})
                other.load_16bit_model(place)
                for key, value in full_weights(other.module).items():
                    assert torch.equal(value, weights[key]), (stage, name, target, key)
                master = deepspeed.utils.safe_get_full_fp32_param(other.module.up.weight)
                assert torch.equal(master, weights["up.weight"].float())


def test_weights_go_out_and_in_under_any_stage_on_two_ranks(tmp_path):
    run_ranks(body_round_trip, 2, {"folder": str(tmp_path)})


def test_other_programs_read_the_files(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(3)
    engine.save_16bit_model(tmp_path, "model.safetensors", exclude_frozen_parameters=True)
    state = safetensors_torch.load_file(tmp_path / "model.safetensors")
    expected = {name: value for name, value in make_model().state_dict().items() if not name.startswith("frozen") and name != "head.weight"}
    assert set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="name it model.safetensors"):
        engine.save_16bit_model(tmp_path, max_shard_size="1GB")


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A folder as save_pretrained() makes it, in several parts, with a tied head."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "llama", max_shard_size="10KB")
    assert (tmp_path / "llama" / "model.safetensors.index.json").exists()
    return tmp_path / "llama", model


def fresh_llama(folder: Path) -> nn.Module:
    import transformers
    torch.manual_seed(5)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(folder))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_directory_of_transformers_is_read_into_an_engine(stage, pretrained, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    folder, model = pretrained
    engine = deepspeed.initialize(model=fresh_llama(folder), config=config(stage))[0]
    engine.load_16bit_model(folder)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(engine.module).items())


@pytest.mark.parametrize("options", [{}, {"zero": {"stage": 3}}])
@pytest.mark.parametrize("what", ["folder", "index", "file"])
def test_a_directory_of_transformers_is_read_by_init_inference(options, what, pretrained, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    folder, model = pretrained
    if what == "file":
        model.save_pretrained(folder / "one")
        folder = folder / "one"
    path = {"folder": folder, "index": folder / "model.safetensors.index.json", "file": folder / "model.safetensors"}[what]
    engine = deepspeed.init_inference(fresh_llama(folder), dtype=torch.float32, checkpoint=str(path), **options)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.allclose(engine(tokens).logits, model.eval()(tokens).logits, atol=1e-6)


def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path, monkeypatch):
    from deepspeed._C import CheckpointError
    single_rank(monkeypatch)
    engine = built(3)
    before = full_weights(engine.module)
    engine.save_16bit_model(tmp_path / "good", "model.safetensors", max_shard_size="1KB")
    index = json.loads((tmp_path / "good" / "model.safetensors.index.json").read_text())
    part = index["weight_map"]["up.weight"]

    def refused(path: Path, said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            engine.load_16bit_model(path)
        assert all(torch.equal(value, before[name]) for name, value in full_weights(engine.module).items())

    def with_index(name: str, value: Any) -> Path:
        changed = {"weight_map": {**index["weight_map"], name: value}}
        path = tmp_path / "good" / "other.safetensors.index.json"
        path.write_text(json.dumps(changed))
        return path
    refused(tmp_path, "holds no weights: expected one of model.safetensors")
    refused(tmp_path / "nothing.bin", "nothing.bin does not exist")
    refused(tmp_path / "good" / "weights", "file that ends with .safetensors")
    for escape in ("../good/model.safetensors", "/etc/passwd", "", "..", "a\\b", "other.safetensors.index.json"):
        refused(with_index("up.weight", escape), "is not the name of a file beside the index")
    refused(with_index("up.weight", "gone.safetensors"), "gone.safetensors does not exist")
    refused(with_index("extra", part), "says that 'extra' is in")
    for text in ("", "[]", '{"weight_map": []}', '{"weight_map": 3}', "[" * 100000, "\x00"):
        (tmp_path / "broken.index.json").write_text(text)
        refused(tmp_path / "broken.index.json", "is no index of weights")
    safetensors_torch.save_file({"up.weight": torch.zeros(3, 3)}, tmp_path / "small.safetensors")
    refused(tmp_path / "small.safetensors", r"up.weight: \[3, 3\] in the file, \[15, 8\] in the model")
    safetensors_torch.save_file({"up.weight": torch.zeros(15, 8), "more": torch.zeros(1)}, tmp_path / "few.safetensors")
    refused(tmp_path / "few.safetensors", "missing .*embedding.weight.*unexpected .*more.*strict=False")
    (tmp_path / "good" / part).write_bytes((tmp_path / "good" / part).read_bytes()[:-5])
    refused(tmp_path / "good", "is damaged, or no safetensors file")
    engine.load_16bit_model(tmp_path / "few.safetensors", strict=False)
    after = full_weights(engine.module)
    assert after.pop("up.weight").abs().sum() == 0 and all(torch.equal(value, before[name]) for name, value in after.items())
