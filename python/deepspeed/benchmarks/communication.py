"""ds_bench: times collectives on the ranks of a run.

    ds_bench --num_gpus 2 --scan --all-reduce

Options that are not the benchmark's are the launcher's: outside a run the program starts itself under `deepspeed`. On CPU the
collectives take the host communicator; `--async-op` and `--dist torch` take torch's backend.

Message sizes are what a rank contributes in all (for all-gather: what it ends up with). Throughput is size / time; bus bandwidth
multiplies it by the share of the data that must cross each rank's link, so that it can be compared with the hardware:
https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Sequence

if TYPE_CHECKING:
    import torch

OPERATIONS = ("all_reduce", "all_gather", "all_to_all", "broadcast", "pt2pt", "reduce_scatter")
# Without a choice these run, as DeepSpeed's program does.
DEFAULT_OPERATIONS = ("all_reduce", "all_gather", "all_to_all", "broadcast", "pt2pt")
DTYPES = ("float", "float16", "bfloat16", "float64", "int8", "uint8", "int32", "int64")


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


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, found {value}")
    return value


def _exponent(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 40:
        raise argparse.ArgumentTypeError(f"must be 0..40 (a power of two), found {value}")
    return value


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("ds_bench", description="Times collectives on the ranks of a run.", allow_abbrev=False,
                                      epilog="Other options go to the launcher, for instance --num_gpus 2.")
    options.add_argument("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)
    options.add_argument("--trials", type=_positive, default=50, help="timed repetitions")
    options.add_argument("--warmups", type=_count, default=5, help="repetitions before them")
    options.add_argument("--maxsize", type=_exponent, default=24, help="--scan goes up to 2^maxsize elements per rank")
    options.add_argument("--async-op", action="store_true", help="start the operation and wait for its handle")
    options.add_argument("--bw-unit", choices=("Gbps", "GBps"), default="Gbps", help="unit of bandwidths")
    options.add_argument("--backend", choices=("nccl", "gloo", "ccl", "mpi"), help="torch's backend; default: the device's")
    options.add_argument("--dist", choices=("deepspeed", "torch"), default="deepspeed", help="whose functions are called")
    options.add_argument("--scan", action="store_true", help="powers of two instead of one large message")
    options.add_argument("--raw", action="store_true", help="print numbers without units")
    for name in OPERATIONS:
        options.add_argument("--" + name.replace("_", "-"), action="store_true", help=f"time {name}")
    options.add_argument("--dtype", choices=DTYPES, default="float", help="element type")
    options.add_argument("--mem-factor", type=_fraction, default=0.3,
                         help="without --scan: the part of the device's memory that one operation may take")
    options.add_argument("--debug", action="store_true", help="check the results of one repetition, and print setup details")
    options.add_argument("--device", choices=("cuda", "cpu"), help="default: the accelerator")
    return options


def bus_factor(operation: str, world: int) -> float:
    """Bus bandwidth / throughput for n ranks (table in NVIDIA's document, see above)."""
    if operation == "all_reduce":
        return 2 * (world - 1) / world
    if operation in ("all_gather", "reduce_scatter", "all_to_all"):
        return (world - 1) / world
    return 1.0


@dataclass
class Case:
    """One operation at one size. run() starts it; check() raises when the result is wrong."""

    size_bytes: int
    run: Callable[[], Any]
    check: Callable[[], bool]


def _case(operation: str, numel: int, comm: Any, options: argparse.Namespace, device: "torch.device") -> Case:
    import torch
    world, rank = comm.get_world_size(), comm.get_rank()
    dtype = getattr(torch, options.dtype)
    asynchronous = options.async_op

    def full(count: int, value: int) -> torch.Tensor:
        return torch.full((count,), value, dtype=dtype, device=device)

    def same(tensor: torch.Tensor, value: int) -> bool:
        return bool((tensor == value).all())

    share = max(1, numel // world)
    size = share * world * full(1, 0).element_size()
    mine, every = full(share, rank + 1), full(share * world, rank + 1)
    parts = lambda tensor: all(same(part, i + 1) for i, part in enumerate(tensor.chunk(world)))  # noqa: E731
    if operation == "all_reduce":
        # Sums grow from trial to trial; the check looks at the first one.
        return Case(size, lambda: comm.all_reduce(every, async_op=asynchronous), lambda: same(every, world * (world + 1) // 2))
    if operation == "all_gather":
        return Case(size, lambda: comm.all_gather_into_tensor(every, mine, async_op=asynchronous), lambda: parts(every))
    if operation == "reduce_scatter":
        return Case(size, lambda: comm.reduce_scatter_tensor(mine, every, async_op=asynchronous),
                    lambda: same(mine, world * (world + 1) // 2))
    if operation == "all_to_all":
        output = torch.empty_like(every)
        return Case(size, lambda: comm.all_to_all_single(output, every, async_op=asynchronous), lambda: parts(output))
    if operation == "broadcast":
        return Case(size, lambda: comm.broadcast(every, 0, async_op=asynchronous), lambda: same(every, 1))

    def send_to_the_right() -> Any:
        """Rank 0 to rank 1; the others look on."""
        if rank > 1 or world == 1:
            return None
        call = (comm.isend if asynchronous else comm.send) if rank == 0 else (comm.irecv if asynchronous else comm.recv)
        return call(every, 1 - rank)

    return Case(size, send_to_the_right, lambda: rank != 1 or same(every, 1))


def _largest_numel(operation: str, options: argparse.Namespace, comm: Any, device: "torch.device") -> int:
    """Elements of a message that fills --mem-factor of what the ranks of this machine share; the same on all ranks."""
    import torch
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        from deepspeed.accelerator import get_accelerator
        memory = get_accelerator().available_memory() // max(1, int(os.environ.get("LOCAL_SIZE") or comm.get_world_size()))
    # Input, output, and the buffers in between.
    copies = 4 if operation in ("all_to_all", "all_gather", "reduce_scatter") else 3
    element = torch.empty(0, dtype=getattr(torch, options.dtype)).element_size()
    limit = torch.tensor([int(memory * options.mem_factor) // (copies * element)], dtype=torch.int64, device=device)
    import torch.distributed as dist
    comm.all_reduce(limit, op=dist.ReduceOp.MIN)
    largest = int(limit.item())
    return 1 << max(0, largest.bit_length() - 1)


def _time(case: Case, options: argparse.Namespace, comm: Any, device: "torch.device") -> float:
    """Seconds per repetition, on the slowest rank."""
    import torch
    import torch.distributed as dist

    def wait(handle: Any) -> None:
        if handle is not None and hasattr(handle, "wait"):
            handle.wait()

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait(case.run())
    synchronize()
    if options.debug and not case.check():
        raise RuntimeError(f"ds_bench: rank {comm.get_rank()} received wrong values")
    for _ in range(max(0, options.warmups - 1)):
        wait(case.run())
    synchronize()
    comm.barrier()
    begin = time.perf_counter()
    for _ in range(options.trials):
        wait(case.run())
    synchronize()
    seconds = torch.tensor([(time.perf_counter() - begin) / options.trials], dtype=torch.float64)
    if device.type == "cuda":
        seconds = seconds.to(device)
    comm.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds.item())


def _size_text(size: int, raw: bool) -> str:
    if raw:
        return str(size)
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GB"


def _time_text(seconds: float, raw: bool) -> str:
    if raw:
        return f"{seconds * 1e6:.3f}"
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-3 else f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"


def header(operation: str, world: int, options: argparse.Namespace) -> str:
    unit = "(us)" if options.raw else ""
    columns = f"{'Size (Bytes)':>14} {'Description':>28} {'Duration' + unit:>14} {'Throughput (' + options.bw_unit + ')':>20} " \
              f"{'BusBW (' + options.bw_unit + ')':>16}"
    return f"\n---- Performance of {operation} on {world} ranks {'-' * 40}\n{columns}"


def row(operation: str, size: int, seconds: float, world: int, options: argparse.Namespace) -> str:
    rate = size / seconds / 1e9 * (8 if options.bw_unit == "Gbps" else 1)
    element = {"float": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1, "int32": 4, "int64": 8}[options.dtype]
    return f"{_size_text(size, options.raw):>14} {f'{size // element} x {options.dtype}':>28} " \
           f"{_time_text(seconds, options.raw):>14} {rate:>20.3f} {rate * bus_factor(operation, world):>16.3f}"


def run(options: argparse.Namespace) -> None:
    """Measures on this rank of a run; rank 0 prints."""
    import torch

    import deepspeed
    import deepspeed.comm as deepspeed_comm
    from deepspeed.accelerator import get_accelerator
    kind = options.device or get_accelerator().device_name().partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("ds_bench: error: --device cuda: torch sees no GPU; use --device cpu")
    deepspeed.init_distributed(dist_backend=options.backend or ("nccl" if kind == "cuda" else "gloo"), verbose=options.debug)
    comm: Any = deepspeed_comm if options.dist == "deepspeed" else torch.distributed
    rank, world = comm.get_rank(), comm.get_world_size()
    device = torch.device(kind, deepspeed_comm.get_local_rank()) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    if world == 1 and rank == 0:
        print("ds_bench: one rank has nobody to talk to; start more, for instance with --num_gpus 2", file=sys.stderr)
    chosen = [name for name in OPERATIONS if getattr(options, name)] or DEFAULT_OPERATIONS
    for operation in chosen:
        if rank == 0:
            print(header(operation, world, options), flush=True)
        largest = (1 << options.maxsize) * world if options.scan else _largest_numel(operation, options, comm, device)
        sizes = [(1 << power) * world for power in range(options.maxsize + 1)] if options.scan else [largest]
        for numel in sizes:
            case = _case(operation, numel, comm, options, device)
            seconds = _time(case, options, comm, device)
            if rank == 0:
                print(row(operation, case.size_bytes, seconds, world, options), flush=True)
    torch.distributed.barrier()
    deepspeed_comm.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: a rank of a run measures; elsewhere the launcher starts such ranks."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options, others = parser().parse_known_args(arguments)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if others:
            parser().error(f"unknown options: {' '.join(others)}")
        run(options)
        return
    from deepspeed.launcher.runner import become
    become("deepspeed", [*others, "--module", "deepspeed.benchmarks.communication", *command_line(options)])


def command_line(options: argparse.Namespace) -> list[str]:
    """The options as words again, those that differ from their defaults."""
    words: list[str] = []
    for name, value in vars(options).items():
        if value != parser().get_default(name):
            words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return words


if __name__ == "__main__":
    main()
