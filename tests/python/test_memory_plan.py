"""The memory plan that initialize() prints before it allocates, and the error when the machine has not got what it needs."""
from __future__ import annotations

import logging
import os
import random
import subprocess
import sys

import pytest
import torch

from common import ranks, single_rank
from models import config, make_model

CRAMPED = """
import os, resource, torch, deepspeed
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DS_ACCELERATOR="cpu")
deepspeed.init_distributed()
model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(12)])
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
# Its states are planned, but torch makes them at the first step: what is short is not short yet.
optimizer = torch.optim.Adamax(model.parameters())
config = {"train_batch_size": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
print("started")
"""


def _run(mode: str | None) -> subprocess.CompletedProcess:
    environment = {**os.environ, **({"DEEPSCALE_MEMORY_PLAN": mode} if mode else {})}
    return subprocess.run([sys.executable, "-c", CRAMPED], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_does_not_fit_is_an_error_with_a_remedy():
    run = _run(None)
    assert run.returncode != 0 and "MemoryPlanError" in run.stderr
    assert "RLIMIT_AS" in run.stderr and "missing" in run.stderr
    assert "started" not in run.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_can_be_a_warning():
    run = _run("warn")
    assert "RLIMIT_AS" in run.stderr + run.stdout and "missing" in run.stderr + run.stdout
    assert run.returncode == 0 and "started" in run.stdout, run.stderr


def _logged(caplog: pytest.LogCaptureFixture, **more: object) -> str:
    import deepspeed
    from deepspeed.utils.logging import logger
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger=logger.name):
            deepspeed.initialize(model=make_model(), config=config(3, **more))
    finally:
        logger.removeHandler(caplog.handler)
    return caplog.text


def test_the_plan_is_printed_at_info_level(monkeypatch, caplog):
    single_rank(monkeypatch)
    text = _logged(caplog)
    assert "memory plan" in text and "optimizer states" in text and "gradients" in text


def test_it_can_be_left_out(monkeypatch, caplog):
    single_rank(monkeypatch)
    monkeypatch.setenv("DEEPSCALE_MEMORY_PLAN", "off")
    assert "memory plan" not in _logged(caplog)


def test_an_engine_keeps_its_plan(monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    model = make_model()
    engine = deepspeed.initialize(model=model, config=config(3))[0]
    plan = engine.memory_plan()
    assert plan["parameters"] == sum(param.ds_numel for param in model.parameters())
    assert plan["rank_bytes"]["pageable"] > 0 and plan["fits"]
    monkeypatch.setenv("DEEPSCALE_MEMORY_PLAN", "off")
    assert deepspeed.initialize(model=make_model(), config=config(3))[0].memory_plan() is None


def test_unknown_modes_are_named(monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    monkeypatch.setenv("DEEPSCALE_MEMORY_PLAN", "maybe")
    with pytest.raises(ValueError, match="error, warn or off is expected"):
        deepspeed.initialize(model=make_model(), config=config(1))


def test_parameters_that_exist_are_not_counted_twice(tmp_path, monkeypatch):
    import deepspeed
    from deepspeed.runtime.memory_plan import _held
    from deepspeed.runtime.zero.parameter import slot_of
    single_rank(monkeypatch)
    model = torch.nn.Linear(32, 32)
    assert _held(model) == (4 * (32 * 32 + 32), 0, 0)
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0}}
    with deepspeed.zero.Init(config_dict_or_path=config(3, zero_optimization=zero)):
        sharded = torch.nn.Linear(32, 32)
    memory, files, _ = _held(sharded)
    assert files >= 4 * (32 * 32 + 32)
    assert memory == slot_of(sharded.weight).unit.tier.facts()["pool_bytes"]  # whatever its parameters: pools are counted once


def _planned(ranks: int, held_memory: int, held_file: int, zero: dict) -> dict:
    from deepspeed import _C
    from deepspeed.runtime.config import DeepSpeedConfig
    shapes = [(f"{i}.weight", [1024, 1024 * 1024], torch.float32, True, str(i)) for i in range(4)]  # 16 GiB
    world = {"ranks": ranks, "ranks_per_host": ranks, "accelerator": False, "trains": False, "states": None, "external": False,
             "held_memory_bytes": held_memory, "held_file_bytes": held_file, "device_bytes": None}
    settings = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})
    return _C.plan_memory(settings.resolved_json, shapes, world)


