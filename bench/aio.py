"""Large files past the page cache: ours as it comes, fio with its best of a grid, and DeepSpeed's aio, 4 GiB each way.

Ours is aio_handle with what deepspeed.ops.aio.tuned_settings answers for the folder: nobody tunes by hand. fio tries both engines,
four block sizes, three depths and one or two jobs on the same folder first, each direction on its own, and takes part with
the best of them. Its buffers are huge pages where the administrator has reserved enough of them
(echo 300 > /proc/sys/vm/nr_hugepages), else ordinary ones; ours are transparent huge pages, which need nobody. DeepSpeed's aio_handle (0.19.8, its operator compiled at first use) has the defaults of its handle, 1 MiB x 128.
All sides overwrite and read the same file, which is laid out beforehand, as a whole; a transfer is timed from the first request
to the last completion. Sides alternate A B B A: other users of the same disk hit neighbours alike. Ratios are medians over
rounds of the two times of the same round. Target: 0.95 of fio in both directions.
Nothing is synced: direct writes are on the device, or in its own cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

MIB, GIB = 2**20, 2**30
TARGET = 0.95
PIECE = 512 * MIB  # of a tensor: more would only need more memory
DIRECTIONS = ("write", "read")
GRID = [
    {"ioengine": engine, "bs": bs, "iodepth": depth, "numjobs": jobs}
    for engine, bs, depth, jobs in itertools.product(("io_uring", "libaio"), ("128k", "512k", "1M", "4M"), (8, 32, 64), (1, 2))
]
QUICK_GRID = [
    {"ioengine": engine, "bs": bs, "iodepth": depth, "numjobs": 1}
    for engine, bs, depth in itertools.product(("io_uring", "libaio"), ("512k", "1M", "4M"), (8, 32))
]

state: dict = {}


# ---------------------------------------------------------------- worker: ours and DeepSpeed's, the same calls


def start(path: str, size: int, kind: str) -> dict:
    """Makes handle and tensor. Returns what our side found out about the disk."""
    import torch

    found: dict = {}
    if kind == "ours":
        from deepspeed.ops.aio import aio_handle, tuned_settings

        found = tuned_settings(os.path.dirname(path))
        handle = aio_handle(found["block_size"], found["queue_depth"])
    else:
        from deepspeed.ops.op_builder import AsyncIOBuilder

        handle = AsyncIOBuilder().load().aio_handle(MIB, 128, False, True, 1)
    state.update(handle=handle, path=path, size=size)
    state["tensor"] = handle.new_cpu_locked_tensor(min(PIECE, size), torch.empty(0, dtype=torch.uint8))
    state["tensor"].random_(0, 255)
    return found


def move(direction: str) -> float:
    """Seconds for the whole file."""
    handle, tensor = state["handle"], state["tensor"]
    call = handle.async_pread if direction == "read" else handle.async_pwrite
    begin = time.perf_counter()
    for offset in range(0, state["size"], tensor.numel()):
        call(tensor, state["path"], offset)
        handle.wait()
    return time.perf_counter() - begin


def check() -> bool:
    """Writes once more; the file then holds what the tensor holds."""
    import torch

    tensor = state["tensor"]
    move("write")
    with open(state["path"], "rb") as file:
        return all(
            torch.equal(torch.frombuffer(bytearray(file.read(tensor.numel())), dtype=torch.uint8), tensor)
            for _ in range(state["size"] // tensor.numel())
        )


# ---------------------------------------------------------------- fio


def fio(path: str, direction: str, size: int, setting: dict) -> float:
    """Seconds that fio needs for `size` bytes."""
    jobs = setting["numjobs"]
    share = size // jobs
    words = ["fio", "--name=bench", f"--filename={path}", f"--rw={direction}", "--direct=1", f"--size={share}",
             f"--offset_increment={share}", "--group_reporting", "--thread", "--fallocate=none", "--output-format=json",
             "--overwrite=1"]  # fmt: skip
    words += [f"--{key}={value}" for key, value in setting.items()]
    answer = subprocess.run(words, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RuntimeError(f"fio failed: {answer.stderr.strip() or answer.stdout.strip()}")
    facts = json.loads(answer.stdout[answer.stdout.index("{"):])["jobs"][0][direction]
    if facts["io_bytes"] != share * jobs:
        raise RuntimeError(f"fio moved {facts['io_bytes']} of {share * jobs} bytes")
    return facts["io_bytes"] / (facts["bw_bytes"] or 1)


def fio_memory() -> dict:
    """Huge pages when enough of them are reserved for the largest setting of the grid: on virtual disks they count for a lot."""
    needed = 2 * 64 * 4 * MIB
    facts = dict(re.findall(r"^(HugePages_Free|Hugepagesize):\s+(\d+)", Path("/proc/meminfo").read_text(), re.M))
    reserved = int(facts.get("HugePages_Free", 0)) * int(facts.get("Hugepagesize", 0)) * 1024
    return {"iomem": "mmaphuge"} if reserved > needed else {}


def show(setting: dict) -> str:
    memory = ", huge pages" if "iomem" in setting else ""
    return f"{setting['ioengine']} {setting['bs']} x {setting['iodepth']} x {setting['numjobs']} job(s){memory}"


def best_of_grid(path: str, direction: str, size: int, grid: list[dict], finalists: int) -> dict:
    """The fastest setting: all of them on a part of the file, then the best few again."""
    times = {index: fio(path, direction, size, setting) for index, setting in enumerate(grid)}
    for index in sorted(times, key=times.__getitem__)[:finalists]:
        times[index] = statistics.median([times[index], *(fio(path, direction, size, grid[index]) for _ in range(2))])
    best = min(sorted(times, key=times.__getitem__)[:finalists], key=times.__getitem__)
    print(f"fio's best {direction}: {show(grid[best])}, {size / times[best] / 1e9:.2f} GB/s on {size // MIB} MiB", flush=True)
    return grid[best]


# ---------------------------------------------------------------- benchmark half


def rounds_of(sides: dict[str, Any], direction: str, rounds: int) -> dict[str, list[float]]:
    """Seconds per side, by round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            times[name].append(sides[name](direction))
    return times


