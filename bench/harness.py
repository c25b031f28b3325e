"""Common parts of the benchmarks: rank processes that stay alive and step on command, interleaving, and the result line.

A benchmark compares *sides*. A `Side` is a group of rank processes of one Python interpreter that run the same benchmark
file as workers; it stays alive between commands, so that the benchmark can let side A step, then B, then A again. A ratio
is the median over rounds of (time of one side / time of the other in the same round): neighbours that load the machine
slow both halves of a pair alike.

Protocol: one JSON object per line on a private pair of pipes, so that whatever libraries print does no harm.
    -> {"call": "name", "arguments": {...}}     <- {"value": ...} or {"error": "traceback"}
A worker is started with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS set.

Linux and other POSIX systems only (pipes are inherited by number).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Iterator

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
WORKER_PIPES = "DEEPSCALE_BENCH_PIPES"


# ---------------------------------------------------------------- worker half


def is_worker() -> bool:
    return WORKER_PIPES in os.environ


def serve(functions: dict[str, Callable[..., Any]]) -> None:
    """Answers commands until the benchmark closes the pipe. `functions` maps names to callables with JSON arguments."""
    read_end, write_end = map(int, os.environ.pop(WORKER_PIPES).split(","))
    commands, answers = os.fdopen(read_end, "r"), os.fdopen(write_end, "w")
    for line in commands:
        request = json.loads(line)
        try:
            answer = {"value": functions[request["call"]](**request["arguments"])}
        except BaseException:  # the benchmark shows it; a dead worker would only show a broken pipe
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # libraries' own shutdown (process groups, threads) may wait for peers that are gone


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ---------------------------------------------------------------- benchmark half


class SideFailed(RuntimeError):
    """A rank raised, died or did not answer; the message names side and rank."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


_open_sides: set["Side"] = set()
_interrupted: list[int] = []  # the signal that ends this program


def close_all() -> None:
    """Ends the processes of all sides that are still there."""
    for side in list(_open_sides):
        side.close()


