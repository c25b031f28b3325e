"""Inputs that DeepSpeed 0.19.8 refuses or crashes on, and that programs and frameworks pass: here they train.

args.device_rank = None is in test_errors.py, a group that the program made itself for collectives in test_comm.py.
"""
from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn as nn

from common import run_ranks, single_rank
from models import batch, config, full_weights, make_model, train

STAGES = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


class Line(nn.Module):
    """a * x + b: every parameter is 0-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.a + self.b - 3 * x - 1).float().pow(2).mean()


def body_zero_dimensions(sections: dict):
    import deepspeed
    deepspeed.init_distributed()
    for stage in STAGES:
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
        train_line(deepspeed.initialize(model=Line(), config=config(stage, zero_optimization=zero, **sections))[0], bool(sections))


def train_line(engine, sixteen_bit: bool):
    plain = Line()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(20):
        x = torch.linspace(-1, 1, 4) + step / 100
        loss = engine(x.to(torch.bfloat16 if sixteen_bit else torch.float32))
        engine.backward(loss)
        engine.step()
        plain(x).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    weights = full_weights(engine.module)
    assert weights["a"].shape == weights["b"].shape == ()
    for name, value in plain.named_parameters():
        assert weights[name].item() == pytest.approx(value.item(), abs=2e-2 if sixteen_bit else 1e-6)
    assert weights["a"].item() > 0.6
    engine.destroy()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_of_numbers_alone_trains(precision, world):
    run_ranks(body_zero_dimensions, world, {"sections": {"bf16": {"enabled": True}} if precision == "bf16" else {}})


@pytest.mark.parametrize("scheduler", [{"type": "WarmupLR", "params": {}}, {"type": "WarmupDecayLR", "params": {"total_num_steps": 100}},
                                       {"type": "WarmupCosineLR", "params": {"total_num_steps": 100}}], ids=lambda s: s["type"])
def test_no_warmup_steps_in_the_configuration(scheduler):
    import deepspeed
    rate = {} if scheduler["type"] == "WarmupCosineLR" else {"warmup_max_lr": 1e-2}
    section = {**scheduler, "params": {**scheduler["params"], **rate, "warmup_num_steps": 0}}
    engine = deepspeed.initialize(model=make_model(), config=config(1, scheduler=section))[0]
    losses = train(engine, 6)
    assert engine.get_lr()[0] == pytest.approx(1e-2, rel=0.15), "the warm-up is over after two steps at the latest"
    assert losses == pytest.approx(losses) and engine.global_steps == 6


def body_only_torch_is_set_up(path: str):
    import torch.distributed as dist
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)  # what the program knows is in the group alone
    import deepspeed
    with deepspeed.zero.Init(config_dict_or_path=config(3)):
        model = make_model()
    assert model.up.weight.ds_numel == 8 * 15 and model.up.weight.shape == (0,)
    engine = deepspeed.initialize(model=model, config=config(3))[0]
    assert (engine.global_rank, engine.world_size, engine.dp_world_size) == (rank, 2, 2)
    losses = train(engine, 3, rank=rank)
    engine.save_checkpoint(path, tag="three")
    together = [None, None]
    dist.all_gather_object(together, losses)
    assert together[rank] == losses and together[0] != together[1], "each rank saw its own micro-batches"
    engine.destroy()


def test_stage_3_on_two_ranks_that_only_torch_knows(tmp_path):
    run_ranks(body_only_torch_is_set_up, 2, {"path": str(tmp_path)})


def body_loads_without_optimizer(layout: str, path: str):
    import deepspeed
    deepspeed.init_distributed()
    sections = {"checkpoint": {"format": layout}}
    trained = deepspeed.initialize(model=make_model(), config=config(3, **sections))[0]
    train(trained, 3)
    trained.save_checkpoint(path, client_state={"note": 7})
    expected = full_weights(trained.module)
    trained.destroy()
    inference = {key: value for key, value in config(3, **sections).items() if key != "optimizer"}
    engine = deepspeed.initialize(model=make_model(seed=9), config=inference)[0]
    where, client = engine.load_checkpoint(path)
    assert where is not None and client["note"] == 7
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(engine.module).items())
    with torch.no_grad():
        assert torch.isfinite(engine.eval()(*batch(0)))
    engine.destroy()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_stage_3_without_an_optimizer_loads_a_checkpoint(layout, world, tmp_path):
    run_ranks(body_loads_without_optimizer, world, {"layout": layout, "path": str(tmp_path)})


NO_MPI = """
import sys
sys.modules["mpi4py"] = None  # importing it fails, as where no MPI is installed
import torch, deepspeed
deepspeed.init_distributed()
engine = deepspeed.initialize(model=torch.nn.Linear(2, 2), config={"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "Adam"},
                                                                   "zero_optimization": {"stage": 3}})[0]
engine.backward(engine(torch.ones(1, 2)).sum()); engine.step()
print("rank", engine.global_rank, "of", engine.world_size)
"""


@pytest.mark.parametrize("started_by", ["nothing", "mpirun"])
def test_no_mpi_package_is_needed(started_by):
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if started_by == "mpirun":
        environment |= {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                        "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    run = subprocess.run([sys.executable, "-c", NO_MPI], env=environment, capture_output=True, text=True, timeout=120,
                         check=False)
    assert run.returncode == 0 and "rank 0 of 1" in run.stdout, run.stderr
