"""Collectives on one host: ours over shared memory, Gloo (torch.distributed) and a plain copy, 64 B to 256 MB, fp32 sum.

all_reduce is in place over a buffer of the given size; reduce_scatter reads and all_gather writes that many bytes on every
rank. Ours is measured twice: with buffers from Communicator.allocate (peers read them in place) and with foreign tensors.
The plain copy moves the same number of bytes inside each rank, all ranks at once. Ours, Gloo and copy take turns inside
the same processes; a sample is the slowest rank's time per call over a burst of calls that starts together. Results are
checked for equality before anything is timed. With 4 ranks on a machine of 2 cores there are more ranks than cores.
Ratios are Gloo / ours. Targets: shared buffers: reduce_scatter and all_gather 5, all_reduce 3, at every size; foreign
buffers: 1, and 5 up to 1 MB.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

KIB, MIB = 2**10, 2**20
SIZES = [64, 1 * KIB, 4 * KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB]
QUICK_SIZES = [64, 64 * KIB, MIB, 16 * MIB]
OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather")

state: dict = {}


def start(ours: bool) -> str:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if not ours:
        return "Gloo only"
    from deepspeed import _C

    state["communicator"] = _C.Communicator.from_process_group(dist.group.WORLD)
    return state["communicator"].description


def contender(kind: str, operation: str, size: int):
    """(function that does one call, input tensor, output tensor). Inputs are zeros, so that repeated sums stay finite."""
    import torch
    import torch.distributed as dist

    world, numel = dist.get_world_size(), size // 4
    communicator = state.get("communicator")

    def tensor(count: int):
        return communicator.allocate(count, torch.float32) if kind == "shared" else torch.zeros(count)

    if kind == "copy":
        source, target = torch.zeros(numel), torch.zeros(numel)
        return lambda: target.copy_(source), source, target
    given = tensor(numel // world if operation == "all_gather" else numel)
    result = given if operation == "all_reduce" else tensor(numel if operation == "all_gather" else numel // world)
    if kind == "gloo":
        calls = {
            "all_reduce": lambda: dist.all_reduce(given),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(result, given),
            "all_gather": lambda: dist.all_gather_into_tensor(result, given),
        }
    else:
        calls = {
            "all_reduce": lambda: communicator.all_reduce(given, "sum").wait_released(),
            "reduce_scatter": lambda: communicator.reduce_scatter(given, result, "sum").wait_released(),
            "all_gather": lambda: communicator.all_gather(given, result).wait_released(),
        }
    return calls[operation], given, result


def prepare(operation: str, size: int, kinds: list[str]) -> None:
    """Makes the contenders and checks that all of them give the same result."""
    import torch
    import torch.distributed as dist

    state["contenders"], expected = {}, None
    for kind in kinds:
        call, given, result = contender(kind, operation, size)
        if kind != "copy":
            generator = torch.Generator().manual_seed(dist.get_rank())
            given.copy_(torch.randint(-8, 8, given.shape, generator=generator))  # small integers: exact in any order
            call()
            if expected is None:
                expected = result.clone()
            elif not torch.equal(expected, result):
                raise AssertionError(f"{operation} of {size} bytes: {kind} differs from {kinds[0]}")
            dist.barrier()
            given.zero_()
        state["contenders"][kind] = call


def burst(kind: str, count: int) -> float:
    """Seconds per call over `count` calls that all ranks start together."""
    import torch.distributed as dist

    call = state["contenders"][kind]
    dist.barrier()
    start_time = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start_time) / count


def measure(side: harness.Side, operation: str, size: int, kinds: list[str], rounds: int, burst_s: float) -> dict[str, list[float]]:
    side.call("prepare", operation=operation, size=size, kinds=kinds)
    counts = {kind: max(1, min(2000, int(burst_s / max(side.slowest("burst", kind=kind, count=2), 1e-6)))) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for index in range(rounds):
        for kind in kinds if index % 2 else kinds[::-1]:
            times[kind].append(side.slowest("burst", kind=kind, count=counts[kind]))
    return times


def show(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB" if size >= KIB else f"{size} B"


def target(kind: str, operation: str, size: int) -> float:
    if kind == "shared":
        return 3.0 if operation == "all_reduce" else 5.0
    return 5.0 if size <= MIB else 1.0


def main() -> None:
    args = harness.arguments(__doc__, uses_reference=False)
    ours = harness.have_ours()
    kinds = (["shared", "foreign"] if ours else []) + ["gloo", "copy"]
    rows, missed = [], []
    for ranks in (2,) if args.quick else (2, 4):
        with harness.Side(f"{ranks} ranks", __file__, ranks=ranks) as side:
            print(f"--- {ranks} ranks: {side.call('start', ours=ours)[0]}", flush=True)
            for operation in OPERATIONS:
                for size in QUICK_SIZES if args.quick else SIZES:
                    times = measure(side, operation, size, kinds, 5 if args.quick else 15, 0.01 if args.quick else 0.03)
                    row = {
                        "operation": operation,
                        "ranks": ranks,
                        "bytes": size,
                        **{kind: statistics.median(times[kind]) for kind in kinds},
                    }
                    text = ", ".join(f"{kind} {row[kind] * 1e6:10.1f} us" for kind in kinds)
                    for kind in [k for k in kinds if k in ("shared", "foreign")]:
                        row[f"ratio_{kind}"] = harness.pair_ratio(times["gloo"], times[kind])
                        row[f"limit_share_{kind}"] = harness.pair_ratio(times["copy"], times[kind])
                        text += f", Gloo/{kind} {row[f'ratio_{kind}']:.1f}"
                        if row[f"ratio_{kind}"] < target(kind, operation, size):
                            goal = target(kind, operation, size)
                            missed.append(
                                f"{operation}, {ranks} ranks, {show(size)}, {kind} buffers: {row[f'ratio_{kind}']:.2f} of {goal:.0f}"
                            )
                    print(f"{operation:15}{show(size):>9}: {text}", flush=True)
                    rows.append(row)
    for line in missed:
        print(f"below its target: {line}")
    shared = [row["ratio_shared"] for row in rows if "ratio_shared" in row]
    harness.result(
        "comm",
        ours=f"{len(rows)} cases" if ours else None,
        opponent="Gloo",
        ratio=min(shared) if shared else None,
        limit_share=min(row["limit_share_shared"] for row in rows if row["bytes"] >= 16 * MIB) if shared else None,
        unit="Gloo's time / ours, smallest over all cases with shared buffers; limit: a plain copy of the buffer, 16 MiB and more",
        met=not missed if ours else None,
        cases=rows,
    )


if __name__ == "__main__":
    harness.serve({"start": start, "prepare": prepare, "burst": burst}) if harness.is_worker() else main()