def leave_nothing_behind() -> None:
    """From here on SIGTERM and SIGHUP end the program as an exception does, and whatever ends it ends all sides."""

    def end(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # clearing away is not interrupted
        _interrupted.append(number)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    atexit.register(close_all)


@contextlib.contextmanager
def scratch_folder(name: str, where: str | None = None) -> Iterator[str]:
    """A folder in `where` (default: TMPDIR) that is gone afterwards; the sides, which may write there, end before."""
    if where is not None:
        os.makedirs(where, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f"deepscale_{name}_", dir=where)
    try:
        yield folder
    finally:
        close_all()
        shutil.rmtree(folder, ignore_errors=True)


class Side:
    """`ranks` live processes of one implementation. A context manager; leaving it ends the processes."""

    def __init__(
        self,
        name: str,
        script: str,
        *,
        python: str = sys.executable,
        ranks: int = 1,
        threads: int = 1,
        environment: dict[str, str] | None = None,
        independent: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        """independent: every process believes that it is alone (a world of one each)."""
        self.name, self.ranks, self.timeout_s = name, ranks, timeout_s
        self.processes: list[subprocess.Popen] = []
        self.commands, self.answers = [], []
        self.closed = False
        _open_sides.add(self)
        self.log = Path(os.environ.get("TMPDIR", "/tmp")) / f"deepscale-bench-{os.getpid()}-{name.replace(' ', '-').replace('/', '-')}.log"
        port = free_port()
        for rank in range(ranks):
            world, own_rank = (1, 0) if independent else (ranks, rank)
            variables = {
                "RANK": own_rank,
                "LOCAL_RANK": own_rank,
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": world,
                "LOCAL_SIZE": world,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": free_port() if independent else port,
                "OMP_NUM_THREADS": threads,
            }
            self._start(python, script, {**{k: str(v) for k, v in variables.items()}, **(environment or {})})

    def _start(self, python: str, script: str, variables: dict[str, str]) -> None:
        to_worker, from_worker = os.pipe(), os.pipe()
        variables[WORKER_PIPES] = f"{to_worker[0]},{from_worker[1]}"
        path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja for operators compiled at run time
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [python, script],
                env={**os.environ, "PATH": path, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(to_worker[0], from_worker[1]),
                start_new_session=True,
            )
        os.close(to_worker[0])
        os.close(from_worker[1])
        self.processes.append(process)
        self.commands.append(os.fdopen(to_worker[1], "w"))
        self.answers.append(os.fdopen(from_worker[0], "r"))

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def begin(self, function: str, **arguments: Any) -> None:
        """Sends the command to every rank without waiting."""
        if self.closed:
            raise SideFailed(f"{self.name}: ended after an earlier failure; log: {self.log}")
        line = json.dumps({"call": function, "arguments": arguments}) + "\n"
        for rank, pipe in enumerate(self.commands):
            try:
                pipe.write(line)
                pipe.flush()
            except BrokenPipeError:
                raise SideFailed(self._death(rank)) from None

    def finish(self) -> list[Any]:
        """Every rank's answer to the last begin(), by rank. Raises SideFailed; the side stays usable if all ranks answered."""
        values: dict[int, Any] = {}
        failure = ""
        deadline = time.monotonic() + self.timeout_s
        with selectors.DefaultSelector() as selector:
            for rank, pipe in enumerate(self.answers):
                selector.register(pipe, selectors.EVENT_READ, rank)
            while len(values) < self.ranks:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    self.close()
                    missing = sorted(set(range(self.ranks)) - values.keys())
                    raise SideFailed(
                        failure or f"{self.name}: rank(s) {missing} did not answer within {self.timeout_s:.0f} s; log: {self.log}"
                    )
                for key, _ in ready:
                    line = key.fileobj.readline()
                    if not line:
                        message = self._death(key.data)
                        self.close()
                        raise SideFailed(failure or message)
                    answer = json.loads(line)
                    if "error" in answer and not failure:
                        failure = f"{self.name}, rank {key.data}:\n{answer['error']}"
                        deadline = min(deadline, time.monotonic() + 60.0)  # peers may be waiting for this rank
                    values[key.data] = answer.get("value")
                    selector.unregister(key.fileobj)
        if failure:
            raise SideFailed(failure)
        return [values[rank] for rank in range(self.ranks)]

    def call(self, function: str, **arguments: Any) -> list[Any]:
        self.begin(function, **arguments)
        return self.finish()

    def slowest(self, function: str, **arguments: Any) -> float:
        """The largest of the numbers that the ranks answer: the time of a step is the slowest rank's."""
        return max(self.call(function, **arguments))

    def close(self) -> None:
        self.closed = True
        _open_sides.discard(self)
        for pipe in self.commands + self.answers:
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        for process in self.processes:
            try:
                process.wait(timeout=0 if _interrupted else 5)
            except subprocess.TimeoutExpired:
                pass
            try:  # the worker leads a session of its own: nothing that it started outlives it
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()

    def _death(self, rank: int) -> str:
        code = self.processes[rank].wait()
        tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        return f"{self.name}: rank {rank} ended with exit status {code}; the end of {self.log}:\n{tail}"


def interleave(sides: list[Side], function: str, rounds: int, warm_up: int = 2, **arguments: Any) -> dict[str, list[float]]:
    """Seconds per call of every side over `rounds` rounds A B C, C B A, ...; the times of one round stand at one index."""
    for _ in range(warm_up):
        for side in sides:
            side.slowest(function, **arguments)
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for index in range(rounds):
        for side in sides if index % 2 == 0 else reversed(sides):
            times[side.name].append(side.slowest(function, **arguments))
    return times


def pair_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over rounds of numerator/denominator of the same round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def arguments(
    description: str, extra: Callable[[argparse.ArgumentParser], None] | None = None, *, uses_reference: bool = True
) -> argparse.Namespace:
    """The command line that every benchmark has. `reference` is the opponent's interpreter, or None."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, under a minute")
    parser.add_argument(
        "--reference-python",
        metavar="PYTHON",
        default=os.environ.get("DEEPSCALE_REFERENCE_PYTHON"),
        help="interpreter of an environment with DeepSpeed 0.19.8 (default: $DEEPSCALE_REFERENCE_PYTHON)",
    )
    if extra:
        extra(parser)
    args = parser.parse_args()
    leave_nothing_behind()
    args.reference = args.reference_python if args.reference_python and Path(args.reference_python).exists() else None
    if args.reference is None and uses_reference:
        given = f"{args.reference_python} does not exist" if args.reference_python else "no --reference-python given"
        print(f"SKIPPED the comparison with DeepSpeed 0.19.8: {given}", flush=True)
    return args


def have_ours() -> bool:
    """Whether this interpreter can import our package with its native part; says so when it cannot."""
    check = subprocess.run([sys.executable, "-c", "import deepspeed._C"], capture_output=True, text=True)
    if check.returncode:
        lines = check.stderr.strip().splitlines() or ["import deepspeed._C fails"]
        print(f"SKIPPED our side: {lines[-1]}", flush=True)
    return check.returncode == 0


def reference_side(name: str, script: str, python: str, *, ranks: int = 1, threads: int = 1) -> Side:
    """A side of real DeepSpeed. The timeout leaves time to compile operators, which its first use does."""
    return Side(name, script, python=python, ranks=ranks, threads=threads, environment=reference_environment(), timeout_s=900)


def reference_environment() -> dict[str, str]:
    """What real DeepSpeed needs to run on this machine's CPU."""
    return {"DS_ACCELERATOR": "cpu", "DS_SKIP_CUDA_CHECK": "1", "PYTHONPATH": ""}  # never our package by a search path


def result(name: str, *, ours: Any, opponent: Any, ratio: float | None, limit_share: float | None, **details: Any) -> None:
    """The last line of a benchmark. ratio: opponent's time / our time (above 1: we are faster) unless details say otherwise."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    line = {"name": name, "ours": ours, "opponent": opponent, "ratio": ratio, "limit_share": limit_share, **details}
    print("RESULT " + json.dumps(rounded(line)), flush=True)