def test_what_all_ranks_of_a_host_hold_is_not_needed_again(monkeypatch):
    """Four ranks hold 16 GiB, more than is free now: nothing is missing, because it is there already."""
    single_rank(monkeypatch)
    free = int(next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable")).split()[1]) * 1024
    assert _planned(4, 0, 0, {"stage": 3})["misfit"] == "" or free < 17 << 30
    share = 4 << 30
    assert _planned(4, share, 0, {"stage": 3})["misfit"] == ""
    needed = 64 << 30
    assert needed > free and "missing" in _planned(16, 0, 0, {"stage": 0})["misfit"]
    assert _planned(16, 16 << 30, 0, {"stage": 0})["misfit"] == ""


@ranks(4)
def test_the_ranks_of_a_host_are_counted_whatever_the_launcher_says():
    import platform

    import deepspeed
    rank = int(os.environ["RANK"])
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    platform.node = lambda: f"node{0 if rank < 3 else 1}"
    plan = deepspeed.initialize(model=make_model(), config=config(2))[0].memory_plan()
    assert (plan["ranks"], plan["ranks_per_host"]) == (4, 3 if rank < 3 else 1)
    os.environ["LOCAL_SIZE"] = "4"  # of somebody else
    assert deepspeed.initialize(model=make_model(), config=config(2))[0].memory_plan()["ranks_per_host"] == (3 if rank < 3 else 1)


@ranks(4)
def test_of_a_part_of_the_run_the_launchers_number_counts_too():
    import torch.distributed as dist

    import deepspeed
    from deepspeed.runtime.memory_plan import ranks_per_host
    deepspeed.init_distributed()
    pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    communicator = deepspeed.comm.get_communicator(pairs[dist.get_rank() % 2])
    # The other group's ranks are here too, each with as much: four processes, planned as two of two.
    assert ranks_per_host(communicator, torch.device("cpu")) == 2
    import platform
    platform.node = lambda: f"node{dist.get_rank() // 2}"
    os.environ["LOCAL_SIZE"] = "2"
    assert ranks_per_host(communicator, torch.device("cpu")) == 2
    os.environ["LOCAL_SIZE"] = "1"
    assert ranks_per_host(communicator, torch.device("cpu")) == 1


def _pools_and_rows(widths: list[int], kind: str, bf16: bool, init: bool, folder: str) -> dict[str, tuple[dict, int]]:
    import deepspeed
    place = {"device": "nvme", "nvme_path": folder}
    zero = {"stage": 3, "stage3_param_persistence_threshold": 10, "offload_param": {**place, "max_in_cpu": 0}, "offload_optimizer": place}
    settings = config(3, zero_optimization=zero, optimizer={"type": kind, "params": {"lr": 1e-3}}, bf16={"enabled": bf16})
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=init):
        model = torch.nn.Sequential(*[torch.nn.Linear(n, m) for n, m in zip(widths, widths[1:])])
    engine = deepspeed.initialize(model=model, config=settings)[0]
    for _ in range(3):
        engine.backward(engine(torch.ones(2, widths[0], dtype=torch.bfloat16 if bf16 else torch.float32)).float().square().mean())
        engine.step()
    rows: dict[str, int] = {}
    for row in engine.memory_plan()["rows"]:
        rows[row["state"]] = rows.get(row["state"], 0) + row["bytes"]
    facts = engine.file_tier_facts()
    engine.destroy()
    return {"parameters": (facts["parameters"], rows["file buffers, parameters"]), "optimizer": (facts["optimizer"], rows["file buffers, optimizer"])}


@pytest.mark.parametrize("init", [False, True], ids=["moved", "built in files"])
@pytest.mark.parametrize("seed", range(7))
def test_pools_are_no_larger_than_planned(seed, init, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    draw = random.Random(seed)
    widths = [draw.choice((64, 200, 300, 512, 700, 1024)) for _ in range(draw.randint(3, 8))] if seed else [1024, 1024, 512, 1024, 64, 200, 200]
    found = _pools_and_rows(widths, draw.choice(("AdamW", "Lion")) if seed else "AdamW", seed % 2 == 0, init, str(tmp_path))
    for of, (facts, planned) in found.items():
        assert 0 < facts["peak_pool_bytes"] <= planned, (of, widths)


def test_a_pool_for_building_is_cut_when_the_engine_is_there(tmp_path, monkeypatch):
    import deepspeed
    from deepspeed.runtime.zero.parameter import slot_of
    single_rank(monkeypatch)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 10,
            "offload_param": {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0, "buffer_size": 10**9}}
    settings = config(3, zero_optimization=zero)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = torch.nn.Sequential(*[torch.nn.Linear(512, 512, bias=False) for _ in range(24)])
    gathered = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with gathered:
        tier = slot_of(model[0].weight).unit.tier
        assert tier.facts()["pool_bytes"] >= 24 << 20
    files = len(os.listdir("/proc/self/fd")) if sys.platform.startswith("linux") else 0
    engine = deepspeed.initialize(model=model, config=settings)[0]
    assert files == 0 or len(os.listdir("/proc/self/fd")) <= files + 1, "a second tier, in which nothing is"
    assert tier.facts()["pool_bytes"] == 0
    with gathered:
        pass
    room = 3 * (512 * 512 * 4 + (4 << 20))  # param_pool_bytes()
    assert tier.facts()["pool_bytes"] <= room
    engine.destroy()
