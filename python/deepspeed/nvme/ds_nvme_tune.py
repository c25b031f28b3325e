"""ds_nvme_tune: tries settings of the section "aio" on a disk and prints the best ones.

    ds_nvme_tune --nvme_dir /local/disk

DeepScale finds good settings by itself when the section does not give block_size and queue_depth; the last line of the output
compares both.
"""
from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

from deepspeed.nvme.transfer import (Settings, Transfer, check_folder, engine_line, flush_page_cache, refuse_gds, size_of,
                                     size_text)

DEFAULT_SWEEP: dict[str, list[Any]] = {"block_size": ["1M", "8M"], "queue_depth": [32, 128], "sequential_requests": [False],
                                       "single_submit": [False], "io_parallel": [1, 2, 4, 8]}
_GIB = 1 << 30


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("ds_nvme_tune", description="Finds the settings of the section \"aio\" that suit a disk.")
    options.add_argument("--nvme_dir", nargs="+", required=True, metavar="DIR", help="folders on the disks that are used together")
    options.add_argument("--sweep_config", metavar="FILE", help="JSON: lists of values for " + ", ".join(DEFAULT_SWEEP))
    options.add_argument("--no_read", action="store_true", help="do not measure reads")
    options.add_argument("--no_write", action="store_true", help="do not measure writes")
    options.add_argument("--io_size", type=size_of, default="400M", help="bytes of a transfer")
    options.add_argument("--gpu", action="store_true", help="tensors on the GPU")
    options.add_argument("--gds", action="store_true", help="GPUDirect Storage; not built")
    options.add_argument("--flush_page_cache", action="store_true", help="empty the page cache before every measurement")
    options.add_argument("--log_dir", default="_aio_bench_logs", help="folder of the measurements, one file per setting")
    options.add_argument("--loops", type=int, default=1, help="repetitions; the fastest counts")
    options.add_argument("--verbose", action="store_true", help="print every measurement")
    return options


@dataclass(frozen=True)
class Candidate:
    block_size: int
    queue_depth: int
    sequential_requests: bool
    single_submit: bool
    io_parallel: int

    def section(self) -> dict[str, Any]:
        """As ds_config.json wants it."""
        return {"single_submit": self.single_submit, "overlap_events": not self.sequential_requests,
                "intra_op_parallelism": self.io_parallel, "queue_depth": self.queue_depth, "block_size": self.block_size}

    def name(self) -> str:
        return (f"bs{size_text(self.block_size)}_qd{self.queue_depth}_p{self.io_parallel}" + ("_single" if self.single_submit else "")
                + ("_sequential" if self.sequential_requests else ""))


def _flag(value: Any) -> bool:
    if value not in (True, False, "true", "false"):
        raise ValueError(f"must be true or false, found {value!r}")
    return value in (True, "true")


def _number(value: Any) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(f"must be at least 1, found {number}")
    return number


_READERS = {"block_size": lambda value: size_of(str(value)), "queue_depth": _number, "sequential_requests": _flag,
            "single_submit": _flag, "io_parallel": _number}


def candidates(sweep: dict[str, Any]) -> list[Candidate]:
    """All combinations. Raises SystemExit for keys and values that are none."""
    values: dict[str, list[Any]] = {}
    for key, items in {**DEFAULT_SWEEP, **sweep}.items():
        if key not in _READERS:
            raise SystemExit(f"ds_nvme_tune: error: {key} in the sweep: expected {', '.join(_READERS)}")
        try:
            values[key] = list(dict.fromkeys(_READERS[key](item) for item in (items if isinstance(items, list) else [items])))
        except (ValueError, TypeError, argparse.ArgumentTypeError) as problem:
            raise SystemExit(f"ds_nvme_tune: error: {key} in the sweep: {problem}") from None
    return [Candidate(**dict(zip(values, combination))) for combination in itertools.product(*values.values())]


def read_sweep(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path) as file:
            sweep = json.load(file)
    except (OSError, ValueError) as problem:
        raise SystemExit(f"ds_nvme_tune: error: --sweep_config {path}: {problem}") from None
    if not isinstance(sweep, dict):
        raise SystemExit(f"ds_nvme_tune: error: --sweep_config {path}: expected an object of lists, found {type(sweep).__name__}")
    return sweep


