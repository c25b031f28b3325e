"""Runs a test function on several ranks, each in its own process.

    @ranks(2)
    def test_something(tmp_path): ...

Every rank gets the same arguments, RANK, WORLD_SIZE, LOCAL_RANK and a port of its own run. An exception on any rank fails the
test with that rank's traceback; a run that takes too long is killed and says which ranks had not finished.
"""
from __future__ import annotations

import atexit
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


@functools.cache
def _rank_processes() -> Any:
    """Where ranks come from: a process that has imported torch, which takes seconds of every core, and forks for each rank."""
    from multiprocessing import forkserver
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is loaded
    try:
        forkserver.ensure_running()
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    return context


def _rank_main(function_module: str, function_name: str, surroundings: tuple[dict, list[str], str], rank: int, world: int, port: int,
               arguments: dict, results: Any) -> None:
    environment, paths, folder = surroundings
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
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
        atexit._run_exitfuncs()  # a forked process ends without


def run_ranks(function: Callable, world: int, arguments: dict | None = None, timeout_s: float = TIMEOUT_S,
              may_leave: tuple[int, ...] = (), anew: bool = False) -> None:
    """function(**arguments) on `world` ranks. Raises AssertionError with the failing ranks' tracebacks.

    Ranks in `may_leave` may end their process without a word. `anew`: processes of their own from the first instruction, for an
    environment that the loader reads."""
    context = multiprocessing.get_context("spawn") if anew else _rank_processes()
    results = context.Queue()
    port = free_port()
    plain = inspect.unwrap(function)
    processes = [context.Process(target=_rank_main, daemon=True,
                                 args=(plain.__module__, plain.__name__, (dict(os.environ), list(sys.path), os.getcwd()), rank, world, port,
                                       arguments or {}, results))
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


def script_body(path: str, arguments: list[str]) -> None:
    """For run_ranks: a program as `python path arguments...` runs it, without the seconds that a new interpreter needs."""
    import runpy
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise RuntimeError(f"{path} ended with {end.code}") from end


def single_rank(monkeypatch: Any) -> None:
    """Environment of a world of one, for tests that stay in pytest's own process."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
