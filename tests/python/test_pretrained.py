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


SETS = [("model.safetensors", None), ("model.safetensors", "1KB"), ("model.safetensors", "2KB"), ("pytorch_model.bin", None)]
FOREIGN = ["config.json", "adapter_model.safetensors", "model.onnx", "model-best.safetensors", "modelx-00001-of-00002.safetensors",
           "ema.safetensors", "ema-00001-of-00002.safetensors", "ema.safetensors.index.json", "pytorch_model.bin.bak"]


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    other = built(0, seed=2)
    other.load_16bit_model(folder)
    return full_weights(other.module)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("new", SETS)
def test_a_new_set_of_weights_is_the_only_one_in_its_folder(new, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(0)
    engine.save_16bit_model(tmp_path / "alone", new[0], max_shard_size=new[1])
    alone = sorted(os.listdir(tmp_path / "alone"))
    for number, old in enumerate(SETS):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in FOREIGN:
            (folder / name).write_text("foreign")
        engine.save_16bit_model(folder, old[0], max_shard_size=old[1])
        train(engine, 1)
        engine.save_16bit_model(folder, new[0], max_shard_size=new[1])
        assert same(loaded(folder), full_weights(engine.module)), (old, new)
        assert sorted(os.listdir(folder)) == sorted(alone + FOREIGN)
        assert all((folder / name).read_text() == "foreign" for name in FOREIGN)
    engine.save_16bit_model(folder, "ema.safetensors", max_shard_size=new[1])  # a name of its own: the other set stays
    assert set(alone) < set(os.listdir(folder)) and ("ema-00001-of-00002.safetensors" in os.listdir(folder)) == (new[1] == "2KB")


def test_a_full_disk_leaves_the_old_set_of_weights(tmp_path, monkeypatch):
    from deepspeed.utils import zero_to_fp32
    single_rank(monkeypatch)
    engine = built(0)
    engine.save_16bit_model(tmp_path, "model.safetensors", max_shard_size="1KB")
    before, files = full_weights(engine.module), sorted(os.listdir(tmp_path))
    train(engine, 1)
    write = zero_to_fp32._save_safetensors

    def full_at_part_2(part: dict, path: str, wanted: Any) -> None:
        write(part, path, wanted)
        if "-00002-of-" in path:
            raise OSError(28, "No space left on device", path)

    def full(_state: dict, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", path)
    for target, name, instead, filename, limit in ((zero_to_fp32, "_save_safetensors", full_at_part_2, "model.safetensors", "1KB"),
                                                   (torch, "save", full, "pytorch_model.bin", None)):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, instead)
            with pytest.raises(OSError, match="No space left"):
                engine.save_16bit_model(tmp_path, filename, max_shard_size=limit)
        assert sorted(os.listdir(tmp_path)) == files and same(loaded(tmp_path), before)


def test_parts_of_two_sets_are_never_taken_for_one(tmp_path, monkeypatch):
    """A stop before each change of a name: the old set, the new one, or none."""
    from deepspeed._C import CheckpointError
    single_rank(monkeypatch)
    engine = built(0)
    seen = []
    for number in range(1, 40):
        folder = tmp_path / str(number)
        engine.save_16bit_model(folder, "model.safetensors", max_shard_size="1KB")
        before = full_weights(engine.module)
        train(engine, 1)
        changes = iter(range(1, 1000))

        def counted(change: Any, *paths: Any, stop: int = number, counter: Any = changes) -> None:
            if os.path.dirname(paths[-1]) == str(folder) and next(counter) == stop:
                raise OSError("stopped")
            change(*paths)
        with monkeypatch.context() as patched:
            for name in ("remove", "replace"):
                patched.setattr(os, name, lambda *paths, change=getattr(os, name): counted(change, *paths))
            try:
                engine.save_16bit_model(folder, "model.safetensors", max_shard_size="1KB")
                break
            except OSError:
                pass
        try:
            found = loaded(folder)
            assert same(found, before) or same(found, full_weights(engine.module))
            seen.append("old" if same(found, before) else "new")
        except CheckpointError as problem:
            assert "holds no weights" in str(problem)
            seen.append("none")
    assert seen[0] == "old" and seen.count("none") > 3 and same(loaded(folder), full_weights(engine.module)), seen


def test_weights_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(0)
    for name, limit in (("model.safetensors", "1KB"), ("pytorch_model.bin", None)):
        events: list[tuple[str, int, str]] = []
        sync, replace = os.fsync, os.replace

        def synced(descriptor: int) -> None:
            events.append(("sync", os.fstat(descriptor).st_ino, ""))
            sync(descriptor)

        def replaced(source: str, target: str) -> None:
            if os.path.dirname(target) == str(tmp_path):
                events.append(("name", os.stat(source).st_ino, os.path.basename(target)))
            replace(source, target)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", synced)
            patched.setattr(os, "replace", replaced)
            engine.save_16bit_model(tmp_path, name, max_shard_size=limit)
        first = next(place for place, event in enumerate(events) if event[0] == "name")
        named = [event for event in events if event[0] == "name"]
        assert {event[1] for event in named} <= {event[1] for event in events[:first]}
        assert named[-1][2] == (f"{name}.index.json" if limit else name) and (len(named) > 2) == bool(limit)
        assert events[-1][:2] == ("sync", os.stat(tmp_path).st_ino)


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