def _rate(candidate: Candidate, options: argparse.Namespace, direction: str) -> float:
    """GiB per second over all folders together, of the fastest repetition."""
    settings = Settings(io_size=options.io_size, device="cuda:0" if options.gpu else "cpu", **vars(candidate))
    transfers = [Transfer(settings) for _ in options.nvme_dir]
    names = [os.path.join(folder, f"_ds_nvme_tune_{os.getpid()}_{index}.bin") for index, folder in enumerate(options.nvme_dir)]
    best = 0.0
    try:
        for transfer, name in zip(transfers, names):
            transfer.start_write(name)
        for transfer in transfers:
            transfer.wait()
        for _ in range(options.loops):
            if options.flush_page_cache:
                flush_page_cache()
            begin = time.perf_counter()
            for transfer, name in zip(transfers, names):
                transfer.start_read(name) if direction == "read" else transfer.start_write(name)
            for transfer in transfers:
                transfer.wait()
            best = max(best, options.io_size * len(names) / _GIB / (time.perf_counter() - begin))
    finally:
        for name in names:
            if os.path.exists(name):
                os.remove(name)
    return best


def measure(options: argparse.Namespace, choices: list[Candidate]) -> Iterator[tuple[str, Candidate, float]]:
    for direction, left_out in (("read", options.no_read), ("write", options.no_write)):
        for candidate in [] if left_out else choices:
            rate = _rate(candidate, options, direction)
            with open(os.path.join(options.log_dir, f"{direction}_{candidate.name()}.txt"), "w") as log:
                log.write(f"{json.dumps({'aio': candidate.section()})}\n{direction} {rate:.4f} GB/sec\n")
            if options.verbose:
                print(f"{direction:5} {candidate.name():28} {rate:7.2f} GB/sec", flush=True)
            yield direction, candidate, rate


def best_of(rates: dict[Candidate, dict[str, float]]) -> Candidate:
    """The least time for a byte there and back."""
    return min(rates, key=lambda candidate: sum(1 / max(rate, 1e-9) for rate in rates[candidate].values()))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    refuse_gds("ds_nvme_tune", options.gds, "--gds")
    if options.no_read and options.no_write:
        raise SystemExit("ds_nvme_tune: error: --no_read and --no_write leave nothing to measure")
    if options.gpu:
        import torch
        if not torch.cuda.is_available():
            raise SystemExit("ds_nvme_tune: error: --gpu: torch sees no GPU; leave it out")
    for folder in options.nvme_dir:
        check_folder("ds_nvme_tune", folder)
    choices = candidates(read_sweep(options.sweep_config))
    os.makedirs(options.log_dir, exist_ok=True)
    print(f"ds_nvme_tune: {len(choices)} settings, {size_text(options.io_size)} per transfer; {engine_line()}", flush=True)
    from deepspeed.ops.aio import tuned_settings
    own = tuned_settings(options.nvme_dir[0])
    rates: dict[Candidate, dict[str, float]] = {}
    try:
        own_choice = Candidate(own["block_size"], own["queue_depth"], False, False, 1)
        for direction, candidate, rate in measure(options, list(dict.fromkeys([*choices, own_choice]))):
            rates.setdefault(candidate, {})[direction] = rate
    except OSError as problem:
        raise SystemExit(f"ds_nvme_tune: error: {problem}") from None
    best = best_of(rates)
    text = ", ".join(f"{direction} = {rate:.2f}" for direction, rate in rates[best].items())
    print(f"Best performance (GB/sec): {text}")
    print(json.dumps({"aio": best.section()}, indent=3))
    text = ", ".join(f"{direction} = {rate:.2f}" for direction, rate in rates[own_choice].items())
    print(f"Without block_size and queue_depth DeepScale takes {size_text(own_choice.block_size)} and {own_choice.queue_depth} on this disk: {text}")


if __name__ == "__main__":
    main()
