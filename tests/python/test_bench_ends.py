"""Benchmarks that are interrupted leave no process and no folder behind."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def processes_with(text: str) -> list[int]:
    """Processes in whose environment the text stands."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def until(condition, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_benchmark_leaves_nothing(tmp_path: Path, number: int) -> None:
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(BENCH / "plan.py"), "--case", "all in files", "--layers", "8"]
    bench = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        # The benchmark itself, the check whether our package is there, ds_plan, then the rank.
        assert until(lambda: list(tmp_path.glob("deepscale-bench-*")) or bench.poll() is not None, 120)
        assert bench.poll() is None, bench.stdout.read()
        assert len(list(tmp_path.glob("deepscale_plan_*"))) == 1
        time.sleep(0.5)
        assert len(processes_with(str(tmp_path))) >= 2
        os.kill(bench.pid, number)
        output, _ = bench.communicate(timeout=30)
        assert bench.returncode == 128 + number, output
        assert until(lambda: not processes_with(str(tmp_path)), 5), output
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    finally:
        for pid in processes_with(str(tmp_path)):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return pytest.importorskip("machine_limits")


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux")
def test_the_group_of_a_limit_goes_when_its_processes_were_killed(limits) -> None:
    def groups() -> list[Path]:
        return [path for _, root, _ in limits.MemoryLimit.ROOTS for path in Path(root).glob(f"deepscale_bench_{os.getpid()}_*")]

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with limits.MemoryLimit(2**30, "killed") as limit:
            if limit.folder is None:
                pytest.skip("no control group can be made here")
            limit.apply([child.pid], lambda size: pytest.fail("there is a control group"))
            assert groups() == [limit.folder]
            assert str(child.pid) in (limit.folder / "cgroup.procs").read_text().split()
            child.kill()
            child.wait()
        assert groups() == []
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux")
def test_groups_of_benchmarks_that_were_killed_go_with_the_next_limit(limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "cgroup.procs").write_text("")
    abandoned, used = (tmp_path / f"deepscale_bench_{pid}_limit" for pid in (ended.pid, os.getppid()))
    abandoned.mkdir()
    used.mkdir()
    monkeypatch.setattr(limits.MemoryLimit, "ROOTS", (("cgroup v2", str(tmp_path), "memory.max"),))
    with limits.MemoryLimit(2**30) as limit:
        asked = []
        limit.apply([os.getpid()], asked.append)
        assert limit.kind == "RLIMIT_DATA" and asked == [2**30]
    assert not abandoned.exists() and used.exists()
