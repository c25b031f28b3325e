"""Saves on disks that are full or fail: at any write, sync or rename the save fails on all ranks with an error that names the file, what was
saved before stays as it was, and training goes on."""
from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from common import run_ranks
from crash_saves import Counting, Kind, check, config_of
from limits import linux_only

pytestmark = linux_only
RANKS, ROUNDS = 2, 30


def built(kind: Kind) -> Any:
    import deepspeed
    deepspeed.init_distributed()
    return deepspeed.initialize(model=Counting(), config=config_of(kind))[0]


def advance(engine: Any) -> int:
    engine.backward(engine())
    engine.step()
    engine.module.last.fill_(engine.global_steps)
    return engine.global_steps


def save(engine: Any, folder: str) -> Exception | None:
    try:
        engine.save_checkpoint(folder, client_state={"step": engine.global_steps})
        engine.wait_for_checkpoint()
    except Exception as problem:
        return problem
    return None


def of_all_ranks(value: Any) -> list[Any]:
    import torch.distributed as dist
    everyone = [None] * RANKS
    dist.all_gather_object(everyone, value)
    return everyone


def whole_tags(folder: str) -> set[str]:
    """Everything that looks like a checkpoint; it must be one."""
    from deepspeed import _C
    tags = {name for name in os.listdir(folder) if not name.startswith(".") and os.path.isdir(os.path.join(folder, name))}
    for tag in tags:
        assert _C.verify_tag(os.path.join(folder, tag), True) == [], tag
    return tags


def after_a_failure(engine: Any, folder: str, problems: list[str | None], good: list[int]) -> None:
    """All ranks failed, with a name; tag=None loads what was there before."""
    step = engine.global_steps
    assert all(problems), f"step {step}: only some ranks failed: {problems}"
    tags = whole_tags(folder)
    # The one that failed may be whole: when only naming it in `latest`, or removing older ones, failed. Then one less is kept.
    complete = f"global_step{step}" in tags
    needed = {f"global_step{old}" for old in good[-2 if complete else -3:]}
    assert needed <= tags <= {f"global_step{old}" for old in (*good, step)}, (tags, good, step)
    path, client = engine.load_checkpoint(folder)
    if not good and not complete:
        assert path is None
        return
    loaded = check(engine, client)
    assert loaded == (good[-1] if good else step) or complete and loaded == step, (loaded, good, step)


def body_failing(folder: str, layout: str, stage: int, beside: bool, seed: int) -> None:
    disk = ctypes.CDLL(os.environ["LD_PRELOAD"])
    kind = Kind("failing", stage, {"format": layout, "async_save": beside}, folder)
    engine = built(kind)
    choose = random.Random(seed)  # the same on all ranks
    advance(engine)
    disk.fail_writes_arm(0, 0, 0)
    assert save(engine, folder) is None
    changes = of_all_ranks(disk.fail_writes_arm(0, 0, 0))
    assert all(count > 5 for count in changes), changes
    good, failures = [1], 0
    for _ in range(ROUNDS):
        step = advance(engine)
        victim, error, sticky = choose.randrange(RANKS), choose.choice([errno.ENOSPC, errno.EIO]), choose.random() < 0.5
        at = choose.randint(1, changes[victim] + 2)
        if engine.global_rank == victim:
            disk.fail_writes_arm(at, error, int(sticky))
        problem = save(engine, folder)
        disk.fail_writes_arm(0, 0, 0)
        problems = of_all_ranks(None if problem is None else f"{type(problem).__name__}: {problem}")
        if engine.global_rank == 0:
            print(f"rank {victim}, change {at} of {changes[victim]}, {errno.errorcode[error]}, sticky {sticky}: {problems[victim]}",
                  flush=True)
        if any(problems):
            failures += 1
            assert folder in problems[victim], problems
            after_a_failure(engine, folder, problems, good)
            if engine.global_steps == step:
                good.append(step)
            elif engine.global_rank == 0 and os.path.isdir(os.path.join(folder, f"global_step{step}")):
                shutil.rmtree(os.path.join(folder, f"global_step{step}"))  # a whole one that is not the latest: begin again without it
            of_all_ranks(None)
        else:
            good.append(step)
            assert engine.load_checkpoint(folder)[1]["step"] == step and check(engine, {"step": step}) == step
    assert failures > ROUNDS // 3


@pytest.fixture(scope="module")
def failing_disk(tmp_path_factory: Any) -> str:
    library = tmp_path_factory.mktemp("failing") / "fail_writes.so"
    source = Path(__file__).with_name("fail_writes.cpp")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True, timeout=120)
    return str(library)


@pytest.mark.parametrize("layout, stage", [("native", 2), ("deepspeed", 1), ("deepspeed", 3)])
@pytest.mark.parametrize("beside", [False, True])
def test_any_change_on_the_disk_may_fail(layout, stage, beside, failing_disk, tmp_path, monkeypatch):
    folder = tmp_path / "saves"
    folder.mkdir()
    for name, value in {"LD_PRELOAD": failing_disk, "FAIL_WRITES_IN": str(folder), "DEEPSCALE_ASYNC_IO": "threads"}.items():
        monkeypatch.setenv(name, value)
    seed = int(os.environ.get("DEEPSCALE_TEST_SEED", 5))
    run_ranks(body_failing, RANKS, {"folder": str(folder), "layout": layout, "stage": stage, "beside": beside, "seed": seed},
              timeout_s=900, anew=True)


# ---------------------------------------------------------------- a small disk
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """A function that mounts a disk of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(size: int) -> str:
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]).returncode != 0:
            pytest.skip("needs root and tmpfs")
        return str(folder)
    yield mounted
    subprocess.run(["umount", "-l", str(folder)], stderr=subprocess.DEVNULL)


def body_full(folder: str, layout: str, beside: bool) -> None:
    kind = Kind("full", 2, {"format": layout, "async_save": beside, "keep_last": 0}, folder)
    engine = built(kind)
    good: list[int] = []
    for _ in range(6):
        step = advance(engine)
        problem = save(engine, folder)
        problems = of_all_ranks(None if problem is None else f"{type(problem).__name__}: {problem}")
        if not any(problems):
            good.append(step)
            continue
        assert any("No space left" in said or "bytes are free" in said for said in problems) and any(folder in said for said in problems), problems
        after_a_failure(engine, folder, problems, good)
        assert not [name for name in os.listdir(folder) if name.startswith(".")], "what did not fit still takes room"
    assert good == [1, 2]
    if engine.global_rank == 0:
        shutil.rmtree(os.path.join(folder, "global_step1"))
    of_all_ranks(None)
    step = advance(engine)
    assert step == 3 and save(engine, folder) is None  # there is room again
    assert engine.load_checkpoint(folder)[1]["step"] == 3 and check(engine, {"step": 3}) == 3


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_disk_that_is_full_takes_no_checkpoint_and_loses_none(layout, beside, small_disk):
    one = 2 * 4 * sum(param.numel() for param in Counting().parameters() if param.requires_grad)
    if layout == "deepspeed":
        one += one // 2  # its files hold the weights beside the masters
    run_ranks(body_full, RANKS, {"folder": small_disk(int(2.6 * one)), "layout": layout, "beside": beside}, timeout_s=900)
