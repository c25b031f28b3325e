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
from deepspeed.checkpoint.safe_load import load_file
from deepspeed.checkpoint.verified_bytes import VerifiedBytes
from deepspeed.runtime.checkpoint_pickle import PlacedTensor, pickled


def write(folder: Path, value: Any, threads: int = 1, beside: bool = False) -> Path:
    """What a save of one rank makes of a value."""
    save_dir = str(folder)
    plan = {"save_dir": save_dir, "tag": "t", "layout": "deepspeed", "rank": 0, "tensor_file": "", "threads": threads,
            "commits": True, "ranks": 1, "elsewhere": [], "info": "{}", "write_latest": False,
            "latest_dir": "", "latest_text": "", "keep_last": 0, "patience_s": 10.0}
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


# ---------------------------------------------------------------- what a review found
class Counting(torch.nn.Module):
    """A layer with a state that is no tensor, and a parameter without elements."""

    def __init__(self, tensor: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.nothing = torch.nn.Parameter(torch.empty(0, 4))
        self.calls, self.tensor = 0, tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x).sum() + self.nothing.sum()

    def get_extra_state(self) -> Any:
        return torch.tensor(self.calls) if self.tensor else {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state) if self.tensor else state["calls"]


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
@pytest.mark.parametrize("tensor", [True, False])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_extra_state_and_parameters_without_elements_come_back(layout, tensor, stage, tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)

    def built() -> Any:
        return deepspeed.initialize(model=Counting(tensor), config=config(stage, checkpoint={"format": layout}))[0]
    engine = built()
    for _ in range(3):
        engine.backward(engine(torch.ones(2, 8)))
        engine.step()
    engine.save_checkpoint(tmp_path, client_state={"mine": 1})
    other = built()
    assert other.load_checkpoint(tmp_path)[1]["mine"] == 1
    assert other.module.calls == 3


LEAVING = """
import sys, os, torch, deepspeed
sys.path.insert(0, {tests!r})
from models import config, make_model, train
def main():
    engine = deepspeed.initialize(model=make_model(), config=config(2, checkpoint={{"async_save": True, "format": {layout!r}}}))[0]
    train(engine, 1)
    engine.save_checkpoint({folder!r}, tag={tag!r})
    return engine
{how}
"""


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
@pytest.mark.parametrize("how", ["kept = main()", "main()", "main().destroy()"])
def test_the_last_save_of_a_program_is_finished_when_it_ends(layout, how, tmp_path):
    """Nobody called wait_for_checkpoint(); `latest` of a tag that is a path is written as well."""
    import subprocess
    import sys
    program = LEAVING.format(tests=str(Path(__file__).parent), layout=layout, folder=str(tmp_path / "saved"), tag="sub/t", how=how)
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29573"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "saved" / "latest").read_text() == "sub/t"
    assert _C.verify_tag(str(tmp_path / "saved" / "sub" / "t"), True) == []


def body_unreadable(folder: str) -> None:
    """Rank 1 cannot read the newest one: all ranks take the older one."""
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(1, checkpoint={"format": "native"}))[0]
    for tag in ("old", "new"):
        train(engine, 1, rank=engine.global_rank)
        engine.save_checkpoint(folder, tag=tag)
    read = _C.CheckpointTensors

    class Failing:
        def __init__(self, directory: str) -> None:
            if directory.endswith("new") and engine.global_rank == 1:
                raise OSError("input/output error")
            self._tensors = read(directory)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tensors, name)
    _C.CheckpointTensors = Failing
    assert "/old/" in engine.load_checkpoint(folder)[0] and engine.global_steps == 1
    with pytest.raises(_C.CheckpointError, match="input/output error" if engine.global_rank == 1 else "rank 1 failed"):
        engine.load_checkpoint(folder, tag="new")


def test_a_disk_that_fails_on_one_rank_lets_all_ranks_take_an_older_checkpoint(tmp_path):
    run_ranks(body_unreadable, 2, {"folder": str(tmp_path)})


# ---------------------------------------------------------------- reading without the mapping
def test_tensors_are_read_from_where_they_stand(tmp_path):
    value = {**sample(), "large": torch.randn(3_000_001)}
    path = str(write(tmp_path, value, threads=2))
    loaded, bytes_of = load_file(path), VerifiedBytes(str(tmp_path / "t"))
    bytes_of.add(path, loaded)
    tensors = {key: found for key, found in loaded.items() if isinstance(found, torch.Tensor) and found.numel() > 0 and found.is_contiguous()}
    assert len(tensors) == len([v for v in value.values() if isinstance(v, torch.Tensor)]) - 2  # "matrix" and "empty"
    assert bytes_of.place_of(path, loaded["matrix"]) is None
    targets = {key: torch.empty_like(found) for key, found in tensors.items()}
    bytes_of.read([(path, bytes_of.place_of(path, found), targets[key].detach()) for key, found in tensors.items()])
    assert all(equal(targets[key], value[key]) for key in tensors)
    assert bytes_of.place_of(path, value["large"]) is None, "a tensor that is not of the file"
    with pytest.raises(_C.CheckpointError, match="has no file other"):
        bytes_of.read([("other", 0, torch.empty(1))])
    with pytest.raises(_C.CheckpointError, match="were asked for"):
        bytes_of.read([(path, os.path.getsize(path) - 3, torch.empty(1))])


def test_places_that_do_not_come_out_even_are_not_guessed(tmp_path):
    path = str(write(tmp_path, sample()))
    loaded, bytes_of = load_file(path), VerifiedBytes(str(tmp_path / "t"))
    bytes_of.add(path, {key: found for key, found in loaded.items() if key != "int"})
    assert bytes_of.place_of(path, loaded["a"]) is None