def lay_out(path: str, size: int) -> None:
    block = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def open_sides(path: str, size: int, reference: str | None, ours: bool) -> dict[str, harness.Side]:
    sides = {}
    if ours:
        sides["ours"] = harness.Side("ours", __file__, timeout_s=600)
        found = sides["ours"].call("start", path=path, size=size, kind="ours")[0]
        text = f" ({found['reason']})" if found["reason"] else ""
        print(f"ours: {found['block_size'] // 1024} KiB x {found['queue_depth']}, found in {found['seconds']:.2f} s{text}", flush=True)
    if reference:
        side = harness.reference_side("DeepSpeed", __file__, reference)
        try:
            side.call("start", path=path, size=size, kind="reference")
            sides["DeepSpeed"] = side
        except harness.SideFailed as problem:
            print(f"SKIPPED the comparison with DeepSpeed 0.19.8: {str(problem).strip().splitlines()[-1]}", flush=True)
            side.close()
    return sides


def compare(folder: str, size: int, args: argparse.Namespace) -> tuple[dict, list[str]]:
    grid, rounds = (QUICK_GRID, 3) if args.quick else (GRID, args.rounds)
    grid = [{**setting, **fio_memory()} for setting in grid]
    path = os.path.join(folder, "file.bin")
    lay_out(path, size)
    rows, missed = {}, []
    with_workers = open_sides(path, size, args.reference, harness.have_ours())
    try:
        for direction in DIRECTIONS:
            part = min(size, 256 * MIB if args.quick else GIB)
            setting = best_of_grid(path, direction, part, grid, finalists=2 if args.quick else 4)
            sides: dict[str, Any] = {"fio": lambda way, chosen=setting: fio(path, way, size, chosen)}
            sides.update({name: lambda way, side=side: side.slowest("move", direction=way) for name, side in with_workers.items()})
            times = rounds_of(sides, direction, rounds)
            row: dict[str, Any] = {"fio_setting": show(setting)}
            for name, seconds in times.items():
                row[name] = {"median_GBps": size / statistics.median(seconds) / 1e9, "best_GBps": size / min(seconds) / 1e9}
            if "ours" in times:
                row["ratio"] = harness.pair_ratio(times["fio"], times["ours"])
                row["ratio_of_best"] = min(times["fio"]) / min(times["ours"])
                if "DeepSpeed" in times:
                    row["ratio_to_DeepSpeed"] = harness.pair_ratio(times["DeepSpeed"], times["ours"])
                if row["ratio"] < TARGET:
                    missed.append(f"{direction}: {row['ratio']:.3f} of fio, wanted {TARGET}")
            rows[direction] = row
            text = ", ".join(f"{name} {row[name]['median_GBps']:.2f} (best {row[name]['best_GBps']:.2f})" for name in times)
            print(f"{direction:5} GB/s: {text}; ours / fio {row.get('ratio', float('nan')):.3f}", flush=True)
        if "ours" in with_workers and not with_workers["ours"].call("check")[0]:
            raise AssertionError("the file holds other bytes than were written")
    finally:
        for side in with_workers.values():
            side.close()
    return rows, missed


def extra(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default=".", help="on the disk to measure (default: here)")
    parser.add_argument("--size_gib", type=float, default=4.0, help="of the file (default 4; --quick: 1)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds per direction")


def main() -> None:
    args = harness.arguments(__doc__, extra)
    if shutil.which("fio") is None:
        raise SystemExit("bench/aio.py needs fio (Debian: apt-get install fio)")
    size = int((1.0 if args.quick else args.size_gib) * GIB) // PIECE * PIECE
    folder = tempfile.mkdtemp(prefix="bench_aio_", dir=args.folder)
    try:
        rows, missed = compare(folder, size, args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for line in missed:
        print(f"below its target: {line}")
    ratios = [row["ratio"] for row in rows.values() if "ratio" in row]
    harness.result(
        "aio",
        ours={direction: row["ours"]["median_GBps"] for direction, row in rows.items()} if ratios else None,
        opponent={direction: row["fio"]["median_GBps"] for direction, row in rows.items()},
        ratio=min(ratios) if ratios else None,
        limit_share=min(ratios) if ratios else None,
        unit=f"GB/s (10^9), {size // GIB} GiB past the page cache; ratio and limit: our rate / fio's, the smaller of the two directions",
        met=not missed if ratios else None,
        cases=rows,
    )


if __name__ == "__main__":
    functions = {"start": start, "move": move, "check": check}
    harness.serve(functions) if harness.is_worker() else main()
