"""Runs a test function on several ranks, each in its own process.

    @ranks(2)
    def test_something(tmp_path): ...

Every rank gets the same arguments, RANK, WORLD_SIZE, LOCAL_RANK and a port of its own run. An exception on any rank fails the
test with that rank's traceback; a run that takes too long is killed and says which ranks had not finished.
"""
from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import queue
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable

TIMEOUT_S = 180.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def built_program(name: str) -> str | None:
    """A program of the build folder that _C comes from, else one on PATH; None when there is none."""
    import importlib.util
    spec = importlib.util.find_spec("deepspeed._C")
    if spec is not None and spec.origin is not None:
        built = Path(spec.origin).parents[4] / "bin" / name
        if built.is_file():
            return str(built)
    return shutil.which(name)


def _rank_main(function_module: str, function_name: str, paths: list[str], rank: int, world: int, port: int, arguments: dict,
               results: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    sys.path[:] = paths
    try:
        import importlib

        import torch
        torch.set_num_threads(1)
        function = getattr(importlib.import_module(function_module), function_name)
        inspect.unwrap(function)(**arguments)
        results.put((rank, None))
    except BaseException:
        results.put((rank, traceback.format_exc()))
    finally:
        import torch.distributed as dist
        if dist.is_initialized():
            dist.destroy_process_group()


def run_ranks(function: Callable, world: int, arguments: dict | None = None, timeout_s: float = TIMEOUT_S,
              may_leave: tuple[int, ...] = ()) -> None:
    """function(**arguments) on `world` ranks. Raises AssertionError with the failing ranks' tracebacks.

    Ranks in `may_leave` may end their process without a word."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = free_port()
    plain = inspect.unwrap(function)
    processes = [context.Process(target=_rank_main, daemon=True,
                                 args=(plain.__module__, plain.__name__, list(sys.path), rank, world, port, arguments or {}, results))
                 for rank in range(world)]
    for process in processes:
        process.start()
    finished: dict[int, str | None] = {}
    deadline = time.monotonic() + timeout_s
    try:
        while len(finished) < world:
            try:
                rank, problem = results.get(timeout=min(0.5, max(0.01, deadline - time.monotonic())))
                finished[rank] = problem
                if problem is not None:
                    deadline = min(deadline, time.monotonic() + 5)  # the others may only be waiting for this rank
            except queue.Empty:
                finished.update({r: None for r in may_leave if not processes[r].is_alive()})
                dead = [r for r, p in enumerate(processes) if r not in finished and p.exitcode not in (None, 0)]
                if dead:
                    finished.update({r: f"rank {r} died with exit code {processes[r].exitcode}" for r in dead})
                    break
                if time.monotonic() > deadline:
                    break
    finally:
        for process in processes:
            process.join(timeout=5 if len(finished) == world else 0)
            if process.is_alive():
                process.kill()
                process.join()
    failures = {rank: problem for rank, problem in finished.items() if problem is not None}
    if failures:
        raise AssertionError("\n".join(f"--- rank {rank} ---\n{problem}" for rank, problem in sorted(failures.items())))
    missing = sorted(set(range(world)) - set(finished))
    assert not missing, f"ranks {missing} had not finished after {timeout_s:.0f} s"


def ranks(world: int, timeout_s: float = TIMEOUT_S) -> Callable:
    """Decorator: the test body runs on `world` ranks."""

    def decorate(function: Callable) -> Callable:

        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            run_ranks(function, world, arguments, timeout_s)

        return run

    return decorate


def single_rank(monkeypatch: Any) -> None:
    """Environment of a world of one, for tests that stay in pytest's own process."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