def test_containers_that_hold_each_other_are_walked_once(tmp_path):
    """A list that holds a list twice, sixty times: two kilobytes, and more than a lifetime for who visits every path."""
    nested: list = [1.0]
    for _ in range(60):
        nested = [nested, nested]
    path = str(write(tmp_path, {"a": torch.ones(4), "note": nested}))
    loaded, bytes_of = load_file(path), VerifiedBytes(str(tmp_path / "t"))
    loaded["note"].append(loaded)
    bytes_of.add(path, loaded)
    assert bytes_of.place_of(path, loaded["a"]) is not None


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_masters_and_states_are_read_without_their_mapping(stage, tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    engine, other = (deepspeed.initialize(model=make_model(), config=config(stage))[0] for _ in range(2))
    train(engine, 2)
    engine.save_checkpoint(tmp_path)
    read, counted = VerifiedBytes.read, []

    def counting(self: VerifiedBytes, requests: list) -> None:
        counted.extend(target.numel() for _, _, target in requests)
        read(self, requests)
    monkeypatch.setattr(VerifiedBytes, "read", counting)
    other.load_checkpoint(tmp_path)
    trained = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in other.module.parameters() if p.requires_grad)
    assert sum(counted) == (2 if stage == 0 else 3) * trained  # stage 0: weights of the model file are the masters
    assert train(other, 2, first=2) == train(engine, 2, first=2)


def body_damaged_after_verification(folder: str) -> None:
    """What a disk returns may change between two reads: the second one is checked as well, and no rank waits in vain."""
    import deepspeed
    from deepspeed.runtime import checkpoint_folder
    engine = deepspeed.initialize(model=make_model(), config=config(1))[0]
    train(engine, 1, rank=engine.global_rank)
    engine.save_checkpoint(folder, tag="t")
    path = os.path.join(folder, "t", "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    if engine.global_rank == 0:
        with zipfile.ZipFile(path) as archive:
            member = max((entry for entry in archive.infolist() if "/data/" in entry.filename), key=lambda entry: entry.file_size)
        with open(path, "r+b") as file:
            file.seek(member.header_offset + 400)
            byte = file.read(1)[0]
            file.seek(member.header_offset + 400)
            file.write(bytes([byte ^ 1]))
    checkpoint_folder.verify_before_loading = lambda *_, **__: None
    with pytest.raises(_C.CheckpointError, match="damaged between byte|rank . failed.*load another checkpoint"):
        engine.load_checkpoint(folder, tag="t")


def test_damage_that_came_after_verification_is_found_on_all_ranks(tmp_path):
    run_ranks(body_damaged_after_verification, 2, {"folder": str(tmp_path)}, anew=True)


# ---------------------------------------------------------------- exchange
def test_moves_take_what_a_rank_has_itself_first():
    from deepspeed.runtime.checkpoint_exchange import Move, moves_of
    from deepspeed.runtime.checkpoint_layout import Piece
    halves = [(0, 5), (5, 5)]
    assert moves_of(7, [Piece(0, 0, 3, 10)], halves) == [Move(7, 0, 0, 0, 3, 5), Move(7, 1, 0, 5, 8, 5)]
    assert moves_of(7, [Piece(1, 2, 0, 6)], halves) == [Move(7, 1, 1, 5, 3, 3), Move(7, 0, 1, 2, 0, 3)]
    assert moves_of(7, [Piece(1, 0, 0, 10)], [(0, 10), (3, 4)]) == [Move(7, 1, 1, 3, 3, 4), Move(7, 0, 1, 0, 0, 3), Move(7, 0, 1, 7, 7, 3)]
    assert moves_of(7, [Piece(0, 0, 0, 10)], [(0, 4), (5, 5)]) is None  # nobody has element 4


def body_exchange(limit: int) -> None:
    """Every rank wants the other half of some vectors, in batches of few elements."""
    from types import SimpleNamespace

    import deepspeed
    from deepspeed.runtime import checkpoint_exchange
    engine = deepspeed.initialize(model=make_model(), config=config(1))[0]
    rank, ranks = engine.global_rank, engine.communicator.size
    checkpoint_exchange.SMALLEST_GIFT = limit
    checkpoint_exchange.EXCHANGE_NUMEL = limit * ranks
    lengths = [1, 999, 4096, 3 * limit + 1, 17]
    moves = [checkpoint_exchange.Move(index, src, (src + 1) % ranks, 0, 10 * index, length + src)
             for index, length in enumerate(lengths) for src in range(ranks)]

    def values(move: Any) -> torch.Tensor:
        return torch.arange(move.offset, move.offset + move.length, dtype=torch.float32) + 1e6 * move.index + 1e5 * move.src
    exchange = checkpoint_exchange.Exchange(SimpleNamespace(communicator=engine.communicator, device=torch.device("cpu")))
    got = exchange.run(moves, values)
    source = (rank - 1) % ranks
    for index, length in enumerate(lengths):
        own = sorted((start, count, value) for start, count, value in got if 10 * index <= start < 10 * index + length + source
                     and value[0] // 100_000 == 10 * index + source)
        assert torch.equal(torch.cat([value for _, _, value in own]), values(SimpleNamespace(offset=0, length=length + source, index=index, src=source)))
        assert [start for start, _, _ in own] == [10 * index + sum(count for _, count, _ in own[:k]) for k in range(len(own))]


@pytest.mark.parametrize("limit", [64, 1000])
def test_exchanges_in_many_batches_lose_nothing(limit):
    run_ranks(body_exchange, 3, {"limit": limit})
