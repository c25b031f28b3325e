"""Checkpoints that real DeepSpeed wrote and we read, and the other way: training goes on with the same losses.

Needs DEEPSCALE_REFERENCE_PYTHON: the interpreter of an environment with DeepSpeed 0.19.8. Skipped without it.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import free_port

REFERENCE = os.environ.get("DEEPSCALE_REFERENCE_PYTHON")
WORKER = Path(__file__).with_name("interchange_worker.py")
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}

pytestmark = pytest.mark.skipif(not REFERENCE, reason="DEEPSCALE_REFERENCE_PYTHON names no interpreter with DeepSpeed")


def run(python: str, world: int, job: dict) -> list[dict]:
    """The answers of all ranks."""
    port = free_port()
    environment = {**os.environ, "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
                   "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    if python == REFERENCE:
        environment.pop("PYTHONPATH", None)
    ranks = [subprocess.Popen([python, str(WORKER), json.dumps(job)], env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in range(world)]
    try:
        outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
        for leftover in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):  # 66 MiB a rank, which DeepSpeed does not remove
            leftover.unlink()
    answers = []
    for rank, output in enumerate(outputs):
        lines = [line for line in output.splitlines() if line.startswith("ANSWER ")]
        assert lines, f"rank {rank} of {python}: {output[-3000:]}"
        answers.append(json.loads(lines[-1].removeprefix("ANSWER ")))
    return answers


def compare(ours: list[dict], theirs: list[dict], dtype: str) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], abs=TOLERANCE[dtype])
        assert mine["steps"] == other["steps"] and mine["lr"] == pytest.approx(other["lr"])
        for name, total in other["sums"].items():
            assert mine["sums"][name] == pytest.approx(total, abs=1e-4 if dtype == "fp32" else 0.3), name


CASES = [(stage, world, "fp32", "AdamW") for stage in (0, 1, 2, 3) for world in (1, 2)]
CASES += [(stage, 2, "bf16", "AdamW") for stage in (0, 1, 2, 3)]  # real DeepSpeed trains no fp16 on CPUs


@pytest.mark.parametrize("stage,world", [(0, 1), (3, 1), (3, 2)])  # DeepSpeed's stages 1 and 2 end in an IndexError
def test_a_group_that_is_frozen_whole(stage, world, tmp_path):
    there_and_back({"stage": stage, "dtype": "fp32", "optimizer": "", "frozen_group": True}, world, tmp_path)


@pytest.mark.parametrize("stage,world,dtype,optimizer", CASES)
def test_both_ways(stage, world, dtype, optimizer, tmp_path):
    there_and_back({"stage": stage, "dtype": dtype, "optimizer": optimizer}, world, tmp_path)


def there_and_back(job: dict, world: int, tmp_path: Path) -> None:
    dtype = job["dtype"]
    job = {**job, "steps": 4, "load": False, "save": True}
    theirs_dir, ours_dir = str(tmp_path / "theirs"), str(tmp_path / "ours")
    theirs = run(REFERENCE, world, {**job, "directory": theirs_dir})
    ours = run(sys.executable, world, {**job, "directory": ours_dir})
    compare(ours, theirs, dtype)
    resume = {**job, "load": True, "save": False}
    expected = run(REFERENCE, world, {**resume, "directory": theirs_dir})
    compare(run(sys.executable, world, {**resume, "directory": theirs_dir}), expected, dtype)
    theirs_from_ours = run(REFERENCE, world, {**resume, "directory": ours_dir})
    compare(run(sys.executable, world, {**resume, "directory": ours_dir}), theirs_from_ours, dtype)
