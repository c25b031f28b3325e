"""ds_io: measures how fast tensors are written to files, or read from them.

    ds_io --folder /local/disk --io_size 1G            # writes
    ds_io --folder /local/disk --io_size 1G --read

Every process (--multi_process) moves a tensor of its own to a file of its own; all of them start each repetition together. The
files are removed afterwards. Reads and writes go past the page cache, except with --engine torch_io.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any, Sequence

import torch

from deepspeed.nvme.transfer import ENGINES, Settings, Transfer, check_folder, engine_line, refuse_gds, size_of, size_text

_PATIENCE_S = 600


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, found {value}")
    return value


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("ds_io", description="Measures how fast tensors go to files, or come from them.")
    place = options.add_mutually_exclusive_group(required=True)
    place.add_argument("--folder", nargs="+", metavar="PATH", help="where the files are; processes take turns with several")
    place.add_argument("--folder_to_device_mapping", nargs="+", metavar="PATH:GPU", help="one process per folder, with this GPU")
    options.add_argument("--io_size", type=size_of, required=True, help="bytes of the tensor, such as 64M or 2G")
    options.add_argument("--fast_io_size", type=size_of, default="64M", help="pinned buffer of --engine torch_fastio")
    options.add_argument("--read", action="store_true", help="read (default: write)")
    options.add_argument("--multi_process", type=_positive, default=1, help="processes at the same time")
    options.add_argument("--block_size", type=size_of, default="1M", help="bytes of one request")
    options.add_argument("--queue_depth", type=_positive, default=32, help="requests under way at once")
    options.add_argument("--single_submit", action="store_true", help="accepted; changes nothing")
    options.add_argument("--sequential_requests", action="store_true", help="accepted; changes nothing")
    options.add_argument("--validate", action="store_true", help="compare file and tensor after every transfer")
    options.add_argument("--engine", choices=ENGINES, default="aio_handle", help="what moves the bytes")
    options.add_argument("--loops", type=_positive, default=3, help="repetitions")
    options.add_argument("--io_parallel", type=_positive, default=1, help="multiplies --queue_depth")
    options.add_argument("--gpu", action="store_true", help="tensors on GPUs")
    options.add_argument("--use_gds", action="store_true", help="GPUDirect Storage; not built")
    options.add_argument("--slow_bounce_buffer", action="store_true", help="with --gpu: pin host memory anew for every transfer")
    options.add_argument("--torch_legacy_save", action="store_true", help="torch.save's old format, without zip")
    options.add_argument("--use_accelerator_pin_memory", action="store_true", help="pinned memory of torch, not of the handle")
    options.add_argument("--warmup_loops", type=_count, default=1, help="repetitions before the measured ones")
    options.add_argument("--include_warmup_time", action="store_true", help="count them as well")
    options.add_argument("--different_file_each_iteration", action="store_true", help="a file per repetition")
    return options


@dataclass(frozen=True)
class Place:
    folder: str
    device: str


def places(options: argparse.Namespace) -> list[Place]:
    """One per process. Raises SystemExit for what cannot be used."""
    if options.folder_to_device_mapping:
        pairs = [text.rpartition(":") for text in options.folder_to_device_mapping]
        for folder, colon, device in pairs:
            if not colon or not device.isdigit():
                raise SystemExit(f"ds_io: error: --folder_to_device_mapping {folder}{colon}{device}: expected PATH:NUMBER, like /nvme0:0")
        folders, devices = [folder for folder, _, _ in pairs], [int(device) for _, _, device in pairs]
        count = max(len(pairs), options.multi_process)
    else:
        folders, devices, count = options.folder, [], options.multi_process
    if options.gpu and not torch.cuda.is_available():
        raise SystemExit("ds_io: error: --gpu: torch sees no GPU; leave it out")
    found = []
    for index in range(count):
        number = devices[index % len(devices)] if devices else index % max(1, torch.cuda.device_count())
        if options.gpu and number >= torch.cuda.device_count():
            raise SystemExit(f"ds_io: error: GPU {number} does not exist; torch sees {torch.cuda.device_count()}")
        found.append(Place(check_folder("ds_io", folders[index % len(folders)]), f"cuda:{number}" if options.gpu else "cpu"))
    return found


def settings_of(options: argparse.Namespace, place: Place) -> Settings:
    names = Settings.__dataclass_fields__.keys() - {"device"}
    return Settings(device=place.device, **{name: getattr(options, name) for name in names})


def _move(options: argparse.Namespace, place: Place, index: int, barrier: Any) -> dict[str, list[float]]:
    """One process: seconds of every repetition."""
    transfer = Transfer(settings_of(options, place))
    repetitions = options.warmup_loops + options.loops
    names = [os.path.join(place.folder, f"_ds_io_{os.getpid()}_{index}_{loop if options.different_file_each_iteration else 0}.pt")
             for loop in range(repetitions)]
    move = transfer.read if options.read else transfer.write
    seconds, whole = [], []
    try:
        if options.read:
            for name in dict.fromkeys(names):
                transfer.write(name)
        for name in names:
            barrier.wait(_PATIENCE_S)
            begin = time.perf_counter()
            move(name)
            seconds.append(time.perf_counter() - begin)
            barrier.wait(_PATIENCE_S)
            whole.append(time.perf_counter() - begin)
    finally:
        for name in dict.fromkeys(names):
            if os.path.exists(name):
                os.remove(name)
    first = 0 if options.include_warmup_time else options.warmup_loops
    return {"task": seconds[first:], "whole": whole[first:]}


def _process(options: argparse.Namespace, place: Place, index: int, barrier: Any, results: Any) -> None:
    try:
        results.put((index, _move(options, place, index, barrier), None))
    except BaseException as problem:
        barrier.abort()
        if not isinstance(problem, (threading.BrokenBarrierError, OSError)):
            traceback.print_exc()
        results.put((index, None, None if isinstance(problem, threading.BrokenBarrierError) else str(problem)))


def measure(options: argparse.Namespace) -> list[dict[str, list[float]]]:
    """Per process. Raises SystemExit with the first problem."""
    where = places(options)
    if len(where) == 1:
        try:
            return [_move(options, where[0], 0, threading.Barrier(1))]
        except OSError as problem:
            raise SystemExit(f"ds_io: error: {problem}") from None
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(where)), context.Queue()
    processes = [context.Process(target=_process, args=(options, place, index, barrier, results), daemon=True)
                 for index, place in enumerate(where)]
    for process in processes:
        process.start()
    answers = sorted((results.get(timeout=_PATIENCE_S + 60) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join()
    for index, _, problem in answers:
        if problem is not None:
            raise SystemExit(f"ds_io: error: process {index}: {problem}")
    return [times for _, times, _ in answers]


def report(options: argparse.Namespace, times: list[dict[str, list[float]]]) -> list[str]:
    """Lines about every repetition, and their averages. All processes move their bytes at the same time."""
    direction = "Read" if options.read else "Write"
    gigabytes = options.io_size * len(times) / (1 << 30)
    lines = []
    loops = range(len(times[0]["task"]))
    for loop in loops:
        slowest = max(one["whole"][loop] for one in times)
        lines.append(f"Loop {loop}: {slowest:.6f} sec, {gigabytes / slowest:.3f} GB/sec")
    for title, key in (("Task", "task"), ("E2E", "whole")):
        latency = sum(max(one[key][loop] for one in times) for loop in loops) / len(loops)
        lines += [f"{title} {direction} Latency = {latency} sec", f"{title} {direction} Speed = {gigabytes / latency} GB/sec"]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    refuse_gds("ds_io", options.use_gds, "--use_gds")
    print(f"ds_io: {'reads' if options.read else 'writes'} {size_text(options.io_size)} per process, engine {options.engine}, block size "
          f"{size_text(options.block_size)}, queue depth {options.queue_depth} x {options.io_parallel}; {engine_line()}", flush=True)
    for line in report(options, measure(options)):
        print(line)


if __name__ == "__main__":
    main()
