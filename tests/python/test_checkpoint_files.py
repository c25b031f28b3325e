"""Files of torch.save's format as the engine writes them: the pickle in Python, the tensors' bytes from where they stand."""
from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from common import run_ranks, single_rank
from models import config, make_model, train

from deepspeed import _C
from deepspeed.runtime.checkpoint_pickle import PlacedTensor, pickled


def write(folder: Path, value: Any, threads: int = 1, beside: bool = False) -> Path:
    """What a save of one rank makes of a value."""
    save_dir = str(folder)
    plan = {"save_dir": save_dir, "tag": "t", "layout": "deepspeed", "rank": 0, "tensor_file": "", "threads": threads,
            "commits": True, "ranks": 1, "info": "{}", "write_latest": False, "keep_last": 0, "patience_s": 10.0}
    _C.begin_save(save_dir, "t")
    job = _C.SaveJob(plan, [], [("file.pt", *pickled(value))])
    if beside:
        job.take_snapshot(_C.ShardImage(), threads)
        job.start()
        job.wait()
    else:
        job.write_part()
        job.commit()
    assert _C.verify_tag(os.path.join(save_dir, "t"), True) == []
    return folder / "t" / "file.pt"


def sample() -> dict:
    shared = torch.arange(12.0)
    return {"a": shared, "view": shared[3:7], "matrix": shared.view(3, 4).t(), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4),
            "bf16": torch.randn(1000).bfloat16(), "half": torch.randn(5).half(), "int": torch.arange(7), "bool": torch.tensor([True, False]),
            "complex": torch.tensor([1 + 2j]), "list": [torch.ones(2), "text", 1.5, None], "float8": torch.ones(4).to(torch.float8_e4m3fn),
            "parameter": torch.nn.Parameter(torch.ones(3))}


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(
            found.detach().contiguous().view(-1).view(torch.uint8), expected.detach().contiguous().view(-1).view(torch.uint8))
    if isinstance(expected, list):
        return len(found) == len(expected) and all(equal(*pair) for pair in zip(found, expected))
    return found == expected


@pytest.mark.parametrize("threads, beside", [(1, False), (3, False), (2, True)])
def test_torch_reads_what_is_written(threads, beside, tmp_path):
    value = {**sample(), "large": torch.randn(5_000_001)}
    path = write(tmp_path, value, threads, beside)
    for mapped in (False, True):
        found = torch.load(path, weights_only=True, mmap=mapped)
        assert found.keys() == value.keys()
        assert all(equal(found[key], value[key]) for key in value)
    assert found["a"].untyped_storage().data_ptr() == found["view"].untyped_storage().data_ptr()  # shared as it was
    assert isinstance(found["parameter"], torch.nn.Parameter)


def test_other_zip_programs_find_the_checksums_right(tmp_path):
    path = write(tmp_path, {"large": torch.randn(3_000_001), "small": torch.ones(2)}, threads=3)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert "archive/data/0" in archive.namelist()


def test_a_tensor_in_several_places_is_one_in_the_file(tmp_path):
    whole, called = torch.randn(2_000_000), []

    def later() -> torch.Tensor:
        called.append(1)
        return whole[1_500_000:]
    placed = PlacedTensor(torch.float32, [(1000, whole[:1000]), (0, whole[:0]), (1_499_000, whole[1000:1_500_000]), (500_000, later)])
    found = torch.load(write(tmp_path, {"flat": placed, "none": PlacedTensor(torch.float32, [])}, threads=2), weights_only=True)
    assert torch.equal(found["flat"], whole) and called == [1]
    assert found["none"].shape == (0,)


def test_tensors_of_different_types_in_one_memory_are_refused():
    value = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory cannot be saved"):
        pickled([value, value.view(torch.int32)])


def test_a_part_of_another_length_than_it_said_is_refused(tmp_path):
    placed = PlacedTensor(torch.float32, [(10, lambda: torch.ones(9))])
    with pytest.raises(RuntimeError, match="expected 40 bytes, got 36"):
        write(tmp_path, placed)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("place", ["memory", "files"])
def test_the_files_hold_the_optimizers_state(stage, place, tmp_path, monkeypatch):
    """What is written from where it stands is what state_dict() makes tensors of."""
    import deepspeed
    single_rank(monkeypatch)
    zero: dict[str, Any] = {"stage": stage}
    if place == "files":
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": str(tmp_path / "nvme")}
    engine = deepspeed.initialize(model=make_model(), config=config(stage, zero_optimization=zero))[0]
    train(engine, 2, rank=0)
    expected = engine.optimizer.state_dict()
    engine.save_checkpoint(tmp_path / "saved", tag="t")
    path, = (tmp_path / "saved" / "t").glob("*_optim_states.pt")
    assert_same(torch.load(path, weights_only=False)["optimizer_state_dict"], expected)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected)):
            assert_same(*pair, f"{where}/{index}")
    elif type(expected) in (int, float, str, bool, type(None)):
        assert found == expected, where


def save_of_two_ranks(stage: int, folder: str) -> None:
    import deepspeed
    import torch.distributed as dist
    engine = deepspeed.initialize(model=make_model(), config=config(stage))[0]
    rank = dist.get_rank()
    train(engine, 2, rank=rank)
    expected = engine.optimizer.state_dict()
    engine.save_checkpoint(folder, tag="t")
    path, = (Path(folder) / "t").glob(f"*zero_pp_rank_{rank}_*_optim_states.pt")
    assert_same(torch.load(path, weights_only=False)["optimizer_state_dict"], expected)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_files_of_two_ranks_hold_what_each_stores(stage, tmp_path):
    run_ranks(save_of_two_ranks, 2, {"stage": stage, "folder": str(tmp_path)})


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_training_beside_the_writing_does_not_change_what_is_written(stage, tmp_path, monkeypatch):
    """In DeepSpeed's layout, too; the second save uses the memory of the first one's copy."""
    import deepspeed
    single_rank(monkeypatch)
    engine = deepspeed.initialize(model=make_model(), config=config(stage, checkpoint={"async_save": True}))[0]
    for tag in ("one", "two"):
        train(engine, 2, rank=0)
        engine.save_checkpoint(tmp_path, tag=tag)
        expected = train(engine, 3, rank=0)
        other = deepspeed.initialize(model=make_model(), config=config(stage))[0]
        engine.wait_for_checkpoint()
        assert other.load_checkpoint(tmp_path, tag=tag)[0]
        assert train(other, 3, rank=0) == expected
